//! From a request to images.

mod adapters;
mod compute;
mod control;
mod job;
mod memory;
mod open;
mod portrait;
mod run;

pub use compute::Compute;
pub use open::{OpenOptions, Origin};
pub use portrait::{PortraitPipeline, matches};

use std::ops::ControlFlow;

use burn::tensor::{Device, Tensor};
use image::RgbImage;
use pyrograph_engine::diffusion::Process;
use pyrograph_engine::nets::{Dit, DitConfig, Net, Student, StudentConfig, Vae};

use self::job::{Job, Kept};
use crate::adapter::Adapters;
use crate::error::{Error, Result};
use crate::image::{check_picture, cover, to_images};
use crate::labels::Labels;
use crate::model::{Footprint, Model, ModelConfig};
use crate::request::Request;
use crate::settings::Settings;
use crate::task::{ClassTask, PromptTask, Task, TextTask};
use crate::threads;

/// Makes images of what its task is asked.
///
/// It holds nothing of a request: any number of threads can share one and make images at the same time. A clone
/// shares all weights.
#[derive(Debug, Clone)]
pub struct Pipeline<T> {
    task: T,
    net: Net,
    adapters: Adapters,
    vae: Option<Vae>,
    config: ModelConfig,
    guide: Option<Box<(Dit, Process)>>,
    device: Device,
    origin: Origin,
    footprint: Footprint,
}

/// Makes images of given classes.
pub type ClassPipeline = Pipeline<ClassTask>;

/// Makes images of texts.
pub type TextPipeline = Pipeline<TextTask>;

/// What a run gives back.
#[derive(Debug)]
pub struct Generated {
    /// One picture per prompt.
    pub images: Vec<RgbImage>,
    /// Final latents (or pixels of a model without autoencoder), `[images, channels, height, width]`.
    pub latents: Tensor<4>,
}

/// One image of a run.
#[derive(Debug)]
pub struct Made {
    /// Its number, that of its prompt.
    pub index: usize,
    /// The picture; [`Error::Degenerate`] where there is none to be seen.
    pub image: Result<RgbImage>,
    /// Final latent (or pixels of a model without autoencoder), `[1, channels, height, width]`.
    pub latent: Tensor<4>,
}

/// State after a step of one batch.
#[derive(Debug)]
pub struct Progress<'a> {
    /// Index of the first image of the batch.
    pub first: usize,
    /// Step of this batch, counted from 0.
    pub step: usize,
    /// Steps of this batch.
    pub steps: usize,
    /// State after the step, `[batch, channels, height, width]`.
    pub x: &'a Tensor<4>,
    /// Estimate of the final latent.
    pub denoised: &'a Tensor<4>,
    /// Where a preview is due.
    decoder: Option<Decoder<'a>>,
}

/// Sees every step and may stop the run.
pub type OnStep<'a> = dyn FnMut(Progress<'_>) -> ControlFlow<()> + Send + 'a;

/// Takes every image of a run and may stop it.
pub type OnImage<'a> = dyn FnMut(Made) -> ControlFlow<()> + Send + 'a;

impl Progress<'_> {
    /// What the images of the batch look like by now, at the steps where [`Request::previews`] asks for it.
    ///
    /// # Errors
    /// Pixels that are not finite.
    pub fn preview(&self) -> Option<Result<Vec<RgbImage>>> {
        self.decoder.map(|decoder| decoder.images(self.denoised.clone()))
    }
}

/// From the model's own space to pixels.
#[derive(Debug, Clone, Copy)]
struct Decoder<'a> {
    vae: Option<&'a Vae>,
    tile: usize,
    /// `[height, width]` in pixels that images are resized to, and cut.
    size: [usize; 2],
    /// Of the picture that they started from.
    kept: Option<&'a Kept>,
}

impl Decoder<'_> {
    fn pixels(self, latents: Tensor<4>) -> Tensor<4> {
        let whole = match self.kept {
            None => self.decoded(latents),
            Some(Kept { pixels, mask: None }) => {
                let [_, channels, height, width] = pixels.dims();
                pixels.clone().expand([latents.dims()[0], channels, height, width])
            }
            Some(Kept { pixels, mask: Some(mask) }) => {
                self.decoded(latents) * mask.clone() + pixels.clone() * (1.0 - mask.clone())
            }
        };
        cover(whole, self.size)
    }

    fn decoded(self, latents: Tensor<4>) -> Tensor<4> {
        let Some(vae) = self.vae else { return latents };
        // One image at a time bounds the memory of the decoder.
        let count = latents.dims()[0];
        let decode = |i| vae.decode_tiled(vae.unscale(latents.clone().narrow(0, i, 1)), self.tile);
        Tensor::cat((0..count).map(decode).collect(), 0)
    }

    fn images(self, latents: Tensor<4>) -> Result<Vec<RgbImage>> {
        to_images(self.pixels(latents))
    }
}

