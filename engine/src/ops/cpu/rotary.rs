//! Norms of heads and rotary positions, in one pass over packed rows.

use burn::backend::flex::FlexTensor;
use rayon::prelude::*;

use super::bridge::Kernel;
use super::buffers::{Rows, shape, tensor, values, whole};
use super::math::{dot, simd};
use super::modulate::rotate as rotate_halves;
use crate::ops::rotary::Pairs;

/// Rows that one task handles.
const ROWS: usize = 32;

/// [`norm_and_rotate`](crate::ops::norm_and_rotate): inputs are the rows, then the gains of queries and keys if there
/// is a norm, then cosines and sines if there are positions.
#[derive(Debug, Clone)]
pub(in crate::ops) struct NormAndRotate {
    /// Heads of queries, and of keys, at the start of a row.
    pub(in crate::ops) heads: [usize; 2],
    /// Width of a head.
    pub(in crate::ops) head: usize,
    /// The norm's constant.
    pub(in crate::ops) norm: Option<f32>,
    pub(in crate::ops) pairs: Option<Pairs>,
}

/// The inputs but the rows.
struct Factors {
    gains: Option<[FlexTensor; 2]>,
    angles: Option<(Pairs, [Rows; 2])>,
}

impl Factors {
    fn new(kernel: &NormAndRotate, inputs: impl Iterator<Item = FlexTensor>) -> Self {
        let mut inputs = inputs;
        let mut two = || [(); 2].map(|()| inputs.next().expect("two inputs per part that is on"));
        let gains = kernel.norm.map(|_| two().map(|gain| gain.to_contiguous()));
        let angles = kernel.pairs.map(|pairs| (pairs, two().map(Rows::new)));
        Self { gains, angles }
    }

    /// Turns a head of one token, back with a `sign` of -1.
    #[inline(always)]
    fn rotate(&self, x: &mut [f32], [batch, token]: [usize; 2], sign: f32) {
        let Some((pairs, [cos, sin])) = &self.angles else { return };
        let (cos, sin) = (cos.row(batch, token), sin.row(batch, token));
        match pairs {
            Pairs::Halves => rotate_halves(x, cos, sin, sign),
            Pairs::Interleaved => {
                for ((x, &cos), &sin) in x.chunks_exact_mut(2).zip(cos).zip(sin) {
                    let (u, v, sin) = (x[0], x[1], sign * sin);
                    (x[0], x[1]) = (u * cos - v * sin, u * sin + v * cos);
                }
            }
        }
    }
}

/// One over the root mean square.
#[inline(always)]
fn factor(x: &[f32], epsilon: f32) -> f32 {
    1.0 / (dot(x, x) / x.len() as f32 + epsilon).sqrt()
}

/// From the gradient of a normalised head to that of the head, in place; that of the gain is added to `sums`.
#[inline(always)]
fn through_norm(x: &[f32], epsilon: f32, gain: &[f32], gradient: &mut [f32], sums: &mut [f32]) {
    let factor = factor(x, epsilon);
    for (((sum, g), x), gain) in sums.iter_mut().zip(&mut *gradient).zip(x).zip(gain) {
        *sum += *g * x * factor;
        *g *= gain;
    }
    let along = dot(x, gradient) * factor * factor / x.len() as f32;
    for (g, x) in gradient.iter_mut().zip(x) {
        *g = factor * (*g - x * along);
    }
}

impl NormAndRotate {
    /// Heads that change, and for each whether it is one of the keys (1) or of the queries (0).
    fn changed(&self) -> impl Iterator<Item = (usize, usize)> {
        let [queries, keys] = self.heads;
        (0..queries + keys).map(move |head| (head, usize::from(head >= queries)))
    }
}

impl Kernel for NormAndRotate {
    fn forward(&self, inputs: Vec<FlexTensor>) -> FlexTensor {
        let mut inputs = inputs.into_iter();
        let mut rows = whole(inputs.next().expect("rows"));
        let factors = Factors::new(self, inputs);
        let [_, tokens, width]: [usize; 3] = shape(&rows).try_into().expect("three dimensions");
        rows.storage_mut::<f32>().par_chunks_mut(width).enumerate().for_each(|(i, row)| {
            let at = [i / tokens, i % tokens];
            for (head, which) in self.changed() {
                let x = &mut row[head * self.head..][..self.head];
                simd(
                    #[inline(always)]
                    || {
                        if let (Some(epsilon), Some(gains)) = (self.norm, &factors.gains) {
                            let factor = factor(x, epsilon);
                            for (x, gain) in x.iter_mut().zip(values(&gains[which])) {
                                *x *= factor * gain;
                            }
                        }
                        factors.rotate(x, at, 1.0);
                    },
                );
            }
        });
        rows
    }

    fn backward(
        &self,
        inputs: Vec<FlexTensor>,
        gradient: FlexTensor,
        wanted: &[bool],
    ) -> Vec<Option<FlexTensor>> {
        let mut inputs = inputs.into_iter();
        let rows = inputs.next().expect("rows").to_contiguous();
        let factors = Factors::new(self, inputs);
        let [_, tokens, width]: [usize; 3] = shape(&rows).try_into().expect("three dimensions");
        let mut out = whole(gradient);
        let count = values(&rows).len().div_ceil(ROWS * width);
        // Of the gains, for each task.
        let mut sums = vec![0.0; count * 2 * self.head];
        let tasks = out.storage_mut::<f32>().par_chunks_mut(ROWS * width);
        let tasks = tasks.zip(sums.par_chunks_mut(2 * self.head)).enumerate();
        tasks.for_each(|(task, (gradients, sums))| {
            for (i, gradient) in gradients.chunks_exact_mut(width).enumerate() {
                let i = task * ROWS + i;
                let (x, at) = (&values(&rows)[i * width..][..width], [i / tokens, i % tokens]);
                for (head, which) in self.changed() {
                    let (x, g) = (&x[head * self.head..], &mut gradient[head * self.head..]);
                    let (x, g) = (&x[..self.head], &mut g[..self.head]);
                    let sums = &mut sums[which * self.head..][..self.head];
                    simd(
                        #[inline(always)]
                        || {
                            factors.rotate(g, at, -1.0);
                            if let (Some(epsilon), Some(gains)) = (self.norm, &factors.gains) {
                                through_norm(x, epsilon, values(&gains[which]), g, sums);
                            }
                        },
                    );
                }
            }
        });
        let mut found = vec![Some(out)];
        if self.norm.is_some() {
            for which in 0..2 {
                let of_task = |task: &[f32], i: usize| task[which * self.head + i];
                let tasks = || sums.chunks_exact(2 * self.head);
                let sum = |i: usize| tasks().map(|task| of_task(task, i)).sum::<f32>();
                found.push(Some(tensor((0..self.head).map(sum).collect(), &[self.head])));
            }
        }
        found.resize_with(wanted.len(), || None);
        found
    }
}
