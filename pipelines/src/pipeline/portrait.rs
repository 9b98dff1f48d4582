//! Opening a pipeline of portraits: branches, and the model that they go with.

use std::path::Path;

use pyrograph_engine::device::Opened;

use super::open::{OpenOptions, read};
use super::{Pipeline, work_on};
use crate::branches::Branches;
use crate::error::{Error, Result};
use crate::model::{self, Model, WeightType};
use crate::task::{Matches, Portrait, PortraitTask};
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
        if let Some(dtype) = options.dtype.filter(|dtype| *dtype != WeightType::default()) {
            let (found, expected) = (dtype.to_string(), "f32 for portraits".into());
            return Err(Error::Setting { what: "the type of the weights", found, expected });
        }
        if let Some(guide) = &options.guide {
            let (found, expected) = (guide.display().to_string(), "none for portraits".into());
            return Err(Error::Setting { what: "the model that guides", found, expected });
        }
        let pipeline = Self::with_any_branches(branches.as_ref(), model.as_ref(), on, options)?;
        pipeline.task().check_trained()?;
        Ok(pipeline)
    }

    /// The same with branches that may have learnt no more than to find matches.
    fn with_any_branches(
        branches: &Path,
        model: &Path,
        on: &Opened,
        options: &OpenOptions<'_>,
    ) -> Result<Self> {
        threads::start(options.threads)?;
        let (device, path) = (&on.device, model::find(model)?);
        let options = &OpenOptions { dtype: Some(WeightType::default()), ..options.clone() };
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

/// What of profile and reference shows the same, by the branches in a folder and the model that they were trained with; they
/// need not have learnt more than to find matches.
///
/// # Errors
/// As of [`PortraitPipeline::with_branches`], and pictures that cannot be read, a share that is hidden out of range, branches
/// that find no matches.
pub fn matches(
    branches: impl AsRef<Path>,
    model: impl AsRef<Path>,
    on: &Opened,
    asked: &Portrait,
) -> Result<Matches> {
    let options = &OpenOptions::default();
    let pipeline =
        PortraitPipeline::with_any_branches(branches.as_ref(), model.as_ref(), on, options)?;
    work_on(&on.device, || pipeline.task().matches(asked, pipeline.size()))
}
