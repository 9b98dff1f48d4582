//! Placement of the steps of a sampler.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::schedule::{preserving, shifted};
use super::{Level, NoiseSchedule};

/// Exponent of [`Spacing::Karras`] where none is given.
pub const KARRAS_RHO: f64 = 7.0;

/// Where along the schedule the steps are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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
    /// Explicit variance-exploding σ, highest first; a last 0 is understood.
    Sigmas(Vec<f64>),
    /// Explicit timesteps, highest first.
    Timesteps(Vec<f64>),
}

/// The levels that a sampler passes, noisiest first.
#[derive(Debug, Clone, PartialEq)]
pub struct Grid {
    /// Each step's level and the level it goes to; the last goes to [`Level::CLEAN`].
    pub steps: Vec<[Level; 2]>,
    /// Unit-variance noise times this is the first state.
    pub initial_scale: f64,
}

/// A placement that cannot be.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum GridError {
    /// More steps than the schedule has, or none.
    #[error("{steps} steps, expected 1 to {limit}")]
    Steps {
        /// Steps asked for.
        steps: usize,
        /// Most that are possible.
        limit: usize,
    },
    /// Noise levels that do not fall.
    #[error("noise levels must be finite, positive and falling, found {found:?}")]
    Order {
        /// The offending neighbours, or all.
        found: Vec<f64>,
    },
    /// A timestep outside the schedule.
    #[error("timestep {timestep} is outside the schedule")]
    Timestep {
        /// The timestep.
        timestep: f64,
    },
    /// A spacing by timesteps for a schedule that has none.
    #[error("{spacing} needs a schedule of timesteps, the model has a continuous one")]
    Continuous {
        /// The spacing.
        spacing: Spacing,
    },
    /// A sampler for discrete schedules only.
    #[error("sampler {sampler} needs a schedule of timesteps, the model has a continuous one")]
    Sampler {
        /// Its name.
        sampler: String,
    },
    /// A name that is not known.
    #[error("unknown {what} `{found}`, expected one of {known}")]
    Name {
        /// Sampler or scheduler.
        what: &'static str,
        /// The name.
        found: String,
        /// Known names.
        known: String,
    },
}

/// Most steps of a continuous schedule.
const STEP_LIMIT: usize = 10_000;

/// Signal that a schedule without any at its end is given by solvers in σ, whose σ must be finite.
const LEAST_ALPHA_BAR: f64 = 1.0 / 16_777_216.0;

/// How a family of solvers places and scales its steps; the conventions are those of diffusers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    /// One timestep to the one `⌊T / N⌋` below; variance-preserving.
    Ddim,
    /// One timestep to the next of the grid; variance-preserving.
    Ddpm,
    /// `N + 1` timesteps of which the last is left out; variance-preserving.
    Multistep,
    /// Fractional timesteps; variance-exploding.
    Exploding,
}

impl Grid {
    pub(super) fn new(
        family: Family,
        schedule: &NoiseSchedule,
        spacing: &Spacing,
        steps: usize,
    ) -> Result<Self, GridError> {
        let limit = schedule.steps().unwrap_or(STEP_LIMIT);
        if steps == 0 || steps > limit {
            return Err(GridError::Steps { steps, limit });
        }
        if let Spacing::Sigmas(sigmas) = spacing
            && sigmas.iter().any(|sigma| !(sigma.is_finite() && *sigma >= 0.0))
        {
            return Err(GridError::Order { found: sigmas.clone() });
        }
        let grid = match schedule {
            NoiseSchedule::RectifiedFlow { shift } => Self::flow(*shift, spacing, steps)?,
            NoiseSchedule::Edm { sigma_min, sigma_max, rho, .. } => {
                Self::edm([*sigma_min, *sigma_max], *rho, spacing, steps)?
            }
            _ => Self::discrete(family, schedule, spacing, steps)?,
        };
        let sigmas: Vec<f64> = grid.steps.iter().map(|[from, _]| from.ve_sigma()).collect();
        let bad = |pair: &&[f64]| !(pair[0] > pair[1] && pair[1] > 0.0);
        match sigmas.windows(2).find(bad) {
            Some(pair) => Err(GridError::Order { found: pair.to_vec() }),
            None => Ok(grid),
        }
    }

    /// Levels one after the other, then no noise.
    fn chain(levels: Vec<Level>, initial_scale: f64) -> Self {
        let next = levels.iter().skip(1).copied().chain([Level::CLEAN]);
        Self {
            steps: levels.iter().copied().zip(next).map(|(a, b)| [a, b]).collect(),
            initial_scale,
        }
    }

