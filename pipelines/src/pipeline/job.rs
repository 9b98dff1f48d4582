//! From a request to what a run needs: everything is checked here, before the work.

use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use pyrograph_engine::denoisers::Steering;
use pyrograph_engine::diffusion::{Grid, Sampler, Spacing};
use pyrograph_engine::nets::StudentConfig;
use pyrograph_weights::Checkpoint;

use super::Pipeline;
use crate::error::{Error, Result};
use crate::patches::{PatchPlan, Phase};
use crate::request::{Noise, Picture, Request, StartPicture, expect, latent};
use crate::settings::{Settings, at_least_one};
use crate::task::{Task, Told};

/// Longest side of a picture, in pixels.
const SIDE_LIMIT: usize = 16_384;
/// Share of the steps taken from a picture, where nothing is said.
const STRENGTH: f64 = 0.75;

/// A request that was found possible, with its files read.
pub(super) struct Job {
    pub(super) told: Told,
    pub(super) settings: Settings,
    /// Steps from one preview to the next.
    pub(super) previews: Option<usize>,
    /// Of the latents, `[images, channels, height, width]`.
    pub(super) shape: [usize; 4],
    pub(super) plan: Plan,
    pub(super) start: Option<Start>,
    pub(super) steering: Vec<Steering>,
    /// `[images, channels, height, width]`
    pub(super) noise: Option<Tensor<4>>,
}

/// What a run starts from.
pub(super) struct Start {
    /// `[1, channels, height, width]`
    pub(super) picture: Tensor<4>,
    /// 1 for what is new, `[1, 1, height, width]`.
    pub(super) mask: Option<Tensor<4>>,
    pub(super) kept: Option<Kept>,
}

/// Pixels that are not made.
#[derive(Debug)]
pub(super) struct Kept {
    /// In [-1, 1], `[1, 3, height · f, width · f]`.
    pub(super) pixels: Tensor<4>,
    /// 1 where images are made, `[1, 1, height · f, width · f]`; without, nothing is.
    pub(super) mask: Option<Tensor<4>>,
}

/// The steps of a run.
pub(super) struct Plan {
    /// Levels of the steps that are taken.
    pub(super) grid: Grid,
    /// Patch sizes of these steps.
    pub(super) phases: Vec<Phase>,
    /// Scale of the noise that all steps begin with, where there is a picture, too.
    pub(super) noise_scale: Option<f64>,
}

impl<T: Task> Pipeline<T> {
    /// `[height, width]` in pixels of the images that the model was made for.
    pub fn size(&self) -> [usize; 2] {
        self.trunk().size.map(|side| side * self.factor())
    }

    /// Shape of the latents of `count` images, `[images, channels, height, width]`.
    ///
    /// # Errors
    /// If the size asked for is not a multiple of what the model needs, or too large.
    pub fn latent_shape(&self, count: usize, size: Option<[usize; 2]>) -> Result<[usize; 4]> {
        let net = self.trunk();
        let [height, width] = match size {
            None => net.size,
            Some(size) => {
                let step = self.factor() * net.patch;
                let limit = net.table.map_or(SIDE_LIMIT, |table| SIDE_LIMIT.min(table * step));
                let possible =
                    |side: usize| (1..=limit).contains(&side) && side.is_multiple_of(step);
                if !size.iter().all(|side| possible(*side)) {
                    return Err(Error::Size { size, step, limit });
                }
                size.map(|side| side / self.factor())
            }
        };
        Ok([count, net.channels, height, width])
    }

    /// `[height, width]` in pixels of an image of these settings.
    pub fn image_size(&self, settings: &Settings) -> [usize; 2] {
        settings.size.unwrap_or_else(|| self.size())
    }

