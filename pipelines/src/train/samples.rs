//! Sample grids of a model in training.

use std::ops::ControlFlow;
use std::path::PathBuf;

use super::Run;
use crate::error::Result;
use crate::image::{contact_sheet, write_image};
use crate::pipeline::ClassPipeline;
use crate::request::Request;

/// Most classes shown.
const CLASSES: usize = 16;
/// Images per class.
const PER_CLASS: usize = 4;

/// Writes a grid with a row of images per class, from the first average, always from the same noise.
pub(super) fn write(run: &Run) -> Result<PathBuf> {
    let pipeline = ClassPipeline::new(run.averaged(0), &run.device)?;
    let classes: Vec<usize> =
        (0..pipeline.classes().min(CLASSES)).flat_map(|class| [class; PER_CLASS]).collect();
    let request = Request::new(classes);
    let folder = run.folder.join("samples");
    std::fs::create_dir_all(&folder)
        .map_err(|source| crate::error::Error::File { path: folder.clone(), source })?;
    let path = folder.join(format!("{:07}.png", run.step()));
    // An untrained model may make constant pictures: they are shown, not refused.
    let images = pipeline.sketch(&request, &mut |_| ControlFlow::Continue(()))?.images;
    write_image(&path, &contact_sheet(&images, 2 * PER_CLASS, 2, [255; 3]), &[])?;
    Ok(path)
}
