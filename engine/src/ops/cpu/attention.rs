//! Multi-head attention on packed queries, keys and values.

use burn::backend::flex::FlexTensor;
use rayon::prelude::*;

use super::amx;
use super::bridge::Kernel;
use super::buffers::{buffer, shape, tensor, values};
use super::math::{add_scaled, dot, exp, max, simd, sum};
use super::matrix::{Matrix, multiply};
use crate::ops::attention::{AttentionSpec, Parts};
use crate::ops::magnitude::EPSILON;

/// Queries whose scores are held at a time.
const TILE: usize = 128;

/// [`attention`](crate::ops::attention()): inputs are the rows of the sources, then the bias, if there is one, with
/// `-∞` for what is hidden.
#[derive(Debug, Clone)]
pub(in crate::ops) struct Attention {
    pub(in crate::ops) spec: AttentionSpec,
    /// What the rows of each source hold.
    pub(in crate::ops) parts: Vec<Parts>,
    pub(in crate::ops) biased: bool,
}

/// The rows of some tokens.
struct Source {
    rows: FlexTensor,
    tokens: usize,
    /// Numbers of a row.
    width: usize,
    /// Heads of the queries in a row, and those of keys and values together.
    heads: [usize; 2],
}

/// The right matrix of products, laid out for all of them.
enum Right<'a> {
    Plain(Matrix<'a>),
    Tiles(amx::Packed),
}

/// The inputs of a call and their sizes.
struct Call {
    sources: Vec<Source>,
    bias: Option<Bias>,
    batch: usize,
    /// Heads of the queries.
    heads: usize,
    /// Heads of queries that share one of keys and values.
    group: usize,
    /// Width of a head.
    head: usize,
    /// Queries.
    tokens: usize,
    /// Keys.
    seen: usize,
    cosine: bool,
    scale: f32,
    /// Products of bf16 in tile units.
    rounds: bool,
}

/// What is added to the scores.
struct Bias {
    values: FlexTensor,
    /// `[batch | 1, heads | 1, queries | 1, keys]`.
    dims: [usize; 4],
}

impl Source {
    /// Head number `head` of a row, from the queries on, of one image.
    fn head(&self, image: usize, head: usize, width: usize) -> Matrix<'_> {
        let start = image * self.tokens * self.width + head * width;
        Matrix::strided(&values(&self.rows)[start..], self.tokens, width, self.width)
    }
}

impl Bias {
    /// The queries that have a row of their own: all, or one for all.
    fn row(&self, query: usize) -> usize {
        query % self.dims[2]
    }

    /// Where the rows of an image and a head start, counted in rows.
    fn block(&self, [image, head]: [usize; 2]) -> usize {
        let [batch, heads, rows, _] = self.dims;
        (image % batch * heads + head % heads) * rows
    }

    /// `scores · scale + bias` for the queries from `start` on, in place.
    fn apply(&self, scores: &mut [f32], scale: f32, at: [usize; 2], start: usize) {
        let seen = self.dims[3];
        for (query, scores) in (start..).zip(scores.chunks_exact_mut(seen)) {
            let row = &values(&self.values)[(self.block(at) + self.row(query)) * seen..][..seen];
            simd(
                #[inline(always)]
                || {
                    for (score, bias) in scores.iter_mut().zip(row) {
                        *score = *score * scale + bias;
                    }
                },
            );
        }
    }
}

impl Call {
    fn new(kernel: &Attention, mut inputs: Vec<FlexTensor>) -> Self {
        let AttentionSpec { heads, key_heads, cosine, scale, rounds, softcap: _ } = kernel.spec;
        let bias = kernel.biased.then(|| inputs.pop().expect("a bias").to_contiguous());
        let batch = shape(&inputs[0])[0];
        let source = |(rows, parts): (FlexTensor, &Parts)| {
            let dims = shape(&rows);
            let (rows, heads) = (rows.to_contiguous(), kernel.spec.heads_of(*parts));
            Source { rows, tokens: dims[1], width: dims[2], heads }
        };
        let sources: Vec<Source> = inputs.into_iter().zip(&kernel.parts).map(source).collect();
        let count = |which: usize| {
            sources
                .iter()
                .filter(|source| source.heads[which] > 0)
                .map(|source| source.tokens)
                .sum()
        };
        let (tokens, seen) = (count(0), count(1));
        let head = sources[0].width / sources[0].heads.iter().sum::<usize>();
        let bias = bias.map(|values| {
            let dims = shape(&values).try_into().expect("four dimensions");
            Bias { values, dims }
        });
        let scale = scale.map_or_else(|| 1.0 / (head as f32).sqrt(), |scale| scale as f32);
        let group = heads / key_heads;
        Self { sources, bias, batch, heads, group, head, tokens, seen, cosine, scale, rounds }
    }

