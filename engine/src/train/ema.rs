//! Averages of weights over training: exponential, and power-function with post-hoc reconstruction
//! (EDM2 section 3).

use nalgebra::{DMatrix, DVector};
use serde::{Deserialize, Serialize};

/// Profile of an average.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Average {
    /// `average ← decay · average + (1 − decay) · weights`, started at the first weights; in [0, 1).
    Decay(f64),
    /// Power function of relative width σ_rel in (0, 0.28): the weight of step τ at step t is
    /// proportional to `τ^γ`.
    Power(f64),
}

/// Relative widths of power-function averages stay below this.
pub const WIDTH_LIMIT: f64 = 0.28;

impl Average {
    /// Whether its number is in range; one that is not a number is not.
    pub fn is_possible(self) -> bool {
        match self {
            Average::Decay(decay) => (0.0..1.0).contains(&decay),
            // Below, not even 10^4 steps would be averaged over the last.
            Average::Power(width) => (1e-4..WIDTH_LIMIT).contains(&width),
        }
    }

    /// Share of the old average that is kept at step `step`, counted from 1; 0 at the first.
    pub fn keep(self, step: u64) -> f64 {
        match self {
            _ if step <= 1 => 0.0,
            Average::Decay(decay) => decay,
            Average::Power(width) => (1.0 - 1.0 / step as f64).powf(exponent(width) + 1.0),
        }
    }
}

/// Exponent γ of the power profile of relative width `width` (EDM2 Eq. 130): the largest root of
/// `γ³ + 7γ² + (16 − width⁻²) γ + 12 − width⁻²`.
pub fn exponent(width: f64) -> f64 {
    let k = width.powi(-2);
    let cubic = |g: f64| ((g + 7.0) * g + 16.0 - k) * g + 12.0 - k;
    let (mut low, mut high) = (-1.0, k.sqrt() + 1.0);
    for _ in 0..200 {
        let middle = (low + high) / 2.0;
        if cubic(middle) < 0.0 { low = middle } else { high = middle }
    }
    (low + high) / 2.0
}

/// A stored power-function average.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Steps taken when it was stored.
    pub step: u64,
    /// Its relative width.
    pub width: f64,
}

/// How stored averages add up to one of another width or step.
#[derive(Debug, Clone, PartialEq)]
pub struct Reconstruction {
    /// Of each stored average; their sum is 1.
    pub weights: Vec<f64>,
    /// L2 distance of the profile that they add up to from the one asked for, as a share of its norm. What is made
    /// differs from the true average by at most this share of how far the weights wander, in the same norm.
    pub error: f64,
}

/// The weights with which stored averages come nearest to the one of another width or step (EDM2 Algorithm 3).
///
/// Returns `None` when there are no snapshots or two are the same.
pub fn reconstruct(snapshots: &[Snapshot], target: Snapshot) -> Option<Reconstruction> {
    let profile = |s: &Snapshot| (s.step as f64, exponent(s.width));
    let (rows, goal): (Vec<_>, _) = (snapshots.iter().map(profile).collect(), profile(&target));
    if rows.is_empty() {
        return None;
    }
    let matrix = DMatrix::from_fn(rows.len(), rows.len(), |i, j| inner(rows[i], rows[j]));
    let right = DVector::from_fn(rows.len(), |i, _| inner(rows[i], goal));
    let weights = matrix.clone().lu().solve(&right)?;
    let weights = &weights / weights.sum();
    let norm = inner(goal, goal);
    let square = norm - 2.0 * weights.dot(&right) + weights.dot(&(&matrix * &weights));
    // Rounding can make it negative.
    let error = (square / norm).max(0.0).sqrt();
    error.is_finite().then(|| Reconstruction { weights: weights.iter().copied().collect(), error })
}

