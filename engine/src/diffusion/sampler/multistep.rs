//! DPM-Solver++: multistep solvers in `λ = ln(α / σ)` (Lu et al. 2022).

use burn::tensor::Tensor;

use super::{Cancelled, Solve, denoise};
use crate::diffusion::Level;

/// Runs shorter than this use lower orders at their end.
const SHORT_RUN: usize = 15;

/// Order of step `i` of `total`: it rises with the history, and falls at the end of a short run; the step
/// to zero noise is always of first order.
fn order(i: usize, total: usize, highest: usize, to: &Level) -> usize {
    let left = total - i;
    let falling = total < SHORT_RUN || (left == 1 && to.sigma == 0.0);
    highest.min(i + 1).min(if falling { left } else { highest })
}

/// DPM-Solver++(2M) with the midpoint rule, or (3M).
pub(super) fn dpmpp(
    solve: &mut Solve<'_>,
    mut x: Tensor<4>,
    highest: usize,
) -> Result<Tensor<4>, Cancelled> {
    let grid = solve.grid;
    let total = grid.steps.len();
    // Newest first: (λ, x̂).
    let mut history: Vec<(f64, Tensor<4>)> = Vec::new();
    for (i, [from, to]) in grid.steps.iter().enumerate() {
        let clean = denoise(solve, i, &x, from).clean;
        history.insert(0, (from.log_snr(), clean.clone()));
        history.truncate(highest);

        let h = to.log_snr() - from.log_snr();
        let phi = (-h).exp_m1();
        let linear = x * (to.sigma / from.sigma) - clean.clone() * (to.alpha * phi);
        x = match (order(i, total, highest, to), history.as_slice()) {
            (2, [(l0, d0), (l1, d1), ..]) => {
                let slope = difference(d0, d1, (l0 - l1) / h);
                linear - slope * (0.5 * to.alpha * phi)
            }
            (3, [(l0, d0), (l1, d1), (l2, d2)]) => {
                let (r0, r1) = ((l0 - l1) / h, (l1 - l2) / h);
                let (near, far) = (difference(d0, d1, r0), difference(d1, d2, r1));
                let change = (near.clone() - far) * (1.0 / (r0 + r1));
                let slope = near + change.clone() * r0;
                linear + slope * (to.alpha * (phi / h + 1.0))
                    - change * (to.alpha * ((phi + h) / (h * h) - 0.5))
            }
            _ => linear,
        };
        solve.report(i, &x, &clean)?;
    }
    Ok(x)
}

/// SDE-DPM-Solver++(2M) with the midpoint rule.
pub(super) fn dpmpp_sde(solve: &mut Solve<'_>, mut x: Tensor<4>) -> Result<Tensor<4>, Cancelled> {
    let grid = solve.grid;
    let total = grid.steps.len();
    let mut last: Option<(f64, Tensor<4>)> = None;
    for (i, [from, to]) in grid.steps.iter().enumerate() {
        let clean = denoise(solve, i, &x, from).clean;
        let lambda = from.log_snr();
        let h = to.log_snr() - lambda;
        let gain = to.alpha * -(-2.0 * h).exp_m1();
        x = x * (to.sigma / from.sigma * (-h).exp()) + clean.clone() * gain;
        if let (2, Some((l1, d1))) = (order(i, total, 2, to), &last) {
            x = x + difference(&clean, d1, (lambda - l1) / h) * (0.5 * gain);
        }
        if to.sigma > 0.0 {
            let noise = to.sigma * (-(-2.0 * h).exp_m1()).sqrt();
            x = x.clone() + solve.noise(&x) * noise;
        }
        solve.report(i, &x, &clean)?;
        last = Some((lambda, clean));
    }
    Ok(x)
}

/// `(newer − older) / r`.
fn difference(newer: &Tensor<4>, older: &Tensor<4>, r: f64) -> Tensor<4> {
    (newer.clone() - older.clone()) * (1.0 / r)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_rise_with_history_and_fall_at_the_end() {
        let clean = Level::CLEAN;
        let noisy = Level { alpha: 0.5, sigma: 0.5, timestep: 0.0 };
        let orders = |total: usize| -> Vec<usize> {
            (0..total)
                .map(|i| order(i, total, 3, if i + 1 == total { &clean } else { &noisy }))
                .collect()
        };
        assert_eq!(orders(5), [1, 2, 3, 2, 1]);
        assert_eq!(orders(16)[12..], [3, 3, 3, 1]);
    }
}
