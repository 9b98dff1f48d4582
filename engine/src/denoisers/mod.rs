//! Networks as denoisers: bound to the process they were trained on and to a condition.

mod dit;
mod student;

pub use dit::DitDenoiser;
pub use student::StudentDenoiser;

use crate::diffusion::{NoiseSchedule, Process, TimeInput};
use crate::layers::TimeCode;
use crate::nets::{ConfigError, DitConfig};

/// Whether a network can be told the noise levels of a process.
///
/// # Errors
/// A table with a row per timestep in a process without timesteps.
pub fn check(process: &Process, net: &DitConfig) -> Result<(), ConfigError> {
    let edm = matches!(process.schedule, NoiseSchedule::Edm { .. });
    match net.time {
        TimeCode::Table { steps } if edm || process.time != TimeInput::Timestep => {
            Err(ConfigError::TimeTable {
                steps,
                told: format!("{:?}", process.time),
                schedule: format!("{:?}", process.schedule),
            })
        }
        _ => Ok(()),
    }
}
