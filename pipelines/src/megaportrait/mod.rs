//! Portraits of a person that a model has learnt, in the place of the face of another picture, stage by stage (MegaPortrait,
//! Yang et al. 2024; the strengths and scales are those of section 18 of its specification).
//!
//! Every stage is a request to one pipeline, steered by branches that are trained without the person:
//!
//! 1. *Identity Net*: the person, where the outlines of the reference's head are, but not those of its inner face.
//! 2. *Shading Net*: the same picture again, by its own outlines and the reference's light.
//! 3. The face is put into the reference.
//! 4. *Harmonization Net*: the face and the seam around it once more, by the outlines and colours of what was put together;
//!    all other pixels of the reference keep their bits.

mod keypoints;
mod stage;
mod tones;

use std::ops::ControlFlow;
use std::time::Instant;

use burn::tensor::Tensor;
use burn::tensor::module::max_pool2d;
use burn::tensor::ops::MaxPoolOptions;
use image::buffer::ConvertBuffer;
use image::{RgbImage, RgbaImage};
use pyrograph_engine::portrait::conditions::{ControlKind, edges, in_light_of, window};
use pyrograph_engine::read;

use crate::adapter::AdapterId;
use crate::control::ControlBranch;
use crate::error::{Error, Result};
use crate::faces::{Face, Mask, Photograph, Point};
use crate::image::{picture_tensor, to_images};
use crate::pipeline::Pipeline;
use crate::request::{Guidance, Picture, Request};
use crate::task::PromptTask;
pub use keypoints::keypoints;
use stage::Stage;

/// Branches of a model, each of the kind that its name says.
#[derive(Debug, Clone, Default)]
pub struct Branches {
    /// For the first stage and the two others that make pictures.
    pub edges: Option<ControlBranch>,
    /// For the Shading Net.
    pub luminance: Option<ControlBranch>,
    /// For the Harmonization Net.
    pub tile: Option<ControlBranch>,
    /// Of the kind picture, which sees the [five points](keypoints()) of the reference's face: for the Identity Net, which has to do
    /// without where there is none.
    pub keypoints: Option<ControlBranch>,
}

/// Whether and how the light of the reference is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Shading {
    /// It is not.
    Off,
    /// Means and deviations of the colours of the two faces are made the same.
    Tones,
    /// The blurred luminance of the two faces is made the same.
    Analytic,
    /// From there, the model makes the picture again (the Shading Net).
    #[default]
    Net,
}

/// How the face is put into the reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Paste {
    /// Not at all: the last stages see the whole picture of the person.
    Off,
    /// With a sharp edge.
    Hard,
    /// Fading at its edge.
    #[default]
    Feather,
}

/// How portraits are made.
#[derive(Debug, Clone, PartialEq)]
pub struct StageOptions {
    /// Sampling steps of the whole way; without, the model's.
    pub steps: Option<usize>,
    /// Guidance scale; without, the model's.
    pub cfg_scale: Option<f64>,
    /// Share of the steps from the reference with which the Identity Net begins; without, it begins with noise.
    pub identity_strength: Option<f64>,
    /// Scale of the outlines of the reference in the Identity Net.
    pub edges: f64,
    /// How much of the outlines inside the face is left, 0 to 1: they are those of somebody else.
    pub inner_edges: f64,
    /// Scale of the points of the reference's face there, if there is a branch for them.
    pub keypoints: f64,
    /// See [`Shading`].
    pub shading: Shading,
    /// Share of the steps of the Shading Net.
    pub shading_strength: f64,
    /// Scale of the outlines of the person's picture there.
    pub detail: f64,
    /// Scale of the reference's light there.
    pub luminance: f64,
    /// See [`Paste`].
    pub paste: Paste,
    /// Share of the steps of the Harmonization Net; without, there is none.
    pub harmonization: Option<f64>,
    /// Weight of the person's adapter in the three nets.
    pub adapter: [f64; 3],
    /// Seed of all stages.
    pub seed: u64,
}

