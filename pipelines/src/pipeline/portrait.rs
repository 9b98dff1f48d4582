//! Opening a pipeline of portraits: branches, and the model that they go with.

use std::path::Path;

use pyrograph_engine::device::Opened;

use super::open::{OpenOptions, read};
use super::{Pipeline, work_on};
use crate::branches::Branches;
use crate::error::{Error, Result};
use crate::model::{self, Model, WeightType};
use crate::task::PortraitTask;
use crate::threads;

/// Makes portraits of people.
pub type PortraitPipeline = Pipeline<PortraitTask>;

impl PortraitPipeline {
    /// Opens the branches in a folder, and the model that they were trained with.
    ///
    /// # Errors
    /// Those of [`Pipeline::open`], branches of another model, weights in another type than f32, a guide.
    pub fn with_branches(
        branches: impl AsRef<Path>,
        model: impl AsRef<Path>,
        on: &Opened,
        options: &OpenOptions<'_>,
    ) -> Result<Self> {
        if options.dtype != WeightType::default() {
            let (found, expected) = (options.dtype.to_string(), "f32 for portraits".into());
            return Err(Error::Setting { what: "the type of the weights", found, expected });
        }
        if let Some(guide) = &options.guide {
            let (found, expected) = (guide.display().to_string(), "none for portraits".into());
            return Err(Error::Setting { what: "the model that guides", found, expected });
        }
        threads::start(options.threads)?;
        let (device, branches) = (&on.device, branches.as_ref());
        let path = model::find(model.as_ref())?;
        work_on(device, || {
            let (model, origin) = read(&path, on, options)?;
            // Once, for what branches see and for what is made.
            let model = Model { net: model.net.folded(), ..model };
            let net = model.net.trunk().config();
            let branches = Branches::open(branches, net, &origin.weights, device)?;
            let task = PortraitTask::new(&model, branches, device)?;
            Ok(Self { origin, ..Self::with_task(task, model, device) })
        })
    }
}
