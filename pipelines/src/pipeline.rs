//! From a request to images.

mod compute;

pub use compute::Compute;

use std::ops::ControlFlow;

use burn::tensor::{Device, Tensor};
use image::RgbImage;
use pyrograph_engine::denoisers::{DitDenoiser, StudentDenoiser};
use pyrograph_engine::diffusion::{
    Apart, Denoiser, Grid, Guided, GuidedChannels, NoiseSource, Pair, Phased, Process, Sampler,
    Step, Together,
};
use pyrograph_engine::nets::{Conditioning, Dit, Net, Student, StudentConfig, Vae};

use crate::error::{Error, Result};
use crate::image::{check_picture, to_images};
use crate::labels::Labels;
use crate::model::{Model, ModelConfig};
use crate::patches::{PatchPlan, Phase};
use crate::settings::{GuidanceSettings, Settings};

/// Makes images of given classes.
#[derive(Debug)]
pub struct ClassPipeline {
    net: Net,
    vae: Option<Vae>,
    config: ModelConfig,
    guide: Option<Box<(Dit, Process)>>,
    start: Option<Start>,
    device: Device,
}

/// An image to start from.
#[derive(Debug)]
struct Start {
    /// `[1, channels, height, width]`
    latent: Tensor<4>,
    strength: Option<f64>,
}

/// What a run gives back.
#[derive(Debug)]
pub struct Generated {
    /// One picture per class asked for.
    pub images: Vec<RgbImage>,
    /// Final latents (or pixels of a model without autoencoder), `[images, channels, height, width]`.
    pub latents: Tensor<4>,
}

/// A network that a run calls.
#[derive(Debug, Clone, Copy)]
enum Role {
    /// The model's own.
    Main,
    /// The weaker one to guide away from, if there is one.
    Guide,
}

/// Binds one of the networks to labels, one per image, and a patch size.
type Bind<'a> = dyn Fn(Role, Conditioning, usize) -> Box<dyn Denoiser + 'a> + 'a;

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
}

impl ClassPipeline {
    /// Wraps an opened model.
    pub fn new(model: Model, device: &Device) -> Self {
        let Model { net, vae, config } = model;
        Self { net: net.folded(), vae, config, guide: None, start: None, device: device.clone() }
    }

    /// Guides by a second, weaker model instead of by the null class (autoguidance, Karras et al. 2024).
    ///
    /// # Errors
    /// If the two do not share their latent space and classes.
    pub fn with_guide(mut self, guide: Model) -> Result<Self> {
        let Net::Dit(net) = guide.net else {
            return Err(Error::GuideMismatch {
                model: "denoising steps".into(),
                guide: "those of a few-step student".into(),
            });
        };
        let (main, other) = (self.net.trunk().config(), net.config());
        if (main.channels, main.size, main.classes) != (other.channels, other.size, other.classes) {
            let describe = |c: &pyrograph_engine::nets::DitConfig| {
                format!("{} channels, {:?}, {} classes", c.channels, c.size, c.classes)
            };
            return Err(Error::GuideMismatch { model: describe(main), guide: describe(other) });
        }
        self.guide = Some(Box::new((net.folded(), guide.config.process)));
        Ok(self)
    }

    /// Starts every run from a picture instead of noise alone (SDEdit, Meng et al. 2022).
    ///
    /// `strength`, above 0 and up to 1, is the share of the steps that are taken; the picture gets the noise
    /// of where they begin. A student takes the picture for its own first prediction instead, and has no
    /// strength.
    ///
    /// # Shapes
    /// `picture`: `[1, 3, height, width]` in [-1, 1], in the size of the images
    ///
    /// # Errors
    /// A strength that cannot be, a student of one step.
    pub fn with_picture(mut self, picture: Tensor<4>, strength: Option<f64>) -> Result<Self> {
        let fault = |reason: String| Err(Error::Picture { reason });
        match (self.student(), strength) {
            (Some(student), _) if student.steps() == 1 => {
                return fault("a student of one step has none after a picture".into());
            }
            (Some(_), Some(strength)) => {
                return fault(format!("strength is {strength}, a student has none"));
            }
            (None, Some(strength)) if !(strength > 0.0 && strength <= 1.0) => {
                return fault(format!("strength is {strength}, expected above 0 and up to 1"));
            }
            _ => (),
        }
        let latent = match &self.vae {
            Some(vae) => vae.scale(vae.encode(picture).mean),
            None => picture,
        };
        self.start = Some(Start { latent, strength });
        Ok(self)
    }