impl Default for StageOptions {
    fn default() -> Self {
        Self {
            steps: None,
            cfg_scale: None,
            identity_strength: None,
            edges: 0.5,
            inner_edges: 0.0,
            keypoints: 1.0,
            shading: Shading::Net,
            shading_strength: 0.45,
            detail: 1.0,
            luminance: 0.85,
            paste: Paste::Feather,
            harmonization: Some(0.3),
            adapter: [1.0, 0.8, 0.6],
            seed: 0,
        }
    }
}

/// A picture, and where in it the face is, both cut and resized to the size of the model.
#[derive(Debug, Clone)]
pub struct Reference {
    /// The picture.
    pub picture: Picture,
    /// White inside the face, fading to black.
    pub face: Picture,
    /// The eyes, the tip of the nose and the corners of the mouth, as [`Face::five`] gives them, in pixels of the model's size.
    pub points: Option<[Point; 5]>,
}

/// What the stages made.
#[derive(Debug, Clone)]
pub struct Stages {
    /// The person, in the pose of the reference.
    pub identity: RgbImage,
    /// In its light.
    pub shaded: RgbImage,
    /// In its place.
    pub composite: RgbImage,
    /// In the end.
    pub portrait: RgbImage,
    /// Seconds of each.
    pub seconds: [f64; 4],
    /// Steps of the network in all.
    pub steps: usize,
}

/// Seam of the Harmonization Net around the face, as a share of the picture's side.
const SEAM: f64 = 0.0625;

/// Hears of every step of the network, its number and how many there are in all; can stop the work.
pub type OnStage<'a> = dyn FnMut(usize, usize) -> ControlFlow<()> + Send + 'a;

/// Makes portraits of one person.
#[derive(Debug, Clone)]
pub struct MegaPortrait<T: PromptTask> {
    pipeline: Pipeline<T>,
    person: AdapterId,
    prompt: T::Prompt,
    branches: Branches,
}

impl<T: PromptTask> MegaPortrait<T> {
    /// With a pipeline that has the adapter of a person on, and what the model is told of any person.
    pub fn new(
        pipeline: Pipeline<T>,
        person: AdapterId,
        prompt: T::Prompt,
        branches: Branches,
    ) -> Self {
        Self { pipeline, person, prompt, branches }
    }

    /// `[height, width]` of the pictures.
    pub fn size(&self) -> [usize; 2] {
        self.pipeline.size()
    }

    /// Refuses options that cannot be followed, before any work.
    ///
    /// # Errors
    /// A stage without its branch, numbers out of range, what [`Pipeline::resolve`] refuses.
    pub fn check(&self, options: &StageOptions) -> Result<()> {
        let StageOptions { inner_edges, harmonization, .. } = options;
        let missing =
            |what| Err(Error::Setting { what, found: "none".into(), expected: "one".into() });
        let Branches { edges, luminance, tile, keypoints } = &self.branches;
        let (shades, harmonizes) = (options.shading == Shading::Net, harmonization.is_some());
        match () {
            () if edges.is_none() => return missing("the branch of the kind edges:"),
            () if shades && luminance.is_none() => {
                return missing("the branch of the kind luminance, for the Shading Net:");
            }
            () if harmonizes && tile.is_none() => {
                return missing("the branch of the kind tile, for the Harmonization Net:");
            }
            () if !(0.0..=1.0).contains(inner_edges) => {
                let (what, found) = ("outlines inside the face", inner_edges.to_string());
                return Err(Error::Setting { what, found, expected: "0 to 1".into() });
            }
            () => (),
        }
        let all = [
            (edges, ControlKind::Edges),
            (luminance, ControlKind::Luminance),
            (tile, ControlKind::Tile),
            (keypoints, ControlKind::Picture),
        ];
        for (branch, kind) in all.into_iter().filter_map(|(own, kind)| Some((own.as_ref()?, kind)))
        {
            let found = self.pipeline.control_kind(branch)?;
            if found != kind {
                let (found, expected) = (format!("{found:?}"), format!("{kind:?}"));
                return Err(Error::Setting { what: "a branch of the kind", found, expected });
            }
        }
        self.requests(options)
            .iter()
            .try_for_each(|request| self.pipeline.resolve(request).map(drop))
    }

