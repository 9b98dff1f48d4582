//! UniPC: a predictor, and a corrector that reuses the next network call (Zhao et al. 2023).

use burn::tensor::Tensor;

use super::{Cancelled, Solve, denoise};
use crate::diffusion::Level;

/// Order of predictor and corrector.
const ORDER: usize = 2;

/// A finished prediction, kept for its correction.
struct Predicted {
    /// State the prediction started from, and its level.
    x: Tensor<4>,
    from: Level,
    /// λ and x̂ known at that time, newest first.
    history: Vec<(f64, Tensor<4>)>,
    order: usize,
}

/// UniPC-2 on data prediction with `B₂(h) = e^h − 1`.
pub(super) fn unipc(solve: &mut Solve<'_>, mut x: Tensor<4>) -> Result<Tensor<4>, Cancelled> {
    let grid = solve.grid;
    let total = grid.steps.len();
    let mut history: Vec<(f64, Tensor<4>)> = Vec::new();
    let mut predicted: Option<Predicted> = None;
    for (i, [from, to]) in grid.steps.iter().enumerate() {
        let clean = denoise(solve, i, &x, from).clean;
        if let Some(last) = predicted.take() {
            x = advance(&last.x, &last.from, from, &last.history, last.order, Some(&clean));
        }
        history.insert(0, (from.log_snr(), clean.clone()));
        history.truncate(ORDER);
        let order = ORDER.min(total - i).min(i + 1);
        let next = advance(&x, from, to, &history, order, None);
        predicted = Some(Predicted { x, from: *from, history: history.clone(), order });
        x = next;
        solve.report(i, &x, &clean)?;
    }
    Ok(x)
}

/// One step of the given order: a prediction, or, knowing the estimate `there` at its end, a correction
/// (Zhao et al. 2023, Eq. 3 and Algorithm 5-6 for data prediction).
fn advance(
    x: &Tensor<4>,
    from: &Level,
    to: &Level,
    history: &[(f64, Tensor<4>)],
    order: usize,
    there: Option<&Tensor<4>>,
) -> Tensor<4> {
    let (lambda, newest) = &history[0];
    let h = to.log_snr() - lambda;
    let phi = (-h).exp_m1();
    let linear = x.clone() * (to.sigma / from.sigma) - newest.clone() * (to.alpha * phi);

    // Differences to older estimates at r = (λ_i − λ) / h, and to the new one at r = 1.
    let mut points: Vec<(f64, Tensor<4>)> = history[1..]
        .iter()
        .take(order - 1)
        .map(|(l, d)| {
            let r = (l - lambda) / h;
            (r, (d.clone() - newest.clone()) * (1.0 / r))
        })
        // A start without signal is infinitely far away.
        .filter(|(r, _)| r.is_finite())
        .collect();
    points.extend(there.map(|d| (1.0, d.clone() - newest.clone())));
    let ratios: Vec<f64> = points.iter().map(|(r, _)| *r).collect();
    let weights = weights(&ratios, -h);
    let sum = points.into_iter().zip(weights).map(|((_, d), w)| d * w).reduce(|a, b| a + b);
    match sum {
        Some(sum) => linear - sum * (to.alpha * phi),
        None => linear,
    }
}

/// Weights of the differences at these ratios, for one or two of them.
///
/// A single one weighs ½, whatever its ratio; two solve the order conditions
/// `Σ w_i r_i^(k−1) = k! φ_(k+1)(h) / B(h)`.
fn weights(ratios: &[f64], h: f64) -> Vec<f64> {
    match *ratios {
        [] => Vec::new(),
        [_] => vec![0.5],
        [a, b, ..] => {
            let expm1 = h.exp_m1();
            let phi2 = expm1 / h - 1.0;
            let phi3 = phi2 / h - 0.5;
            let (first, second) = (phi2 / expm1, 2.0 * phi3 / expm1);
            let of_b = (second - a * first) / (b - a);
            vec![first - of_b, of_b]
        }
    }
}
