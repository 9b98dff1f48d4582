//! What is wrong with a placement of steps.

use super::Spacing;
use crate::diffusion::{ProcessError, ScheduleError};

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
    /// A list of points of another length.
    #[error("{steps} steps, but {listed} {spacing}")]
    Count {
        /// Steps asked for.
        steps: usize,
        /// Points listed.
        listed: usize,
        /// The spacing.
        spacing: Spacing,
    },
    /// Noise levels that do not fall.
    #[error("noise levels must be finite, positive and falling, found {found:?}")]
    Order {
        /// The offending one, or neighbours.
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
    /// A curve of σ asked of a spacing that is none.
    #[error("{spacing} is no curve of noise levels")]
    Curve {
        /// The spacing.
        spacing: Spacing,
    },
    /// A solver of an order that it does not have.
    #[error("a solver of order {order}, expected 1 to {highest}")]
    SolverOrder {
        /// The order.
        order: usize,
        /// Most that is possible.
        highest: usize,
    },
    /// Churn on levels that it is not defined for.
    #[error("churn {amount} needs a variance-exploding schedule, the model has a flow")]
    Churn {
        /// Its amount.
        amount: f64,
    },
    /// A level at which a network would not get or give 32-bit numbers.
    #[error("at noise level {sigma:.3e} numbers leave the range of 32 bits")]
    Range {
        /// Variance-exploding σ.
        sigma: f64,
    },
    /// A schedule that cannot be.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// A process that cannot be.
    #[error(transparent)]
    Process(#[from] ProcessError),
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
