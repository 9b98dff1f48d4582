//! Random numbers of a run.

use pyrograph_engine::random::{Generator, derived_seed};

/// The random streams of one step of a run, so that a run can be resumed at any step.
#[derive(Clone, Copy)]
pub(super) struct Streams {
    pub(super) seed: u64,
    pub(super) step: u64,
}

impl Streams {
    /// The stream of one part of the step.
    pub(super) fn part(self, part: u64) -> Generator {
        Generator::new(derived_seed(self.seed, self.step, part))
    }
}
