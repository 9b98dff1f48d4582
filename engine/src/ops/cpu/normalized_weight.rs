//! Weights of preserved layers.

use burn::backend::flex::FlexTensor;
use rayon::prelude::*;

use super::bridge::Kernel;
use super::buffers::{buffer, shape, tensor, values};
use super::math::{column_sums, simd};
use crate::ops::magnitude::EPSILON;

/// `w · length / (‖w‖ + ε)` for each column `w` of a weight `[in, out]`, times a gain `[1]` if given.
#[derive(Debug, Clone)]
pub(in crate::ops) struct NormalizedColumns {
    pub(in crate::ops) length: f32,
}

/// Rows that one task handles.
const ROWS: usize = 32;

impl Kernel for NormalizedColumns {
    fn forward(&self, inputs: Vec<FlexTensor>) -> FlexTensor {
        let weight = inputs[0].to_contiguous();
        let gain = inputs.get(1).map_or(1.0, |gain| values(gain)[0]);
        let dims = shape(&weight);
        let (source, width) = (values(&weight), dims[1]);
        let mut factors = column_sums(source, Some(source), width);
        let factor = self.length * gain;
        factors.iter_mut().for_each(|sum| *sum = factor / (sum.sqrt() + EPSILON as f32));
        let mut out = buffer(source.len());
        let rows = out.par_chunks_mut(ROWS * width).zip(source.par_chunks(ROWS * width));
        rows.for_each(|(out, source)| {
            simd(
                #[inline(always)]
                || {
                    for (out, row) in out.chunks_exact_mut(width).zip(source.chunks_exact(width)) {
                        for ((out, w), factor) in out.iter_mut().zip(row).zip(&factors) {
                            *out = w * factor;
                        }
                    }
                },
            );
        });
        tensor(out, &dims)
    }

    fn backward(
        &self,
        inputs: Vec<FlexTensor>,
        gradient: FlexTensor,
        _wanted: &[bool],
    ) -> Vec<Option<FlexTensor>> {
        let (weight, gradient) = (inputs[0].to_contiguous(), gradient.to_contiguous());
        let gain = inputs.get(1).map_or(1.0, |gain| values(gain)[0]);
        let dims = shape(&weight);
        let (source, given, width) = (values(&weight), values(&gradient), dims[1]);
        let norms: Vec<f32> =
            column_sums(source, Some(source), width).iter().map(|s| s.sqrt()).collect();
        let along = column_sums(source, Some(given), width);
        let epsilon = EPSILON as f32;
        let for_gain: f32 = norms
            .iter()
            .zip(&along)
            .map(|(norm, along)| self.length * along / (norm + epsilon))
            .sum();
        let factor = self.length * gain;
        // dw = length · gain / (n + ε) · (g − w · ⟨w, g⟩ / (n (n + ε)))
        let columns: Vec<(f32, f32)> = norms
            .iter()
            .zip(&along)
            .map(|(norm, along)| {
                let factor = factor / (norm + epsilon);
                (factor, factor * along / (norm.max(1e-12) * (norm + epsilon)))
            })
            .collect();
        let (keep, back): (Vec<f32>, Vec<f32>) = columns.into_iter().unzip();
        let mut out = buffer(source.len());
        let sources = source.par_chunks(ROWS * width).zip(given.par_chunks(ROWS * width));
        out.par_chunks_mut(ROWS * width).zip(sources).for_each(|(out, (source, given))| {
            simd(
                #[inline(always)]
                || {
                    let rows = source.chunks_exact(width).zip(given.chunks_exact(width));
                    for (out, (w, g)) in out.chunks_exact_mut(width).zip(rows) {
                        for i in 0..width {
                            out[i] = g[i] * keep[i] - w[i] * back[i];
                        }
                    }
                },
            );
        });
        let mut found = vec![Some(tensor(out, &dims))];
        if inputs.len() > 1 {
            found.push(Some(tensor(vec![for_gain], &[1])));
        }
        found
    }
}
