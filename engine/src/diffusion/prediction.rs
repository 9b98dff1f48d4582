//! What a network predicts, and how that becomes an estimate of the clean image.

use serde::{Deserialize, Serialize};

use super::Level;

/// What the output `F` of a network stands for.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Prediction {
    /// The noise `z` (Ho et al. 2020). Not defined where `alpha` is 0.
    Noise,
    /// `α z − σ x_0` (Salimans & Ho 2022).
    Velocity,
    /// `x_0`.
    Clean,
    /// `z − x_0`, on inputs `(1 − t) x_0 + t z` (Liu et al. 2023).
    Flow,
    /// `x_0 − z`: that from noise to data.
    Backflow,
    /// `x_0`, on inputs `(1 − t) x_0 + t · noise · z`. Where `t` is below `least`, the flow to it is no faster than from there
    /// (JiT, Li & He 2025).
    CleanFlow {
        /// Standard deviation of the noise.
        noise: f64,
        /// Least `t` that the flow is divided by.
        least: f64,
    },
    /// The preconditioning of Karras et al. 2022, Table 1.
    Edm {
        /// Standard deviation of the data.
        sigma_data: f64,
    },
}

/// `x̂ = c_skip · x_t + c_out · F(c_in · x_t)`; the target of `F` is `(x_0 − c_skip · x_t) / c_out`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Coefficients {
    /// Factor of the network's input.
    pub c_in: f64,
    /// Share of the noisy image in the estimate.
    pub c_skip: f64,
    /// Factor of the network's output.
    pub c_out: f64,
}

impl Prediction {
    /// Coefficients at a level of any scaling; the network sees the scaling it was trained on.
    pub fn coefficients(self, level: &Level) -> Coefficients {
        let Level { alpha, sigma, .. } = *level;
        let length = alpha.hypot(sigma);
        match self {
            Prediction::Noise => {
                Coefficients { c_in: 1.0 / length, c_skip: 1.0 / alpha, c_out: -sigma / alpha }
            }
            Prediction::Velocity => Coefficients {
                c_in: 1.0 / length,
                c_skip: alpha / (length * length),
                c_out: -sigma / length,
            },
            Prediction::Clean => Coefficients { c_in: 1.0 / length, c_skip: 0.0, c_out: 1.0 },
            Prediction::Flow => {
                let sum = alpha + sigma;
                Coefficients { c_in: 1.0 / sum, c_skip: 1.0 / sum, c_out: -sigma / sum }
            }
            Prediction::Backflow => {
                let forward = Prediction::Flow.coefficients(level);
                Coefficients { c_out: -forward.c_out, ..forward }
            }
            Prediction::CleanFlow { noise, least } => {
                let c_in = 1.0 / (alpha + sigma / noise);
                let time = c_in * sigma / noise;
                let share = time / time.max(least);
                Coefficients { c_in, c_skip: c_in * (1.0 - share), c_out: share }
            }
            Prediction::Edm { sigma_data } => {
                let sigma = level.ve_sigma();
                let total = sigma.hypot(sigma_data);
                Coefficients {
                    c_in: 1.0 / (alpha * total),
                    c_skip: sigma_data * sigma_data / (alpha * total * total),
                    c_out: sigma * sigma_data / total,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With one clean value and one noise value, every target is what its name says, in any scaling.
    #[test]
    fn targets_are_what_their_names_say() {
        let (x, z) = (0.7, -1.3);
        for scaling in [1.0, 3.7] {
            let level = |alpha: f64, sigma: f64| Level {
                alpha: alpha * scaling,
                sigma: sigma * scaling,
                timestep: 0.0,
            };
            let target = |prediction: Prediction, level: Level| {
                let c = prediction.coefficients(&level);
                (x - c.c_skip * (level.alpha * x + level.sigma * z)) / c.c_out
            };
            let preserving = level(0.8, 0.6);
            assert!((target(Prediction::Noise, preserving) - z).abs() < 1e-12);
            assert!((target(Prediction::Clean, preserving) - x).abs() < 1e-12);
            let velocity = 0.8 * z - 0.6 * x;
            assert!((target(Prediction::Velocity, preserving) - velocity).abs() < 1e-12);
            assert!((target(Prediction::Flow, level(0.75, 0.25)) - (z - x)).abs() < 1e-12);
            assert!((target(Prediction::Backflow, level(0.75, 0.25)) - (x - z)).abs() < 1e-12);
            let slow = Prediction::CleanFlow { noise: 2.0, least: 0.05 };
            assert!((target(slow, level(0.75, 0.5)) - x).abs() < 1e-12);
            // At a tenth of the least time, a tenth of the way to the estimate.
            let c = slow.coefficients(&level(0.995, 0.01));
            let x_t = scaling * (0.995 * x + 0.01 * z);
            let expected = 0.9 * (0.995 * x + 0.01 * z) + 0.1 * 3.0;
            assert!((c.c_skip * x_t + c.c_out * 3.0 - expected).abs() < 1e-12);
        }
    }

    #[test]
    fn edm_matches_table_1() {
        let level = Level { alpha: 1.0, sigma: 2.0, timestep: 0.0 };
        let c = Prediction::Edm { sigma_data: 0.5 }.coefficients(&level);
        assert!((c.c_skip - 0.25 / 4.25).abs() < 1e-12);
        assert!((c.c_out - 1.0 / 4.25f64.sqrt()).abs() < 1e-12);
        assert!((c.c_in - 1.0 / 4.25f64.sqrt()).abs() < 1e-12);
    }
}