    /// The shift applies to the ends of the grid, and again to the points between.
    fn flow(shift: f64, spacing: &Spacing, steps: usize) -> Result<Self, GridError> {
        let level = |sigma: f64| Level { alpha: 1.0 - sigma, sigma, timestep: 1000.0 * sigma };
        let levels = match spacing {
            Spacing::Sigmas(sigmas) => positive(sigmas).map(|s| level(s / (1.0 + s))).collect(),
            Spacing::Timesteps(timesteps) => timesteps.iter().map(|t| level(t / 1000.0)).collect(),
            _ => {
                let last = shifted(1e-3, shift);
                let low = shifted(last, shift);
                let sigmas = match spacing {
                    Spacing::Karras { rho } => karras(1.0, low, steps, *rho),
                    Spacing::Exponential => exponential(1.0, low, steps),
                    _ => {
                        let even = linspace(1.0, last, steps);
                        even.into_iter().map(|s| shifted(s, shift)).collect()
                    }
                };
                sigmas.into_iter().map(level).collect()
            }
        };
        Ok(Self::chain(levels, 1.0))
    }

    fn edm(
        [low, high]: [f64; 2],
        rho: f64,
        spacing: &Spacing,
        steps: usize,
    ) -> Result<Self, GridError> {
        let sigmas = match spacing {
            Spacing::Sigmas(sigmas) => positive(sigmas).collect(),
            Spacing::Exponential => exponential(high, low, steps),
            Spacing::Karras { rho } => karras(high, low, steps, *rho),
            Spacing::Timesteps(_) => {
                return Err(GridError::Continuous { spacing: spacing.clone() });
            }
            _ => karras(high, low, steps, rho),
        };
        let level = |sigma: f64| Level { alpha: 1.0, sigma, timestep: sigma.ln() / 4.0 };
        let initial_scale = sigmas.first().copied().unwrap_or(1.0);
        Ok(Self::chain(sigmas.into_iter().map(level).collect(), initial_scale))
    }

    fn discrete(
        family: Family,
        schedule: &NoiseSchedule,
        spacing: &Spacing,
        steps: usize,
    ) -> Result<Self, GridError> {
        let mut bars = schedule.alpha_bars().expect("a discrete schedule");
        let in_sigma = by_sigma(spacing) || !matches!(family, Family::Ddim | Family::Ddpm);
        if let Some(last) = bars.last_mut().filter(|_| in_sigma) {
            *last = last.max(LEAST_ALPHA_BAR);
        }
        let sigmas: Vec<f64> = bars.iter().map(|bar| ((1.0 - bar) / bar).sqrt()).collect();
        let total = bars.len() as f64;
        let exploding = family == Family::Exploding;
        let timesteps = timesteps(family, spacing, bars.len(), steps);
        if let Some(timestep) = timesteps.iter().find(|t| !(0.0..total).contains(*t)) {
            return Err(GridError::Timestep { timestep: *timestep });
        }
        // Points of the grid as (timestep, σ).
        let at_sigmas = |wanted: Vec<f64>| -> Vec<(f64, f64)> {
            let named = |sigma: f64| {
                let t = timestep_of(&sigmas, sigma);
                (if exploding { t } else { t.round_ties_even() }, sigma)
            };
            wanted.into_iter().map(named).collect()
        };
        let ends = match exploding && !timesteps.is_empty() {
            true => [timesteps[0], timesteps[timesteps.len() - 1]].map(|t| interpolate(&sigmas, t)),
            false => [sigmas[sigmas.len() - 1], sigmas[0]],
        };
        let points: Vec<(f64, f64)> = match spacing {
            Spacing::Karras { rho } => at_sigmas(karras(ends[0], ends[1], steps, *rho)),
            Spacing::Exponential => at_sigmas(exponential(ends[0], ends[1], steps)),
            Spacing::Sigmas(wanted) => at_sigmas(positive(wanted).collect()),
            _ => timesteps.iter().map(|&t| (t, interpolate(&sigmas, t))).collect(),
        };
        let level = |(timestep, sigma): (f64, f64)| match sigma.is_infinite() {
            true => Level { alpha: 0.0, sigma: 1.0, timestep },
            false => preserving(1.0 / (1.0 + sigma * sigma), timestep),
        };
        let levels: Vec<Level> = points.into_iter().map(level).collect();
        Ok(match family {
            Family::Exploding => {
                let levels: Vec<Level> = levels.into_iter().map(Level::exploding).collect();
                let highest = levels.first().map_or(1.0, |level| level.sigma);
                let full = matches!(spacing, Spacing::Leading { .. });
                Self::chain(levels, if full { highest.hypot(1.0) } else { highest })
            }
            Family::Ddim if by_timesteps(spacing) => {
                let stride = (bars.len() / steps) as f64;
                let below = |from: &Level| match from.timestep - stride {
                    to if to < 0.0 => Level::CLEAN,
                    to => level((to, interpolate(&sigmas, to))),
                };
                Self {
                    steps: levels.iter().map(|from| [*from, below(from)]).collect(),
                    initial_scale: 1.0,
                }
            }
            _ => Self::chain(levels, 1.0),
        })
    }
}

