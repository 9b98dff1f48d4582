//! Heun's method in σ.

use burn::tensor::Tensor;

use super::{Cancelled, Churn, Solve, denoise};
use crate::diffusion::Level;

/// Algorithm 2 of Karras et al. 2022, on variance-exploding or flow levels: `dx/dσ = (x − x̂) / σ`.
pub(super) fn heun(
    solve: &mut Solve<'_>,
    mut x: Tensor<4>,
    churn: Option<Churn>,
) -> Result<Tensor<4>, Cancelled> {
    let grid = solve.grid;
    let count = grid.steps.len() as f64;
    for (i, [from, to]) in grid.steps.iter().enumerate() {
        let from = match churn {
            Some(churn) => stir(solve, &mut x, from, churn, count),
            None => *from,
        };
        let clean = denoise(solve, i, &x, &from).clean;
        let slope = (x.clone() - clean.clone()) * (1.0 / from.sigma);
        let step = to.sigma - from.sigma;
        let euler = x.clone() + slope.clone() * step;
        x = match to.sigma {
            0.0 => euler,
            sigma => {
                let there = denoise(solve, i + 1, &euler, to).clean;
                let slope_there = (euler - there) * (1.0 / sigma);
                x + (slope + slope_there) * (step / 2.0)
            }
        };
        solve.report(i, &x, &clean)?;
    }
    Ok(x)
}

/// Raises the noise level by a factor `1 + γ` with new noise.
fn stir(solve: &mut Solve<'_>, x: &mut Tensor<4>, from: &Level, churn: Churn, steps: f64) -> Level {
    let inside = (churn.range[0]..=churn.range[1]).contains(&from.sigma);
    let gamma = if inside { (churn.amount / steps).min(2f64.sqrt() - 1.0) } else { 0.0 };
    if gamma <= 0.0 {
        return *from;
    }
    let sigma = from.sigma * (1.0 + gamma);
    let extra = (sigma * sigma - from.sigma * from.sigma).sqrt() * churn.noise;
    *x = x.clone() + solve.noise(x) * extra;
    Level { sigma, timestep: solve.grid.clock.timestep(sigma), ..*from }
}