    /// Shape of the latents that `count` images of these settings are made from, `[images, channels, height, width]`: those
    /// of the size asked for, or of a near one that the model was trained at.
    ///
    /// # Errors
    /// As [`Pipeline::latent_shape`].
    pub fn shape(&self, count: usize, settings: &Settings) -> Result<[usize; 4]> {
        let size = self.image_size(settings);
        let Some([height, width]) = self.task.made_at(size, settings) else {
            return self.latent_shape(count, settings.size);
        };
        match size.iter().all(|side| (1..=SIDE_LIMIT).contains(side)) {
            true => Ok([count, self.trunk().channels, height, width]),
            false => Err(Error::Size { size, step: 1, limit: SIDE_LIMIT }),
        }
    }

    /// Steps that a request takes of those it names: all, but from a picture.
    ///
    /// # Errors
    /// See [`Pipeline::resolve`].
    pub fn taken(&self, request: &Request<T::Prompt>) -> Result<usize> {
        Ok(self.check(request)?.1.grid.steps.len())
    }

    /// Complete settings of a request, with the model's own where it says nothing.
    ///
    /// Everything that can be known before the work is checked here, short of reading the files that the request
    /// names; a run checks those before it starts, too.
    ///
    /// # Errors
    /// Prompts that the model does not know, settings that it cannot follow, and more than the memory of the machine.
    pub fn resolve(&self, request: &Request<T::Prompt>) -> Result<Settings> {
        let (settings, _) = self.check(request)?;
        self.check_memory(request, &settings)?;
        Ok(settings)
    }

    pub(super) fn check(&self, request: &Request<T::Prompt>) -> Result<(Settings, Plan)> {
        let settings = request.settings(&self.config.defaults);
        if request.prompts.is_empty() {
            return Err(Error::NoPrompts);
        }
        self.task.check(request)?;
        settings.check(self.trunk().channels)?;
        self.check_light(&settings)?;
        if request.previews == Some(0) {
            return Err(at_least_one("steps between previews"));
        }
        if let Some(student) = self.student() {
            self.check_student(student, request, &settings)?;
        }
        self.check_picture(request)?;
        let plan = self.plan(request, &settings)?;
        self.check_controls(request, &plan)?;
        Ok((settings, plan))
    }

    /// Light and pose have a scale of their own where they are told apart.
    fn check_light(&self, settings: &Settings) -> Result<()> {
        match settings.guidance.light {
            Some(light) if self.task.scales() == 1 || self.guide.is_some() => Err(Error::Setting {
                what: "cfg scale towards the light",
                found: light.to_string(),
                expected: "none but for portraits, guided by the model itself".into(),
            }),
            _ => Ok(()),
        }
    }

    /// A student has its steps, and guidance inside them.
    fn check_student(
        &self,
        student: &StudentConfig,
        request: &Request<T::Prompt>,
        settings: &Settings,
    ) -> Result<()> {
        let fault = |what: &str, found: String, expected: String| {
            Err(Error::Student { reason: format!("{what} is {found}, the student has {expected}") })
        };
        let own = &self.config.defaults;
        if settings.steps != student.steps() {
            return fault("steps", settings.steps.to_string(), student.steps().to_string());
        }
        match (&settings.sampler, &own.sampler) {
            (found, own) if found == own => (),
            (Sampler::Ddim { eta }, Sampler::Ddim { eta: own }) => {
                return fault("eta of ddim", eta.to_string(), own.to_string());
            }
            (found, own) => return fault("sampler", found.to_string(), own.to_string()),
        }
        if settings.spacing != own.spacing {
            let spacing = settings.spacing.as_ref();
            let found = spacing.map_or(format!("that of {}", own.sampler), Spacing::to_string);
            return fault("placement of the steps", found, "levels of its own".into());
        }
        if settings.guidance.scale != 1.0 || self.guide.is_some() {
            let scale = settings.guidance.scale.to_string();
            return fault("guidance scale", scale, "its teacher's within".into());
        }
        if settings.patches.is_some() {
            let own: Vec<String> = student.patches.iter().map(usize::to_string).collect();
            let own = format!("its own, {}", own.join(","));
            return fault("a schedule of patch sizes", "given".into(), own);
        }
        match request.mask {
            // It goes by its own predictions, not by the state that a mask acts on.
            Some(_) => fault("a mask", "given".into(), "none".into()),
            None => Ok(()),
        }
    }

