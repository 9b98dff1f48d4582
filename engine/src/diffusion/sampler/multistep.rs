//! DPM-Solver++: multistep solvers in `λ = ln(α / σ)` (Lu et al. 2022).

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::{Cancelled, Solve, denoise};
use crate::diffusion::Grid;

/// Runs shorter than this use lower orders at their end.
const SHORT_RUN: usize = 15;

/// Highest order of a [`DpmSolver`].
const HIGHEST_ORDER: usize = 3;

/// How a step of second order uses the change of the estimate (Lu et al. 2022, appendix B).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Correction {
    /// As if it were that at the middle of the step.
    #[default]
    Midpoint,
    /// By its exact integral.
    Heun,
}

/// DPM-Solver++ of any order, with its stochastic form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DpmSolver {
    /// 1 to 3, or to 2 if it is stochastic.
    pub order: usize,
    /// Whether noise is added after each step (SDE-DPM-Solver++).
    pub stochastic: bool,
    /// Rule of the second order.
    pub correction: Correction,
    /// Whether runs of less than 15 steps end with lower orders.
    pub lower_order_final: bool,
    /// Whether the last step is of first order in any run.
    pub euler_at_final: bool,
}

impl DpmSolver {
    /// The usual one of this order.
    pub fn of_order(order: usize) -> Self {
        Self {
            order,
            stochastic: false,
            correction: Correction::Midpoint,
            lower_order_final: true,
            euler_at_final: false,
        }
    }

    /// Highest order of this form.
    pub(super) fn highest(self) -> usize {
        if self.stochastic { HIGHEST_ORDER - 1 } else { HIGHEST_ORDER }
    }

    /// Order of step `i`: it rises with the history, and falls at the end of a run that is short even with the steps
    /// that were skipped; the step to zero noise, and one that goes nowhere, is always of first order.
    fn order(self, i: usize, grid: &Grid) -> usize {
        let (left, total) = (grid.steps.len() - i, grid.steps.len() + grid.skipped);
        let [from, to] = &grid.steps[i];
        let last = to.sigma == 0.0 || self.euler_at_final || from.log_snr() == to.log_snr();
        let falling = (total < SHORT_RUN && self.lower_order_final) || (left == 1 && last);
        self.order.min(i + 1).min(if falling { left } else { self.order })
    }

    /// The stochastic form has `2 h` where the other has `h`, and keeps `e^(−h)` less of the noise.
    pub(super) fn solve(
        self,
        solve: &mut Solve<'_>,
        mut x: Tensor<4>,
    ) -> Result<Tensor<4>, Cancelled> {
        let grid = solve.grid;
        // Newest first: (λ, x̂).
        let mut history: Vec<(f64, Tensor<4>)> = Vec::new();
        for (i, step) in grid.steps.iter().enumerate() {
            let [from, to] = step;
            let clean = denoise(solve, i, &x, from).clean;
            history.insert(0, (from.log_snr(), clean.clone()));
            history.truncate(self.order);

            let h = to.log_snr() - from.log_snr();
            let (u, kept) = if self.stochastic { (2.0 * h, (-h).exp()) } else { (h, 1.0) };
            let phi = (-u).exp_m1();
            let linear = x * (to.sigma / from.sigma * kept) - clean.clone() * (to.alpha * phi);
            x = match (self.order(i, grid), history.as_slice()) {
                (2, [(l0, d0), (l1, d1), ..]) => {
                    let slope = difference(d0, d1, (l0 - l1) / h);
                    match self.correction {
                        Correction::Midpoint => linear - slope * (0.5 * to.alpha * phi),
                        Correction::Heun => linear + slope * (to.alpha * (phi / u + 1.0)),
                    }
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
            if self.stochastic && to.sigma > 0.0 {
                x = x.clone() + solve.noise(&x) * (to.sigma * (-phi).sqrt());
            }
            solve.report(i, &x, &clean)?;
        }
        Ok(x)
    }
}

/// `(newer − older) / r`.
fn difference(newer: &Tensor<4>, older: &Tensor<4>, r: f64) -> Tensor<4> {
    (newer.clone() - older.clone()) * (1.0 / r)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::{Clock, Level};

    #[test]
    fn orders_rise_with_history_and_fall_at_the_end() {
        let clean = Level::CLEAN;
        let noisy = Level { alpha: 0.5, sigma: 0.5, timestep: 0.0 };
        let less = Level { sigma: 0.4, ..noisy };
        let run = |count: usize, last: Level| {
            let mut steps = vec![[noisy, less]; count];
            steps[count - 1][1] = last;
            Grid { steps, skipped: 0, initial_scale: 1.0, clock: Clock::LogSigma }
        };
        let of = |solver: DpmSolver, grid: Grid| -> Vec<usize> {
            (0..grid.steps.len()).map(|i| solver.order(i, &grid)).collect()
        };
        let orders = |solver, count, last| of(solver, run(count, last));
        let third = DpmSolver::of_order(3);
        assert_eq!(orders(third, 5, clean), [1, 2, 3, 2, 1]);
        assert_eq!(orders(third, 16, clean)[12..], [3, 3, 3, 1]);
        assert_eq!(orders(third, 16, less)[12..], [3, 3, 3, 3]);
        assert_eq!(orders(third, 16, noisy)[12..], [3, 3, 3, 1]);
        // From a picture on, with all steps that the run would have.
        assert_eq!(of(third, run(16, clean).without(12)), [1, 2, 3, 1]);
        assert_eq!(of(third, run(10, clean).without(6)), [1, 2, 2, 1]);
        let held = DpmSolver { lower_order_final: false, ..third };
        assert_eq!(orders(held, 5, clean), [1, 2, 3, 3, 1]);
        let euler = DpmSolver { euler_at_final: true, ..third };
        assert_eq!(orders(euler, 16, less)[12..], [3, 3, 3, 1]);
    }
}