    /// `c = a · b`, or `c += a · b`, for `c` in rows that are `stride` apart.
    fn multiply(
        &self,
        c: &mut [f32],
        stride: usize,
        a: Matrix<'_>,
        b: &Right<'_>,
        accumulate: bool,
    ) {
        match b {
            Right::Tiles(b) => amx::multiply_into(c, stride, a, b, accumulate),
            Right::Plain(b) => multiply(c, stride, a, *b, accumulate, false),
        }
    }

    fn right<'a>(&self, b: Matrix<'a>) -> Right<'a> {
        if self.rounds { Right::Tiles(amx::Packed::new(b)) } else { Right::Plain(b) }
    }

    /// A head's queries in each source that has some.
    fn queries(&self, [image, head]: [usize; 2]) -> impl Iterator<Item = Matrix<'_>> {
        let own = self.sources.iter().filter(|source| source.heads[0] > 0);
        own.map(move |source| source.head(image, head, self.head))
    }

    /// The keys (0) or values (1) that a head of queries sees, in each source that has some.
    fn held(&self, [image, head]: [usize; 2], which: usize) -> impl Iterator<Item = Matrix<'_>> {
        let own = self.sources.iter().filter(|source| source.heads[1] > 0);
        own.map(move |source| {
            let first = source.heads[0] + which * source.heads[1] / 2;
            source.head(image, first + head / self.group, self.head)
        })
    }

    /// A head's queries, keys and values, each in one piece of `memory`.
    fn prepared<'a>(&self, at: [usize; 2], memory: &'a mut [Vec<f32>; 3]) -> [Matrix<'a>; 3] {
        let [queries, keys, held] = memory;
        [
            prepared(self.queries(at), self.cosine, queries),
            prepared(self.held(at, 0), self.cosine, keys),
            prepared(self.held(at, 1), false, held),
        ]
    }

    /// What each of the queries, from number `start` of all on, takes of each value: rows of `shares`, of the keys in
    /// columns.
    fn share(
        &self,
        at: [usize; 2],
        start: usize,
        queries: Matrix<'_>,
        keys: &Right<'_>,
        shares: &mut Vec<f32>,
    ) {
        shares.resize(queries.rows * self.seen, 0.0);
        self.multiply(shares, self.seen, queries, keys, false);
        match &self.bias {
            Some(bias) => {
                bias.apply(shares, self.scale, at, start);
                softmax(shares, self.seen, 1.0);
            }
            None => softmax(shares, self.seen, self.scale),
        }
    }

    /// Queries `start ..` that are handled at a time, and their number.
    fn tiles(&self) -> impl Iterator<Item = (usize, usize)> {
        let tokens = self.tokens;
        (0..tokens).step_by(TILE).map(move |start| (start, TILE.min(tokens - start)))
    }

    /// The gradients of a head's queries, keys and values, in `out`, and of its bias from that of the output.
    fn back(
        &self,
        at: [usize; 2],
        gradient: &FlexTensor,
        (memory, shares, scores): &mut ([Vec<f32>; 3], Vec<f32>, Vec<f32>),
        out: &mut [f32],
        mut bias: Option<(&Bias, &mut [f32])>,
    ) {
        let Self { heads, head, tokens, seen, .. } = *self;
        let [queries, keys, held] = self.prepared(at, memory);
        let [keys_across, held_across] = [keys, held].map(|x| self.right(x.transposed()));
        let keys = self.right(keys);
        let given = &values(gradient)[at[0] * tokens * heads * head + at[1] * head..];
        let given = Matrix::strided(given, tokens, head, heads * head);
        let (for_q, rest) = out.split_at_mut(tokens * head);
        let (for_k, for_v) = rest.split_at_mut(seen * head);
        if let Some((_, sums)) = &mut bias {
            sums.fill(0.0);
        }
        for (start, count) in self.tiles() {
            let (queries, given) = (queries.rows_at(start, count), given.rows_at(start, count));
            self.share(at, start, queries, &keys_across, shares);
            scores.resize(count * seen, 0.0);
            self.multiply(scores, seen, given, &held_across, false);
            through_softmax(shares, scores, seen, self.scale);
            if let Some((bias, sums)) = &mut bias {
                for (query, scores) in (start..).zip(scores.chunks_exact(seen)) {
                    let sums = &mut sums[bias.row(query) * seen..][..seen];
                    add_scaled(sums, 1.0 / self.scale, scores);
                }
            }
            let back = |x| Matrix::new(x, count, seen).transposed();
            self.multiply(for_v, head, back(shares), &self.right(given), start > 0);
            self.multiply(for_k, head, back(scores), &self.right(queries), start > 0);
            let scores = Matrix::new(scores, count, seen);
            self.multiply(&mut for_q[start * head..], head, scores, &keys, false);
        }
        if self.cosine {
            through_norms(self.queries(at), for_q);
            through_norms(self.held(at, 0), for_k);
        }
    }

    /// The gradient of a source's rows from those of all heads, whose queries and keys start at `first`.
    fn collected(
        &self,
        source: &Source,
        first: [usize; 2],
        parts: &[f32],
        each: usize,
    ) -> FlexTensor {
        let Self { batch, heads, group, head, tokens, seen, .. } = *self;
        let [queries, held] = source.heads;
        let mut out = buffer(batch * source.tokens * source.width);
        out.par_chunks_mut(source.width).enumerate().for_each(|(i, out)| {
            let (image, token) = (i / source.tokens, i % source.tokens);
            let part =
                |h: usize, line: usize| &parts[(image * heads + h) * each + line * head..][..head];
            for (i, out) in out.chunks_exact_mut(head).enumerate() {
                let Some(i) = i.checked_sub(queries) else {
                    out.copy_from_slice(part(i, first[0] + token));
                    continue;
                };
                let (which, own) = (i / (held / 2), i % (held / 2));
                let line = tokens + which * seen + first[1] + token;
                out.copy_from_slice(part(own * group, line));
                for h in own * group + 1..(own + 1) * group {
                    add_scaled(out, 1.0, part(h, line));
                }
            }
        });
        tensor(out, &[batch, source.tokens, source.width])
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

/// From the gradients of normalised rows to those of the rows.
fn through_norms<'a>(parts: impl Iterator<Item = Matrix<'a>>, mut gradient: &mut [f32]) {
    for x in parts {
        let (own, rest) = gradient.split_at_mut(x.rows * x.columns);
        through_norm(x, own);
        gradient = rest;
    }
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
                let total = sum(row.len(), |i| row[i]);
                // Of nothing that is seen, nothing is taken.
                let factor = if total == 0.0 { 0.0 } else { 1.0 / total };
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
        let call = Call::new(self, inputs);
        let Call { batch, heads, head, tokens, seen, .. } = call;
        // Heads side by side per image, then in the order of the output.
        let mut mixed = buffer(batch * heads * tokens * head);
        mixed.par_chunks_mut(tokens * head).enumerate().for_each_init(
            Default::default,
            |(memory, shares): &mut ([Vec<f32>; 3], Vec<f32>), (i, out)| {
                let at = [i / heads, i % heads];
                let [queries, keys, held] = call.prepared(at, memory);
                let (keys, held) = (call.right(keys.transposed()), call.right(held));
                for (start, count) in call.tiles() {
                    call.share(at, start, queries.rows_at(start, count), &keys, shares);
                    let shares = Matrix::new(shares, count, seen);
                    call.multiply(&mut out[start * head..], head, shares, &held, false);
                }
            },
        );
        let mut out = buffer(mixed.len());
        let width = heads * head;
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
        wanted: &[bool],
    ) -> Vec<Option<FlexTensor>> {
        let call = Call::new(self, inputs);
        let gradient = gradient.to_contiguous();
        let bias = call.bias.as_ref().filter(|_| wanted[call.sources.len()]);
        // Gradients of queries, keys, values and bias of each head, in this order.
        let own = (call.tokens + 2 * call.seen) * call.head;
        let each = own + bias.map_or(0, |bias| bias.dims[2] * call.seen);
        let mut parts = buffer(call.batch * call.heads * each);
        parts.par_chunks_mut(each).enumerate().for_each_init(
            Default::default,
            |memory, (i, out)| {
                let at = [i / call.heads, i % call.heads];
                let (out, for_bias) = out.split_at_mut(own);
                call.back(at, &gradient, memory, out, bias.map(|bias| (bias, for_bias)));
            },
        );
        let (mut queries, mut seen) = (0, 0);
        let mut found: Vec<Option<FlexTensor>> = Vec::new();
        for (source, wanted) in call.sources.iter().zip(wanted) {
            found.push(wanted.then(|| call.collected(source, [queries, seen], &parts, each)));
            queries += if source.heads[0] > 0 { source.tokens } else { 0 };
            seen += if source.heads[1] > 0 { source.tokens } else { 0 };
        }
        if self.biased {
            found.push(bias.map(|bias| {
                let mut sums = vec![0.0; values(&bias.values).len()];
                for (i, part) in parts.chunks_exact(each).enumerate() {
                    let first = bias.block([i / call.heads, i % call.heads]) * call.seen;
                    add_scaled(&mut sums[first..], 1.0, &part[own..]);
                }
                tensor(sums, &bias.dims)
            }));
        }
        found
    }
}