fn by_sigma(spacing: &Spacing) -> bool {
    matches!(spacing, Spacing::Karras { .. } | Spacing::Exponential | Spacing::Sigmas(_))
}

fn by_timesteps(spacing: &Spacing) -> bool {
    matches!(spacing, Spacing::Leading { .. } | Spacing::Trailing | Spacing::Linspace)
}

fn positive(sigmas: &[f64]) -> impl Iterator<Item = f64> + '_ {
    sigmas.iter().copied().filter(|sigma| *sigma != 0.0)
}

/// Timesteps of a spacing, highest first, out of `total`.
fn timesteps(family: Family, spacing: &Spacing, total: usize, steps: usize) -> Vec<f64> {
    let (t, last) = (total as f64, (total - 1) as f64);
    let mut found: Vec<f64> = match spacing {
        Spacing::Timesteps(timesteps) => return timesteps.clone(),
        Spacing::Leading { offset } => {
            let multistep = usize::from(family == Family::Multistep);
            let stride = total / (steps + multistep);
            (multistep..steps + multistep).map(|i| (i * stride + offset) as f64).collect()
        }
        Spacing::Trailing => {
            let point = |i: usize| (t - i as f64 * t / steps as f64).round_ties_even() - 1.0;
            (0..steps).rev().map(point).collect()
        }
        Spacing::Respaced => {
            linspace(0.0, last, steps).into_iter().map(f64::round_ties_even).collect()
        }
        // Also the range that spacings by σ cover.
        _ => match family {
            Family::Multistep => linspace(0.0, last, steps + 1)
                .into_iter()
                .skip(1)
                .map(f64::round_ties_even)
                .collect(),
            Family::Exploding => linspace(0.0, last, steps),
            _ => linspace(0.0, last, steps).into_iter().map(f64::round_ties_even).collect(),
        },
    };
    found.reverse();
    found
}

fn linspace(first: f64, last: f64, count: usize) -> Vec<f64> {
    let gaps = count.max(2) - 1;
    (0..count).map(|i| first + (last - first) * i as f64 / gaps as f64).collect()
}

/// Linear interpolation of a table at a fractional index.
fn interpolate(table: &[f64], at: f64) -> f64 {
    let below = at.floor() as usize;
    match table.get(below + 1) {
        Some(above) if at > below as f64 => {
            table[below] + (above - table[below]) * (at - below as f64)
        }
        _ => table[below],
    }
}

/// Fractional timestep of a σ, by interpolation of `ln σ`.
fn timestep_of(sigmas: &[f64], sigma: f64) -> f64 {
    let above = sigmas.partition_point(|s| *s <= sigma).clamp(1, sigmas.len() - 1);
    let (low, high) = (sigmas[above - 1].ln(), sigmas[above].ln());
    let share = ((sigma.ln() - low) / (high - low)).clamp(0.0, 1.0);
    (above - 1) as f64 + share
}

fn karras(high: f64, low: f64, steps: usize, rho: f64) -> Vec<f64> {
    let root = |sigma: f64| sigma.powf(1.0 / rho);
    linspace(root(high), root(low), steps).into_iter().map(|r| r.powf(rho)).collect()
}

fn exponential(high: f64, low: f64, steps: usize) -> Vec<f64> {
    linspace(high.ln(), low.ln(), steps).into_iter().map(f64::exp).collect()
}

