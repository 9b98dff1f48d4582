//! DDIM, Euler and the ancestral samplers: first order, with new noise if asked for.

use burn::tensor::Tensor;

use super::{Cancelled, Solve, Variance, denoise, noise_of};
use crate::diffusion::{Denoised, Level};

/// `x_s = α_s x̂ + √(σ_s² − σ_η²) ẑ + σ_η z` (Song et al. 2021, Eq. 12), in any scaling.
///
/// With variance-exploding levels this is Euler's method, and for `eta = 1` its ancestral form. `ẑ` is the noise behind
/// the estimate before it was cut off, as in diffusers.
pub(super) fn ddim(
    solve: &mut Solve<'_>,
    mut x: Tensor<4>,
    eta: f64,
) -> Result<Tensor<4>, Cancelled> {
    let grid = solve.grid;
    for (i, [from, to]) in grid.steps.iter().enumerate() {
        let Denoised { clean, unclipped, .. } = denoise(solve, i, &x, from);
        let random = eta * fresh_noise(from, to);
        let kept = (to.sigma * to.sigma - random * random).max(0.0).sqrt();
        let direction = noise_of(&x, unclipped.as_ref().unwrap_or(&clean), from);
        x = clean.clone() * to.alpha + direction * kept;
        if random > 0.0 {
            x = x.clone() + solve.noise(&x) * random;
        }
        solve.report(i, &x, &clean)?;
    }
    Ok(x)
}

/// Standard deviation of the posterior's noise: `σ_s √(1 − (σ_s / α_s)² / (σ_t / α_t)²)`.
fn fresh_noise(from: &Level, to: &Level) -> f64 {
    let ratio = match from.alpha {
        0.0 => 0.0,
        _ => to.ve_sigma() / from.ve_sigma(),
    };
    to.sigma * (1.0 - ratio * ratio).max(0.0).sqrt()
}

/// Smallest variance whose logarithm is taken.
const VARIANCE_FLOOR: f64 = 1e-20;

/// `x_s = μ(x̂, x_t) + √Σ z` on the chain of the grid's levels (Ho et al. 2020, Eq. 7); a learned Σ is that of Nichol &
/// Dhariwal 2021, Eq. 15.
pub(super) fn ddpm(
    solve: &mut Solve<'_>,
    mut x: Tensor<4>,
    variance: Variance,
) -> Result<Tensor<4>, Cancelled> {
    let grid = solve.grid;
    for (i, [from, to]) in grid.steps.iter().enumerate() {
        let denoised = denoise(solve, i, &x, from);
        let (bar, bar_to) = (from.alpha.powi(2), to.alpha.powi(2));
        let beta = (1.0 - bar / bar_to).max(0.0);
        let posterior = beta * (1.0 - bar_to) / (1.0 - bar);
        x = denoised.clean.clone() * (beta * to.alpha / (1.0 - bar))
            + x * ((1.0 - bar_to) * (1.0 - beta).sqrt() / (1.0 - bar));
        if to.sigma > 0.0 {
            let z = solve.noise(&x);
            let [low, high] = [posterior, beta].map(|variance| variance.max(VARIANCE_FLOOR).ln());
            x = x + match (&denoised.variance, variance) {
                (Some(v), Variance::Learned) => {
                    // Halfway between the logarithms for v = 0; half again for the root.
                    let log = v.clone() * ((high - low) / 4.0) + (high + low) / 4.0;
                    log.exp() * z
                }
                (_, Variance::Large) => z * beta.sqrt(),
                (_, Variance::Learned | Variance::Small) => z * posterior.sqrt(),
            };
        }
        solve.report(i, &x, &denoised.clean)?;
    }
    Ok(x)
}
