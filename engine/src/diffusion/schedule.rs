//! Noise schedules: how signal and noise are mixed at each time.

use serde::{Deserialize, Serialize};

use crate::random::Generator;

/// A point on the noising path: `x_t = alpha · x_0 + sigma · z`, and the number a network is told.
///
/// The scaling is free: variance-preserving (`α² + σ² = 1`), variance-exploding (`α = 1`) and flow
/// (`α + σ = 1`) levels of the same `sigma / alpha` mean the same noise.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Level {
    /// Factor of the clean image.
    pub alpha: f64,
    /// Factor of the noise.
    pub sigma: f64,
    /// Timestep in the unit of the schedule, possibly fractional.
    pub timestep: f64,
}

impl Level {
    /// No noise.
    pub const CLEAN: Self = Self { alpha: 1.0, sigma: 0.0, timestep: 0.0 };

    /// `ln(alpha / sigma)`, infinite without noise.
    pub fn log_snr(&self) -> f64 {
        (self.alpha / self.sigma).ln()
    }

    /// `sigma / (alpha + sigma)`: the noise level in the form of a flow, in \[0, 1\].
    pub fn noise_share(&self) -> f64 {
        self.sigma / (self.alpha + self.sigma)
    }

    /// `sigma / alpha`: the noise level in variance-exploding form.
    pub fn ve_sigma(&self) -> f64 {
        self.sigma / self.alpha
    }

    /// The same noise with `alpha = 1`.
    pub fn exploding(self) -> Self {
        Self { alpha: 1.0, sigma: self.ve_sigma(), ..self }
    }
}

/// How noise is mixed in over time; part of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields)]
pub enum NoiseSchedule {
    /// `β` from `first` to `last` in equal steps (Ho et al. 2020).
    Linear {
        /// Number of timesteps.
        steps: usize,
        /// First β.
        first: f64,
        /// Last β.
        last: f64,
        /// Rescaled so that the last step is pure noise (Lin et al. 2024, Algorithm 1).
        #[serde(default)]
        zero_snr: bool,
    },
    /// `√β` from `√first` to `√last` in equal steps (Rombach et al. 2022).
    ScaledLinear {
        /// Number of timesteps.
        steps: usize,
        /// First β.
        first: f64,
        /// Last β.
        last: f64,
        /// See [`NoiseSchedule::Linear`].
        #[serde(default)]
        zero_snr: bool,
    },
    /// `ᾱ(t) = cos²((t + 0.008) / 1.008 · π/2)`, `β ≤ 0.999` (Nichol & Dhariwal 2021).
    SquaredCosine {
        /// Number of timesteps.
        steps: usize,
        /// See [`NoiseSchedule::Linear`].
        #[serde(default)]
        zero_snr: bool,
    },
    /// `β` as it is listed, one per timestep.
    Betas {
        /// Each above 0 and below 1.
        betas: Vec<f64>,
        /// See [`NoiseSchedule::Linear`].
        #[serde(default)]
        zero_snr: bool,
    },
    /// `x_t = (1 − t) x_0 + t z`, the timestep being `1000 t` (Liu et al. 2023; Esser et al. 2024).
    RectifiedFlow {
        /// Times are moved towards the noise, `t ↦ s t / (1 + (s − 1) t)`; 1 is none.
        shift: f64,
    },
    /// `x_t = x_0 + σ z` with `ln σ` from a normal distribution in training (Karras et al. 2022).
    Edm {
        /// Smallest σ of a sampling grid.
        sigma_min: f64,
        /// Largest σ of a sampling grid.
        sigma_max: f64,
        /// Exponent of the grid.
        rho: f64,
        /// Mean of `ln σ` in training.
        log_mean: f64,
        /// Standard deviation of `ln σ` in training.
        log_std: f64,
    },
}

/// A schedule that cannot be.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ScheduleError {
    /// Too many timesteps for a table, or too few to go from one to another.
    #[error("a schedule of {steps} timesteps, expected 2 to {limit}")]
    Steps {
        /// Timesteps.
        steps: usize,
        /// Most that are possible.
        limit: usize,
    },
    /// A number out of its range.
    #[error("{name} of the schedule is {found}, expected {expected}")]
    Value {
        /// Its name.
        name: &'static str,
        /// What it is.
        found: f64,
        /// Its range.
        expected: &'static str,
    },
    /// Signal that does not fall, or falls below what a 32-bit number can hold.
    #[error(
        "the signal ᾱ must fall and stay above {LEAST_SIGNAL:.1e}, at timestep {timestep} it is {found:.1e}"
    )]
    Signal {
        /// The timestep.
        timestep: usize,
        /// `ᾱ` there.
        found: f64,
    },
}

