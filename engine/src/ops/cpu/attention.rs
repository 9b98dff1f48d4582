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
/// 1. Further inputs are keys and values that are seen too, each `[batch, its tokens, 2 · heads · d]`.
#[derive(Debug, Clone)]
pub(in crate::ops) struct Attention {
    pub(in crate::ops) heads: usize,
    pub(in crate::ops) cosine: bool,
}

/// Sizes of the inputs.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    batch: usize,
    tokens: usize,
    /// Tokens whose keys and values are seen.
    seen: usize,
    heads: usize,
    /// Width of a head.
    head: usize,
}

impl Sizes {
    fn new(kernel: &Attention, inputs: &[FlexTensor]) -> Self {
        let dims = shape(&inputs[0]);
        Self {
            batch: dims[0],
            tokens: dims[1],
            seen: inputs.iter().map(|input| shape(input)[1]).sum(),
            heads: kernel.heads,
            head: dims[2] / (3 * kernel.heads),
        }
    }

    fn width(&self) -> usize {
        self.heads * self.head
    }

    /// One head of one image of part number `part` of a row, as a matrix inside `input`.
    fn part<'a>(
        &self,
        input: &'a FlexTensor,
        [image, head]: [usize; 2],
        part: usize,
    ) -> Matrix<'a> {
        let dims = shape(input);
        let (tokens, row) = (dims[1], dims[2]);
        let start = image * tokens * row + part * self.width() + head * self.head;
        Matrix::strided(&values(input)[start..], tokens, self.head, row)
    }

    fn queries<'a>(&self, inputs: &'a [FlexTensor], at: [usize; 2]) -> Matrix<'a> {
        self.part(&inputs[0], at, 0)
    }

    /// The keys (0) or values (1) of each input: the last two parts of its rows.
    fn held<'a>(
        &self,
        inputs: &'a [FlexTensor],
        at: [usize; 2],
        which: usize,
    ) -> impl Iterator<Item = Matrix<'a>> {
        let sizes = *self;
        inputs.iter().map(move |input| {
            let parts = shape(input)[2] / sizes.width();
            sizes.part(input, at, parts - 2 + which)
        })
    }
}

/// A head's queries, keys or values in `memory`, where the rows of all matrices are next to each other,
/// brought to an RMS of 1 for `cosine`.
fn prepared<'a>(
    parts: impl IntoIterator<Item = Matrix<'a>>,
    cosine: bool,
    memory: &mut Vec<f32>,
) -> Matrix<'_> {
    let (mut rows, mut columns) = (0, 0);
    for x in parts {
        let start = rows * x.columns;
        (rows, columns) = (rows + x.rows, x.columns);
        memory.resize(rows * columns, 0.0);
        let root = (columns as f32).sqrt();
        for (i, out) in memory[start..].chunks_exact_mut(columns).enumerate() {
            let row = &x.values[i * x.strides[0]..][..columns];
            simd(
                #[inline(always)]
                || {
                    let factor = match cosine {
                        true => root / (dot(row, row).sqrt() + EPSILON as f32),
                        false => 1.0,
                    };
                    for (out, x) in out.iter_mut().zip(row) {
                        *out = x * factor;
                    }
                },
            );
        }
    }
    Matrix::new(memory, rows, columns)
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
                for (g, x) in g.iter_mut().zip(row) {
                    *g = *g * factor - x * along;
                }
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
                for (g, p) in g.iter_mut().zip(p) {
                    *g = p * (*g - mean) * scale;
                }
            },
        );
    }
}

