//! What stands before and after a branch of a block: norm, scale, shift, rotation; gate and sum.

use burn::backend::flex::FlexTensor;
use rayon::prelude::*;

use super::bridge::Kernel;
use super::buffers::{Rows, buffer, tensor};
use super::math::{add_scaled, dot, simd, sum};
use crate::ops::RowNorm;

/// Rows that one task handles.
const ROWS: usize = 8;

/// A norm, then scale, shift and rotation: those of them that are on.
///
/// Inputs are `x`, `[batch, tokens, width]`, then the factors that are on in the order above, each
/// `[batch, 1 | tokens, width]`, the angles of half the width.
#[derive(Debug, Clone)]
pub(in crate::ops) struct Modulate {
    pub(in crate::ops) norm: Option<RowNorm>,
    pub(in crate::ops) scale: bool,
    pub(in crate::ops) shift: bool,
    pub(in crate::ops) rotation: bool,
}

/// The inputs of [`Modulate`] by name.
struct Factors {
    x: Rows,
    scale: Option<Rows>,
    shift: Option<Rows>,
    /// Cosine and sine of the angles, each `[batch, 1 | tokens, width / 2]`.
    turn: Option<[Rows; 2]>,
}

impl Factors {
    fn new(kernel: &Modulate, inputs: Vec<FlexTensor>) -> Self {
        let mut inputs = inputs.into_iter().map(Rows::new);
        let mut next =
            |on: bool| on.then(|| inputs.next().expect("one input per factor that is on"));
        Self {
            x: next(true).expect("the tokens"),
            scale: next(kernel.scale),
            shift: next(kernel.shift),
            turn: next(kernel.rotation).map(turn),
        }
    }
}

fn turn(angles: Rows) -> [Rows; 2] {
    let [batch, tokens, half] = angles.shape;
    let count = batch * tokens * half;
    let (mut cos, mut sin) = (buffer(count), buffer(count));
    let rows = cos.chunks_exact_mut(half.max(1)).zip(sin.chunks_exact_mut(half.max(1)));
    for (i, (cos, sin)) in rows.enumerate() {
        for ((cos, sin), angle) in cos.iter_mut().zip(sin).zip(angles.row(i / tokens, i % tokens)) {
            (*sin, *cos) = angle.sin_cos();
        }
    }
    [cos, sin].map(|values| Rows::new(tensor(values, &angles.shape)))
}

/// What a norm takes off a row, its mean or nothing, and the factor on what is left.
#[inline(always)]
fn moments(x: &[f32], norm: RowNorm) -> (f32, f32) {
    let width = x.len() as f32;
    let (mean, epsilon) = match norm {
        RowNorm::Layer(epsilon) => (sum(x.len(), |i| x[i]) / width, epsilon as f32),
        RowNorm::Rms(epsilon) => (0.0, epsilon as f32),
    };
    let variance = sum(x.len(), |i| (x[i] - mean) * (x[i] - mean)) / width;
    (mean, 1.0 / (variance + epsilon).sqrt())
}

#[inline(always)]
fn normalize(norm: Option<RowNorm>, x: &[f32], y: &mut [f32]) {
    let (mean, factor) = norm.map_or((0.0, 1.0), |norm| moments(x, norm));
    for (y, x) in y.iter_mut().zip(x) {
        *y = (x - mean) * factor;
    }
}

/// Turns the pairs `(i, i + width / 2)` of a row.
#[inline(always)]
pub(super) fn rotate(y: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
    let (u, v) = y.split_at_mut(cos.len());
    for (((u, v), &cos), &sin) in u.iter_mut().zip(v).zip(cos).zip(sin) {
        let sin = sign * sin;
        (*u, *v) = (*u * cos - *v * sin, *u * sin + *v * cos);
    }
}

/// One row through scale, shift and rotation, in place.
#[inline(always)]
fn apply(factors: &Factors, batch: usize, token: usize, y: &mut [f32]) {
    if let Some(scale) = &factors.scale {
        for (y, scale) in y.iter_mut().zip(scale.row(batch, token)) {
            *y *= scale;
        }
    }
    if let Some(shift) = &factors.shift {
        add_scaled(y, 1.0, shift.row(batch, token));
    }
    if let Some([cos, sin]) = &factors.turn {
        rotate(y, cos.row(batch, token), sin.row(batch, token), 1.0);
    }
}

