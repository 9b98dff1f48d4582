//! Loops over f32 slices, compiled for each instruction set and chosen at run time.

use std::sync::LazyLock;

use pulp::Arch;
use rayon::prelude::*;

/// Numbers summed side by side: one AVX-512 register.
const LANES: usize = 16;

/// Runs a closure compiled for the best instruction set of this machine. The loops inside must be
/// inlined into it: `for`, not `for_each`, whose own function may be compiled for any machine.
#[inline(always)]
pub(in crate::ops) fn simd<R>(work: impl FnOnce() -> R) -> R {
    static ARCH: LazyLock<Arch> = LazyLock::new(Arch::new);
    ARCH.dispatch(work)
}

/// The least exponent whose power is not taken for 0: 2e-22. Products of lesser ones with gradients are subnormal
/// numbers, which slow matrix products many times.
const LEAST_EXPONENT: f32 = -50.0;

/// `eˣ` with a relative error of 2e-7; 0 below [`LEAST_EXPONENT`], `e⁸⁸` above 88.
#[inline(always)]
pub(in crate::ops) fn exp(x: f32) -> f32 {
    // 1.5 · 2²³: adding it rounds to a whole number, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let negligible = x < LEAST_EXPONENT;
    let x = x.clamp(LEAST_EXPONENT, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    // ln 2 in two parts, so that the remainder is exact.
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_2e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    if negligible { 0.0 } else { (p * r * r + r + 1.0) * power }
}

/// 0 below [`LEAST_EXPONENT`].
#[inline(always)]
pub(in crate::ops) fn sigmoid(x: f32) -> f32 {
    if x < LEAST_EXPONENT { 0.0 } else { 1.0 / (1.0 + exp(-x)) }
}

/// `Σ f(i)`, in the same order on every machine.
#[inline(always)]
pub(in crate::ops) fn sum(count: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let whole = count / LANES * LANES;
    for start in (0..whole).step_by(LANES) {
        for (lane, total) in lanes.iter_mut().enumerate() {
            *total += f(start + lane);
        }
    }
    let rest: f32 = (whole..count).map(f).sum();
    lanes.iter().sum::<f32>() + rest
}

#[inline(always)]
pub(in crate::ops) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let b = &b[..a.len()];
    sum(a.len(), |i| a[i] * b[i])
}

#[inline(always)]
pub(in crate::ops) fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::MIN; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = if value > *lane { value } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(f32::MIN, |a, &b| a.max(b))
}

/// `y += a x`.
#[inline(always)]
pub(in crate::ops) fn add_scaled(y: &mut [f32], a: f32, x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += a * x;
    }
}

/// Sum of each column of a matrix in rows of `width`, or of its products with another such matrix.
pub(in crate::ops) fn column_sums(a: &[f32], b: Option<&[f32]>, width: usize) -> Vec<f32> {
    /// Columns that one task sums.
    const COLUMNS: usize = 128;
    let mut sums = vec![0.0; width];
    sums.par_chunks_mut(COLUMNS).enumerate().for_each(|(i, sums)| {
        let columns = i * COLUMNS..i * COLUMNS + sums.len();
        simd(
            #[inline(always)]
            || match b {
                None => a
                    .chunks_exact(width)
                    .for_each(|row| add_scaled(sums, 1.0, &row[columns.clone()])),
                Some(b) => {
                    for (a, b) in a.chunks_exact(width).zip(b.chunks_exact(width)) {
                        for ((sum, a), b) in
                            sums.iter_mut().zip(&a[columns.clone()]).zip(&b[columns.clone()])
                        {
                            *sum += a * b;
                        }
                    }
                }
            },
        );
    });
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_exact_or_negligible() {
        for i in -2000..=870 {
            let x = i as f32 * 0.1;
            let expected = f64::from(x).exp();
            for (found, expected) in [(exp(x), expected), (sigmoid(x), expected / (1.0 + expected))]
            {
                let error = (f64::from(found) - expected).abs();
                match x < LEAST_EXPONENT {
                    true => assert_eq!(found, 0.0, "{x}"),
                    false => assert!(error <= 5e-7 * expected, "{x}: {found} {expected}"),
                }
            }
        }
        assert!(exp(f32::NAN).is_nan() && sigmoid(f32::NAN).is_nan());
        assert_eq!([f32::NEG_INFINITY, -1e30, 1e30].map(sigmoid), [0.0, 0.0, 1.0]);
    }
}
