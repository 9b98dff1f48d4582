//! Random numbers of a run.

use pyrograph_engine::random::{Generator, derived_seed};

/// The random streams of one step of a run, so that a run can be resumed at any step.
#[derive(Clone, Copy)]
pub(crate) struct Streams {
    pub(crate) seed: u64,
    pub(crate) step: u64,
}

/// The part of a step whose stream chooses its patch size.
const PATCH: u64 = u64::MAX;

impl Streams {
    /// The stream of one part of the step.
    pub(crate) fn part(self, part: u64) -> Generator {
        Generator::new(derived_seed(self.seed, self.step, part))
    }

    /// What chooses the patch size of the step, in [0, 1).
    pub(super) fn patch(self) -> f64 {
        self.part(PATCH).uniform()
    }
}