    /// Steps that are taken of `steps`: all, but from a picture.
    pub fn taken(&self, steps: usize) -> usize {
        let strength = self.start.as_ref().and_then(|start| {
            (self.student().is_none()).then_some(start.strength.unwrap_or(STRENGTH))
        });
        strength.map_or(steps, |strength| ((steps as f64 * strength).round() as usize).max(1))
    }

    /// Description of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Names of the classes.
    pub fn labels(&self) -> &Labels {
        &self.config.labels
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.net.trunk().config().classes
    }

    /// The steps of a few-step student.
    fn student(&self) -> Option<&StudentConfig> {
        self.net.student().map(Student::config)
    }

    /// Pixels per latent cell along a side; 1 without an autoencoder.
    pub fn factor(&self) -> usize {
        self.vae.as_ref().map_or(1, |vae| vae.config().factor())
    }

    /// Shape of the latents of `count` images, `[images, channels, height, width]`.
    ///
    /// # Errors
    /// If the size asked for is not a multiple of what the model needs, or too large.
    pub fn latent_shape(&self, count: usize, size: Option<[usize; 2]>) -> Result<[usize; 4]> {
        let net = self.net.trunk().config();
        let [height, width] = match size {
            None => net.size,
            Some(size) => {
                let step = self.factor() * net.patch;
                let possible =
                    |side: usize| (1..=SIDE_LIMIT).contains(&side) && side.is_multiple_of(step);
                if !size.iter().all(|side| possible(*side)) {
                    return Err(Error::Size { size, step, limit: SIDE_LIMIT });
                }
                size.map(|side| side / self.factor())
            }
        };
        Ok([count, net.channels, height, width])
    }

    /// The patch sizes asked for, or the native one throughout.
    fn plan(&self, settings: &Settings, steps: usize) -> PatchPlan {
        let native = || PatchPlan::constant(self.net.trunk().config().patch, steps);
        settings.patches.clone().unwrap_or_else(native)
    }