    /// Steps of the network that a portrait takes.
    ///
    /// # Errors
    /// As of [`MegaPortrait::check`].
    pub fn steps(&self, options: &StageOptions) -> Result<usize> {
        self.requests(options).iter().map(|request| self.pipeline.taken(request)).sum()
    }

    /// Those of the nets that take part, of black pictures.
    fn requests(&self, options: &StageOptions) -> Vec<Request<T::Prompt>> {
        let [height, width] = self.size().map(|side| side as u32);
        let black = &RgbImage::new(width, height);
        let mut stages = vec![Stage::Identity { reference: black, outlines: black, points: black }];
        if options.shading == Shading::Net {
            stages.push(Stage::Shading { lit: black, outlines: black, reference: black });
        }
        if options.harmonization.is_some() {
            stages.push(Stage::Harmonization { composite: black, seam: black });
        }
        stages.into_iter().map(|stage| self.request(stage, options)).collect()
    }

    /// A portrait in the place of the reference's face.
    ///
    /// # Errors
    /// What [`MegaPortrait::check`] refuses, a reference of another size, [`Error::Cancelled`].
    pub fn make(
        &self,
        reference: &Reference,
        options: &StageOptions,
        on_step: &mut OnStage<'_>,
    ) -> Result<Stages> {
        self.check(options)?;
        let (all, mut taken) = (self.steps(options)?, 0);
        let mut made = |stage: Stage<'_>| {
            let request = self.request(stage, options);
            let mut pipeline = self.pipeline.clone();
            pipeline.set_weight(self.person, options.adapter[stage.number()])?;
            let generated = pipeline.generate(&request, &mut |_| {
                taken += 1;
                on_step(taken, all)
            })?;
            let [picture] = <[_; 1]>::try_from(generated.images).expect("one picture");
            Ok::<_, Error>(picture)
        };
        let mut seconds = [0.0; 4];
        let mut since = Instant::now();
        let mut ended = |stage: usize| {
            seconds[stage] = since.elapsed().as_secs_f64();
            since = Instant::now();
        };
        let reading = self.read(reference)?;
        let whole = &picture(reading.picture.clone())?;
        let (outlines, points) =
            (&reading.outlines(options.inner_edges)?, &self.points(reference)?);
        let identity = made(Stage::Identity { reference: whole, outlines, points })?;
        ended(0);
        let shaded = match options.shading {
            Shading::Off => identity.clone(),
            Shading::Tones => {
                let shares = read::numbers(reading.face.clone())?;
                tones::in_tones_of(&identity, whole, &shares)
            }
            Shading::Analytic => reading.lit(self.tensor(&identity))?,
            Shading::Net => {
                let lit = &reading.lit(self.tensor(&identity))?;
                // Those of the picture before: light makes outlines, too.
                let outlines = &picture(ControlKind::Edges.of(self.tensor(&identity)))?;
                made(Stage::Shading { lit, outlines, reference: whole })?
            }
        };
        ended(1);
        let composite = match options.paste {
            Paste::Off => shaded.clone(),
            Paste::Hard | Paste::Feather => {
                reading.pasted(self.tensor(&shaded), options.paste == Paste::Hard)?
            }
        };
        ended(2);
        let portrait = match options.harmonization {
            None => composite.clone(),
            Some(_) => {
                let seam = &picture(reading.seam())?;
                made(Stage::Harmonization { composite: &composite, seam })?
            }
        };
        ended(3);
        Ok(Stages { identity, shaded, composite, portrait, seconds, steps: all })
    }

    /// The points of the reference's face, drawn for the branch that sees them; without one, nothing.
    fn points(&self, reference: &Reference) -> Result<RgbImage> {
        match (&self.branches.keypoints, &reference.points) {
            (None, _) => Ok(RgbImage::new(1, 1)),
            (Some(_), Some(points)) => Ok(keypoints(points, self.size())),
            (Some(_), None) => Err(Error::Setting {
                what: "the points of the reference's face",
                found: "none".into(),
                expected: "five for the branch that sees them".into(),
            }),
        }
    }

    /// What a stage asks of the model.
    fn request(&self, stage: Stage<'_>, options: &StageOptions) -> Request<T::Prompt> {
        let (picture, mask, controls) = stage.parts(options, &self.branches);
        Request {
            seed: options.seed,
            steps: options.steps,
            guidance: Guidance { scale: options.cfg_scale, ..Guidance::default() },
            picture,
            mask,
            controls: controls.into_iter().flatten().collect(),
            ..Request::new([self.prompt.clone()])
        }
    }

    /// A picture of the model's size, `[1, 3, height, width]` in [-1, 1].
    fn tensor(&self, picture: &RgbImage) -> Tensor<4> {
        let rgba: RgbaImage = picture.convert();
        picture_tensor(&rgba, self.size(), self.pipeline.device())
    }

    fn read(&self, reference: &Reference) -> Result<Reading> {
        let read = |what, picture: &Picture| {
            let (pixels, _) = picture.read(self.size(), self.pipeline.device(), |pixels| pixels)?;
            pixels.ok_or_else(|| Error::Setting {
                what,
                found: "latents".into(),
                expected: "pixels".into(),
            })
        };
        let face = read("the reference's face", &reference.face)?;
        Ok(Reading {
            picture: read("the reference", &reference.picture)?,
            face: face.mean_dim(1) * 0.5 + 0.5,
        })
    }
}