    fn check_picture(&self, request: &Request<T::Prompt>) -> Result<()> {
        let fault = |reason: String| Err(Error::Picture { reason });
        let Some(StartPicture { strength, .. }) = &request.picture else {
            return match request.mask {
                Some(_) => fault("there is none, but a mask of what to keep of it".into()),
                None => Ok(()),
            };
        };
        match (self.student(), strength) {
            (Some(student), _) if student.steps() == 1 => {
                fault("a student of one step has none after a picture".into())
            }
            (Some(_), Some(strength)) => {
                fault(format!("strength is {strength}, a student has none"))
            }
            (None, Some(strength)) if !(0.0..=1.0).contains(strength) => {
                fault(format!("strength is {strength}, expected 0 to 1"))
            }
            _ => Ok(()),
        }
    }

    /// The levels and the patch sizes of all steps.
    fn plan(&self, request: &Request<T::Prompt>, settings: &Settings) -> Result<Plan> {
        let net = self.trunk();
        let [_, _, height, width] = self.shape(1, settings)?;
        let full = self.config.grid(settings)?;
        let steps = full.steps.len();
        if self.student().is_some() {
            return Ok(Plan { grid: full, phases: Vec::new(), noise_scale: None });
        }
        let native = || PatchPlan::constant(net.patch, steps);
        let sizes = settings.patches.clone().unwrap_or_else(native);
        let mut phases = sizes.phases(net, [height, width], steps)?;
        let Some(StartPicture { strength, .. }) = &request.picture else {
            return Ok(Plan { grid: full, phases, noise_scale: None });
        };
        let taken = (steps as f64 * strength.unwrap_or(STRENGTH)) as usize;
        let spared = steps - taken;
        phases.retain(|phase| phase.end > spared);
        phases.iter_mut().for_each(|phase| phase.end -= spared);
        let noise_scale = (spared == 0).then_some(full.initial_scale);
        Ok(Plan { grid: full.without(spared), phases, noise_scale })
    }

    /// What the network is told of the images of a request.
    pub(crate) fn told(&self, request: &Request<T::Prompt>) -> Result<Told> {
        let [_, _, height, width] = self.shape(1, &self.resolve(request)?)?;
        self.task.told(request, [height, width].map(|side| side * self.factor()))
    }

    /// Checks a request and reads its files.
    pub(super) fn prepare(&self, request: &Request<T::Prompt>) -> Result<Job> {
        let (settings, plan) = self.check(request)?;
        self.check_memory(request, &settings)?;
        let shape = self.shape(request.prompts.len(), &settings)?;
        let noise = request.noise.as_ref().map(|noise| {
            let noise = noise.read(shape[0], &self.device)?;
            expect("noise", noise, shape)
        });
        let start = match &request.picture {
            Some(StartPicture { picture, .. }) => {
                Some(self.start(picture, request.mask.as_ref(), shape, &plan)?)
            }
            None => None,
        };
        let size = [shape[2], shape[3]].map(|side| side * self.factor());
        let told = self.task.told(request, size)?;
        let told = match self.adapters.token() {
            Some(token) => told.with_token(&token),
            None => told,
        };
        Ok(Job {
            steering: self.steering(request, &told, shape, plan.grid.steps.len())?,
            told,
            previews: request.previews,
            shape,
            plan,
            start,
            noise: noise.transpose()?,
            settings,
        })
    }

