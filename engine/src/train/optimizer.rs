//! AdamW (Loshchilov & Hutter 2019), Muon (Jordan et al. 2024) and schedules of their learning rate.

use burn::module::Module;
use burn::tensor::Tensor;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::params;
use crate::device::is_host;
use crate::ops::{self, AdamStep};

/// Learning rate over the steps of a run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LearningRate {
    /// Highest value.
    pub peak: f64,
    /// Steps of linear rise from zero.
    #[serde(default)]
    pub warmup: u64,
    /// What follows.
    #[serde(default)]
    pub decay: Decay,
}

/// How the learning rate falls.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields)]
pub enum Decay {
    // Of a variant without braces, keys beside its name would be passed over.
    /// Not at all.
    Constant {},
    /// `1 / √(step / start)` after step `start` (EDM2).
    InverseSqrt {
        /// First step that is lowered.
        start: u64,
    },
    /// Half a cosine down to zero at the last step of the run.
    Cosine {},
}

impl Default for Decay {
    fn default() -> Self {
        Self::Constant {}
    }
}

impl LearningRate {
    /// Value at `step`, counted from 0, of `total`.
    pub fn at(&self, step: u64, total: u64) -> f64 {
        if step + 1 < self.warmup {
            return self.peak * (step + 1) as f64 / self.warmup as f64;
        }
        self.peak
            * match self.decay {
                Decay::Constant {} => 1.0,
                Decay::InverseSqrt { start } => {
                    1.0 / (step as f64 / start.max(1) as f64).max(1.0).sqrt()
                }
                Decay::Cosine {} => {
                    let length = total.saturating_sub(self.warmup).max(1) as f64;
                    let done = step.saturating_sub(self.warmup) as f64 / length;
                    (1.0 + (done.min(1.0) * std::f64::consts::PI).cos()) / 2.0
                }
            }
    }
}

/// The rule by which gradients change the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Rule {
    /// Each weight by itself, by the mean of its gradients over the root of that of their squares (Loshchilov & Hutter 2019).
    #[default]
    AdamW,
    /// The matrices of the blocks by steps that change them by as much in every direction (Jordan et al. 2024), of the size
    /// that steps of AdamW have at the same learning rate (Liu et al. 2025, "Muon is Scalable for LLM Training"); all else
    /// by AdamW.
    Muon,
}

/// Decay of the mean of gradients that Muon takes.
const MOMENTUM: f64 = 0.95;
/// RMS of a step of AdamW, in learning rates, which those of Muon are brought to (Liu et al. 2025, Eq. 4).
const ADAM_RMS: f64 = 0.2;

/// Moments of the gradients and the rule that applies them.
#[derive(Debug, Clone)]
pub struct Optimizer {
    /// Decay of the two moments of AdamW.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay, per unit of learning rate.
    pub weight_decay: f64,
    /// First moments, in the order of [`params::values`].
    pub first: Vec<Tensor<1>>,
    /// Second moments; of matrices that Muon changes, zeros.
    pub second: Vec<Tensor<1>>,
    /// Shapes of the matrices that Muon changes, in the same order.
    matrices: Vec<Option<[usize; 2]>>,
}

impl Optimizer {
    /// Moments of zero for the parameters of a module.
    pub fn new<M: Module>(
        module: &M,
        rule: Rule,
        betas: [f64; 2],
        epsilon: f64,
        weight_decay: f64,
    ) -> Self {
        let values = params::values(module);
        let matrices = match rule {
            Rule::AdamW => vec![None; values.len()],
            Rule::Muon => params::matrices(module),
        };
        let zeros = || values.iter().map(Tensor::zeros_like).collect();
        Self { betas, epsilon, weight_decay, first: zeros(), second: zeros(), matrices }
    }

    /// New values after step number `step`, counted from 1, on the gradients times `factor`, `[1]`.
    pub fn step(
        &mut self,
        values: Vec<Tensor<1>>,
        gradients: Vec<Tensor<1>>,
        factor: &Tensor<1>,
        learning_rate: f64,
        step: u64,
    ) -> Vec<Tensor<1>> {
        let correct = |beta: f64| 1.0 - beta.powf(step as f64);
        let adam = AdamStep {
            betas: self.betas,
            rate: learning_rate / correct(self.betas[0]),
            root: 1.0 / correct(self.betas[1]).sqrt(),
            epsilon: self.epsilon,
            keep: 1.0 - learning_rate * self.weight_decay,
        };
        let moments = std::mem::take(&mut self.first).into_iter().zip(self.second.drain(..));
        let moments = moments.map(|(first, second)| [first, second]);
        let rows = values.into_iter().zip(gradients).zip(moments).zip(&self.matrices);
        let rows: Vec<_> = rows.collect();
        let update = |(((value, gradient), moments), matrix): (_, &Option<_>)| match matrix {
            None => ops::adam(adam, value, gradient, factor, moments),
            Some(shape) => {
                let [first, second] = moments;
                let [update, first] = muon(*shape, gradient * factor.clone(), first);
                [value * adam.keep - update * learning_rate, first, second]
            }
        };
        let updated: Vec<[Tensor<1>; 3]> = match is_host(&factor.device()) {
            true => rows.into_par_iter().map(update).collect(),
            false => rows.into_iter().map(update).collect(),
        };
        let mut values = Vec::with_capacity(updated.len());
        for [value, first, second] in updated {
            values.push(value);
            self.first.push(first);
            self.second.push(second);
        }
        values
    }
}

