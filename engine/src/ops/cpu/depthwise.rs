//! Convolutions with one filter per channel.

use burn::backend::flex::FlexTensor;
use rayon::prelude::*;

use super::activation::activate;
use super::bridge::Kernel;
use super::buffers::{buffer, shape, tensor, values};
use super::math::simd;
use crate::ops::activation::Activation;
use crate::ops::convolution::Side;

/// Convolution of `[batch, height, width, channels]` with filters `[kernel · kernel, channels]`, plus a bias
/// `[channels]`: with as much zero border as TensorFlow's `same`. The inputs are these, in this order.
#[derive(Debug, Clone)]
pub(in crate::ops) struct Depthwise {
    /// Pixels from one place of the output to the next.
    pub(in crate::ops) stride: usize,
    /// Of the output; not known to the backward pass.
    pub(in crate::ops) activation: Option<Activation>,
}

/// Sizes of an input, and its two sides.
struct Geometry {
    batch: usize,
    size: [usize; 2],
    channels: usize,
    kernel: usize,
    sides: [Side; 2],
}

impl Geometry {
    fn out(&self) -> [usize; 2] {
        self.sides.map(|side| side.out)
    }
}

impl Depthwise {
    fn geometry(&self, x: &FlexTensor, weight: &FlexTensor) -> Geometry {
        let [batch, height, width, channels]: [usize; 4] =
            shape(x).try_into().expect("four dimensions");
        let kernel = shape(weight)[0].isqrt();
        let sides = [height, width].map(|side| Side::new(side, kernel, self.stride));
        Geometry { batch, size: [height, width], channels, kernel, sides }
    }

    /// The gradient of the input.
    fn of_input(&self, g: &Geometry, weight: &[f32], gradient: &[f32]) -> Vec<f32> {
        let ([height, width], [rows, columns], channels) = (g.size, g.out(), g.channels);
        let mut out = vec![0.0; g.batch * height * width * channels];
        out.par_chunks_mut(width * channels).enumerate().for_each(|(i, out)| {
            let (image, y) = (i / height, i % height);
            let gradient = &gradient[image * rows * columns * channels..];
            simd(
                #[inline(always)]
                || {
                    for (ky, row) in g.sides[0].places(y, self.stride) {
                        for (x, out) in out.chunks_exact_mut(channels).enumerate() {
                            for (kx, column) in g.sides[1].places(x, self.stride) {
                                let from = &gradient[(row * columns + column) * channels..];
                                let filter = &weight[(ky * g.kernel + kx) * channels..];
                                let pairs = from[..channels].iter().zip(&filter[..channels]);
                                for (out, (from, weight)) in out.iter_mut().zip(pairs) {
                                    *out = from.mul_add(*weight, *out);
                                }
                            }
                        }
                    }
                },
            );
        });
        out
    }

    /// The gradient of the filters.
    fn of_weight(&self, g: &Geometry, x: &[f32], gradient: &[f32]) -> Vec<f32> {
        let ([height, width], [rows, columns], channels) = (g.size, g.out(), g.channels);
        let mut out = vec![0.0; g.kernel * g.kernel * channels];
        out.par_chunks_mut(channels).enumerate().for_each(|(tap, out)| {
            let at = [tap / g.kernel, tap % g.kernel];
            for image in 0..g.batch {
                for row in 0..rows {
                    let Some(y) = g.sides[0].under(row, at[0], self.stride) else { continue };
                    for column in 0..columns {
                        let Some(place) = g.sides[1].under(column, at[1], self.stride) else {
                            continue;
                        };
                        let from = ((image * rows + row) * columns + column) * channels;
                        let x = &x[((image * height + y) * width + place) * channels..];
                        let pairs = gradient[from..][..channels].iter().zip(&x[..channels]);
                        for (out, (gradient, x)) in out.iter_mut().zip(pairs) {
                            *out = gradient.mul_add(*x, *out);
                        }
                    }
                }
            }
        });
        out
    }
}

impl Kernel for Depthwise {
    fn forward(&self, inputs: Vec<FlexTensor>) -> FlexTensor {
        let [x, weight, bias] = [0, 1, 2].map(|i| inputs[i].to_contiguous());
        let g = self.geometry(&x, &weight);
        let ([height, width], [rows, columns], channels) = (g.size, g.out(), g.channels);
        let mut out = buffer(g.batch * rows * columns * channels);
        out.par_chunks_mut(columns * channels).enumerate().for_each(|(i, out)| {
            let (image, row) = (i / rows, i % rows);
            let x = &values(&x)[image * height * width * channels..][..height * width * channels];
            simd(
                #[inline(always)]
                || {
                    for (column, out) in out.chunks_exact_mut(channels).enumerate() {
                        out.copy_from_slice(values(&bias));
                        for (ky, y) in g.sides[0].taps(row, self.stride) {
                            for (kx, at) in g.sides[1].taps(column, self.stride) {
                                let x = &x[(y * width + at) * channels..][..channels];
                                let filter =
                                    &values(&weight)[(ky * g.kernel + kx) * channels..][..channels];
                                for ((out, x), weight) in out.iter_mut().zip(x).zip(filter) {
                                    *out = x.mul_add(*weight, *out);
                                }
                            }
                        }
                    }
                },
            );
            if let Some(activation) = self.activation {
                activate(activation, out);
            }
        });
        tensor(out, &[g.batch, rows, columns, channels])
    }

    fn backward(
        &self,
        inputs: Vec<FlexTensor>,
        gradient: FlexTensor,
        wanted: &[bool],
    ) -> Vec<Option<FlexTensor>> {
        let [x, weight] = [0, 1].map(|i| inputs[i].to_contiguous());
        let (g, gradient) = (self.geometry(&x, &weight), gradient.to_contiguous());
        let gradient = values(&gradient);
        let of_bias = || {
            let mut sum = vec![0.0; g.channels];
            for row in gradient.chunks_exact(g.channels) {
                sum.iter_mut().zip(row).for_each(|(sum, gradient)| *sum += gradient);
            }
            sum
        };
        vec![
            wanted[0].then(|| tensor(self.of_input(&g, values(&weight), gradient), &shape(&x))),
            wanted[1].then(|| tensor(self.of_weight(&g, values(&x), gradient), &shape(&weight))),
            wanted[2].then(|| tensor(of_bias(), &[g.channels])),
        ]
    }
}
