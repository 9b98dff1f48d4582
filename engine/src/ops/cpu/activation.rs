//! Activations.

use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use burn::backend::flex::FlexTensor;
use rayon::prelude::*;

use super::bridge::Kernel;
use super::buffers::{buffer, shape, tensor, values};
use super::math::{sigmoid, simd};
use crate::ops::activation::{Activation, GELU_CUBIC, GELU_SLOPE, QUICK_SLOPE};
use crate::ops::magnitude::SILU_RMS;

/// Elements that one task handles.
const GRAIN: usize = 1 << 14;

/// `f(x)` of each element.
#[derive(Debug, Clone)]
pub(in crate::ops) struct Pointwise(pub(in crate::ops) Activation);

#[inline(always)]
fn gelu(x: f32) -> f32 {
    let (slope, cubic) = (GELU_SLOPE as f32, (GELU_SLOPE * GELU_CUBIC) as f32);
    x * sigmoid(x * (slope + cubic * x * x))
}

#[inline(always)]
fn gelu_slope(x: f32) -> f32 {
    let (slope, cubic) = (GELU_SLOPE as f32, (GELU_SLOPE * GELU_CUBIC) as f32);
    let s = sigmoid(x * (slope + cubic * x * x));
    s + x * s * (1.0 - s) * (slope + 3.0 * cubic * x * x)
}

/// Φ, the share of a normal distribution below `x`.
fn normal_below(x: f32) -> f32 {
    0.5 * libm::erfcf(-x * FRAC_1_SQRT_2)
}

/// The slope of `x · Φ(x)`.
fn exact_gelu_slope(x: f32) -> f32 {
    let density = FRAC_1_SQRT_2 * FRAC_2_SQRT_PI / 2.0 * (-0.5 * x * x).exp();
    normal_below(x) + x * density
}

#[inline(always)]
fn silu_slope(x: f32) -> f32 {
    let s = sigmoid(x);
    s + x * s * (1.0 - s)
}

/// Replaces each element of a slice by its activation.
pub(in crate::ops) fn activate(activation: Activation, y: &mut [f32]) {
    let unit = (1.0 / SILU_RMS) as f32;
    simd(
        #[inline(always)]
        || match activation {
            Activation::Gelu => y.iter_mut().for_each(|y| *y *= normal_below(*y)),
            Activation::GeluQuick => {
                y.iter_mut().for_each(|y| *y *= sigmoid(*y * QUICK_SLOPE as f32));
            }
            // What is no number stays none.
            Activation::Relu => y.iter_mut().for_each(|y| *y = if *y < 0.0 { 0.0 } else { *y }),
            Activation::Relu6 => y.iter_mut().for_each(|y| *y = y.clamp(0.0, 6.0)),
            Activation::GeluTanh => y.iter_mut().for_each(|y| *y = gelu(*y)),
            Activation::Silu => y.iter_mut().for_each(|y| *y *= sigmoid(*y)),
            Activation::MpSilu => y.iter_mut().for_each(|y| *y *= sigmoid(*y) * unit),
        },
    );
}

/// Multiplies each gradient by the slope at its input.
fn chain(activation: Activation, x: &[f32], gradient: &mut [f32]) {
    let unit = (1.0 / SILU_RMS) as f32;
    let pairs = gradient.iter_mut().zip(x);
    simd(
        #[inline(always)]
        || match activation {
            Activation::Gelu => {
                for (g, &x) in pairs {
                    *g *= exact_gelu_slope(x);
                }
            }
            Activation::GeluQuick => {
                for (g, &x) in pairs {
                    *g *= silu_slope(x * QUICK_SLOPE as f32);
                }
            }
            Activation::Relu => {
                for (g, &x) in pairs {
                    *g *= if x > 0.0 { 1.0 } else { 0.0 };
                }
            }
            Activation::Relu6 => {
                for (g, &x) in pairs {
                    *g *= if x > 0.0 && x < 6.0 { 1.0 } else { 0.0 };
                }
            }
            Activation::GeluTanh => {
                for (g, &x) in pairs {
                    *g *= gelu_slope(x);
                }
            }
            Activation::Silu => {
                for (g, &x) in pairs {
                    *g *= silu_slope(x);
                }
            }
            Activation::MpSilu => {
                for (g, &x) in pairs {
                    *g *= silu_slope(x) * unit;
                }
            }
        },
    );
}

