//! Sample grids of a model in training.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::Device;
use image::RgbImage;

use super::outline::Outline;
use crate::data::Dataset;
use crate::error::{Error, Result};
use crate::image::{contact_sheet, write_image};
use crate::model::Model;
use crate::pipeline::{ClassPipeline, Pipeline, PortraitPipeline, TextPipeline};
use crate::portrait::Branches;
use crate::request::{Picture, Request};
use crate::task::{Portrait, PortraitTask, Task};

/// Folder of the grids in that of a run.
pub(super) const SAMPLES: &str = "samples";

/// Most classes or captions shown.
const SHOWN: usize = 16;
/// Images of each.
const PER_PROMPT: usize = 4;
/// Portraits of each person, beside their profile and the reference.
const PER_PERSON: usize = 2;

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

/// Two images of each person.
fn portraits(pictures: &[RgbImage]) -> Vec<Portrait> {
    let whole = |picture: &RgbImage| Arc::new(Picture::Pixels(picture.clone()));
    let pairs = pictures.chunks_exact(2).map(|pair| Portrait {
        profile: whole(&pair[0]),
        reference: whole(&pair[1]),
        seed: 0,
    });
    pairs.flat_map(|portrait| vec![portrait; PER_PERSON]).collect()
}

/// What a run makes.
pub(super) struct Product {
    pub(super) model: Model,
    /// What steers it, if that is what is trained.
    pub(super) branches: Option<Branches>,
}

/// What is done with a pipeline of any kind.
enum Sampled {
    Classes(Box<ClassPipeline>, Request<usize>),
    Texts(Box<TextPipeline>, Request<String>),
    Portraits(Box<PortraitPipeline>, Request<Portrait>),
}

impl Sampled {
    fn new(outline: &Outline, product: Product, device: &Device) -> Result<Self> {
        let Product { model, branches } = product;
        Ok(match (branches, &outline.text) {
            (Some(branches), _) => {
                let task = PortraitTask::of_any(&model, branches, device)?;
                let pipeline = PortraitPipeline::with_task(task, model, device);
                let request = Request::new(portraits(&outline.portraits));
                Self::Portraits(pipeline.into(), request)
            }
            (None, Some(_)) => {
                let prompts = outline.prompts.iter().cloned();
                Self::Texts(TextPipeline::new(model, device)?.into(), request(prompts))
            }
            (None, None) => {
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
pub(super) fn check(outline: &Outline, product: Product, device: &Device) -> Result<()> {
    match Sampled::new(outline, product, device)? {
        Sampled::Portraits(pipeline, request) => pipeline.resolve(&request).map(drop),
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

/// What portraits were made from, and they.
fn beside(from: &[RgbImage], made: Vec<RgbImage>) -> Vec<RgbImage> {
    let people = from.chunks_exact(2).zip(made.chunks_exact(PER_PERSON));
    people.flat_map(|(from, made)| [from, made].concat()).collect()
}

/// Writes the grid of a model to `path`, always from the same noise, unless `ask` breaks.
pub(super) fn write(
    path: &Path,
    outline: &Outline,
    product: Product,
    device: &Device,
    ask: &mut Ask<'_>,
) -> Result<ControlFlow<()>> {
    let made = match Sampled::new(outline, product, device)? {
        Sampled::Portraits(pipeline, request) => {
            let made = images(&pipeline, &request, ask);
            made.map(|made| beside(&outline.portraits, made))
        }
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
