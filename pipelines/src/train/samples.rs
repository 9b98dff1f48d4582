//! Sample grids of a model in training.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use image::RgbImage;

use super::outline::Outline;
use crate::data::Dataset;
use crate::error::{Error, Result};
use crate::image::{contact_sheet, write_image};
use crate::model::Model;
use crate::pipeline::{ClassPipeline, Pipeline, TextPipeline};
use crate::request::Request;
use crate::task::Task;

/// Folder of the grids in that of a run.
pub(super) const SAMPLES: &str = "samples";

/// Most classes or captions shown.
const SHOWN: usize = 16;
/// Images of each.
const PER_PROMPT: usize = 4;

/// Where the grid of a step is, in the folder of its run, `run`.
pub(super) fn path(run: &Path, step: u64) -> PathBuf {
    run.join(SAMPLES).join(format!("{step:07}.png"))
}

/// Captions to show, spread over the images; none of images with classes.
pub(super) fn captions(data: &Dataset) -> Vec<String> {
    let shown = data.len().min(if data.captions().is_empty() { 0 } else { SHOWN });
    let caption = |i: usize| data.captions()[data.label(i * data.len() / shown)].clone();
    (0..shown).map(caption).collect()
}

/// Some of these, spread over all.
pub(super) fn spread(prompts: &[String]) -> Vec<String> {
    let shown = prompts.len().min(SHOWN);
    (0..shown).map(|i| prompts[i * prompts.len() / shown].clone()).collect()
}

/// A row of images for each prompt.
fn request<P: Clone>(prompts: impl IntoIterator<Item = P>) -> Request<P> {
    let rows = prompts.into_iter().map(|prompt| vec![prompt; PER_PROMPT]);
    Request::new(rows.flatten())
}

/// What is done with a pipeline of either kind.
enum Sampled {
    Classes(Box<ClassPipeline>, Request<usize>),
    Texts(Box<TextPipeline>, Request<String>),
}

impl Sampled {
    fn new(outline: &Outline, model: Model, device: &Device) -> Result<Self> {
        Ok(match outline.text {
            Some(_) => {
                let prompts = outline.prompts.iter().cloned();
                Self::Texts(TextPipeline::new(model, device)?.into(), request(prompts))
            }
            None => {
                let pipeline = ClassPipeline::new(model, device)?;
                let request = request(0..pipeline.classes().min(SHOWN));
                Self::Classes(pipeline.into(), request)
            }
        })
    }
}

/// Checks, before any work, that a model can be sampled as it says.
///
/// # Errors
/// Settings that the model cannot follow, prompts that it cannot read.
pub(super) fn check(outline: &Outline, model: Model, device: &Device) -> Result<()> {
    match Sampled::new(outline, model, device)? {
        Sampled::Classes(pipeline, request) => pipeline.resolve(&request).map(drop),
        Sampled::Texts(pipeline, request) => pipeline.resolve(&request).map(drop),
    }
}

/// Asked after every step of the sampler.
type Ask<'a> = dyn FnMut() -> ControlFlow<()> + Send + 'a;

/// The images of a request. An untrained model may make constant pictures: they are shown, not refused.
fn images<T: Task>(
    pipeline: &Pipeline<T>,
    request: &Request<T::Prompt>,
    ask: &mut Ask<'_>,
) -> Result<Vec<RgbImage>> {
    Ok(pipeline.sketch(request, &mut |_| ask())?.images)
}

/// Writes the grid of a model to `path`, always from the same noise, unless `ask` breaks.
pub(super) fn write(
    path: &Path,
    outline: &Outline,
    model: Model,
    device: &Device,
    ask: &mut Ask<'_>,
) -> Result<ControlFlow<()>> {
    let made = match Sampled::new(outline, model, device)? {
        Sampled::Classes(pipeline, request) => images(&pipeline, &request, ask),
        Sampled::Texts(pipeline, request) => images(&pipeline, &request, ask),
    };
    let images = match made {
        Ok(images) => images,
        Err(Error::Cancelled) => return Ok(ControlFlow::Break(())),
        Err(error) => return Err(error),
    };
    let folder = pyrograph_weights::folder_of(path);
    std::fs::create_dir_all(folder)
        .map_err(|source| Error::File { path: folder.to_owned(), source })?;
    write_image(path, &contact_sheet(&images, 2 * PER_PROMPT, 2, [255; 3]), &[])?;
    Ok(ControlFlow::Continue(()))
}
