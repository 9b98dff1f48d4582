//! The diffusion process of a model.

use serde::{Deserialize, Serialize};

use super::{
    Clip, Clock, Grid, GridError, Level, NoiseSchedule, Prediction, Sampler, ScheduleError, Spacing,
};

/// What the network is told about the noise level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum TimeInput {
    /// The number of the timestep, 0 to 999; of a flow 1000 at pure noise.
    Timestep,
    /// 1000 less that: 0 at the pure noise of a flow.
    Countdown,
    /// The share of the way from the pure noise of a flow to data, 0 to 1 (Lumina Image 2.0).
    Share,
    /// `ln(σ) / 4` of the variance-exploding form (EDM2): smooth, so that any sampler with fractional
    /// times works.
    LogSigma,
}

/// Timesteps from data to noise.
const TIMESTEPS: f64 = 1000.0;

/// How far the times of a flow are moved, where that depends on the image: by a factor `e^μ`, see
/// [`NoiseSchedule::RectifiedFlow`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Shifting {
    /// μ goes along a line by the number of tokens (FLUX.1).
    Tokens {
        /// Two numbers of tokens.
        tokens: [f64; 2],
        /// μ at each.
        mu: [f64; 2],
    },
    /// μ of FLUX.2, by the numbers of tokens and of steps.
    Flux2,
}

impl Shifting {
    fn mu(self, tokens: usize, steps: usize) -> f64 {
        /// Slope and start of two lines, at 10 steps and at 200; beyond so many tokens the second holds for all.
        const LINES: [[f64; 2]; 2] =
            [[8.738_095_24e-5, 1.898_333_33], [0.000_169_27, 0.456_666_66]];
        const MANY: f64 = 4300.0;
        let tokens = tokens as f64;
        match self {
            Self::Tokens { tokens: [few, many], mu: [low, high] } => {
                low + (high - low) * (tokens - few) / (many - few)
            }
            Self::Flux2 => {
                let [at_10, at_200] = LINES.map(|[slope, start]| slope * tokens + start);
                let slope = (at_200 - at_10) / 190.0;
                if tokens > MANY { at_200 } else { at_200 + slope * (steps as f64 - 200.0) }
            }
        }
    }
}

/// The diffusion process of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// How noise is mixed in over time.
    pub schedule: NoiseSchedule,
    /// What the network predicts.
    pub prediction: Prediction,
    /// What the network is told about the noise level.
    pub time: TimeInput,
    /// Where estimates of the clean image are cut off in sampling, whatever the sampler.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip: Option<Clip>,
    /// Whether sampling ends at the lowest noise level of the schedule instead of at none.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ends_noisy: bool,
    /// The shift of a flow, in place of that of its schedule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shifting: Option<Shifting>,
}

/// A process that cannot work.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessError {
    /// A schedule that cannot be.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// A schedule with a level of pure noise, where something is not defined.
    #[error("{what} is not defined at pure noise, where {schedule} starts")]
    PureNoise {
        /// Prediction or time input.
        what: &'static str,
        /// The schedule.
        schedule: &'static str,
    },
    /// A number out of its range.
    #[error("{name} is {found}, expected {expected}")]
    Value {
        /// Its name.
        name: &'static str,
        /// What it is.
        found: f64,
        /// Its range.
        expected: &'static str,
    },
    /// A shift by the size of the image asked of a schedule that has none.
    #[error("a shift by the size of the image, for a schedule that is no rectified flow")]
    Shifting,
    /// A last noise level asked of a schedule that has none.
    #[error("a flow has no lowest noise level to end at")]
    Endless,
}

impl Process {
    /// A process of these three, without anything beside.
    pub fn new(schedule: NoiseSchedule, prediction: Prediction, time: TimeInput) -> Self {
        Self { schedule, prediction, time, clip: None, ends_noisy: false, shifting: None }
    }

    /// The process for images of so many tokens in so many steps.
    pub fn of_image(&self, tokens: usize, steps: usize) -> Self {
        let mut own = self.clone();
        if let (Some(shifting), NoiseSchedule::RectifiedFlow { shift }) =
            (own.shifting.take(), &mut own.schedule)
        {
            *shift = shifting.mu(tokens, steps).exp();
        }
        own
    }

