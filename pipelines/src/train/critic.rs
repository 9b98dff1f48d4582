//! The adversarial stage of a student: heads that learn to tell its images from real ones.

use std::path::Path;

use burn::tensor::{Device, Tensor};
use pyrograph_engine::diffusion::Level;
use pyrograph_engine::diffusion::Process;
use pyrograph_engine::nets::{Conditioning, Discriminator, Dit, Student, Vae};
use pyrograph_engine::random::Generator;
use pyrograph_engine::train::adversarial::{
    Features, Judge, adversarial_regression, discriminator_loss,
};
use pyrograph_engine::train::{LearningRate, StudentBatch, Trainer, TrainerConfig};

use super::material::Pictures;
use super::{Adversarial, TrainConfig};
use crate::data::{Dataset, Order};
use crate::error::{Error, Result};

/// Mixed into the seed of a run for its heads, order and noise.
const SEED: u64 = 0xC417_1C00;

/// The heads in training, and what they compare with.
pub(super) struct Critic {
    pub(super) trainer: Trainer<Discriminator>,
    features: Features,
    real: Pictures,
    order: Order,
    config: Adversarial,
}

/// One step of a student under the eyes of a critic.
pub(super) struct Session<'a> {
    judge: Discriminator,
    critic: &'a Critic,
    weight: f64,
}

/// The images that a student came to in one part of a step.
pub(super) struct Fake {
    images: Tensor<4>,
    told: Conditioning,
}

impl Critic {
    /// Heads for a teacher, which looks at images as it does at `level`.
    ///
    /// # Errors
    /// Images that cannot be read, or of other classes than the teacher's.
    pub(super) fn new(
        folder: &Path,
        config: &TrainConfig,
        adversarial: &Adversarial,
        (teacher, process, level): (Dit, &Process, &Level),
        vae: Option<(&Vae, &str)>,
        device: &Device,
    ) -> Result<Self> {
        let data = Dataset::open(&adversarial.data, config.model.size, config.background.clone())?;
        let (found, expected) = (data.classes().len(), teacher.config().classes);
        if found != expected {
            return Err(Error::Config {
                reason: format!(
                    "{} has {found} classes, the teacher {expected}",
                    adversarial.data.display()
                ),
            });
        }
        let order = Order::new(data.len(), config.seed ^ SEED);
        let real = Pictures::new(folder, data, config.flip, vae, device)?;
        let features = Features::new(teacher, process, level);
        let settings = TrainerConfig {
            steps: config.steps,
            learning_rate: LearningRate {
                peak: adversarial.learning_rate,
                warmup: 0,
                decay: Default::default(),
            },
            betas: config.betas,
            epsilon: 1e-8,
            weight_decay: 0.0,
            clip: None,
            averages: Vec::new(),
            forced_normalization: false,
            precision: config.precision,
        };
        let judge = features.discriminator(config.seed ^ SEED, device);
        let trainer = Trainer::new(judge, settings);
        Ok(Self { trainer, features, real, order, config: adversarial.clone() })
    }

    /// The coming step.
    pub(super) fn session(&self) -> Session<'_> {
        let weight = match self.trainer.step < self.config.warmup {
            true => 0.0,
            false => self.config.weight,
        };
        let judge = self.trainer.model.clone();
        Session { judge, critic: self, weight }
    }

    /// Lets the heads learn from what the student came to in each part.
    pub(super) fn learn(
        &mut self,
        fakes: Vec<Fake>,
        vae: Option<&Vae>,
        random: &dyn Fn(u64) -> Generator,
        device: &Device,
    ) {
        let count: usize = fakes.iter().map(|fake| fake.images.dims()[0]).sum();
        let indices = self.order.indices(self.trainer.step * count as u64, count);
        let mut rest = indices.as_slice();
        let pairs: Vec<_> = fakes
            .into_iter()
            .enumerate()
            .map(|(part, fake)| {
                let (own, others) = rest.split_at(fake.images.dims()[0]);
                rest = others;
                let mut random = random(SEED + part as u64);
                let real = self.real.batch(own, vae, &mut random, device);
                (real, fake)
            })
            .collect();
        let features = &self.features;
        self.trainer.step(pairs.len(), |judge, part| {
            let (real, fake) = &pairs[part];
            let real = features.of(real.clean.clone(), &real.told).autodiff();
            let fake = features.of(fake.images.clone(), &fake.told).autodiff();
            (discriminator_loss(judge, &real, &fake), ())
        });
    }
}

impl Session<'_> {
    /// Loss of one part of a step of the student, `[1]`, and what it came to.
    pub(super) fn loss(&self, net: &Student, batch: &StudentBatch) -> (Tensor<1>, Option<Fake>) {
        let features = &self.critic.features;
        let judge = Judge { features, heads: &self.judge, weight: self.weight };
        let (loss, images) = adversarial_regression(net, batch, judge);
        (loss, Some(Fake { images, told: batch.told.clone() }))
    }
}