impl Kernel for Modulate {
    fn forward(&self, inputs: Vec<FlexTensor>) -> FlexTensor {
        let factors = Factors::new(self, inputs);
        let [batch, tokens, width] = factors.x.shape;
        let mut out = buffer(batch * tokens * width);
        out.par_chunks_mut(ROWS * width).enumerate().for_each(|(group, rows)| {
            for (i, y) in rows.chunks_exact_mut(width).enumerate() {
                let (batch, token) = ((group * ROWS + i) / tokens, (group * ROWS + i) % tokens);
                simd(
                    #[inline(always)]
                    || {
                        normalize(self.norm, factors.x.row(batch, token), y);
                        apply(&factors, batch, token, y);
                    },
                );
            }
        });
        tensor(out, &factors.x.shape)
    }

    fn backward(
        &self,
        inputs: Vec<FlexTensor>,
        gradient: FlexTensor,
        _wanted: &[bool],
    ) -> Vec<Option<FlexTensor>> {
        let shapes: Vec<Vec<usize>> = inputs.iter().map(super::buffers::shape).collect();
        let factors = Factors::new(self, inputs);
        let gradient = Rows::new(gradient);
        let [batch, tokens, width] = factors.x.shape;
        let mut outs: Vec<Vec<f32>> =
            shapes.iter().map(|shape| vec![0.0; shape.iter().product()]).collect();
        // One task per image, so that sums over its tokens have one order.
        by_image(&mut outs, batch).into_par_iter().enumerate().for_each(|(batch, part)| {
            let mut part = part.into_iter();
            let mut next = |on: bool| on.then(|| part.next().expect("one part per input"));
            let x = next(true).expect("the tokens");
            let mut scale = next(self.scale);
            let mut shift = next(self.shift);
            let mut angles = next(self.rotation);
            let (mut y, mut clean) = (buffer(width), buffer(width));
            for token in 0..tokens {
                let out = &mut x[token * width..][..width];
                simd(
                    #[inline(always)]
                    || {
                        let x = factors.x.row(batch, token);
                        normalize(self.norm, x, &mut clean);
                        out.copy_from_slice(gradient.row(batch, token));
                        if let (Some(angles), Some([cos, sin])) = (&mut angles, &factors.turn) {
                            y.copy_from_slice(&clean);
                            apply(&factors, batch, token, &mut y);
                            let half = width / 2;
                            let angles = slot(angles, token, half);
                            for (i, angle) in angles.iter_mut().enumerate() {
                                *angle += out[half + i] * y[i] - out[i] * y[half + i];
                            }
                            rotate(out, cos.row(batch, token), sin.row(batch, token), -1.0);
                        }
                        if let Some(shift) = &mut shift {
                            add_scaled(slot(shift, token, width), 1.0, out);
                        }
                        if let (Some(sums), Some(scale)) = (&mut scale, &factors.scale) {
                            let sums = slot(sums, token, width);
                            for ((sum, g), x) in sums.iter_mut().zip(&*out).zip(&clean) {
                                *sum += g * x;
                            }
                            for (g, scale) in out.iter_mut().zip(scale.row(batch, token)) {
                                *g *= scale;
                            }
                        }
                        if let Some(norm) = self.norm {
                            through_norm(norm, x, &clean, out);
                        }
                    },
                );
            }
        });
        outs.into_iter().zip(&shapes).map(|(out, shape)| Some(tensor(out, shape))).collect()
    }
}

/// The part of each tensor that belongs to each image.
fn by_image(tensors: &mut [Vec<f32>], batch: usize) -> Vec<Vec<&mut [f32]>> {
    let mut images: Vec<Vec<&mut [f32]>> = (0..batch).map(|_| Vec::new()).collect();
    for values in tensors {
        let step = values.len() / batch;
        for (image, part) in images.iter_mut().zip(values.chunks_exact_mut(step)) {
            image.push(part);
        }
    }
    images
}

/// From the gradient of a row `clean` that was normalised to that of the row `x`, in place.
#[inline(always)]
fn through_norm(norm: RowNorm, x: &[f32], clean: &[f32], gradient: &mut [f32]) {
    let (width, (_, factor)) = (x.len(), moments(x, norm));
    let mean = match norm {
        RowNorm::Layer(_) => sum(width, |i| gradient[i]) / width as f32,
        RowNorm::Rms(_) => 0.0,
    };
    let along = dot(clean, gradient) / width as f32;
    for (g, x) in gradient.iter_mut().zip(clean) {
        *g = factor * (*g - mean - x * along);
    }
}

