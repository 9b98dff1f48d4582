//! The autoencoder's layers on images, without gradients.

use burn::backend::flex::FlexTensor;
use rayon::prelude::*;

use super::activation::activate;
use super::amx::{self, Side, Tiles};
use super::buffers::{buffer, shape, tensor, values};
use super::math::{simd, sum};
use super::matrix::{Matrix, multiply};
use super::mixed;
use crate::ops::activation::Activation;

/// Numbers of the output that one task computes: its sums stay in the second cache.
const SUMS: usize = 1 << 17;

/// Convolution `[out, in, 3, 3]` with a border of zeros, of an image that may be doubled in size first.
///
/// Each of the nine taps is a matrix product with the padded image, shifted; of bf16 if `rounds`, where the machine has
/// those.
pub(in crate::ops) fn conv3x3(
    x: &FlexTensor,
    weight: &FlexTensor,
    bias: Option<&FlexTensor>,
    double: bool,
    rounds: bool,
) -> FlexTensor {
    let (x, weight) = (x.to_contiguous(), weight.to_contiguous());
    let bias = bias.map(FlexTensor::to_contiguous);
    let [batch, inputs, small_height, small_width] = dims(&x);
    let outputs = shape(&weight)[0];
    let factor = if double { 2 } else { 1 };
    let (height, width) = (small_height * factor, small_width * factor);
    // A row of the padded image.
    let line = width + 2;
    let taps = Taps::new(values(&weight), [outputs, inputs], rounds);
    let rows = (SUMS / (outputs * line)).clamp(1, height);
    let blocks = height.div_ceil(rows);
    // The rows of a block and one on each side, and a few zeros where the widest shift ends.
    let plane = (rows + 2) * line + 2;
    let part = |task: usize| {
        let (image, first) = (task / blocks, task % blocks * rows);
        let mut window = vec![0.0; inputs * plane];
        let small = small_height * small_width;
        let planes = values(&x)[image * inputs * small..].chunks_exact(small);
        for (window, x) in window.chunks_exact_mut(plane).zip(planes) {
            fill(&mut window[..(rows + 2) * line], x, small_width, factor, first);
        }
        let count = rows.min(height - first) * line;
        let shifted =
            |tap: usize| Matrix::strided(&window[tap / 3 * line + tap % 3..], inputs, count, plane);
        let mut sums = buffer(outputs * count);
        taps.sum_into(&mut sums, count, shifted);
        sums
    };
    let mut out = buffer(batch * outputs * height * width);
    // A few tasks at a time: the sums of all together would be as large as the images.
    let wave = 4 * rayon::current_num_threads();
    for first in (0..batch * blocks).step_by(wave) {
        let tasks = first..(batch * blocks).min(first + wave);
        let parts: Vec<Vec<f32>> = tasks.into_par_iter().map(part).collect();
        out.par_chunks_mut(height * width).enumerate().for_each(|(i, out)| {
            let (image, channel) = (i / outputs, i % outputs);
            let bias = bias.as_ref().map_or(0.0, |bias| values(bias)[channel]);
            let own = (first..).zip(&parts).filter(|(task, _)| task / blocks == image);
            for (task, part) in own {
                let out = out[task % blocks * rows * width..].chunks_exact_mut(width);
                let sums = part[channel * (part.len() / outputs)..].chunks_exact(line);
                for (out, sums) in out.take(rows).zip(sums) {
                    out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum + bias);
                }
            }
        });
    }
    tensor(out, &[batch, outputs, height, width])
}

/// The weights of a filter, one matrix per place.
struct Taps {
    /// `[9, out, in]`.
    values: Vec<f32>,
    widths: [usize; 2],
    laid: Laid,
}

/// What the matrices of a filter are laid out for.
enum Laid {
    /// Products of f32.
    Rows,
    /// Products of bf16 in vectors.
    Words([Vec<u32>; 9]),
    /// Products of bf16 in tile units.
    Tiles([Tiles; 9]),
}

