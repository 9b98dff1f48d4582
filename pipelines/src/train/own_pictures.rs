//! Further patch sizes that a model learns without data: from itself, on pictures that it makes (FlexiDiT section 3.3,
//! with samples in the place of data).

use std::ops::ControlFlow;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use pyrograph_engine::nets::{Dit, Flexible, Net, flexify};
use pyrograph_engine::read;
use pyrograph_engine::train::{
    Average, Batch, Decay, Denoising, LearningRate, StepReport, Target, Trainer,
};

use super::config::{TrainConfig, peak};
use super::streams::Streams;
use crate::data::Order;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::pipeline::Pipeline;
use crate::request::Request;
use crate::task::{PromptTask, Told};

/// Pictures per step.
const BATCH: usize = 16;
/// Parts of a batch.
const PARTS: usize = 2;
/// Steps between two readings of the loss.
const READ_EVERY: u64 = 10;
/// How a model learns further patch sizes from itself.
#[derive(Debug, Clone, Copy)]
pub struct OwnPictures {
    /// Training steps of 16 pictures.
    pub steps: u64,
    /// Pictures that the model makes for it.
    pub pictures: usize,
    /// Seed of the pictures and of all else.
    pub seed: u64,
}

/// What a model learning from itself reports.
#[derive(Debug, Clone, Copy)]
pub enum OwnProgress {
    /// Pictures made so far.
    Made(usize),
    /// Steps taken, and the mean loss of the last ones where it was read.
    Step(u64, Option<f32>),
}

impl OwnPictures {
    /// The model with the patch sizes of `flexible`, trained so that every size gives what the native one gave, on pictures of
    /// `prompts` in turn.
    ///
    /// With adapters, the native size stays as it is, bit for bit; otherwise it is trained to stay.
    ///
    /// # Errors
    /// A few-step student, sizes that do not go with the model, no prompts or such that it does not know, a loss that is
    /// not finite, and [`Error::Cancelled`] if `observe` breaks.
    pub fn teach<T: PromptTask>(
        self,
        model: Model,
        prompts: &[T::Prompt],
        flexible: Flexible,
        device: &Device,
        observe: &mut (dyn FnMut(OwnProgress) -> ControlFlow<()> + Send),
    ) -> Result<Model> {
        let reason = |reason: String| Error::Config { reason };
        let Net::Dit(teacher) = model.net.clone() else {
            return Err(reason("a few-step student gets no further patch sizes".into()));
        };
        if self.steps == 0 || self.pictures == 0 {
            return Err(reason(format!("{} steps on {} pictures", self.steps, self.pictures)));
        }
        let net = flexify(teacher.clone(), flexible, self.seed)
            .map_err(|error| reason(error.to_string()))?;
        let pipeline = Pipeline::<T>::new(model.clone(), device)?;
        let asked = prompts.iter().cloned().cycle().take(self.pictures);
        let request = Request { seed: self.seed, batch: Some(BATCH), ..Request::new(asked) };
        let told = pipeline.told(&request)?;
        let latents =
            pipeline.latents(&request, &mut |step| observe(OwnProgress::Made(step.first)))?;
        let net = self.train(net, teacher, (latents, told), &model, observe)?;
        let mut config = model.config;
        config.net.dit = net.config().clone();
        Ok(Model { net: net.into(), config, ..model })
    }

    fn train(
        self,
        net: Dit,
        teacher: Dit,
        (latents, told): (Tensor<4>, Told),
        model: &Model,
        observe: &mut (dyn FnMut(OwnProgress) -> ControlFlow<()> + Send),
    ) -> Result<Dit> {
        let config = self.config(&net);
        let settings = config.trainer(net.config());
        let net = if net.config().adapter_rank().is_some() { net.freeze_native() } else { net };
        let objective = Denoising {
            process: model.config.process.clone(),
            condition_dropout: config.label_dropout,
            target: Target::Teacher(Box::new(teacher.valid())),
            weighting: config.weighting,
            perceptual: None,
        };
        let mut trainer = Trainer::new(net, settings);
        let order = Order::new(self.pictures, self.seed);
        let mut reports: Vec<StepReport> = Vec::new();
        for step in 0..self.steps {
            let streams = Streams { seed: self.seed, step };
            let patch = config.patch(trainer.model.config(), step, streams.patch());
            let indices = order.indices(step * BATCH as u64, BATCH);
            let parts: Vec<&[usize]> = indices.chunks(BATCH / PARTS).collect();
            let (report, _) = trainer.step(PARTS, |net, part| {
                let batch = Batch {
                    clean: select(&latents, parts[part]).autodiff(),
                    told: told.some(parts[part]),
                    null: told.null(parts[part]),
                };
                (objective.loss(net, &batch, patch, &mut streams.part(part as u64)), ())
            });
            reports.push(report);
            let taken = step + 1;
            let read = taken.is_multiple_of(READ_EVERY) || taken == self.steps;
            let loss = read.then(|| mean_loss(std::mem::take(&mut reports))).transpose()?;
            if let Some(loss) = loss.filter(|loss| !loss.is_finite()) {
                return Err(Error::Diverged { step: taken, loss });
            }
            if observe(OwnProgress::Step(taken, loss)).is_break() {
                return Err(Error::Cancelled);
            }
        }
        Ok(trainer.averaged(0))
    }

    /// As [`TrainConfig::starting_from`] would train the model.
    fn config(self, net: &Dit) -> TrainConfig {
        TrainConfig {
            steps: self.steps,
            learning_rate: LearningRate {
                peak: peak(net.config()),
                warmup: (self.steps / 10).min(100),
                decay: Decay::Cosine {},
            },
            averages: vec![Average::Power(0.05)],
            ..TrainConfig::default()
        }
    }
}

fn select(latents: &Tensor<4>, indices: &[usize]) -> Tensor<4> {
    let at: Vec<i64> = indices.iter().map(|&index| index as i64).collect();
    let count = at.len();
    let at = Tensor::<1, Int>::from_data(TensorData::new(at, [count]), &latents.device());
    latents.clone().select(0, at)
}

fn mean_loss(reports: Vec<StepReport>) -> Result<f32> {
    let losses = reports.into_iter().map(|report| report.loss).collect();
    Ok(read::number(Tensor::cat(losses, 0).mean())?)
}
