//! Learning a person from a few photos: a LoRA with a token, which are all that is kept (the Identity Net of MegaPortrait, Yang
//! et al. 2024; the prior is that of DreamBooth, Ruiz et al. 2023).

mod choice;
mod photos;

use std::ops::ControlFlow;
use std::path::Path;

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use image::RgbImage;
use image::buffer::ConvertBuffer;
use pyrograph_engine::diffusion::Process;
use pyrograph_engine::nets::{Conditioning, Net, Tuned};
use pyrograph_engine::random::Generator;
use pyrograph_engine::read;
use pyrograph_engine::train::{
    Average, Batch, Decay, Denoising, LearningRate, Precision, Rule, Target, Trainer,
    TrainerConfig, Weighting,
};
use pyrograph_weights::FloatDtype;

use crate::error::{Error, Result};
use crate::faces::Faces;
use crate::image::picture_tensor;
use crate::model::{Model, recognise};
use crate::pipeline::Pipeline;
use crate::request::{Request, latent};
use crate::task::{PromptTask, Told};
use crate::threads;
use crate::train::lora::{self, LoraShape};
use crate::train::streams::Streams;
use choice::Judge;
pub use photos::Photos;

/// How a person is learnt.
#[derive(Debug, Clone, PartialEq)]
pub struct FitOptions {
    /// Rank of the LoRA.
    pub rank: usize,
    /// Steps.
    pub steps: u64,
    /// Photos per step, drawn at random; as many of the model's own pictures beside them.
    pub batch: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// How much the model's own pictures count that keep it as it is, against the photos; 0 is not at all.
    pub prior: f64,
    /// How many of those are made.
    pub prior_images: usize,
    /// States of the second half of the steps that are judged by pictures of theirs, of which the one most like the photos is
    /// kept; 1 is the last, unseen.
    pub states: u64,
    /// Determines all randomness.
    pub seed: u64,
}

impl Default for FitOptions {
    fn default() -> Self {
        let (rank, steps, batch, prior_images) = (8, 200, 4, 32);
        let (learning_rate, prior, states) = (1e-3, 1.0, 1);
        Self { rank, steps, batch, learning_rate, prior, prior_images, states, seed: 0 }
    }
}

impl FitOptions {
    /// Says what is out of range.
    fn check(&self, photos: usize) -> Result<()> {
        let positive = self.learning_rate > 0.0 && self.learning_rate.is_finite();
        let bad = [
            ("photos", photos == 0, photos.to_string(), "one or more"),
            ("steps", self.steps == 0, self.steps.to_string(), "1 or more"),
            ("photos per step", self.batch == 0, self.batch.to_string(), "1 or more"),
            ("learning rate", !positive, self.learning_rate.to_string(), "above 0"),
            (
                "weight of the prior",
                !(0.0..=100.0).contains(&self.prior),
                self.prior.to_string(),
                "0 to 100",
            ),
            (
                "pictures of the prior",
                self.prior > 0.0 && self.prior_images == 0,
                self.prior_images.to_string(),
                "1 or more",
            ),
            ("states", self.states == 0, self.states.to_string(), "1 or more"),
        ];
        match bad.into_iter().find(|(_, bad, ..)| *bad) {
            None => Ok(()),
            Some((what, _, found, expected)) => {
                Err(Error::Setting { what, found, expected: expected.into() })
            }
        }
    }
}

/// What is heard of a fit.
#[derive(Debug, Clone, Copy)]
pub enum FitEvent {
    /// A step of the pictures that keep the model as it is, of so many in all.
    Prior(usize, usize),
    /// A step, its number from 1, and the loss of the photos and the prior together.
    Step(u64, f64),
    /// A state is being judged.
    Judging,
    /// How far the pictures of the state after so many steps are from the photos: below
    /// [`SAME_PERSON`](crate::faces::SAME_PERSON) it is usually one person, 1 is no face at all.
    Judged(u64, f32),
}

