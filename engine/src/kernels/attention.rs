//! Multi-head self-attention on packed queries, keys and values.

use burn::backend::flex::FlexTensor;
use rayon::prelude::*;

use super::bridge::Kernel;
use super::math::{dot, exp, max, simd, sum};
use super::matrix::{Matrix, multiply};
use super::memory::{buffer, shape, tensor, values};
use crate::layers::magnitude::EPSILON;

/// Queries whose scores are held at a time.
const TILE: usize = 128;

/// `softmax(q · kᵀ / √d) · v` per head, from `[batch, tokens, 3 · heads · d]` to
/// `[batch, tokens, heads · d]`; with `cosine`, of queries and keys that are first brought to an RMS of
/// 1.
#[derive(Debug, Clone)]
pub(super) struct Attention {
    pub(super) heads: usize,
    pub(super) cosine: bool,
}

/// Sizes of the packed input.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    batch: usize,
    tokens: usize,
    heads: usize,
    /// Width of a head.
    head: usize,
}

impl Sizes {
    fn new(kernel: &Attention, packed: &FlexTensor) -> Self {
        let dims = shape(packed);
        Self {
            batch: dims[0],
            tokens: dims[1],
            heads: kernel.heads,
            head: dims[2] / (3 * kernel.heads),
        }
    }

    fn width(&self) -> usize {
        self.heads * self.head
    }

    /// Queries (0), keys (1) or values (2) of one head of one image, as a matrix inside `packed`.
    fn part<'a>(&self, packed: &'a [f32], image: usize, head: usize, part: usize) -> Matrix<'a> {
        let row = 3 * self.width();
        let start = image * self.tokens * row + part * self.width() + head * self.head;
        Matrix::strided(&packed[start..], self.tokens, self.head, row)
    }
}

/// A head's queries, keys or values in `memory`, where their rows are next to each other, brought to an
/// RMS of 1 for `cosine`.
fn prepared<'a>(x: Matrix<'_>, cosine: bool, memory: &'a mut Vec<f32>) -> Matrix<'a> {
    memory.resize(x.rows * x.columns, 0.0);
    let root = (x.columns as f32).sqrt();
    for (i, out) in memory.chunks_exact_mut(x.columns).enumerate() {
        let row = &x.values[i * x.strides[0]..][..x.columns];
        simd(
            #[inline(always)]
            || {
                let factor = match cosine {
                    true => root / (dot(row, row).sqrt() + EPSILON as f32),
                    false => 1.0,
                };
                out.iter_mut().zip(row).for_each(|(out, x)| *out = x * factor);
            },
        );
    }
    Matrix::new(memory, x.rows, x.columns)
}

/// From the gradient of a normalised row to that of the row.
fn through_norm(x: Matrix<'_>, gradient: &mut [f32]) {
    let root = (x.columns as f32).sqrt();
    for (i, g) in gradient.chunks_exact_mut(x.columns).enumerate() {
        let row = &x.values[i * x.strides[0]..][..x.columns];
        simd(
            #[inline(always)]
            || {
                let norm = dot(row, row).sqrt().max(1e-12);
                let factor = root / (norm + EPSILON as f32);
                let along = dot(row, g) * factor / ((norm + EPSILON as f32) * norm);
                g.iter_mut().zip(row).for_each(|(g, x)| *g = *g * factor - x * along);
            },
        );
    }
}

/// Softmax of each row times `scale`, in place.
fn softmax(scores: &mut [f32], columns: usize, scale: f32) {
    for row in scores.chunks_exact_mut(columns) {
        simd(
            #[inline(always)]
            || {
                let largest = max(row);
                row.iter_mut().for_each(|s| *s = exp((*s - largest) * scale));
                let factor = 1.0 / sum(row.len(), |i| row[i]);
                row.iter_mut().for_each(|s| *s *= factor);
            },
        );
    }
}

/// From the gradient of a softmax's output, in place, to that of the scores before `scale`.
fn through_softmax(shares: &[f32], gradient: &mut [f32], columns: usize, scale: f32) {
    for (p, g) in shares.chunks_exact(columns).zip(gradient.chunks_exact_mut(columns)) {
        simd(
            #[inline(always)]
            || {
                let mean = dot(p, g);
                g.iter_mut().zip(p).for_each(|(g, p)| *g = p * (*g - mean) * scale);
            },
        );
    }
}