impl Kernel for Pointwise {
    fn forward(&self, inputs: Vec<FlexTensor>) -> FlexTensor {
        let x = inputs[0].to_contiguous();
        let x_values = values(&x);
        let mut y = buffer(x_values.len());
        y.par_chunks_mut(GRAIN).zip(x_values.par_chunks(GRAIN)).for_each(|(y, x)| {
            y.copy_from_slice(x);
            activate(self.0, y);
        });
        tensor(y, &shape(&x))
    }

    fn backward(
        &self,
        inputs: Vec<FlexTensor>,
        gradient: FlexTensor,
        _wanted: &[bool],
    ) -> Vec<Option<FlexTensor>> {
        let (x, gradient) = (inputs[0].to_contiguous(), gradient.to_contiguous());
        let mut out = buffer(values(&x).len());
        let sources = values(&x).par_chunks(GRAIN).zip(values(&gradient).par_chunks(GRAIN));
        out.par_chunks_mut(GRAIN).zip(sources).for_each(|(out, (x, gradient))| {
            out.copy_from_slice(gradient);
            chain(self.0, x, out);
        });
        vec![Some(tensor(out, &shape(&x)))]
    }
}

/// Of each row the first half, activated, times the second.
#[derive(Debug, Clone)]
pub(in crate::ops) struct Gated(pub(in crate::ops) Activation);

/// Width of the last dimension of a tensor, and of its half.
fn widths(x: &FlexTensor) -> (usize, usize) {
    let width = shape(x).last().copied().unwrap_or(0);
    (width, width / 2)
}

impl Kernel for Gated {
    fn forward(&self, inputs: Vec<FlexTensor>) -> FlexTensor {
        let x = inputs[0].to_contiguous();
        let (width, half) = widths(&x);
        let mut sides = shape(&x);
        *sides.last_mut().expect("a dimension") = half;
        let mut y = buffer(sides.iter().product());
        let rows = values(&x).par_chunks_exact(width.max(1));
        y.par_chunks_exact_mut(half.max(1)).zip(rows).for_each(|(y, x)| {
            let (first, second) = x.split_at(half);
            y.copy_from_slice(first);
            activate(self.0, y);
            y.iter_mut().zip(second).for_each(|(y, x)| *y *= x);
        });
        tensor(y, &sides)
    }

    fn backward(
        &self,
        inputs: Vec<FlexTensor>,
        gradient: FlexTensor,
        _wanted: &[bool],
    ) -> Vec<Option<FlexTensor>> {
        let (x, gradient) = (inputs[0].to_contiguous(), gradient.to_contiguous());
        let (width, half) = widths(&x);
        let mut out = buffer(values(&x).len());
        let rows = values(&x).par_chunks_exact(width.max(1));
        let sources = rows.zip(values(&gradient).par_chunks_exact(half.max(1)));
        out.par_chunks_exact_mut(width.max(1)).zip(sources).for_each(|(out, (x, gradient))| {
            let (first, second) = x.split_at(half);
            let (to_first, to_second) = out.split_at_mut(half);
            to_second.copy_from_slice(first);
            activate(self.0, to_second);
            to_second.iter_mut().zip(gradient).for_each(|(to, g)| *to *= g);
            for ((to, g), x) in to_first.iter_mut().zip(gradient).zip(second) {
                *to = g * x;
            }
            chain(self.0, first, to_first);
        });
        vec![Some(tensor(out, &shape(&x)))]
    }
}