/// A person whom a model has learnt.
#[derive(Debug, Clone)]
pub struct Person {
    tuned: Tuned,
    base: String,
}

impl Person {
    /// Writes a file that [`Pipeline::adapter`] opens for the same model, and no other.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        lora::write(path, &self.tuned, &self.base)
    }

    /// Number of values that were learnt.
    pub fn parameters(&self) -> usize {
        let token = self.tuned.token.as_ref().map_or(0, |token| token.val().dims()[1]);
        self.tuned.loras.num_params() + token
    }
}

/// Learns a person from photos, squares with the face in the middle, for the model at a path. `prompt` is what the model
/// is told of any person, a class or a text; the person's own token comes to it. `faces` choose among several states.
///
/// # Errors
/// A model that cannot be opened, a few-step student, options out of range, several states and photos without faces,
/// [`Error::Cancelled`], a loss that is not finite.
pub fn fit<T: PromptTask>(
    model: &Path,
    prompt: T::Prompt,
    (photos, faces): (&[RgbImage], &Faces),
    options: &FitOptions,
    device: &Device,
    observe: &mut (dyn FnMut(FitEvent) -> ControlFlow<()> + Send),
) -> Result<Person> {
    options.check(photos.len())?;
    let recognised = recognise(model)?;
    recognised.config.check_trained()?;
    let base = recognised.net.checkpoint.fingerprint();
    let model = recognised.load(FloatDtype::F32, device, &mut |_| ())?;
    let Net::Dit(net) = &model.net else {
        return Err(Error::Config { reason: "a few-step student learns no person".into() });
    };
    let shape = LoraShape { rank: options.rank, ..LoraShape::default() };
    let tuned = shape.tuned(net.clone(), options.seed, device)?;
    let tuned = tuned.with_token(&device.clone().autodiff());
    threads::run(|| {
        let pipeline = Pipeline::<T>::new(model.clone(), device)?;
        let told = pipeline.told(&Request::new([prompt.clone()]))?;
        let judge = match options.states {
            1 => None,
            _ => {
                let (pipeline, prompt) = (pipeline.clone(), prompt.clone());
                Some(Judge::new(faces, pipeline, prompt, photos, options.seed)?)
            }
        };
        let prior = match options.prior > 0.0 {
            true => Some(own_pictures(&pipeline, prompt, options, observe)?),
            false => None,
        };
        let photos = clean(&model, &pipeline.size(), photos, device);
        let fitting = Fitting::new(&model, photos, prior, told, options);
        let tuned = fitting.run(tuned, options, judge.as_ref(), observe)?;
        Ok(Person { tuned, base })
    })
}

/// What the model makes of the prompt, as it is trained on.
fn own_pictures<T: PromptTask>(
    pipeline: &Pipeline<T>,
    prompt: T::Prompt,
    options: &FitOptions,
    observe: &mut (dyn FnMut(FitEvent) -> ControlFlow<()> + Send),
) -> Result<Tensor<4>> {
    let prompts = vec![prompt; options.prior_images];
    let request = Request { seed: options.seed, ..Request::new(prompts) };
    let settings = pipeline.resolve(&request)?;
    let batches = options.prior_images.div_ceil(settings.batch);
    let (all, mut step) = (batches * pipeline.taken(&request)?, 0);
    pipeline.latents(&request, &mut |_| {
        step += 1;
        observe(FitEvent::Prior(step, all))
    })
}

/// Photos as the network is trained on them.
fn clean(model: &Model, size: &[usize; 2], photos: &[RgbImage], device: &Device) -> Tensor<4> {
    let made = photos.iter().map(|photo| {
        let pixels = picture_tensor(&photo.convert(), *size, device);
        latent(model.vae.as_ref(), pixels)
    });
    Tensor::cat(made.collect(), 0)
}

/// What a person is learnt from.
struct Fitting {
    photos: Tensor<4>,
    prior: Option<Tensor<4>>,
    told: Told,
    loss: Denoising,
    weight: f64,
    patch: usize,
}