impl Kernel for Attention {
    fn forward(&self, inputs: Vec<FlexTensor>) -> FlexTensor {
        let packed = inputs[0].to_contiguous();
        let sizes = Sizes::new(self, &packed);
        let Sizes { batch, tokens, heads, head } = sizes;
        let scale = 1.0 / (head as f32).sqrt();
        // Heads side by side per image, then in the order of the output.
        let mut mixed = buffer(batch * heads * tokens * head);
        mixed.par_chunks_mut(tokens * head).enumerate().for_each_init(
            Default::default,
            |memory: &mut [Vec<f32>; 4], (i, out)| {
                let part = |part| sizes.part(values(&packed), i / heads, i % heads, part);
                let [for_queries, for_keys, for_values, scores] = memory;
                let queries = prepared(part(0), self.cosine, for_queries);
                let keys = prepared(part(1), self.cosine, for_keys);
                let held = prepared(part(2), false, for_values);
                for start in (0..tokens).step_by(TILE) {
                    let count = TILE.min(tokens - start);
                    scores.resize(count * tokens, 0.0);
                    multiply(
                        scores,
                        tokens,
                        queries.rows_at(start, count),
                        keys.transposed(),
                        false,
                        false,
                    );
                    softmax(scores, tokens, scale);
                    let shares = Matrix::new(scores, count, tokens);
                    multiply(&mut out[start * head..], head, shares, held, false, false);
                }
            },
        );
        let mut out = buffer(mixed.len());
        let width = sizes.width();
        out.par_chunks_mut(width).enumerate().for_each(|(row, out)| {
            let (image, token) = (row / tokens, row % tokens);
            for (h, out) in out.chunks_exact_mut(head).enumerate() {
                let start = ((image * heads + h) * tokens + token) * head;
                out.copy_from_slice(&mixed[start..start + head]);
            }
        });
        tensor(out, &[batch, tokens, width])
    }

    fn backward(
        &self,
        inputs: Vec<FlexTensor>,
        gradient: FlexTensor,
        _wanted: &[bool],
    ) -> Vec<Option<FlexTensor>> {
        let (packed, gradient) = (inputs[0].to_contiguous(), gradient.to_contiguous());
        let sizes = Sizes::new(self, &packed);
        let Sizes { batch, tokens, heads, head } = sizes;
        let (scale, width) = (1.0 / (head as f32).sqrt(), sizes.width());
        // Gradients of queries, keys and values of each head, in this order.
        let step = tokens * head;
        let mut parts = buffer(batch * heads * 3 * step);
        parts.par_chunks_mut(3 * step).enumerate().for_each_init(
            Default::default,
            |memory: &mut [Vec<f32>; 5], (i, out)| {
                let (image, h) = (i / heads, i % heads);
                let part = |part| sizes.part(values(&packed), image, h, part);
                let [for_queries, for_keys, for_values, shares, scores] = memory;
                let queries = prepared(part(0), self.cosine, for_queries);
                let keys = prepared(part(1), self.cosine, for_keys);
                let held = prepared(part(2), false, for_values);
                let given = &values(&gradient)[image * tokens * width + h * head..];
                let given = Matrix::strided(given, tokens, head, width);
                let (for_q, rest) = out.split_at_mut(step);
                let (for_k, for_v) = rest.split_at_mut(step);
                for start in (0..tokens).step_by(TILE) {
                    let count = TILE.min(tokens - start);
                    let (queries, given) =
                        (queries.rows_at(start, count), given.rows_at(start, count));
                    shares.resize(count * tokens, 0.0);
                    scores.resize(count * tokens, 0.0);
                    multiply(shares, tokens, queries, keys.transposed(), false, false);
                    softmax(shares, tokens, scale);
                    multiply(scores, tokens, given, held.transposed(), false, false);
                    through_softmax(shares, scores, tokens, scale);
                    let back = |x| Matrix::new(x, count, tokens).transposed();
                    multiply(for_v, head, back(shares), given, start > 0, false);
                    multiply(for_k, head, back(scores), queries, start > 0, false);
                    let scores = Matrix::new(scores, count, tokens);
                    multiply(&mut for_q[start * head..], head, scores, keys, false, false);
                }
                if self.cosine {
                    through_norm(part(0), for_q);
                    through_norm(part(1), for_k);
                }
            },
        );
        let mut out = buffer(batch * tokens * 3 * width);
        out.par_chunks_mut(3 * width).enumerate().for_each(|(row, out)| {
            let (image, token) = (row / tokens, row % tokens);
            for (i, out) in out.chunks_exact_mut(head).enumerate() {
                let (part, h) = (i / heads, i % heads);
                let start = ((image * heads + h) * 3 + part) * step + token * head;
                out.copy_from_slice(&parts[start..start + head]);
            }
        });
        vec![Some(tensor(out, &shape(&packed)))]
    }
}
