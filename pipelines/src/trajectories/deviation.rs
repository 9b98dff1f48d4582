//! How far a student strays from the trajectories of its teacher.

use std::ops::ControlFlow;

use burn::tensor::Device;
use pyrograph_engine::metrics::Estimate;
use pyrograph_engine::nets::{Net, Points};
use pyrograph_engine::read;
use pyrograph_engine::train::{Past, step_errors};
use serde::Serialize;
use serde_json::json;

use super::set::Trajectories;
use crate::error::{Error, Result, TrajectoryError};

/// Mean squared errors of the steps of a student against the points of its teacher's trajectories, with
/// intervals.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Deviation {
    /// Number of trajectories.
    pub trajectories: usize,
    /// Of each step from the teacher's points, as in training.
    pub forced: Vec<Estimate>,
    /// Of each step from the student's own points, as in sampling; the last is that of the images.
    pub own: Vec<Estimate>,
}

impl Trajectories {
    /// How far a student strays from these trajectories, which should not be those that it was trained on.
    /// `observe` hears of the number of trajectories done after every `batch`.
    ///
    /// # Errors
    /// A network that is no student, or one of other steps, points, or images of another shape; a shard that
    /// can no longer be read; [`Error::Cancelled`] if `observe` breaks.
    pub fn deviation(
        &self,
        net: &Net,
        batch: usize,
        device: &Device,
        observe: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Deviation> {
        let fault = |reason| Error::Trajectories { path: self.folder.clone(), reason };
        let spec = self.spec();
        let Net::Student(net) = net else {
            return Err(fault(TrajectoryError::NoStudent));
        };
        let (student, trunk) = (net.config(), net.trunk().config());
        let picks = spec.picks(student.steps()).map_err(fault)?;
        let [height, width] = trunk.size;
        let kind = |shape: [usize; 3], classes: usize, points: Points| json!({ "shape": shape, "classes": classes, "points": points });
        let shape = [trunk.channels, height, width];
        let [own, theirs] = [
            kind(shape, trunk.classes, student.points),
            kind(spec.shape, spec.classes, spec.points),
        ];
        if own != theirs {
            let [found, expected] = [own, theirs].map(|kind| kind.to_string());
            return Err(fault(TrajectoryError::OtherStudent { found, expected }));
        }
        let mut errors =
            [Past::Teacher, Past::Own].map(|past| (past, vec![Vec::new(); picks.len()]));
        let indices: Vec<usize> = (0..spec.count).collect();
        let mut done = 0;
        for indices in indices.chunks(batch.max(1)) {
            let trajectories = self.batch(indices, &picks, device)?;
            for (past, errors) in &mut errors {
                let steps = step_errors(net, &trajectories, *past);
                for (errors, step) in errors.iter_mut().zip(steps) {
                    let values = read::numbers(step)?;
                    errors.extend(values.into_iter().map(f64::from));
                }
            }
            done += indices.len();
            if observe(done).is_break() {
                return Err(Error::Cancelled);
            }
        }
        let [forced, own] =
            errors.map(|(_, steps)| steps.iter().map(|errors| Estimate::mean(errors)).collect());
        Ok(Deviation { trajectories: done, forced, own })
    }
}