impl Fitting {
    fn new(
        model: &Model,
        photos: Tensor<4>,
        prior: Option<Tensor<4>>,
        told: Told,
        options: &FitOptions,
    ) -> Self {
        let process: Process = model.config.process.clone();
        let loss = Denoising {
            process,
            condition_dropout: 0.0,
            target: Target::Data,
            // Who it is shows in details.
            weighting: Weighting::Velocity,
            perceptual: None,
        };
        let patch = model.net.trunk().config().patch;
        Self { photos, prior, told, loss, weight: options.prior, patch }
    }

    /// The network with what it has learnt.
    fn run<T: PromptTask>(
        &self,
        tuned: Tuned,
        options: &FitOptions,
        judge: Option<&Judge<'_, T>>,
        observe: &mut (dyn FnMut(FitEvent) -> ControlFlow<()> + Send),
    ) -> Result<Tuned> {
        let mut trainer = Trainer::new(tuned, trainer(options));
        let due = choice::due(options.steps, options.states);
        let mut best: Option<(f32, Tuned)> = None;
        // The mean of the parts is their sum over their number.
        let parts = 1 + usize::from(self.prior.is_some());
        for step in 0..options.steps {
            let (report, _) = trainer.step(parts, |tuned, part| {
                let mut random = Streams { seed: options.seed, step }.part(part as u64);
                (self.part(tuned, part, options.batch, &mut random) * parts as f64, ())
            });
            let loss = read::number(report.loss)?;
            if !loss.is_finite() {
                let reason =
                    format!("the loss is {loss} at step {step}: take a lower learning rate");
                return Err(Error::Config { reason });
            }
            if observe(FitEvent::Step(step + 1, f64::from(loss))).is_break() {
                return Err(Error::Cancelled);
            }
            let Some(judge) = judge.filter(|_| due.contains(&(step + 1))) else { continue };
            let state = trainer.averaged(0);
            let apart = judge.distance(&state, &mut || observe(FitEvent::Judging))?;
            if observe(FitEvent::Judged(step + 1, apart)).is_break() {
                return Err(Error::Cancelled);
            }
            // Of equals the later one.
            if best.as_ref().is_none_or(|(least, _)| apart <= *least) {
                best = Some((apart, state));
            }
        }
        Ok(best.map_or_else(|| trainer.averaged(0), |(_, state)| state))
    }

    /// The loss of some photos with the token, or of some of the model's own pictures without.
    fn part(&self, tuned: &Tuned, part: usize, batch: usize, random: &mut Generator) -> Tensor<1> {
        let (images, weight) = match (part, &self.prior) {
            (1, Some(prior)) => (prior, self.weight),
            _ => (&self.photos, 1.0),
        };
        let count = images.dims()[0];
        let chosen: Vec<i64> =
            (0..batch).map(|_| (random.uniform() * count as f64) as i64).collect();
        let at = Tensor::from_data(TensorData::new(chosen, [batch]), &images.device());
        let clean = images.clone().select(0, at).autodiff();
        let told = self.told.some(&vec![0; batch]);
        let token = tuned.token.as_ref().filter(|_| part == 0);
        let told = Conditioning {
            token: token.map(|token| {
                let token = token.val();
                let [_, hidden] = token.dims();
                token.expand([batch, hidden])
            }),
            ..told
        };
        let batch = Batch { clean, null: told.clone(), told };
        self.loss.loss(&tuned.bound(), &batch, self.patch, random) * weight
    }
}

fn trainer(options: &FitOptions) -> TrainerConfig {
    TrainerConfig {
        steps: options.steps,
        learning_rate: LearningRate {
            peak: options.learning_rate,
            warmup: options.steps / 20,
            decay: Decay::Cosine {},
        },
        optimizer: Rule::AdamW,
        betas: [0.9, 0.99],
        epsilon: 1e-8,
        weight_decay: 0.0,
        clip: Some(1.0),
        averages: vec![Average::Power(0.05)],
        forced_normalization: false,
        precision: Precision::F32,
    }
}
