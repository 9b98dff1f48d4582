//! Networks as denoisers: bound to the process they were trained on and to a condition.

mod dit;
mod student;

pub use dit::{DitDenoiser, Steering};
pub use student::StudentDenoiser;

use crate::diffusion::{NoiseSchedule, Process, ProcessError, TimeInput};
use crate::layers::TimeCode;
use crate::nets::DitConfig;

/// A network that does not go with a process.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Misfit {
    /// A process that cannot work with any network.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A table with a row per timestep in a process that tells something else.
    #[error("the network has a table of {rows} timesteps, the process tells it ln(σ) / 4")]
    NoTimesteps {
        /// Rows of the table.
        rows: usize,
    },
    /// A table with fewer rows than there are timesteps.
    #[error("the network has a table of {rows} timesteps, the process has {timesteps}")]
    Timesteps {
        /// Rows of the table.
        rows: usize,
        /// Timesteps that occur.
        timesteps: usize,
    },
}

/// Whether a process works, and a network can be told its noise levels.
///
/// # Errors
/// See [`Misfit`].
pub fn check(process: &Process, net: &DitConfig) -> Result<(), Misfit> {
    process.check()?;
    let TimeCode::Table { steps: rows } = net.time else { return Ok(()) };
    // Those of a flow run from 0 to 1000.
    let timesteps = match process.schedule {
        _ if process.time != TimeInput::Timestep => None,
        NoiseSchedule::Edm { .. } => None,
        NoiseSchedule::RectifiedFlow { .. } => Some(1001),
        ref discrete => discrete.steps(),
    };
    match timesteps {
        None => Err(Misfit::NoTimesteps { rows }),
        Some(timesteps) if rows < timesteps => Err(Misfit::Timesteps { rows, timesteps }),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests;
