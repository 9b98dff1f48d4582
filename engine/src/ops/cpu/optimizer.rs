//! One optimiser step and one average, each in one pass over memory.

use burn::backend::flex::FlexTensor;
use rayon::prelude::*;

use super::buffers::{buffer, shape, tensor, values, whole};
use super::math::{dot, simd};
use crate::ops::optimizer::AdamStep;

/// Elements that one task handles.
const GRAIN: usize = 1 << 14;

/// New value and moments; the moments are changed in place.
pub(in crate::ops) fn adam(
    step: AdamStep,
    value: &FlexTensor,
    gradient: &FlexTensor,
    scale: f32,
    moments: [FlexTensor; 2],
) -> [FlexTensor; 3] {
    let [mut first, mut second] = moments.map(whole);
    let (value, gradient) = (value.to_contiguous(), gradient.to_contiguous());
    let mut out = buffer(values(&value).len());
    let [beta1, beta2] = step.betas.map(|beta| beta as f32);
    let [rest1, rest2] = step.betas.map(|beta| (1.0 - beta) as f32);
    let [rate, root, epsilon, keep] =
        [step.rate, step.root, step.epsilon, step.keep].map(|number| number as f32);
    let inputs = values(&value).par_chunks(GRAIN).zip(values(&gradient).par_chunks(GRAIN));
    let moments = first.storage_mut::<f32>().par_chunks_mut(GRAIN);
    let moments = moments.zip(second.storage_mut::<f32>().par_chunks_mut(GRAIN));
    out.par_chunks_mut(GRAIN).zip(inputs).zip(moments).for_each(|((out, (value, g)), (m, v))| {
        simd(
            #[inline(always)]
            || {
                let count = out.len();
                let (value, g) = (&value[..count], &g[..count]);
                let (m, v) = (&mut m[..count], &mut v[..count]);
                for i in 0..count {
                    let g = g[i] * scale;
                    m[i] = m[i] * beta1 + g * rest1;
                    v[i] = v[i] * beta2 + g * g * rest2;
                    out[i] = value[i] * keep - m[i] / (v[i].sqrt() * root + epsilon) * rate;
                }
            },
        );
    });
    [tensor(out, &shape(&value)), first, second]
}

/// `average · keep + value · (1 − keep)`, in place.
pub(in crate::ops) fn blend(average: FlexTensor, value: &FlexTensor, keep: f64) -> FlexTensor {
    let mut average = whole(average);
    let value = value.to_contiguous();
    let (keep, rest) = (keep as f32, (1.0 - keep) as f32);
    let pairs = average.storage_mut::<f32>().par_chunks_mut(GRAIN);
    pairs.zip(values(&value).par_chunks(GRAIN)).for_each(|(average, value)| {
        simd(
            #[inline(always)]
            || {
                for (average, value) in average.iter_mut().zip(value) {
                    *average = *average * keep + value * rest;
                }
            },
        );
    });
    average
}

/// `Σ x²`, summed in the same order for any number of threads.
pub(in crate::ops) fn sum_of_squares(x: &FlexTensor) -> f32 {
    let x = x.to_contiguous();
    let parts: Vec<f32> = values(&x)
        .par_chunks(GRAIN)
        .map(|part| {
            simd(
                #[inline(always)]
                || dot(part, part),
            )
        })
        .collect();
    parts.iter().sum()
}