/// The step of a matrix in learning rates, and the new mean of its gradients.
fn muon(shape: [usize; 2], gradient: Tensor<1>, mean: Tensor<1>) -> [Tensor<1>; 2] {
    let mean = ops::blend(mean, gradient.clone(), MOMENTUM);
    // What the mean will be if the next gradient is like this one (Nesterov).
    let ahead = ops::blend(mean.clone(), gradient, MOMENTUM);
    let step = ops::orthogonalized(ahead.reshape(shape)).reshape([-1]);
    // The RMS of a matrix of unit singular values is one over the root of its longer side.
    let longer = shape[0].max(shape[1]) as f64;
    [step * (ADAM_RMS * longer.sqrt()), mean]
}

/// The factor on gradients that keeps their joint norm at or below `limit`, and the norm they have, both
/// `[1]`.
pub fn clip(gradients: &[Tensor<1>], limit: f64) -> [Tensor<1>; 2] {
    let squares = gradients.iter().map(|grad| ops::sum_of_squares(grad.clone()));
    let norm = squares.reduce(|a, b| a + b).expect("a module has parameters").sqrt();
    let factor = ((norm.clone() + 1e-12).recip() * limit).clamp_max(1.0);
    [factor, norm]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nets::DitConfig;
    use crate::testing::random;
    use burn::module::Param;
    use burn::tensor::Device;

    #[test]
    fn learning_rate_matches_the_published_schedule() {
        let rate =
            LearningRate { peak: 1e-2, warmup: 2666, decay: Decay::InverseSqrt { start: 40_000 } };
        assert!((rate.at(100_000, 400_000) - 6.3246e-3).abs() < 1e-7);
        assert!((rate.at(400_000, 400_000) - 3.1623e-3).abs() < 1e-7);
        assert!((rate.at(0, 400_000) - 1e-2 / 2666.0).abs() < 1e-12);
        let cosine = LearningRate { peak: 1.0, warmup: 10, decay: Decay::Cosine {} };
        assert!(cosine.at(109, 110) < 1e-3 && (cosine.at(60, 110) - 0.5).abs() < 1e-9);
    }

    #[test]
    fn a_step_follows_the_sign_of_the_gradient_at_first() {
        let device = Device::flex();
        let module =
            Param::from_tensor(Tensor::<1>::from_floats([1.0, -2.0], &device.clone().autodiff()));
        let values = params::values(&module);
        let grads = vec![Tensor::<1>::from_floats([0.3, -40.0], &device)];
        let mut adam = Optimizer::new(&module, Rule::AdamW, [0.9, 0.99], 1e-8, 0.1);
        let new: Vec<f32> = adam.step(values, grads, &Tensor::ones([1], &device), 0.01, 1)[0]
            .to_data()
            .try_to_vec()
            .expect("f32");
        assert!((new[0] - (1.0 - 0.001 - 0.01)).abs() < 1e-6, "{new:?}");
        assert!((new[1] - (-2.0 + 0.002 + 0.01)).abs() < 1e-6, "{new:?}");
    }

    /// However large the gradients are and whatever singular values they have.
    #[test]
    fn steps_of_muon_have_the_size_of_those_of_adam() {
        let net = DitConfig::dit(32, 2, 2).init(0, &Device::flex().autodiff());
        let values = params::values(&net);
        let gradients: Vec<Tensor<1>> =
            values.iter().map(|value| random::<1>(value.dims()) * 100.0).collect();
        let one = Tensor::ones([1], &Device::flex());
        let steps = |rule: Rule| -> Vec<f32> {
            let mut optimizer = Optimizer::new(&net, rule, [0.9, 0.99], 1e-8, 0.0);
            let new = optimizer.step(values.clone(), gradients.clone(), &one, 0.01, 1);
            let rms = |(new, old): (Tensor<1>, &Tensor<1>)| {
                (new - old.clone()).square().mean().sqrt().into_scalar::<f32>() / 0.01
            };
            new.into_iter().zip(&values).map(rms).collect()
        };
        let (adam, muon) = (steps(Rule::AdamW), steps(Rule::Muon));
        let names = params::names(&net);
        let matrices =
            names.iter().filter(|name| name.starts_with("blocks.") && name.ends_with("weight"));
        assert_eq!(params::matrices(&net).iter().flatten().count(), matrices.count());
        for (matrix, (adam, muon)) in params::matrices(&net).iter().zip(adam.iter().zip(&muon)) {
            match matrix {
                // The first step of AdamW is its sign.
                None => assert!((adam - muon).abs() < 1e-6 && (adam - 1.0).abs() < 1e-3),
                Some(_) => assert!((0.14..0.24).contains(muon), "{muon}"),
            }
        }
    }

    #[test]
    fn clipping_limits_the_joint_norm_only_when_larger() {
        let device = Device::flex();
        let grads = [Tensor::<1>::from_floats([3.0], &device), Tensor::from_floats([4.0], &device)];
        let [factor, norm] = clip(&grads, 1.0).map(Tensor::into_scalar::<f32>);
        assert!((norm - 5.0).abs() < 1e-6 && (factor - 0.2).abs() < 1e-6);
        assert_eq!(clip(&grads, 10.0)[0].clone().into_scalar::<f32>(), 1.0);
    }
}