/// Names of spacings in A1111, ComfyUI, stable-diffusion.cpp and diffusers.
const NAMES: [(&str, &[&str]); 6] = [
    ("leading", &["ddim_uniform", "ddim"]),
    ("trailing", &["sgm_uniform", "sgm uniform", "simple"]),
    ("linspace", &["normal", "discrete", "uniform", "automatic"]),
    ("respaced", &["dit"]),
    ("karras", &["use_karras_sigmas"]),
    ("exponential", &["use_exponential_sigmas"]),
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
            Spacing::Sigmas(_) => "explicit noise levels",
            Spacing::Timesteps(_) => "explicit timesteps",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linear() -> NoiseSchedule {
        NoiseSchedule::Linear { steps: 1000, first: 1e-4, last: 0.02, zero_snr: false }
    }

    fn of(family: Family, spacing: Spacing) -> Vec<f64> {
        let grid = Grid::new(family, &linear(), &spacing, 5).expect("a grid");
        grid.steps.iter().map(|[from, _]| from.timestep).collect()
    }

    #[test]
    fn spacings_match_the_published_lists() {
        assert_eq!(of(Family::Ddim, Spacing::Leading { offset: 0 }), [800., 600., 400., 200., 0.]);
        assert_eq!(of(Family::Ddim, Spacing::Trailing), [999., 799., 599., 399., 199.]);
        assert_eq!(of(Family::Ddim, Spacing::Linspace), [999., 749., 500., 250., 0.]);
        assert_eq!(of(Family::Ddpm, Spacing::Respaced), [999., 749., 500., 250., 0.]);
        assert_eq!(of(Family::Multistep, Spacing::Linspace), [999., 799., 599., 400., 200.]);
    }

    #[test]
    fn karras_grids_match_the_published_numbers() {
        let expected = [80.0, 17.527832, 2.515219, 0.169753, 0.002];
        for (found, expected) in karras(80.0, 0.002, 5, 7.0).iter().zip(expected) {
            assert!((found - expected).abs() < 1e-5, "{found}");
        }
        let spacing = Spacing::Karras { rho: 7.0 };
        let grid = Grid::new(Family::Multistep, &linear(), &spacing, 5).expect("a grid");
        let timesteps: Vec<f64> = grid.steps.iter().map(|[from, _]| from.timestep).collect();
        assert_eq!(timesteps, [999., 843., 593., 142., 0.]);
        for ([from, _], sigma) in
            grid.steps.iter().zip([157.407, 36.9092, 5.9113, 0.491319, 0.010001])
        {
            assert!((from.ve_sigma() / sigma - 1.0).abs() < 1e-4);
        }
    }

    #[test]
    fn the_flow_shift_is_applied_twice() {
        let schedule = NoiseSchedule::RectifiedFlow { shift: 3.0 };
        let grid = Grid::new(Family::Exploding, &schedule, &Spacing::Linspace, 5).expect("a grid");
        let expected = [1.0, 0.900359, 0.751121, 0.502985, 0.0089286];
        for ([from, _], sigma) in grid.steps.iter().zip(expected) {
            assert!((from.sigma - sigma).abs() < 1e-6, "{}", from.sigma);
        }
    }

    #[test]
    fn solvers_in_sigma_start_a_zero_snr_schedule_at_a_finite_sigma() {
        let schedule =
            NoiseSchedule::Linear { steps: 1000, first: 1e-4, last: 0.02, zero_snr: true };
        let scale = |family, spacing| {
            let grid = Grid::new(family, &schedule, &spacing, 5).expect("a grid");
            (grid.steps[0][0].alpha, grid.initial_scale)
        };
        assert_eq!(scale(Family::Ddim, Spacing::Trailing), (0.0, 1.0));
        let (_, start) = scale(Family::Exploding, Spacing::Trailing);
        assert!((start - 4096.0).abs() < 1e-3, "{start}");
        let (alpha, _) = scale(Family::Ddim, Spacing::Karras { rho: 7.0 });
        assert!((alpha * 4096.0 - 1.0).abs() < 1e-6, "{alpha}");
    }

    #[test]
    fn impossible_grids_are_errors() {
        let make = |spacing, steps| Grid::new(Family::Ddim, &linear(), &spacing, steps);
        assert!(matches!(make(Spacing::Trailing, 0), Err(GridError::Steps { steps: 0, .. })));
        assert!(matches!(make(Spacing::Trailing, 1001), Err(GridError::Steps { .. })));
        for sigmas in [[1.0, 2.0], [f64::INFINITY, 1.0], [1.0, f64::NAN], [1.0, -1.0]] {
            let found = make(Spacing::Sigmas(sigmas.to_vec()), 2);
            assert!(matches!(found, Err(GridError::Order { .. })), "{sigmas:?}");
        }
        let late = Spacing::Timesteps(vec![1000.0, 3.0]);
        assert!(matches!(make(late, 2), Err(GridError::Timestep { .. })));
        assert!("karas".parse::<Spacing>().is_err());
        assert_eq!("SGM Uniform".parse(), Ok(Spacing::Trailing));
    }
}