impl Taps {
    /// Of weights `[out, in, 9]`, for products of bf16 if they `round`, where the machine has those.
    fn new(weights: &[f32], widths: [usize; 2], rounds: bool) -> Self {
        let size = widths[0] * widths[1];
        let mut values = buffer(9 * size);
        for (i, weight) in weights.chunks_exact(9).enumerate() {
            for (tap, &weight) in weight.iter().enumerate() {
                values[tap * size + i] = weight;
            }
        }
        let mut taps = Self { values, widths, laid: Laid::Rows };
        if rounds && amx::available() {
            let tile = |tap| amx::pack(Side::Left, taps.matrix(tap), true);
            taps.laid = Laid::Tiles(std::array::from_fn(tile));
        } else if rounds && mixed::in_vectors() {
            taps.laid = Laid::Words(std::array::from_fn(|tap| mixed::in_rows(taps.matrix(tap))));
        }
        taps
    }

    fn matrix(&self, tap: usize) -> Matrix<'_> {
        let [outputs, inputs] = self.widths;
        Matrix::new(&self.values[tap * outputs * inputs..][..outputs * inputs], outputs, inputs)
    }

    /// The sum of all products with the image, `shifted` for each, `[in, count]`.
    fn sum_into<'a>(&self, sums: &mut [f32], count: usize, shifted: impl Fn(usize) -> Matrix<'a>) {
        match &self.laid {
            Laid::Tiles(tiles) => amx::sum_into(sums, count, tiles, std::array::from_fn(shifted)),
            Laid::Words(words) => {
                for (tap, words) in words.iter().enumerate() {
                    mixed::add(sums, words, shifted(tap), tap > 0);
                }
            }
            Laid::Rows => {
                for tap in 0..9 {
                    multiply(sums, count, self.matrix(tap), shifted(tap), tap > 0, false);
                }
            }
        }
    }
}

/// Fills rows with those of an image, enlarged `factor` times, from the one before row `first` on; what is beyond
/// its borders is left.
fn fill(window: &mut [f32], x: &[f32], width: usize, factor: usize, first: usize) {
    let height = x.len() / width * factor;
    for (i, out) in window.chunks_exact_mut(width * factor + 2).enumerate() {
        let Some(row) = (first + i).checked_sub(1).filter(|&row| row < height) else {
            continue;
        };
        let x = &x[row / factor * width..][..width];
        for (out, x) in out[1..].chunks_exact_mut(factor).zip(x) {
            out.fill(*x);
        }
    }
}

/// Group norm with the constant `epsilon`, then SiLU.
pub(in crate::ops) fn norm_silu(
    x: &FlexTensor,
    groups: usize,
    epsilon: f32,
    [gamma, beta]: [&FlexTensor; 2],
) -> FlexTensor {
    let x = x.to_contiguous();
    let (gamma, beta) = (gamma.to_contiguous(), beta.to_contiguous());
    let [_, channels, height, width] = dims(&x);
    let (plane, per_group) = (height * width, channels / groups);
    let group = per_group * plane;
    let mut out = buffer(values(&x).len());
    let groups_of = out.par_chunks_mut(group).zip(values(&x).par_chunks(group)).enumerate();
    groups_of.for_each(|(i, (out, x))| {
        simd(
            #[inline(always)]
            || {
                let mean = mean_of(x, |x| x);
                let variance = mean_of(x, |x| (x - mean) * (x - mean));
                let scale = 1.0 / (variance + epsilon).sqrt();
                let planes = out.chunks_exact_mut(plane).zip(x.chunks_exact(plane));
                for (c, (out, x)) in planes.enumerate() {
                    let channel = i % groups * per_group + c;
                    let factor = scale * values(&gamma)[channel];
                    let shift = values(&beta)[channel] - mean * factor;
                    out.iter_mut().zip(x).for_each(|(out, x)| *out = x * factor + shift);
                }
            },
        );
        activate(Activation::Silu, out);
    });
    tensor(out, &shape(&x))
}

/// Mean of `f(x)`: sums of thousands of numbers at a time, added in double precision.
#[inline(always)]
fn mean_of(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let part = |part: &[f32]| f64::from(sum(part.len(), |i| f(part[i])));
    (x.chunks(4096).map(part).sum::<f64>() / x.len() as f64) as f32
}

fn dims(x: &FlexTensor) -> [usize; 4] {
    shape(x).try_into().expect("four dimensions")
}
