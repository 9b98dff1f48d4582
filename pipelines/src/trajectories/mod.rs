//! Trajectories of a teacher, recorded for its few-step student (ARD, Kim et al. 2025, section 3).
//!
//! A folder holds `trajectories.json` and shards of a fixed number of trajectories. Trajectory `i` starts
//! from the noise of seed `settings.seed + i`, which is remade instead of stored, and its class is
//! `i mod classes`.

mod deviation;
mod record;
mod set;
mod spec;

pub use deviation::Deviation;
pub use record::{Estimate, Recorder};
pub use set::Trajectories;
pub use spec::TrajectorySpec;
