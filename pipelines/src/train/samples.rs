//! Sample grids of a model in training.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::Device;
use image::RgbImage;

use super::learner::Made;
use super::outline::Outline;
use crate::branches::Branches;
use crate::control::{ControlBranch, ControlConfig};
use crate::data::Dataset;
use crate::error::{Error, Result};
use crate::image::{contact_sheet, write_image};
use crate::model::Model;
use crate::pipeline::{ClassPipeline, Pipeline, PortraitPipeline, TextPipeline};
use crate::request::{Controlled, Picture, Request};
use crate::task::{Portrait, PortraitTask, Task};

/// Folder of the grids in that of a run.
pub(super) const SAMPLES: &str = "samples";

/// Most classes or captions shown.
const SHOWN: usize = 16;
/// Images of each.
const PER_PROMPT: usize = 4;
/// Images by each picture that a branch sees, beside it.
const PER_PICTURE: usize = 3;
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
        hidden: None,
        still: false,
    });
    pairs.flat_map(|portrait| vec![portrait; PER_PERSON]).collect()
}

/// What a run makes.
pub(super) struct Product {
    pub(super) model: Model,
    /// What steers it, if that is what is trained.
    pub(super) branches: Option<Made>,
}

/// Requests that a branch controls, each by one of the pictures that it sees, and asked one prompt in turn.
fn controlled<P: Clone>(
    outline: &Outline,
    branch: &Branches<ControlConfig>,
    prompts: &[P],
) -> Vec<Request<P>> {
    let request = |(picture, prompt): (&RgbImage, &P)| Request {
        controls: vec![Controlled {
            branch: ControlBranch::Open(branch.clone()),
            picture: Picture::Pixels(picture.clone()),
            ready: true,
            scale: 1.0,
            steps: [0.0, 1.0],
        }],
        ..Request::new(vec![prompt.clone(); PER_PICTURE])
    };
    outline.shown.iter().zip(prompts.iter().cycle()).map(request).collect()
}

/// What is done with a pipeline of any kind.
enum Sampled {
    Classes(Box<ClassPipeline>, Vec<Request<usize>>),
    Texts(Box<TextPipeline>, Vec<Request<String>>),
    Portraits(Box<PortraitPipeline>, Vec<Request<Portrait>>),
}

impl Sampled {
    fn new(outline: &Outline, product: Product, device: &Device) -> Result<Self> {
        let Product { model, branches } = product;
        let branch = match branches {
            Some(Made::Portrait(branches)) => {
                let task = PortraitTask::new(&model, branches, device)?;
                let pipeline = PortraitPipeline::with_task(task, model, device);
                let request = Request::new(portraits(&outline.shown));
                return Ok(Self::Portraits(pipeline.into(), vec![request]));
            }
            Some(Made::Control(branch)) => Some(branch),
            None => None,
        };
        Ok(match &outline.text {
            Some(_) => {
                let pipeline = TextPipeline::new(model, device)?;
                let (pipeline, prompts) = (pipeline.steered_by(&branch), &outline.prompts);
                let requests = match &branch {
                    Some(branch) => controlled(outline, branch, prompts),
                    None => vec![request(prompts.iter().cloned())],
                };
                Self::Texts(pipeline.into(), requests)
            }
            None => {
                let pipeline = ClassPipeline::new(model, device)?.steered_by(&branch);
                let requests = match &branch {
                    Some(branch) => controlled(outline, branch, &outline.classes),
                    None => vec![request(0..pipeline.classes().min(SHOWN))],
                };
                Self::Classes(pipeline.into(), requests)
            }
        })
    }
}

/// Checks, before any work, that a model can be sampled as it says.
///
/// # Errors
/// Settings that the model cannot follow, prompts that it cannot read.
pub(super) fn check(outline: &Outline, product: Product, device: &Device) -> Result<()> {
    fn all<T: Task>(pipeline: &Pipeline<T>, requests: &[Request<T::Prompt>]) -> Result<()> {
        requests.iter().try_for_each(|request| pipeline.resolve(request).map(drop))
    }
    match Sampled::new(outline, product, device)? {
        Sampled::Portraits(pipeline, requests) => all(&pipeline, &requests),
        Sampled::Classes(pipeline, requests) => all(&pipeline, &requests),
        Sampled::Texts(pipeline, requests) => all(&pipeline, &requests),
    }
}

/// Asked after every step of the sampler.
type Ask<'a> = dyn FnMut() -> ControlFlow<()> + Send + 'a;

/// The images of some requests. An untrained model may make constant pictures: they are shown, not refused.
fn images<T: Task>(
    pipeline: &Pipeline<T>,
    requests: &[Request<T::Prompt>],
    ask: &mut Ask<'_>,
) -> Result<Vec<RgbImage>> {
    let mut images = Vec::new();
    for request in requests {
        images.extend(pipeline.sketch(request, &mut |_| ask())?.images);
    }
    Ok(images)
}

/// What images were made from, `count` pictures at a time, and `made` images of these.
fn beside(from: &[RgbImage], images: Vec<RgbImage>, count: usize, made: usize) -> Vec<RgbImage> {
    let rows = from.chunks_exact(count).zip(images.chunks_exact(made));
    rows.flat_map(|(from, made)| [from, made].concat()).collect()
}

/// Writes the grid of a model to `path`, always from the same noise, unless `ask` breaks.
pub(super) fn write(
    path: &Path,
    outline: &Outline,
    product: Product,
    device: &Device,
    ask: &mut Ask<'_>,
) -> Result<ControlFlow<()>> {
    let portraits = matches!(product.branches, Some(Made::Portrait(_)));
    let made = match Sampled::new(outline, product, device)? {
        Sampled::Portraits(pipeline, requests) => images(&pipeline, &requests, ask),
        Sampled::Classes(pipeline, requests) => images(&pipeline, &requests, ask),
        Sampled::Texts(pipeline, requests) => images(&pipeline, &requests, ask),
    };
    let images = match made {
        Ok(images) if portraits => beside(&outline.shown, images, 2, PER_PERSON),
        Ok(images) => match outline.shown.is_empty() {
            true => images,
            false => beside(&outline.shown, images, 1, PER_PICTURE),
        },
        Err(Error::Cancelled) => return Ok(ControlFlow::Break(())),
        Err(error) => return Err(error),
    };
    let folder = pyrograph_weights::folder_of(path);
    std::fs::create_dir_all(folder)
        .map_err(|source| Error::File { path: folder.to_owned(), source })?;
    write_image(path, &contact_sheet(&images, 2 * PER_PROMPT, 2, [255; 3]), &[])?;
    Ok(ControlFlow::Continue(()))
}