    /// The number that the network is told for a level.
    pub fn time_input(&self, level: &Level) -> f64 {
        match self.time {
            TimeInput::Timestep => level.timestep,
            TimeInput::Countdown => TIMESTEPS - level.timestep,
            TimeInput::Share => 1.0 - level.timestep / TIMESTEPS,
            TimeInput::LogSigma => Clock::LogSigma.timestep(level.ve_sigma()),
        }
    }

    /// What makes an input of an image without noise, by a factor, and what the network is told of it: at the level of least
    /// noise that it knows.
    pub fn quiet(&self) -> (f64, f64) {
        let level = self.schedule.quietest();
        (self.prediction.coefficients(&level).c_in, self.time_input(&level))
    }

    /// Says what cannot work.
    ///
    /// # Errors
    /// Numbers out of range, and parts that do not go together.
    pub fn check(&self) -> Result<(), ProcessError> {
        self.schedule.check()?;
        let within = |name, found: f64, expected, is: bool| match is && found.is_finite() {
            true => Ok(()),
            false => Err(ProcessError::Value { name, found, expected }),
        };
        if let Prediction::Edm { sigma_data } = self.prediction {
            within("sigma_data", sigma_data, "above 0", sigma_data > 0.0)?;
        }
        if let Prediction::CleanFlow { noise, least } = self.prediction {
            within("standard deviation of the noise", noise, "above 0", noise > 0.0)?;
            within("least time", least, "0 to 1", (0.0..=1.0).contains(&least) && least > 0.0)?;
        }
        match self.clip {
            None => (),
            Some(Clip::Fixed(limit)) => within("clip", limit, "above 0", limit > 0.0)?,
            Some(Clip::Dynamic { quantile, highest }) => {
                within("quantile", quantile, "0 to 1", (0.0..=1.0).contains(&quantile))?;
                within("highest", highest, "above 0", highest > 0.0)?;
            }
        }
        let is_flow = matches!(self.schedule, NoiseSchedule::RectifiedFlow { .. });
        if self.shifting.is_some() && !is_flow {
            return Err(ProcessError::Shifting);
        }
        if let Some(Shifting::Tokens { tokens: [few, many], mu: [low, high] }) = self.shifting {
            within("tokens of the second μ", many, "more than of the first", many > few)?;
            within("tokens of the first μ", few, "finite", true)?;
            within("first μ", low, "-10 to 10", low.abs() <= 10.0)?;
            within("second μ", high, "-10 to 10", high.abs() <= 10.0)?;
        }
        if is_flow && self.ends_noisy {
            return Err(ProcessError::Endless);
        }
        let schedule = if is_flow { "a rectified flow" } else { "a schedule of zero SNR" };
        let undefined = match (self.prediction, self.time) {
            _ if !self.schedule.ends_in_noise() => None,
            (Prediction::Noise, _) => Some("a prediction of noise"),
            (Prediction::Edm { .. }, _) => Some("a prediction preconditioned as in EDM"),
            (_, TimeInput::LogSigma) => Some("the time input ln(σ) / 4"),
            _ => None,
        };
        undefined.map_or(Ok(()), |what| Err(ProcessError::PureNoise { what, schedule }))
    }

    /// The levels of a sampler's steps; without a spacing, at the solver's own places.
    ///
    /// # Errors
    /// A process that cannot work, those of [`Sampler::grid`], and levels that 32-bit numbers cannot hold.
    pub fn grid(
        &self,
        sampler: &Sampler,
        spacing: Option<&Spacing>,
        steps: usize,
    ) -> Result<Grid, GridError> {
        self.check()?;
        let mut grid = sampler.grid(&self.schedule, spacing, steps)?;
        if self.ends_noisy {
            let lowest = match self.schedule {
                NoiseSchedule::Edm { sigma_min, .. } => sigma_min,
                _ => self.schedule.sigmas().expect("a discrete schedule")[0],
            };
            grid = grid.ending_at(lowest)?;
        }
        let levels = grid.steps.iter().flatten().filter(|level| level.sigma > 0.0);
        match levels.copied().find(|level| !self.fits(level)) {
            Some(level) => Err(GridError::Range { sigma: level.ve_sigma() }),
            None => Ok(grid),
        }
    }

    /// Whether all numbers at a level are within the range of 32 bits.
    fn fits(&self, level: &Level) -> bool {
        let c = self.prediction.coefficients(level);
        let numbers = [c.c_in, c.c_skip, c.c_out, self.time_input(level), level.sigma];
        numbers.iter().all(|number| (*number as f32).is_finite()) && c.c_in as f32 > 0.0
    }
}
