//! The diffusion process of a model.

use serde::{Deserialize, Serialize};

use super::{Level, NoiseSchedule, Prediction};

/// What the network is told about the noise level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeInput {
    /// The number of the timestep, 0 to 999.
    Timestep,
    /// `ln(σ) / 4` of the variance-exploding form (EDM2): smooth, so that any sampler with fractional
    /// times works.
    LogSigma,
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
}

impl Process {
    /// The number that the network is told for a level.
    pub fn time_input(&self, level: &Level) -> f64 {
        match self.time {
            TimeInput::Timestep => level.timestep,
            TimeInput::LogSigma => level.ve_sigma().ln() / 4.0,
        }
    }
}
