//! Averages of weights over training: exponential, and power-function with post-hoc reconstruction
//! (EDM2 section 3).

use nalgebra::{DMatrix, DVector};
use serde::{Deserialize, Serialize};

/// Profile of an average.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Average {
    /// `average ← decay · average + (1 − decay) · weights`, started at the first weights.
    Decay(f64),
    /// Power function of relative width σ_rel in (0, 0.28): the weight of step τ at step t is
    /// proportional to `τ^γ`.
    Power(f64),
}

impl Average {
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

/// Weights, summing to 1, with which stored averages add up to the one of another width or step (EDM2
/// Algorithm 3).
///
/// Returns `None` when there are no snapshots or two are the same.
pub fn reconstruction_weights(snapshots: &[Snapshot], target: Snapshot) -> Option<Vec<f64>> {
    let profile = |s: &Snapshot| (s.step as f64, exponent(s.width));
    let (rows, goal): (Vec<_>, _) = (snapshots.iter().map(profile).collect(), profile(&target));
    if rows.is_empty() {
        return None;
    }
    let matrix = DMatrix::from_fn(rows.len(), rows.len(), |i, j| inner(rows[i], rows[j]));
    let right = DVector::from_fn(rows.len(), |i, _| inner(rows[i], goal));
    let weights = matrix.lu().solve(&right)?;
    let sum = weights.sum();
    Some(weights.iter().map(|weight| weight / sum).collect())
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
            let weights = reconstruction_weights(&snapshots, target).expect("distinct snapshots");
            let value: f64 = weights.iter().zip(&stored).map(|(w, v)| w * v).sum();
            assert!((value - track(width, total)).abs() < 2e-4, "{width}");
        }
        let own = reconstruction_weights(&snapshots, snapshots[100]).expect("distinct snapshots");
        assert!((own[100] - 1.0).abs() < 1e-4);
        assert_eq!(reconstruction_weights(&[], snapshots[0]), None);
    }
}
