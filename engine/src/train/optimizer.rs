//! AdamW (Loshchilov & Hutter 2019) and schedules of its learning rate.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

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

/// Moments of the gradients and the rule that applies them.
#[derive(Debug, Clone)]
pub struct AdamW {
    /// Decay of the two moments.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay, per unit of learning rate.
    pub weight_decay: f64,
    /// First moments, in the order of [`params::values`](super::params::values).
    pub first: Vec<Tensor<1>>,
    /// Second moments.
    pub second: Vec<Tensor<1>>,
}

impl AdamW {
    /// Moments of zero for parameters of these values.
    pub fn new(values: &[Tensor<1>], betas: [f64; 2], epsilon: f64, weight_decay: f64) -> Self {
        let zeros = || values.iter().map(Tensor::zeros_like).collect();
        Self { betas, epsilon, weight_decay, first: zeros(), second: zeros() }
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
        let step = AdamStep {
            betas: self.betas,
            rate: learning_rate / correct(self.betas[0]),
            root: 1.0 / correct(self.betas[1]).sqrt(),
            epsilon: self.epsilon,
            keep: 1.0 - learning_rate * self.weight_decay,
        };
        let moments = std::mem::take(&mut self.first).into_iter().zip(self.second.drain(..));
        let (mut updated, mut seconds) = (Vec::new(), Vec::new());
        for ((value, gradient), (first, second)) in values.into_iter().zip(gradients).zip(moments) {
            let [value, first, second] = ops::adam(step, value, gradient, factor, [first, second]);
            updated.push(value);
            self.first.push(first);
            seconds.push(second);
        }
        self.second = seconds;
        updated
    }
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
        let values = vec![Tensor::<1>::from_floats([1.0, -2.0], &device)];
        let grads = vec![Tensor::<1>::from_floats([0.3, -40.0], &device)];
        let mut adam = AdamW::new(&values, [0.9, 0.99], 1e-8, 0.1);
        let new: Vec<f32> = adam.step(values, grads, &Tensor::ones([1], &device), 0.01, 1)[0]
            .to_data()
            .try_to_vec()
            .expect("f32");
        assert!((new[0] - (1.0 - 0.001 - 0.01)).abs() < 1e-6, "{new:?}");
        assert!((new[1] - (-2.0 + 0.002 + 0.01)).abs() < 1e-6, "{new:?}");
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