/// Timesteps of a continuous schedule, for the numbers a network is told.
pub(super) const FLOW_TIMESTEPS: f64 = 1000.0;

/// Most timesteps of a discrete schedule, a hundred times the usual number; its tables take 800 kB each.
const STEPS_LIMIT: usize = 100_000;

/// `ᾱ` whose root is the smallest normal 32-bit number.
const LEAST_SIGNAL: f64 = (f32::MIN_POSITIVE as f64) * (f32::MIN_POSITIVE as f64);

/// Least `σ`, whose inverse is the largest: a step between them, in 32-bit numbers, is off by as much as the square of their
/// ratio.
const LEAST_SIGMA: f64 = 1e-6;

/// `ᾱ` that stands for none where σ must be finite; the value of diffusers.
const PURE_NOISE: f64 = 1.0 / 16_777_216.0;

impl NoiseSchedule {
    /// Says what cannot be.
    ///
    /// # Errors
    /// Numbers out of range, and signal that does not fall over time.
    pub fn check(&self) -> Result<(), ScheduleError> {
        let within = |name, found: f64, expected, is: bool| match is && found.is_finite() {
            true => Ok(()),
            false => Err(ScheduleError::Value { name, found, expected }),
        };
        let beta =
            |name, beta: f64| within(name, beta, "above 0 and below 1", beta > 0.0 && beta < 1.0);
        match self {
            Self::RectifiedFlow { shift } => within("shift", *shift, "above 0", *shift > 0.0),
            &Self::Edm { sigma_min, sigma_max, rho, log_mean, log_std } => {
                within("sigma_min", sigma_min, "1e-6 or more", sigma_min >= LEAST_SIGMA)?;
                let is = sigma_max > sigma_min && sigma_max <= 1.0 / LEAST_SIGMA;
                within("sigma_max", sigma_max, "above sigma_min and up to 1e6", is)?;
                within("rho", rho, "above 0", rho > 0.0)?;
                within("log_mean", log_mean, "a number", true)?;
                within("log_std", log_std, "0 or more", log_std >= 0.0)
            }
            discrete => {
                let steps = discrete.steps().expect("a discrete schedule");
                if !(2..=STEPS_LIMIT).contains(&steps) {
                    return Err(ScheduleError::Steps { steps, limit: STEPS_LIMIT });
                }
                match discrete {
                    Self::Betas { betas, .. } => betas.iter().try_for_each(|b| beta("beta", *b))?,
                    &Self::Linear { first, last, .. } | &Self::ScaledLinear { first, last, .. } => {
                        beta("first", first)?;
                        beta("last", last)?;
                    }
                    _ => (),
                }
                discrete.check_signal()
            }
        }
    }

    fn check_signal(&self) -> Result<(), ScheduleError> {
        let bars = self.alpha_bars().expect("a discrete schedule");
        let fault =
            |timestep: usize| Err(ScheduleError::Signal { timestep, found: bars[timestep] });
        if !(bars[0] < 1.0 && bars[0] > PURE_NOISE) {
            return fault(0);
        }
        let pure = |t: usize| t + 1 == bars.len() && bars[t] == 0.0 && self.ends_in_noise();
        match (1..bars.len())
            .find(|&t| !(bars[t] < bars[t - 1] && (bars[t] > LEAST_SIGNAL || pure(t))))
        {
            Some(timestep) => fault(timestep),
            None => Ok(()),
        }
    }

    /// Whether the last level has no signal.
    pub fn ends_in_noise(&self) -> bool {
        match *self {
            Self::Linear { zero_snr, .. }
            | Self::ScaledLinear { zero_snr, .. }
            | Self::SquaredCosine { zero_snr, .. }
            | Self::Betas { zero_snr, .. } => zero_snr,
            Self::RectifiedFlow { .. } => true,
            Self::Edm { .. } => false,
        }
    }