    /// Makes one image per entry of `classes`.
    ///
    /// `noise`, `[images, channels, height, width]` from N(0, 1), replaces the noise of the seed.
    /// `on_step` sees every step of every batch and can stop the run.
    ///
    /// # Errors
    /// Unknown classes, impossible settings, [`Error::Cancelled`], and pictures that are constant or not
    /// finite.
    pub fn generate(
        &self,
        classes: &[usize],
        settings: &Settings,
        noise: Option<&Tensor<4>>,
        on_step: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<Generated> {
        let generated = self.run(classes, settings, noise, on_step)?;
        for (index, image) in generated.images.iter().enumerate() {
            check_picture(index, image)?;
        }
        Ok(generated)
    }

    /// [`ClassPipeline::generate`] without looking at the pictures, for models that are not trained yet.
    ///
    /// # Errors
    /// As there, but for the pictures.
    pub fn sketch(
        &self,
        classes: &[usize],
        settings: &Settings,
        on_step: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<Vec<RgbImage>> {
        Ok(self.run(classes, settings, None, on_step)?.images)
    }

    fn run(
        &self,
        classes: &[usize],
        settings: &Settings,
        noise: Option<&Tensor<4>>,
        on_step: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<Generated> {
        let channels = self.net.trunk().config().channels;
        if self.vae.is_none() && !matches!(channels, 1 | 3) {
            return Err(Error::NoAutoencoder { channels });
        }
        let mut images = Vec::new();
        let latents = self.batches(classes, settings, noise, on_step, &mut |x| {
            images.extend(self.decode(x.clone(), settings.vae_tile)?);
            Ok(())
        })?;
        Ok(Generated { images, latents })
    }

    /// The final latents of [`ClassPipeline::generate`], without pictures of them.
    ///
    /// # Errors
    /// As there, but for the pictures.
    pub fn latents(
        &self,
        classes: &[usize],
        settings: &Settings,
        noise: Option<&Tensor<4>>,
        on_step: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<Tensor<4>> {
        self.batches(classes, settings, noise, on_step, &mut |_| Ok(()))
    }

    /// Final latents, each batch shown to `done` as soon as it is there.
    fn batches(
        &self,
        classes: &[usize],
        settings: &Settings,
        noise: Option<&Tensor<4>>,
        on_step: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
        done: &mut dyn FnMut(&Tensor<4>) -> Result<()>,
    ) -> Result<Tensor<4>> {
        let count = self.classes();
        if let Some(&class) = classes.iter().find(|&&class| class >= count) {
            return Err(Error::ClassRange { class, classes: count });
        }
        let shape = self.latent_shape(classes.len(), settings.size)?;
        if let Some(noise) = noise
            && noise.dims() != shape
        {
            return Err(Error::NoiseShape { expected: shape, found: noise.dims() });
        }
        if let Some(start) = &self.start {
            let [_, channels, height, width] = shape;
            let [_, found @ ..] = start.latent.dims();
            if found != [channels, height, width] {
                return Err(Error::NoiseShape { expected: shape, found: start.latent.dims() });
            }
        }
        if let Some(student) = self.student() {
            self.check_student(student, settings)?;
        }
        let grid = settings.grid(&self.config.process)?;

        let mut latents = Vec::new();
        let batch = settings.batch.max(1);
        for (i, classes) in classes.chunks(batch).enumerate() {
            let first = i * batch;
            let seed = settings.seed.wrapping_add(first as u64);
            let mut source = NoiseSource::new(seed, classes.len());
            let own = source.draw([shape[1], shape[2], shape[3]], &self.device);
            let x = noise.map_or(own, |noise| noise.clone().narrow(0, first, classes.len()));
            let mut show = |step: Step<'_>| {
                on_step(Progress {
                    first,
                    step: step.index,
                    steps: step.total,
                    x: step.x,
                    denoised: step.denoised,
                })
            };
            let x = self.sample(classes, settings, x, &grid, &mut source, &mut show)?;
            done(&x)?;
            latents.push(x);
        }
        Ok(Tensor::cat(latents, 0))
    }

    /// A student has its steps, and guidance inside them.
    fn check_student(&self, student: &StudentConfig, settings: &Settings) -> Result<()> {
        let fault = |what: &str, found: String, expected: String| {
            Err(Error::Student { reason: format!("{what} is {found}, the student has {expected}") })
        };
        let own = &self.config.defaults;
        if settings.steps != student.steps() {
            return fault("steps", settings.steps.to_string(), student.steps().to_string());
        }
        if settings.sampler != own.sampler || settings.spacing != own.spacing {
            return fault("sampler", settings.sampler.to_string(), own.sampler.to_string());
        }
        if settings.guidance.scale != 1.0 || self.guide.is_some() {
            let scale = settings.guidance.scale.to_string();
            return fault("guidance scale", scale, "its teacher's within".into());
        }
        match &settings.patches {
            Some(_) => {
                let own = format!("its own, {:?}", student.patches);
                fault("a schedule of patch sizes", "given".into(), own)
            }
            None => Ok(()),
        }
    }

    fn sample(
        &self,
        classes: &[usize],
        settings: &Settings,
        x: Tensor<4>,
        grid: &Grid,
        source: &mut NoiseSource,
        on_step: &mut dyn FnMut(Step<'_>) -> ControlFlow<()>,
    ) -> Result<Tensor<4>> {
        let sampler: &Sampler = &settings.sampler;
        if let Net::Student(net) = &self.net {
            let told = Conditioning::classes(classes, &self.device);
            let mut student = StudentDenoiser::new(net, &self.config.process, told, grid);
            if let Some(start) = &self.start {
                student = student.from_image(start.latent.clone().expand(x.dims()));
            }
            let sampled = sampler.sample(&mut student, x, grid, source, on_step);
            return sampled.map_err(|_| Error::Cancelled);
        }
        let bind = |role: Role, told: Conditioning, patch: usize| -> Box<dyn Denoiser + '_> {
            let (net, process) = self.network(role);
            Box::new(DitDenoiser::new(net, process, told).at(patch))
        };
        let size = [x.dims()[2], x.dims()[3]];
        let mut denoiser = self.phased(classes, settings, size, grid, &bind)?;
        let rest = self.rest(grid);
        let x = match &self.start {
            None => x,
            Some(start) => {
                let level = rest.steps[0][0];
                start.latent.clone().expand(x.dims()) * level.alpha + x * level.sigma
            }
        };
        let sampled = sampler.sample(&mut denoiser, x, &rest, source, on_step);
        sampled.map_err(|_| Error::Cancelled)
    }

    /// The steps of `grid` that are taken.
    fn rest(&self, grid: &Grid) -> Grid {
        let steps = grid.steps.len();
        match self.start {
            None => grid.clone(),
            Some(_) => {
                let rest = grid.steps[steps - self.taken(steps)..].to_vec();
                Grid { steps: rest, initial_scale: 1.0 }
            }
        }
    }

    fn network(&self, role: Role) -> (&Dit, &Process) {
        match (role, self.guide.as_deref()) {
            (Role::Guide, Some((net, process))) => (net, process),
            _ => (self.net.trunk(), &self.config.process),
        }
    }

    /// The networks with their guidance, at the patch sizes of each step of `grid`.
    fn phased<'a>(
        &self,
        classes: &[usize],
        settings: &Settings,
        size: [usize; 2],
        grid: &Grid,
        bind: &Bind<'a>,
    ) -> Result<Phased<Box<dyn Denoiser + 'a>>> {
        let steps = grid.steps.len();
        let phases = self.plan(settings, steps).phases(self.net.trunk().config(), size, steps)?;
        // Samplers count the steps that are taken.
        let skipped = steps - self.taken(steps);
        let end = |phase: &Phase| phase.end.saturating_sub(skipped);
        let guided = |phase: &Phase| (self.guided(classes, settings, *phase, bind), end(phase));
        Ok(Phased { phases: phases.iter().map(guided).collect() })
    }

    /// The networks with their guidance for some of the steps.
    fn guided<'a>(
        &self,
        classes: &[usize],
        settings: &Settings,
        phase: Phase,
        bind: &Bind<'a>,
    ) -> Box<dyn Denoiser + 'a> {
        let guidance = &settings.guidance;
        let told = Conditioning::classes(classes, &self.device);
        let main = bind(Role::Main, told.clone(), phase.main);
        if guidance.scale == 1.0 {
            return main;
        }
        let guide = match &self.guide {
            Some(guide) => {
                let other = guide.0.config();
                let patch =
                    if other.patches().contains(&phase.guide) { phase.guide } else { other.patch };
                return guided(
                    guidance,
                    guidance.scale,
                    Apart { main, guide: bind(Role::Guide, told, patch) },
                );
            }
            None if phase.main != phase.guide => bind(Role::Main, told, phase.guide),
            None => {
                let null = vec![self.classes(); classes.len()];
                let null = Conditioning::classes(&null, &self.device);
                let both = bind(Role::Main, told.followed_by(null), phase.main);
                return guided(guidance, guidance.scale, Together { main, both });
            }
        };
        guided(guidance, phase.scale(guidance.scale), Apart { main, guide })
    }

    /// Pictures of final latents, `[images, channels, height, width]`.
    ///
    /// # Errors
    /// Pixels that are not finite.
    pub fn decode(&self, latents: Tensor<4>, tile: usize) -> Result<Vec<RgbImage>> {
        to_images(self.pixels(latents, tile))
    }

    /// Pixels, nominally in [-1, 1], of final latents; large ones are decoded in tiles of `tile` cells.
    ///
    /// # Shapes
    /// `[images, channels, height, width]` to `[images, 3, height · f, width · f]`
    pub fn pixels(&self, latents: Tensor<4>, tile: usize) -> Tensor<4> {
        let Some(vae) = &self.vae else { return latents };
        // One image at a time bounds the memory of the decoder.
        let count = latents.dims()[0];
        let decode = |i| vae.decode_tiled(vae.unscale(latents.clone().narrow(0, i, 1)), tile);
        Tensor::cat((0..count).map(decode).collect(), 0)
    }
}

fn guided<'a>(
    settings: &GuidanceSettings,
    scale: f64,
    pair: impl Pair + 'a,
) -> Box<dyn Denoiser + 'a> {
    let GuidanceSettings { channels, interval, rescale, .. } = *settings;
    Box::new(Guided { pair, scale, channels, interval, rescale })
}

/// Longest side of a picture, in pixels.
const SIDE_LIMIT: usize = 16_384;

/// Share of the steps taken from a picture, where nothing is said.
const STRENGTH: f64 = 0.75;

/// Channels guided by the original DiT, which keeps the fourth as it is.
pub const DIT_GUIDED_CHANNELS: GuidedChannels = GuidedChannels::First(3);