/// A reference as tensors: `[1, 3, height, width]` in [-1, 1], and `[1, 1, height, width]` in [0, 1].
struct Reading {
    picture: Tensor<4>,
    face: Tensor<4>,
}

impl Reading {
    /// The outlines, of those inside the face so much.
    fn outlines(&self, inner: f64) -> Result<RgbImage> {
        let found = edges(&self.picture) + 1.0;
        let kept = self.face.clone() * (inner - 1.0) + 1.0;
        let [_, _, height, width] = self.picture.dims();
        picture((found * kept - 1.0).expand([1, 3, height, width]))
    }

    /// Another picture in the light of this.
    fn lit(&self, other: Tensor<4>) -> Result<RgbImage> {
        let window = window(self.picture.dims()[3]);
        picture(in_light_of(other, &self.picture, self.face.clone(), window))
    }

    /// The face of another picture in this.
    fn pasted(&self, other: Tensor<4>, hard: bool) -> Result<RgbImage> {
        let share = match hard {
            true => self.face.clone().greater_elem(0.5).float(),
            false => self.face.clone(),
        };
        picture(other * share.clone() + self.picture.clone() * (1.0 - share))
    }

    /// The face and the seam around it, `[1, 3, height, width]` in [-1, 1].
    fn seam(&self) -> Tensor<4> {
        let [_, _, height, width] = self.face.dims();
        let radius = ((SEAM * width as f64).round() as usize).max(1);
        let options =
            MaxPoolOptions::new([2 * radius + 1; 2]).with_stride([1; 2]).with_padding([radius; 2]);
        let grown = max_pool2d(self.face.clone(), options);
        (grown * 2.0 - 1.0).expand([1, 3, height, width])
    }
}

/// Of a tensor of one picture.
fn picture(pixels: Tensor<4>) -> Result<RgbImage> {
    Ok(to_images(pixels)?.remove(0))
}

impl Reference {
    /// The square of a photograph, with where its face is.
    ///
    /// # Errors
    /// See [`Mask::of_face`].
    pub fn of(photo: &Photograph) -> Result<Self> {
        let mask = photo.mask(Mask::FEATHER)?;
        let (side, values) = (mask.side() as u32, mask.values());
        let face = RgbImage::from_fn(side, side, |x, y| {
            let value = values[(y * side + x) as usize];
            image::Rgb([(value * 255.0).round() as u8; 3])
        });
        let points = photo.place(&Face::five(photo.face()));
        Ok(Self {
            picture: Picture::Pixels(photo.crop()),
            face: Picture::Pixels(face),
            points: Some(points),
        })
    }
}

#[cfg(test)]
mod tests;