    /// Reads what a run starts from.
    fn start(
        &self,
        picture: &Picture,
        mask: Option<&Picture>,
        [_, channels, height, width]: [usize; 4],
        plan: &Plan,
    ) -> Result<Start> {
        let factor = self.factor();
        let size = [height, width].map(|side| side * factor);
        let made = |pixels| latent(self.vae.as_ref(), pixels);
        let (pixels, picture) = picture.read(size, &self.device, made)?;
        let picture = expect("the picture", picture, [1, channels, height, width])?;
        let read = |mask: &Picture| {
            let made = |pixels| corners(light(pixels), factor);
            let (pixels, cells) = mask.read(size, &self.device, made)?;
            let cells = expect("the mask", cells, [1, 1, height, width])?;
            Ok::<_, Error>((pixels.map_or_else(|| spread(cells.clone(), factor), light), cells))
        };
        let (made, mask) = mask.map(read).transpose()?.unzip();
        let kept = match (pixels, plan.grid.steps.is_empty()) {
            (Some(pixels), true) => Some(Kept { pixels, mask: None }),
            (Some(pixels), false) if made.is_some() => Some(Kept { pixels, mask: made }),
            _ => None,
        };
        Ok(Start { picture, mask, kept })
    }
}

/// How white pixels are, from `[1, 3, height, width]` in [-1, 1] to `[1, 1, height, width]` in [0, 1].
fn light(pixels: Tensor<4>) -> Tensor<4> {
    pixels.mean_dim(1) * 0.5 + 0.5
}

/// The first pixel of each cell, as diffusers does it, from `[1, 1, height · f, width · f]` to `[1, 1, height, width]`.
fn corners(pixels: Tensor<4>, factor: usize) -> Tensor<4> {
    let [_, _, rows, columns] = pixels.dims();
    let cells: Tensor<6> = pixels.reshape([1, 1, rows / factor, factor, columns / factor, factor]);
    cells.narrow(3, 0, 1).narrow(5, 0, 1).reshape([1, 1, rows / factor, columns / factor])
}

/// Pixels of the value of their cell, from `[1, 1, height, width]` to `[1, 1, height · f, width · f]`.
fn spread(cells: Tensor<4>, factor: usize) -> Tensor<4> {
    let [_, _, height, width] = cells.dims();
    let cells: Tensor<6> = cells.reshape([1, 1, height, 1, width, 1]);
    let pixels = cells.expand([1, 1, height, factor, width, factor]);
    pixels.reshape([1, 1, height * factor, width * factor])
}

impl Noise {
    /// `[images, channels, height, width]` of the tensor in a file.
    ///
    /// # Errors
    /// A file that cannot be read, without a tensor `noise`, or with one of other dimensions or without values.
    pub fn shape_in(path: &Path) -> Result<[usize; 4]> {
        let checkpoint = Checkpoint::open(path)?;
        let found = match checkpoint.tensors().get("noise") {
            Some(noise) => noise.shape.clone(),
            // Which says what there is instead.
            None => checkpoint.read_f32("noise")?.1,
        };
        let shape = <[usize; 4]>::try_from(found.as_slice()).ok();
        let shape = shape.filter(|shape| !shape.contains(&0));
        shape.ok_or_else(|| Error::NoiseFile { path: path.to_owned(), found })
    }

    /// The values for `images` images, `[images, channels, height, width]`.
    ///
    /// # Errors
    /// Those of [`Noise::shape_in`], and a part of more images than there are.
    pub fn read(&self, images: usize, device: &Device) -> Result<Tensor<4>> {
        let (path, first) = match self {
            Self::File(path) => (path, None),
            Self::Part { file, first } => (file, Some(*first)),
            Self::Values(values) => return Ok(values.clone().to_device(device)),
        };
        let shape = Self::shape_in(path)?;
        let (values, _) = Checkpoint::open(path)?.read_f32("noise")?;
        let all = Tensor::from_data(TensorData::new(values, shape), device);
        let Some(first) = first else { return Ok(all) };
        match first.checked_add(images).is_some_and(|end| end <= shape[0]) {
            true => Ok(all.narrow(0, first, images)),
            false => Err(Error::NoisePart { path: path.clone(), first, images, found: shape[0] }),
        }
    }
}
