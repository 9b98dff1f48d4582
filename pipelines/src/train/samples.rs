//! Sample grids of a model in training.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::tensor::Device;

use crate::error::{Error, Result};
use crate::image::{contact_sheet, write_image};
use crate::model::Model;
use crate::pipeline::ClassPipeline;
use crate::request::Request;

/// Folder of the grids in that of a run.
pub(super) const SAMPLES: &str = "samples";

/// Most classes shown.
const CLASSES: usize = 16;
/// Images per class.
const PER_CLASS: usize = 4;

/// Where the grid of a step is, in the folder of its run, `run`.
pub(super) fn path(run: &Path, step: u64) -> PathBuf {
    run.join(SAMPLES).join(format!("{step:07}.png"))
}

/// What is asked for: a row of images per class.
fn request(pipeline: &ClassPipeline) -> Request<usize> {
    let classes = 0..pipeline.classes().min(CLASSES);
    Request::new(classes.flat_map(|class| [class; PER_CLASS]))
}

/// Checks, before any work, that a model can be sampled as it says.
///
/// # Errors
/// Settings that the model cannot follow.
pub(super) fn check(model: Model, device: &Device) -> Result<()> {
    let pipeline = ClassPipeline::new(model, device)?;
    pipeline.resolve(&request(&pipeline)).map(drop)
}

/// Writes the grid of a model to `path`, always from the same noise, unless `ask`, which is asked after every step of
/// the sampler, breaks.
pub(super) fn write(
    path: &Path,
    model: Model,
    device: &Device,
    ask: &mut (dyn FnMut() -> ControlFlow<()> + Send),
) -> Result<ControlFlow<()>> {
    let pipeline = ClassPipeline::new(model, device)?;
    let folder = pyrograph_weights::folder_of(path);
    std::fs::create_dir_all(folder)
        .map_err(|source| Error::File { path: folder.to_owned(), source })?;
    // An untrained model may make constant pictures: they are shown, not refused.
    let images = match pipeline.sketch(&request(&pipeline), &mut |_| ask()) {
        Ok(generated) => generated.images,
        Err(Error::Cancelled) => return Ok(ControlFlow::Break(())),
        Err(error) => return Err(error),
    };
    write_image(path, &contact_sheet(&images, 2 * PER_CLASS, 2, [255; 3]), &[])?;
    Ok(ControlFlow::Continue(()))
}
