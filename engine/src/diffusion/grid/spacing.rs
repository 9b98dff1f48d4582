//! Names and curves of the places where the steps of a sampler are.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::GridError;

/// Exponent of [`Spacing::Karras`] where none is given.
pub const KARRAS_RHO: f64 = 7.0;

/// Both parameters of the distribution behind [`Spacing::Beta`].
const BETA_SHAPE: f64 = 0.6;

/// Where along the schedule the steps are.
///
/// The first four count timesteps, which only a discrete schedule has; of them, [`Spacing::Linspace`] and
/// [`Spacing::Trailing`] are also the even grids of a flow, down to its last timestep and to none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Spacing {
    /// `i · ⌊T / N⌋ + offset`: ends at the data, may miss the last timestep.
    Leading {
        /// Added to every timestep.
        offset: usize,
    },
    /// `T − i · T / N − 1`: starts at the last timestep.
    Trailing,
    /// Evenly from the last timestep to the first.
    Linspace,
    /// The respacing of the original DiT: evenly, first and last included, rounded half to even.
    Respaced,
    /// Evenly in `σ^(1 / rho)` (Karras et al. 2022, Eq. 5).
    Karras {
        /// Exponent; larger puts more steps at low noise.
        rho: f64,
    },
    /// Evenly in `ln σ`.
    Exponential,
    /// σ at even shares of the distribution Beta(0.6, 0.6) (Lee et al. 2024), as diffusers has it.
    Beta,
    /// One of the three curves of σ between other ends than its own.
    Ranged {
        /// The curve.
        curve: Box<Spacing>,
        /// Lowest and highest σ, where they are given.
        sigmas: [Option<f64>; 2],
        /// Whose ends it has else, for solvers on variance-exploding levels.
        range: Box<Spacing>,
    },
    /// Explicit variance-exploding σ, highest first; a last 0 is understood.
    Sigmas(Vec<f64>),
    /// Explicit timesteps, highest first.
    Timesteps(Vec<f64>),
}

impl Spacing {
    /// `count` points of a curve of σ from `high` to `low`; `None` for a spacing that is none.
    pub(super) fn curve(&self, high: f64, low: f64, count: usize) -> Option<Vec<f64>> {
        match self {
            Self::Karras { rho } => Some(karras(high, low, count, *rho)),
            Self::Exponential => {
                let logs = linspace(high.ln(), low.ln(), count);
                Some(logs.into_iter().map(f64::exp).collect())
            }
            Self::Beta => {
                let shares = linspace(1.0, 0.0, count);
                Some(shares.into_iter().map(|p| low + beta_quantile(p) * (high - low)).collect())
            }
            _ => None,
        }
    }
}

pub(super) fn karras(high: f64, low: f64, steps: usize, rho: f64) -> Vec<f64> {
    let root = |sigma: f64| sigma.powf(1.0 / rho);
    linspace(root(high), root(low), steps).into_iter().map(|r| r.powf(rho)).collect()
}

/// `count` even points; a single one is the first.
pub(super) fn linspace(first: f64, last: f64, count: usize) -> Vec<f64> {
    let gaps = count.max(2) - 1;
    (0..count).map(|i| first + (last - first) * i as f64 / gaps as f64).collect()
}

/// The value below which a share `p` of Beta(a, a) lies, by bisection.
fn beta_quantile(p: f64) -> f64 {
    if p > 0.5 {
        return 1.0 - beta_quantile(1.0 - p);
    }
    let wanted = 2.0 * p * incomplete_beta(0.5);
    let (mut low, mut high) = (0.0, 0.5);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        match incomplete_beta(middle) < wanted {
            true => low = middle,
            false => high = middle,
        }
    }
    0.5 * (low + high)
}

/// `∫₀ˣ t^(a − 1) (1 − t)^(a − 1) dt` for `x ≤ ½`, by its power series (DLMF 8.17.7).
fn incomplete_beta(x: f64) -> f64 {
    const A: f64 = BETA_SHAPE;
    let (mut term, mut sum) = (1.0, 0.0);
    for n in 0..60 {
        let n = f64::from(n);
        sum += term / (A + n);
        term *= x * (1.0 - A + n) / (1.0 + n);
    }
    x.powf(A) * sum
}

/// Names of spacings in A1111, ComfyUI, stable-diffusion.cpp and diffusers.
const NAMES: [(&str, &[&str]); 7] = [
    ("leading", &["ddim_uniform", "ddim"]),
    ("trailing", &["sgm_uniform", "sgm uniform", "simple"]),
    ("linspace", &["normal", "discrete", "uniform", "automatic"]),
    ("respaced", &["dit"]),
    ("karras", &["use_karras_sigmas"]),
    ("exponential", &["use_exponential_sigmas"]),
    ("beta", &["use_beta_sigmas"]),
];

impl FromStr for Spacing {
    type Err = GridError;

    fn from_str(text: &str) -> Result<Self, GridError> {
        let name = text.trim().to_lowercase();
        let found = NAMES.iter().find(|(own, other)| *own == name || other.contains(&&*name));
        Ok(match found.map(|(own, _)| *own) {
            Some("leading") => Spacing::Leading { offset: 0 },
            Some("trailing") => Spacing::Trailing,
            Some("linspace") => Spacing::Linspace,
            Some("respaced") => Spacing::Respaced,
            Some("karras") => Spacing::Karras { rho: KARRAS_RHO },
            Some("exponential") => Spacing::Exponential,
            Some("beta") => Spacing::Beta,
            _ => {
                let known = NAMES.map(|(own, _)| own).join(", ");
                return Err(GridError::Name { what: "scheduler", found: text.into(), known });
            }
        })
    }
}

impl fmt::Display for Spacing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Spacing::Leading { .. } => "leading",
            Spacing::Trailing => "trailing",
            Spacing::Linspace => "linspace",
            Spacing::Respaced => "respaced",
            Spacing::Karras { .. } => "karras",
            Spacing::Exponential => "exponential",
            Spacing::Beta => "beta",
            Spacing::Ranged { curve, .. } => return curve.fmt(f),
            Spacing::Sigmas(_) => "explicit noise levels",
            Spacing::Timesteps(_) => "explicit timesteps",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_match_the_published_numbers() {
        let curve = |spacing: Spacing| spacing.curve(80.0, 0.002, 5).expect("a curve");
        let close = |found: Vec<f64>, expected: [f64; 5]| {
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-5, "{found} not {expected}");
            }
        };
        close(curve(Spacing::Karras { rho: 7.0 }), [80.0, 17.527832, 2.515219, 0.169753, 0.002]);
        // scipy.stats.beta.ppf(p, 0.6, 0.6)
        close(curve(Spacing::Beta), BETA);
        assert_eq!(Spacing::Trailing.curve(1.0, 0.1, 2), None);
    }

    const BETA: [f64; 5] = [80.0, 65.945921, 40.001, 14.056079, 0.002];

    #[test]
    fn names_of_other_programs_are_understood() {
        assert!("karas".parse::<Spacing>().is_err());
        assert_eq!("SGM Uniform".parse(), Ok(Spacing::Trailing));
    }
}