/// Inner product of two profiles `(step, γ)` (EDM2 Eq. 151).
fn inner((ta, ga): (f64, f64), (tb, gb): (f64, f64)) -> f64 {
    let ratio = ta / tb;
    let power = if ta < tb { ratio.powf(gb) } else { ratio.powf(-ga) };
    (ga + 1.0) * (gb + 1.0) * power / ((ga + gb + 1.0) * ta.max(tb))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponents_match_the_published_numbers() {
        for (width, expected) in [
            (0.05, 16.972199),
            (0.075, 10.2891),
            (0.10, 6.937204),
            (0.15, 3.557869),
            (0.01, 96.994898),
        ] {
            assert!((exponent(width) - expected).abs() < 1e-4, "{width}");
        }
    }

    #[test]
    fn reconstruction_equals_the_average_that_was_tracked() {
        // A scalar that wanders, averaged directly and from snapshots every total / 250 steps.
        let total = 2000u64;
        let walk = |t: u64| (t as f64 * 0.01).sin() + t as f64 * 1e-3;
        let track = |width: f64, stop: u64| {
            (1..=stop).fold(0.0, |ema, t| {
                let keep = Average::Power(width).keep(t);
                keep * ema + (1.0 - keep) * walk(t)
            })
        };
        let snapshots: Vec<Snapshot> = (1..=250)
            .flat_map(|i| [0.05, 0.10].map(|width| Snapshot { step: i * total / 250, width }))
            .collect();
        let stored: Vec<f64> = snapshots.iter().map(|s| track(s.width, s.step)).collect();
        for width in [0.03, 0.075, 0.15, 0.2] {
            let target = Snapshot { step: total, width };
            let Reconstruction { weights, error } =
                reconstruct(&snapshots, target).expect("distinct snapshots");
            let value: f64 = weights.iter().zip(&stored).map(|(w, v)| w * v).sum();
            assert!((value - track(width, total)).abs() < 2e-4, "{width}");
            assert!(error < 1e-3, "{width}: {error}");
        }
        let own = reconstruct(&snapshots, snapshots[100]).expect("distinct snapshots");
        assert!((own.weights[100] - 1.0).abs() < 1e-4 && own.error < 1e-4);
        assert_eq!(reconstruct(&[], snapshots[0]), None);
    }

    #[test]
    fn the_error_bounds_how_far_a_reconstruction_is_off() {
        let total = 400u64;
        let profile = |width: f64, stop: u64| -> Vec<f64> {
            let mut shares = vec![0.0; total as usize];
            for t in 1..=stop {
                let keep = Average::Power(width).keep(t);
                shares.iter_mut().for_each(|share| *share *= keep);
                shares[t as usize - 1] += 1.0 - keep;
            }
            shares
        };
        let snapshots: Vec<Snapshot> = (1..=4)
            .flat_map(|i| [0.05, 0.10].map(|width| Snapshot { step: i * total / 4, width }))
            .collect();
        for (width, step) in [(0.02, 400), (0.07, 400), (0.2, 400), (0.27, 400), (0.1, 350)] {
            let found = reconstruct(&snapshots, Snapshot { step, width }).expect("distinct");
            // The distance of what they add up to, step by step, from what was asked for.
            let goal = profile(width, step);
            let mut rest = goal.clone();
            for (weight, snapshot) in found.weights.iter().zip(&snapshots) {
                let part = profile(snapshot.width, snapshot.step);
                rest.iter_mut().zip(part).for_each(|(rest, part)| *rest -= weight * part);
            }
            let norm =
                |shares: &[f64]| shares.iter().map(|share| share * share).sum::<f64>().sqrt();
            let error = norm(&rest) / norm(&goal);
            assert!(
                (error - found.error).abs() < 0.05 * error + 0.01,
                "{width} {step}: {error}, {found:?}"
            );
        }
    }

    #[test]
    fn impossible_averages_are_known() {
        for bad in [-0.1, 1.0, 1.5, f64::NAN, f64::INFINITY] {
            assert!(!Average::Decay(bad).is_possible(), "{bad}");
        }
        for bad in [-0.1, 0.0, 0.28, 0.3, f64::NAN, f64::INFINITY] {
            assert!(!Average::Power(bad).is_possible(), "{bad}");
        }
        assert!(Average::Decay(0.0).is_possible() && Average::Power(0.1).is_possible());
    }
}
