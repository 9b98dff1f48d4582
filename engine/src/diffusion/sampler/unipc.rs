//! UniPC: a predictor, and a corrector that reuses the next network call (Zhao et al. 2023).

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::{Cancelled, Solve, denoise};
use crate::diffusion::Level;

/// Highest order of a [`UniPcSolver`].
pub(super) const HIGHEST_ORDER: usize = 3;

/// `B(h)` of UniPC (Zhao et al. 2023, section 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum StepFunction {
    /// `h`
    Bh1,
    /// `e^h − 1`
    #[default]
    Bh2,
}

/// UniPC on data prediction, of any order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UniPcSolver {
    /// Of predictor and corrector, 1 to 3.
    pub order: usize,
    /// `B(h)`.
    pub step_function: StepFunction,
}

/// A finished prediction, kept for its correction.
struct Predicted {
    /// State the prediction started from, and its level.
    x: Tensor<4>,
    from: Level,
    /// λ and x̂ known at that time, newest first.
    history: Vec<(f64, Tensor<4>)>,
    order: usize,
}

impl UniPcSolver {
    /// Solves along the grid; the last steps are of lower orders.
    pub(super) fn solve(
        self,
        solve: &mut Solve<'_>,
        mut x: Tensor<4>,
    ) -> Result<Tensor<4>, Cancelled> {
        let grid = solve.grid;
        let total = grid.steps.len();
        let mut history: Vec<(f64, Tensor<4>)> = Vec::new();
        let mut predicted: Option<Predicted> = None;
        for (i, [from, to]) in grid.steps.iter().enumerate() {
            let clean = denoise(solve, i, &x, from).clean;
            if let Some(last) = predicted.take() {
                x = self.advance(&last, from, Some(&clean));
            }
            history.insert(0, (from.log_snr(), clean.clone()));
            history.truncate(self.order);
            let order = self.order.min(total - i).min(i + 1);
            let start = Predicted { x, from: *from, history: history.clone(), order };
            x = self.advance(&start, to, None);
            predicted = Some(start);
            solve.report(i, &x, &clean)?;
        }
        Ok(x)
    }

    /// One step: a prediction, or, knowing the estimate `there` at its end, a correction (Zhao et al. 2023, Eq. 3 and
    /// Algorithm 5-6 for data prediction).
    fn advance(self, start: &Predicted, to: &Level, there: Option<&Tensor<4>>) -> Tensor<4> {
        let Predicted { x, from, history, order } = start;
        let (lambda, newest) = &history[0];
        let h = to.log_snr() - lambda;
        let phi = (-h).exp_m1();
        let linear = x.clone() * (to.sigma / from.sigma) - newest.clone() * (to.alpha * phi);

        // Differences to older estimates at r = (λ_i − λ) / h, and to the new one at r = 1.
        let mut points: Vec<(f64, Tensor<4>)> = history[1..]
            .iter()
            .take(*order - 1)
            .map(|(l, d)| {
                let r = (l - lambda) / h;
                (r, (d.clone() - newest.clone()) * (1.0 / r))
            })
            // A start without signal is infinitely far away.
            .filter(|(r, _)| r.is_finite())
            .collect();
        points.extend(there.map(|d| (1.0, d.clone() - newest.clone())));
        let ratios: Vec<f64> = points.iter().map(|(r, _)| *r).collect();
        let scale = match self.step_function {
            StepFunction::Bh1 => -h,
            StepFunction::Bh2 => phi,
        };
        let weights = weights(&ratios, -h, scale);
        let sum = points.into_iter().zip(weights).map(|((_, d), w)| d * w).reduce(|a, b| a + b);
        match sum {
            Some(sum) => linear - sum * (to.alpha * scale),
            None => linear,
        }
    }
}

/// Weights of the differences at these ratios, for up to three of them.
///
/// A single one weighs ½, whatever its ratio; more solve the order conditions
/// `Σ w_i r_i^(k−1) = k! φ_(k+1)(h) / B(h)`.
fn weights(ratios: &[f64], h: f64, scale: f64) -> Vec<f64> {
    let phi2 = h.exp_m1() / h - 1.0;
    let phi3 = phi2 / h - 0.5;
    let phi4 = phi3 / h - 1.0 / 6.0;
    let (first, second, third) = (phi2 / scale, 2.0 * phi3 / scale, 6.0 * phi4 / scale);
    match *ratios {
        [] => Vec::new(),
        [_] => vec![0.5],
        [a, b] => {
            let of_b = (second - a * first) / (b - a);
            vec![first - of_b, of_b]
        }
        [a, b, c, ..] => {
            // The conditions, applied to the polynomial that is 1 at one ratio and 0 at the others.
            let at = |r: f64, s: f64, t: f64| {
                (third - (s + t) * second + s * t * first) / ((r - s) * (r - t))
            };
            vec![at(a, b, c), at(b, a, c), at(c, a, b)]
        }
    }
}
