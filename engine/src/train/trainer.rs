//! One training step at a time: gradients, clipping, optimiser, averages, projection.

use burn::module::Module;
use burn::tensor::Tensor;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::ema::Average;
use super::optimizer::{LearningRate, Optimizer, Rule, clip};
use super::params;
use crate::device::is_host;
use crate::layers::mappers::ForceNorm;
use crate::ops;

/// Type in which the linear layers multiply in training; their sums, all else and the weights are f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Precision {
    /// Single precision.
    #[default]
    F32,
    /// Mixed precision with bf16, where the device has it: see [`mixes`](ops::mixes).
    Bf16,
}

/// Settings of a run that do not depend on the objective.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainerConfig {
    /// Steps of the whole run.
    pub steps: u64,
    /// Learning rate.
    pub learning_rate: LearningRate,
    /// How gradients change the weights.
    pub optimizer: Rule,
    /// Decay of the two moments of AdamW.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Largest joint norm of the gradients; `None` is no limit.
    pub clip: Option<f64>,
    /// Averages of the weights to keep.
    pub averages: Vec<Average>,
    /// Normalise the weights of preserved layers after each step.
    pub forced_normalization: bool,
    /// Type of the products.
    pub precision: Precision,
}

/// A model in training.
#[derive(Debug, Clone)]
pub struct Trainer<M> {
    /// On an autodiff device.
    pub model: M,
    /// Moments.
    pub optimizer: Optimizer,
    /// Averages of the weights, in the order of [`TrainerConfig::averages`], each in the order of
    /// [`params::values`].
    pub averages: Vec<Vec<Tensor<1>>>,
    /// Steps taken.
    pub step: u64,
    config: TrainerConfig,
}

/// What a step is taken on: the mean loss over its micro-batches and its gradients.
#[derive(Debug, Clone)]
pub struct Gradients {
    /// `[1]`
    loss: Tensor<1>,
    /// In the order of [`params::values`].
    values: Vec<Tensor<1>>,
}

/// What a step reports, both `[1]`, still on the device.
#[derive(Debug, Clone)]
pub struct StepReport {
    /// Mean loss over the micro-batches.
    pub loss: Tensor<1>,
    /// Joint norm of the gradients before clipping.
    pub gradient_norm: Tensor<1>,
}

impl<M: Module + Send> Trainer<M> {
    /// A run from its start.
    pub fn new(model: M, config: TrainerConfig) -> Self {
        let model = model.train();
        let model = match config.forced_normalization {
            true => model.map(&mut ForceNorm::default()),
            false => model,
        };
        let values = params::values(&model);
        let TrainerConfig { optimizer, betas, epsilon, weight_decay, .. } = config;
        Self {
            optimizer: Optimizer::new(&model, optimizer, betas, epsilon, weight_decay),
            averages: config.averages.iter().map(|_| values.clone()).collect(),
            model,
            step: 0,
            config,
        }
    }

    /// Settings of the run.
    pub fn config(&self) -> &TrainerConfig {
        &self.config
    }

    /// Takes one step on the mean of `micro_batches` losses, and returns what `loss` gave beside them: see
    /// [`Trainer::gradients`] and [`Trainer::apply`].
    pub fn step<T: Send>(
        &mut self,
        micro_batches: usize,
        loss: impl Fn(&M, usize) -> (Tensor<1>, T) + Sync,
    ) -> (StepReport, Vec<T>) {
        let (gradients, rest) = self.gradients(micro_batches, loss);
        (self.apply(gradients), rest)
    }

    /// Takes one step on gradients of the model as it is.
    pub fn apply(&mut self, gradients: Gradients) -> StepReport {
        let Gradients { loss, values: gradients } = gradients;
        let limit = self.config.clip.unwrap_or(f64::INFINITY);
        let [factor, gradient_norm] = clip(&gradients, limit);

        let rate = self.config.learning_rate.at(self.step, self.config.steps);
        self.step += 1;
        let values = params::values(&self.model);
        let values = self.optimizer.step(values, gradients, &factor, rate, self.step);
        let mut model = params::with_values(self.model.clone(), values);
        if self.config.forced_normalization {
            model = model.map(&mut ForceNorm::default());
        }
        self.model = model;
        self.update_averages();
        StepReport { loss, gradient_norm }
    }

    /// The gradients of the mean of `micro_batches` losses, each a `[1]` tensor made by `loss`, and what `loss` gave
    /// beside them, in order.
    ///
    /// On the CPU the micro-batches are computed side by side; the sum is in their order, so that the
    /// result does not depend on the number of threads.
    pub fn gradients<T: Send>(
        &self,
        micro_batches: usize,
        loss: impl Fn(&M, usize) -> (Tensor<1>, T) + Sync,
    ) -> (Gradients, Vec<T>) {
        let (share, precision) = (1.0 / micro_batches as f64, self.config.precision);
        let part = |(i, model): (usize, M)| {
            let (loss, rest) = match precision {
                Precision::F32 => loss(&model, i),
                Precision::Bf16 => ops::mixed(|| loss(&model, i)),
            };
            let loss = loss * share;
            let gradients = params::gradients(&model, &loss.backward());
            ((loss.without_autodiff(), gradients), rest)
        };
        // Each part has leaves of its own, and so a graph of its own.
        let models: Vec<(usize, M)> =
            (0..micro_batches).map(|i| (i, self.model.valid().train())).collect();
        let host = self.model.devices().iter().all(is_host);
        let parts: Vec<((Tensor<1>, Vec<Tensor<1>>), T)> = match host && micro_batches > 1 {
            true => models.into_par_iter().map(part).collect(),
            false => models.into_iter().map(part).collect(),
        };
        let (parts, rest): (Vec<_>, Vec<T>) = parts.into_iter().unzip();
        let add = |(a, b): (Tensor<1>, Tensor<1>)| a + b;
        let total = parts.into_iter().reduce(|(loss, sums), (other, gradients)| {
            (loss + other, sums.into_iter().zip(gradients).map(add).collect())
        });
        let (loss, values) = total.expect("at least one micro-batch");
        (Gradients { loss, values }, rest)
    }

    fn update_averages(&mut self) {
        let values = params::values(&self.model);
        for (profile, average) in self.config.averages.iter().zip(&mut self.averages) {
            let keep = profile.keep(self.step);
            for (average, value) in average.iter_mut().zip(&values) {
                average.inplace(|average| ops::blend(average, value.clone(), keep));
            }
        }
    }

    /// The model with the weights of average number `index`, off the autodiff device.
    pub fn averaged(&self, index: usize) -> M {
        params::with_values(self.model.clone(), self.averages[index].iter().cloned()).valid()
    }
}
