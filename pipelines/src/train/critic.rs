//! The adversarial stage of a student: heads that learn to tell its images from real ones.

use burn::tensor::{Device, Tensor};
use pyrograph_engine::nets::Discriminator;
use pyrograph_engine::train::adversarial::{Features, Judge, discriminator_loss};
use pyrograph_engine::train::{
    Gradients, LearningRate, Rule, StudentBatch, Trainer, TrainerConfig,
};

use super::adopt::Adopted;
use super::config::TrainConfig;
use super::streams::Streams;
use super::student::Adversarial;
use crate::data::{Annotation, Dataset, Notice, Order, Reading};
use crate::error::{Error, Result};
use crate::model::ModelConfig;

/// Mixed into the seed of a run for its heads, order and noise.
const SEED: u64 = 0xC417_1C00;

/// The heads in training, and what they compare with.
pub(super) struct Critic {
    pub(super) trainer: Trainer<Discriminator>,
    features: Features,
    real: Dataset,
    order: Order,
    config: Adversarial,
}

/// The real images of an adversarial stage, with the classes of the teacher, or with captions.
///
/// # Errors
/// Images that cannot be read, or of other classes than those of the teacher, or without captions.
pub(super) fn real_images(
    config: &TrainConfig,
    adversarial: &Adversarial,
    teacher: &ModelConfig,
) -> Result<Dataset> {
    let annotation = match teacher.text {
        Some(_) => Annotation::Captions,
        None => Annotation::Classes,
    };
    let data = Dataset::read(&adversarial.data, Reading { annotation, ..config.reading() })?;
    if annotation == Annotation::Captions {
        return Ok(data);
    }
    let (found, expected) = (data.classes().len(), teacher.net.dit.classes);
    let adopted = Adopted::new(&teacher.labels, expected, data.classes());
    let path = adversarial.data.display();
    let reason = match adopted.order() {
        Some(ids) => return Ok(data.with_ids(&ids)),
        None if found != expected => format!("{path} has {found} classes, the teacher {expected}"),
        None => format!("{path} has other classes than the teacher: {adopted}"),
    };
    Err(Error::Config { reason })
}

impl Critic {
    /// What should be known of the images.
    pub(super) fn notices(&self) -> &[Notice] {
        self.real.notices()
    }

    /// Fresh heads on `features`, which learn from `real` images.
    pub(super) fn new(
        config: &TrainConfig,
        adversarial: &Adversarial,
        features: Features,
        real: Dataset,
        device: &Device,
    ) -> Self {
        let settings = TrainerConfig {
            steps: config.steps,
            learning_rate: LearningRate {
                peak: adversarial.learning_rate,
                warmup: 0,
                decay: Default::default(),
            },
            optimizer: Rule::AdamW,
            betas: config.betas,
            epsilon: 1e-8,
            weight_decay: 0.0,
            clip: None,
            averages: Vec::new(),
            forced_normalization: false,
            precision: config.precision,
        };
        let heads = features.discriminator(config.seed ^ SEED, device);
        Self {
            trainer: Trainer::new(heads, settings),
            features,
            order: Order::new(real.len(), config.seed ^ SEED),
            real,
            config: adversarial.clone(),
        }
    }

    /// The judge of the coming step.
    pub(super) fn judge(&self) -> Judge<'_> {
        let weight = match self.trainer.step < self.config.warmup {
            true => 0.0,
            false => self.config.weight,
        };
        Judge { features: &self.features, heads: &self.trainer.model, weight }
    }

    /// The gradients with which the heads learn from what the student made of each batch,
    /// `[batch, channels, height, width]`.
    pub(super) fn gradients(
        &self,
        batches: &[StudentBatch],
        made: &[Tensor<4>],
        streams: Streams,
        device: &Device,
    ) -> Gradients {
        let count: usize = made.iter().map(|images| images.dims()[0]).sum();
        let indices = self.order.indices(self.trainer.step * count as u64, count);
        let mut left = indices.as_slice();
        let mut real = Vec::with_capacity(made.len());
        for (part, images) in made.iter().enumerate() {
            let (own, others) = left.split_at(images.dims()[0]);
            left = others;
            real.push(self.real.batch(own, &mut streams.part(SEED + part as u64), device));
        }
        let features = &self.features;
        let (gradients, _) = self.trainer.gradients(made.len(), |heads, part| {
            let real = features.of(real[part].clean.clone(), &real[part].told).autodiff();
            let fake = features.of(made[part].clone(), &batches[part].told).autodiff();
            (discriminator_loss(heads, &real, &fake), ())
        });
        gradients
    }
}