/// Where a token's share of a factor's gradient is summed: at its own row, or at the only one.
#[inline(always)]
fn slot(sums: &mut [f32], token: usize, width: usize) -> &mut [f32] {
    let start = (token * width) % sums.len();
    &mut sums[start..start + width]
}

/// `keep · x + share · gate · f`: a branch `f` joins the stream `x`.
///
/// `x` and `f` are `[batch, tokens, width]`; the gate, if there is one, `[batch, 1 | tokens, width]`.
#[derive(Debug, Clone)]
pub(in crate::ops) struct Join {
    pub(in crate::ops) keep: f32,
    pub(in crate::ops) share: f32,
}

impl Kernel for Join {
    fn forward(&self, inputs: Vec<FlexTensor>) -> FlexTensor {
        let rows: Vec<Rows> = inputs.into_iter().map(Rows::new).collect();
        let (x, branch, gate) = (&rows[0], &rows[1], rows.get(2));
        let [batch, tokens, width] = x.shape;
        let mut out = buffer(batch * tokens * width);
        out.par_chunks_mut(ROWS * width).enumerate().for_each(|(group, rows)| {
            for (i, y) in rows.chunks_exact_mut(width).enumerate() {
                let (batch, token) = ((group * ROWS + i) / tokens, (group * ROWS + i) % tokens);
                let (x, branch) = (x.row(batch, token), branch.row(batch, token));
                let pairs = y.iter_mut().zip(x).zip(branch);
                simd(
                    #[inline(always)]
                    || match gate {
                        Some(gate) => {
                            for (((y, x), f), gate) in pairs.zip(gate.row(batch, token)) {
                                *y = self.keep * x + self.share * gate * f;
                            }
                        }
                        None => {
                            for ((y, x), f) in pairs {
                                *y = self.keep * x + self.share * f;
                            }
                        }
                    },
                );
            }
        });
        tensor(out, &x.shape)
    }

    fn backward(
        &self,
        inputs: Vec<FlexTensor>,
        gradient: FlexTensor,
        wanted: &[bool],
    ) -> Vec<Option<FlexTensor>> {
        let mut inputs = inputs.into_iter().skip(1).map(Rows::new);
        let (branch, gate) = (inputs.next().expect("a branch"), inputs.next());
        let for_x = wanted[0].then(|| match self.keep {
            1.0 => gradient.clone(),
            keep => Join { keep, share: 0.0 }.forward(vec![gradient.clone(), gradient.clone()]),
        });
        let gradient = Rows::new(gradient);
        let [batch, tokens, width] = branch.shape;
        let mut for_branch = buffer(batch * tokens * width);
        let gate_tokens = gate.as_ref().map_or(0, |gate| gate.shape[1]);
        let mut for_gate = vec![0.0; batch * gate_tokens * width];
        let step = (gate_tokens * width).max(1);
        let mut sums: Vec<&mut [f32]> = match gate_tokens {
            0 => (0..batch).map(|_| Default::default()).collect(),
            _ => for_gate.chunks_exact_mut(step).collect(),
        };
        for_branch.par_chunks_mut(tokens * width).zip(&mut sums).enumerate().for_each(
            |(batch, (out, sums))| {
                for (token, out) in out.chunks_exact_mut(width).enumerate() {
                    let (g, f) = (gradient.row(batch, token), branch.row(batch, token));
                    simd(
                        #[inline(always)]
                        || match &gate {
                            Some(gate) => {
                                let sums = slot(sums, token, width);
                                for ((sum, g), f) in sums.iter_mut().zip(g).zip(f) {
                                    *sum += self.share * g * f;
                                }
                                let gate = gate.row(batch, token);
                                for ((out, g), gate) in out.iter_mut().zip(g).zip(gate) {
                                    *out = self.share * g * gate;
                                }
                            }
                            None => {
                                for (out, g) in out.iter_mut().zip(g) {
                                    *out = self.share * g;
                                }
                            }
                        },
                    );
                }
            },
        );
        let mut found = vec![for_x, Some(tensor(for_branch, &branch.shape))];
        if gate.is_some() {
            found.push(Some(tensor(for_gate, &[batch, gate_tokens, width])));
        }
        found
    }
}
