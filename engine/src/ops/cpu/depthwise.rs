//! Convolutions with one filter per channel, without gradients.

use burn::backend::flex::FlexTensor;
use rayon::prelude::*;

use super::buffers::{buffer, shape, tensor, values};
use super::math::simd;
use crate::ops::convolution::Side;

/// Convolution of `[batch, height, width, channels]` with filters `[kernel · kernel, channels]`, plus a bias,
/// clipped to `limits`; `stride` apart, with as much zero border as TensorFlow's `same`.
pub(in crate::ops) fn depthwise(
    x: &FlexTensor,
    weight: &FlexTensor,
    bias: &FlexTensor,
    stride: usize,
    limits: Option<[f32; 2]>,
) -> FlexTensor {
    let [x, weight, bias] = [x, weight, bias].map(FlexTensor::to_contiguous);
    let [batch, height, width, channels]: [usize; 4] =
        shape(&x).try_into().expect("four dimensions");
    let kernel = shape(&weight)[0].isqrt();
    let sides = [height, width].map(|side| Side::new(side, kernel, stride));
    let [rows, columns] = sides.map(|side| side.out);
    let mut out = buffer(batch * rows * columns * channels);
    out.par_chunks_mut(columns * channels).enumerate().for_each(|(i, out)| {
        let (image, row) = (i / rows, i % rows);
        let x = &values(&x)[image * height * width * channels..][..height * width * channels];
        simd(
            #[inline(always)]
            || {
                for (column, out) in out.chunks_exact_mut(channels).enumerate() {
                    out.copy_from_slice(values(&bias));
                    for (ky, y) in sides[0].taps(row, stride) {
                        for (kx, at) in sides[1].taps(column, stride) {
                            let x = &x[(y * width + at) * channels..][..channels];
                            let filter =
                                &values(&weight)[(ky * kernel + kx) * channels..][..channels];
                            for ((out, x), weight) in out.iter_mut().zip(x).zip(filter) {
                                *out = x.mul_add(*weight, *out);
                            }
                        }
                    }
                    if let Some([low, high]) = limits {
                        out.iter_mut().for_each(|out| *out = out.clamp(low, high));
                    }
                }
            },
        );
    });
    tensor(out, &[batch, rows, columns, channels])
}