impl<T: PromptTask> Pipeline<T> {
    /// Wraps an opened model.
    ///
    /// # Errors
    /// A model of another task.
    pub fn new(model: Model, device: &Device) -> Result<Self> {
        Ok(Self::with_task(T::of(&model, device)?, model, device))
    }
}

impl<T: Task> Pipeline<T> {
    /// A model at a task that was made for it.
    pub(crate) fn with_task(task: T, model: Model, device: &Device) -> Self {
        let Model { net, vae, config, footprint, .. } = model;
        Self {
            task,
            net: net.folded(),
            adapters: Adapters::default(),
            vae,
            config,
            guide: None,
            device: device.clone(),
            origin: Origin::default(),
            footprint,
        }
    }

    /// Guides by a second, weaker model instead of by the absence of a prompt (autoguidance, Karras et al. 2024).
    ///
    /// # Errors
    /// If the two do not share their latent space, and classes or text encoder.
    pub fn with_guide(mut self, guide: Model) -> Result<Self> {
        let Net::Dit(net) = guide.net else {
            return Err(Error::GuideMismatch {
                model: "denoising steps".into(),
                guide: "those of a few-step student".into(),
            });
        };
        let (main, other) = (self.net.trunk().config(), net.config());
        if (main.channels, main.size, main.classes) != (other.channels, other.size, other.classes) {
            let describe = |c: &DitConfig| {
                format!("{} channels, {:?}, {} classes", c.channels, c.size, c.classes)
            };
            return Err(Error::GuideMismatch { model: describe(main), guide: describe(other) });
        }
        if self.config.text != guide.config.text {
            return Err(Error::GuideMismatch {
                model: "its text encoder".into(),
                guide: "another".into(),
            });
        }
        self.guide = Some(Box::new((net.folded(), guide.config.process)));
        self.footprint.streams.extend(guide.footprint.streams);
        self.footprint.left = guide.footprint.left.or(self.footprint.left);
        Ok(self)
    }

    /// What the model is asked.
    pub fn task(&self) -> &T {
        &self.task
    }

    /// Description of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Where the model comes from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The device it works on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Pixels per latent cell along a side; 1 without an autoencoder.
    pub fn factor(&self) -> usize {
        self.vae.as_ref().map_or(1, |vae| vae.config().factor())
    }

    /// Makes one image per prompt.
    ///
    /// `on_step` sees every step of every batch and can stop the run. The work is done on the threads of
    /// [`threads`], whatever thread this is called from; where they are fewer than the calls at the same time, these
    /// wait for each other. So `on_step` must not wait for another run.
    ///
    /// # Errors
    /// A request that the model cannot follow (see [`Pipeline::resolve`]), files that cannot be read,
    /// [`Error::Cancelled`], and pictures that are constant or not finite: [`Pipeline::each`] keeps the others.
    pub fn generate(
        &self,
        request: &Request<T::Prompt>,
        on_step: &mut OnStep<'_>,
    ) -> Result<Generated> {
        self.collect(request, on_step, check_picture)
    }

    /// [`Pipeline::generate`] without looking at the pictures, for models that are not trained yet.
    ///
    /// # Errors
    /// As there, but for constant pictures.
    pub fn sketch(
        &self,
        request: &Request<T::Prompt>,
        on_step: &mut OnStep<'_>,
    ) -> Result<Generated> {
        self.collect(request, on_step, |_, _| Ok(()))
    }

    fn collect(
        &self,
        request: &Request<T::Prompt>,
        on_step: &mut OnStep<'_>,
        check: fn(usize, &RgbImage) -> Result<()>,
    ) -> Result<Generated> {
        let (mut images, mut latents, mut bad) = (Vec::new(), Vec::new(), Ok(()));
        let run = self.run(request, on_step, &mut |Made { index, image, latent }| {
            match image.and_then(|image| check(index, &image).map(|()| image)) {
                Ok(image) => images.push(image),
                Err(error) => {
                    bad = Err(error);
                    return ControlFlow::Break(());
                }
            }
            latents.push(latent);
            ControlFlow::Continue(())
        });
        bad.and(run)?;
        Ok(Generated { images, latents: Tensor::cat(latents, 0) })
    }

