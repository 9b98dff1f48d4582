//! Sample grids of a model in training.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::tensor::Device;

use crate::error::{Error, Result};
use crate::image::{contact_sheet, write_image};
use crate::model::Model;
use crate::pipeline::ClassPipeline;
use crate::request::Request;

/// Most classes shown.
const CLASSES: usize = 16;
/// Images per class.
const PER_CLASS: usize = 4;

/// Writes a grid with a row of images per class from the model of a step, always from the same noise, into the folder
/// of its run, `run`.
pub(super) fn write(run: &Path, step: u64, model: Model, device: &Device) -> Result<PathBuf> {
    let pipeline = ClassPipeline::new(model, device)?;
    let classes: Vec<usize> =
        (0..pipeline.classes().min(CLASSES)).flat_map(|class| [class; PER_CLASS]).collect();
    let request = Request::new(classes);
    let folder = run.join("samples");
    std::fs::create_dir_all(&folder)
        .map_err(|source| Error::File { path: folder.clone(), source })?;
    let path = folder.join(format!("{:07}.png", step));
    // An untrained model may make constant pictures: they are shown, not refused.
    let images = pipeline.sketch(&request, &mut |_| ControlFlow::Continue(()))?.images;
    write_image(&path, &contact_sheet(&images, 2 * PER_CLASS, 2, [255; 3]), &[])?;
    Ok(path)
}