    /// `ᾱ` of every timestep of a discrete schedule; `None` for a continuous one.
    pub fn alpha_bars(&self) -> Option<Vec<f64>> {
        let (betas, zero_snr): (Vec<f64>, bool) = match *self {
            Self::Betas { ref betas, zero_snr } => (betas.clone(), zero_snr),
            Self::Linear { steps, first, last, zero_snr } => (ramp(first, last, steps), zero_snr),
            Self::ScaledLinear { steps, first, last, zero_snr } => {
                let roots = ramp(first.sqrt(), last.sqrt(), steps);
                (roots.into_iter().map(|root| root * root).collect(), zero_snr)
            }
            Self::SquaredCosine { steps, zero_snr } => {
                let bar = |i: usize| {
                    let t = i as f64 / steps as f64;
                    ((t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2)
                };
                ((0..steps).map(|i| (1.0 - bar(i + 1) / bar(i)).min(0.999)).collect(), zero_snr)
            }
            Self::RectifiedFlow { .. } | Self::Edm { .. } => return None,
        };
        let product = |bar: &mut f64, beta: f64| {
            *bar *= 1.0 - beta;
            Some(*bar)
        };
        let bars: Vec<f64> = betas.into_iter().scan(1.0, product).collect();
        Some(if zero_snr { without_last_signal(bars) } else { bars })
    }

    /// Variance-exploding σ of every timestep of a discrete schedule; the last can be infinite.
    pub(super) fn sigmas(&self) -> Option<Vec<f64>> {
        Some(self.alpha_bars()?.into_iter().map(sigma_of).collect())
    }

    /// The same for solvers in σ, which must be finite: pure noise stands at `ᾱ = 2⁻²⁴`, and timesteps that have
    /// less signal than that lie below it, evenly in `ln σ`.
    pub(super) fn finite_sigmas(&self) -> Option<Vec<f64>> {
        let mut sigmas = self.sigmas()?;
        let highest = sigma_of(PURE_NOISE);
        if sigmas.last().is_some_and(|last| last.is_infinite()) {
            let kept = sigmas.partition_point(|sigma| *sigma < highest).max(1);
            let (low, count) = (sigmas[kept - 1], sigmas.len() - kept);
            for (i, sigma) in sigmas[kept..].iter_mut().enumerate() {
                *sigma = low * (highest / low).powf((i + 1) as f64 / count as f64);
            }
        }
        Some(sigmas)
    }

    /// Number of timesteps of a discrete schedule.
    pub fn steps(&self) -> Option<usize> {
        match *self {
            Self::Betas { ref betas, .. } => Some(betas.len()),
            Self::Linear { steps, .. }
            | Self::ScaledLinear { steps, .. }
            | Self::SquaredCosine { steps, .. } => Some(steps),
            Self::RectifiedFlow { .. } | Self::Edm { .. } => None,
        }
    }

    /// Level of a timestep; `ln σ` is interpolated between those of a discrete schedule. `None` outside
    /// the schedule, and for a schedule without timesteps.
    pub fn level(&self, timestep: f64) -> Option<Level> {
        match self {
            Self::RectifiedFlow { .. } => {
                let sigma = timestep / FLOW_TIMESTEPS;
                (0.0..=1.0).contains(&sigma).then_some(Level {
                    alpha: 1.0 - sigma,
                    sigma,
                    timestep,
                })
            }
            Self::Edm { .. } => None,
            _ => {
                let bars = self.alpha_bars()?;
                let below = timestep.floor();
                if !(0.0..=(bars.len() - 1) as f64).contains(&timestep) {
                    return None;
                }
                let bar = match timestep == below {
                    true => bars[below as usize],
                    false => {
                        let log = |bar: f64| ((1.0 - bar) / bar).ln() / 2.0;
                        let (a, b) = (log(bars[below as usize]), log(bars[below as usize + 1]));
                        let sigma = (a + (b - a) * (timestep - below)).exp();
                        1.0 / (1.0 + sigma * sigma)
                    }
                };
                Some(preserving(bar, timestep))
            }
        }
    }

    /// The level of least noise that a network of the schedule knows.
    pub fn quietest(&self) -> Level {
        match *self {
            Self::Edm { sigma_min, .. } => {
                Level { alpha: 1.0, sigma: sigma_min, timestep: sigma_min.ln() / 4.0 }
            }
            _ => self.level(0.0).expect("a first timestep"),
        }
    }

    /// The same schedule with the training levels of another one, where both say from which normal distribution they are
    /// drawn: what it takes to sample is not changed.
    pub fn trained_as(mut self, other: &Self) -> Self {
        if let (
            Self::Edm { log_mean, log_std, .. },
            Self::Edm { log_mean: mean, log_std: spread, .. },
        ) = (&mut self, other)
        {
            (*log_mean, *log_std) = (*mean, *spread);
        }
        self
    }

    /// A random level for training, drawn uniformly over time, or as the schedule says.
    pub fn training_level(&self, random: &mut Generator) -> Level {
        match *self {
            Self::RectifiedFlow { shift } => {
                let sigma = shifted(random.uniform(), shift);
                Level { alpha: 1.0 - sigma, sigma, timestep: sigma * FLOW_TIMESTEPS }
            }
            Self::Edm { log_mean, log_std, .. } => {
                let sigma = (log_mean + log_std * random.normal_one()).exp();
                Level { alpha: 1.0, sigma, timestep: sigma.ln() / 4.0 }
            }
            _ => {
                let steps = self.steps().expect("a discrete schedule");
                let index = (random.uniform() * steps as f64) as usize;
                self.level(index.min(steps - 1) as f64).expect("within the schedule")
            }
        }
    }
}

/// `t ↦ s t / (1 + (s − 1) t)`, in [0, 1] whatever the rounding.
pub(super) fn shifted(t: f64, shift: f64) -> f64 {
    (shift * t / (1.0 + (shift - 1.0) * t)).min(1.0)
}

/// `σ / α` of an `ᾱ`.
fn sigma_of(alpha_bar: f64) -> f64 {
    ((1.0 - alpha_bar) / alpha_bar).sqrt()
}

/// Variance-preserving level of an `ᾱ`.
pub(super) fn preserving(alpha_bar: f64, timestep: f64) -> Level {
    Level { alpha: alpha_bar.sqrt(), sigma: (1.0 - alpha_bar).sqrt(), timestep }
}

fn ramp(first: f64, last: f64, steps: usize) -> Vec<f64> {
    let gaps = steps.max(2) - 1;
    (0..steps).map(|i| first + (last - first) * i as f64 / gaps as f64).collect()
}

/// Moves and scales `√ᾱ` so that the last is zero and the first stays (Lin et al. 2024, Algorithm 1).
fn without_last_signal(bars: Vec<f64>) -> Vec<f64> {
    let (Some(first), Some(last)) = (bars.first().map(|b| b.sqrt()), bars.last().map(|b| b.sqrt()))
    else {
        return bars;
    };
    let scale = first / (first - last);
    bars.into_iter().map(|bar| ((bar.sqrt() - last) * scale).powi(2)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linear() -> NoiseSchedule {
        NoiseSchedule::Linear { steps: 1000, first: 1e-4, last: 0.02, zero_snr: false }
    }

    #[test]
    fn linear_schedule_matches_the_published_numbers() {
        let bars = linear().alpha_bars().expect("discrete");
        let published = [
            (0, 0.9999),
            (1, 0.9997800921),
            (10, 0.9978065725),
            (100, 0.8951415909),
            (250, 0.5214230306),
            (500, 0.07779665837),
            (750, 0.003300158362),
            (999, 4.035829765e-05),
        ];
        for (t, bar) in published {
            assert!((bars[t] / bar - 1.0).abs() < 1e-9, "{t}: {}", bars[t]);
        }
        let sigma = linear().level(999.0).expect("the last step").ve_sigma();
        assert!((sigma - 157.407).abs() < 1e-3);
    }

    #[test]
    fn snr_falls_and_levels_interpolate() {
        for schedule in [linear(), NoiseSchedule::SquaredCosine { steps: 1000, zero_snr: false }] {
            let levels: Vec<f64> = (0..1999)
                .map(|i| schedule.level(f64::from(i) / 2.0).expect("inside").log_snr())
                .collect();
            assert!(levels.windows(2).all(|pair| pair[1] < pair[0]));
        }
        assert_eq!(linear().level(999.5), None);
    }

    #[test]
    fn zero_snr_ends_in_pure_noise_and_keeps_the_first_step() {
        let schedule =
            NoiseSchedule::ScaledLinear { steps: 1000, first: 8.5e-4, last: 0.012, zero_snr: true };
        let bars = schedule.alpha_bars().expect("discrete");
        assert_eq!(bars[999], 0.0);
        assert!((bars[0] - (1.0 - 8.5e-4)).abs() < 1e-9);
    }
}