    /// [`Pipeline::generate`] without holding what is made: `on_image` takes each image when its batch ends, in order,
    /// and can stop the run. A picture that is constant or not finite is an error of its own and ends nothing.
    ///
    /// # Errors
    /// As there, but for those pictures.
    pub fn each(
        &self,
        request: &Request<T::Prompt>,
        on_step: &mut OnStep<'_>,
        on_image: &mut OnImage<'_>,
    ) -> Result<()> {
        self.run(request, on_step, &mut |made| {
            let check = |image: RgbImage| check_picture(made.index, &image).map(|()| image);
            on_image(Made { image: made.image.and_then(check), ..made })
        })
    }

    fn run(
        &self,
        request: &Request<T::Prompt>,
        on_step: &mut OnStep<'_>,
        on_image: &mut OnImage<'_>,
    ) -> Result<()> {
        work_on(&self.device, || {
            self.check_pictures()?;
            let job = self.prepare(request)?;
            let decoder = self.decoder(&job);
            self.batches(&job, on_step, &mut |first, x| {
                // One image at a time bounds the memory of the decoder.
                (0..x.dims()[0]).try_for_each(|i| {
                    let latent = x.clone().narrow(0, i, 1);
                    let image = decoder.images(latent.clone()).map(|mut images| images.remove(0));
                    let index = first + i;
                    let image = image.map_err(|error| of_image(error, index));
                    match on_image(Made { index, image, latent }) {
                        ControlFlow::Continue(()) => Ok(()),
                        ControlFlow::Break(()) => Err(Error::Cancelled),
                    }
                })
            })
        })
    }

    /// The final latents of [`Pipeline::generate`], without pictures of them, `[images, channels, height, width]`.
    ///
    /// # Errors
    /// As there, but for the pictures.
    pub fn latents(
        &self,
        request: &Request<T::Prompt>,
        on_step: &mut OnStep<'_>,
    ) -> Result<Tensor<4>> {
        work_on(&self.device, || {
            let mut latents = Vec::new();
            self.batches(&self.prepare(request)?, on_step, &mut |_, x| {
                latents.push(x);
                Ok(())
            })?;
            Ok(Tensor::cat(latents, 0))
        })
    }

    /// Pixels, nominally in [-1, 1], of final latents of these settings; of a picture that they started from nothing is
    /// kept here.
    ///
    /// # Shapes
    /// `[images, channels, _, _]` to `[images, 3, height, width]`, of [`Pipeline::image_size`]
    pub fn pixels(&self, latents: Tensor<4>, settings: &Settings) -> Tensor<4> {
        self.decoder_of(settings, None).pixels(latents)
    }

    /// Description of the transformer.
    fn trunk(&self) -> &DitConfig {
        self.net.trunk().config()
    }

    /// The steps of a few-step student.
    fn student(&self) -> Option<&StudentConfig> {
        self.net.student().map(Student::config)
    }

    /// Refuses a model whose latents cannot become pictures.
    pub(crate) fn check_pictures(&self) -> Result<()> {
        let channels = self.trunk().channels;
        match self.vae.is_none() && !matches!(channels, 1 | 3) {
            true => Err(Error::NoAutoencoder { channels }),
            false => Ok(()),
        }
    }

    fn decoder<'a>(&'a self, job: &'a Job) -> Decoder<'a> {
        let kept = job.start.as_ref().and_then(|start| start.kept.as_ref());
        self.decoder_of(&job.settings, kept)
    }

    fn decoder_of<'a>(&'a self, settings: &Settings, kept: Option<&'a Kept>) -> Decoder<'a> {
        let (tile, size) = (settings.vae_tile, self.image_size(settings));
        Decoder { vae: self.vae.as_ref(), tile, size, kept }
    }
}

/// The same error of another image of a run.
fn of_image(error: Error, index: usize) -> Error {
    match error {
        Error::Degenerate { reason, .. } => Error::Degenerate { index, reason },
        other => other,
    }
}

/// Works on the CPU's threads. Drivers crash when a process ends under a GPU at work, as it may be after an error.
fn work_on<R: Send>(device: &Device, work: impl FnOnce() -> Result<R> + Send) -> Result<R> {
    let result = threads::run(work);
    if result.is_err() {
        let _ = device.sync();
    }
    result
}

impl ClassPipeline {
    /// Names of the classes.
    pub fn labels(&self) -> &Labels {
        self.task.labels()
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.task.classes()
    }

    /// The class of an id or a name.
    ///
    /// # Errors
    /// See [`Labels::find`].
    pub fn class(&self, name: &str) -> Result<usize> {
        self.labels().find(name, self.classes())
    }
}

/// Several threads may share one.
const _: () = {
    const fn shared<T: Send + Sync>() {}
    shared::<ClassPipeline>();
    shared::<TextPipeline>();
    shared::<Request<usize>>();
    shared::<Request<String>>();
};