impl Kernel for Attention {
    fn forward(&self, inputs: Vec<FlexTensor>) -> FlexTensor {
        let inputs: Vec<FlexTensor> = inputs.iter().map(FlexTensor::to_contiguous).collect();
        let sizes = Sizes::new(self, &inputs);
        let Sizes { batch, tokens, seen, heads, head } = sizes;
        let scale = 1.0 / (head as f32).sqrt();
        // Heads side by side per image, then in the order of the output.
        let mut mixed = buffer(batch * heads * tokens * head);
        mixed.par_chunks_mut(tokens * head).enumerate().for_each_init(
            Default::default,
            |memory: &mut [Vec<f32>; 4], (i, out)| {
                let at = [i / heads, i % heads];
                let [for_queries, for_keys, for_values, scores] = memory;
                let queries = prepared([sizes.queries(&inputs, at)], self.cosine, for_queries);
                let keys = prepared(sizes.held(&inputs, at, 0), self.cosine, for_keys);
                let held = prepared(sizes.held(&inputs, at, 1), false, for_values);
                for start in (0..tokens).step_by(TILE) {
                    let count = TILE.min(tokens - start);
                    scores.resize(count * seen, 0.0);
                    let queries = queries.rows_at(start, count);
                    multiply(scores, seen, queries, keys.transposed(), false, false);
                    softmax(scores, seen, scale);
                    let shares = Matrix::new(scores, count, seen);
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
        let inputs: Vec<FlexTensor> = inputs.iter().map(FlexTensor::to_contiguous).collect();
        let gradient = gradient.to_contiguous();
        let sizes = Sizes::new(self, &inputs);
        let Sizes { batch, tokens, seen, heads, head } = sizes;
        let (scale, width) = (1.0 / (head as f32).sqrt(), sizes.width());
        // Gradients of queries, keys and values of each head, in this order.
        let each = (tokens + 2 * seen) * head;
        let mut parts = buffer(batch * heads * each);
        parts.par_chunks_mut(each).enumerate().for_each_init(
            Default::default,
            |memory: &mut [Vec<f32>; 5], (i, out)| {
                let at = [i / heads, i % heads];
                let [for_queries, for_keys, for_values, shares, scores] = memory;
                let queries = prepared([sizes.queries(&inputs, at)], self.cosine, for_queries);
                let keys = prepared(sizes.held(&inputs, at, 0), self.cosine, for_keys);
                let held = prepared(sizes.held(&inputs, at, 1), false, for_values);
                let given = &values(&gradient)[at[0] * tokens * width + at[1] * head..];
                let given = Matrix::strided(given, tokens, head, width);
                let (for_q, rest) = out.split_at_mut(tokens * head);
                let (for_k, for_v) = rest.split_at_mut(seen * head);
                for start in (0..tokens).step_by(TILE) {
                    let count = TILE.min(tokens - start);
                    let (queries, given) =
                        (queries.rows_at(start, count), given.rows_at(start, count));
                    shares.resize(count * seen, 0.0);
                    scores.resize(count * seen, 0.0);
                    multiply(shares, seen, queries, keys.transposed(), false, false);
                    softmax(shares, seen, scale);
                    multiply(scores, seen, given, held.transposed(), false, false);
                    through_softmax(shares, scores, seen, scale);
                    let back = |x| Matrix::new(x, count, seen).transposed();
                    multiply(for_v, head, back(shares), given, start > 0, false);
                    multiply(for_k, head, back(scores), queries, start > 0, false);
                    let scores = Matrix::new(scores, count, seen);
                    multiply(&mut for_q[start * head..], head, scores, keys, false, false);
                }
                if self.cosine {
                    through_norm(sizes.queries(&inputs, at), for_q);
                    let mut rest = for_k;
                    for keys in sizes.held(&inputs, at, 0) {
                        let (own, after) = rest.split_at_mut(keys.rows * head);
                        through_norm(keys, own);
                        rest = after;
                    }
                }
            },
        );
        let mut first = 0;
        let of_input = |input: &FlexTensor| {
            let dims = shape(input);
            let (count, row) = (dims[1], dims[2]);
            let queries = row / width - 2;
            let mut out = buffer(batch * count * row);
            out.par_chunks_mut(row).enumerate().for_each(|(i, out)| {
                let (image, token) = (i / count, i % count);
                for (i, out) in out.chunks_exact_mut(head).enumerate() {
                    let (part, h) = (i / heads, i % heads);
                    let line = match part.checked_sub(queries) {
                        None => token,
                        Some(which) => tokens + which * seen + first + token,
                    };
                    let start = (image * heads + h) * each + line * head;
                    out.copy_from_slice(&parts[start..start + head]);
                }
            });
            first += count;
            Some(tensor(out, &dims))
        };
        inputs.iter().map(of_input).collect()
    }
}
