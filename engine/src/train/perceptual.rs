//! Differences that show: distances in the features of a classifier.

use burn::tensor::{Int, Tensor, TensorData};

use crate::diffusion::Level;
use crate::nets::FoldedEfficientNet;

/// Stages of the classifier that are compared: those of a half to a sixteenth of the picture's side.
const STAGES: usize = 4;
/// Keeps the direction of features that are all zero finite.
const LEAST_SQUARE: f64 = 1e-8;

/// The distance of the estimated picture from the true one as a classifier sees them, where there is little noise.
///
/// A squared error makes the network blur what it is not sure of; features of a classifier tell a blurred edge from a sharp
/// one (LPIPS, Zhang et al. 2018; here of EfficientNet-Lite0 and without weights learned from people). At much noise, where
/// a picture is not yet decided, they would only pull towards the classifier's likes (PixelGen, Ma et al. 2026).
#[derive(Debug, Clone)]
pub struct Perceptual {
    net: FoldedEfficientNet,
    recorded: FoldedEfficientNet,
    weight: f64,
    below: f64,
}

impl Perceptual {
    /// The distance in the features of `net` weighs `weight`, at a share of noise `σ / (α + σ)` `below` this, in \[0, 1\].
    pub fn new(net: FoldedEfficientNet, weight: f64, below: f64) -> Self {
        Self { recorded: net.clone().autodiff(), net, weight, below }
    }

    /// What is added to the loss for the estimates of a batch at these levels, `[1]`; nothing if there is too much noise in all
    /// of them.
    ///
    /// # Shapes
    /// `estimate`, `clean`: `[batch, 3, height, width]` in \[-1, 1\], both even
    pub(super) fn term(
        &self,
        estimate: Tensor<4>,
        clean: Tensor<4>,
        levels: &[Level],
    ) -> Option<Tensor<1>> {
        let quiet: Vec<i64> = (0..levels.len() as i64)
            .filter(|&image| levels[image as usize].noise_share() < self.below)
            .collect();
        if quiet.is_empty() {
            return None;
        }
        let share = quiet.len() as f64 / levels.len() as f64;
        let count = quiet.len();
        let quiet: Tensor<1, Int> =
            Tensor::from_data(TensorData::new(quiet, [count]), &estimate.device());
        let estimate = estimate.select(0, quiet.clone());
        let clean = clean.select(0, quiet).without_autodiff();
        Some(self.distance(estimate, clean) * (share * self.weight))
    }

    /// `mean over stages, images and places of ‖a/‖a‖ − b/‖b‖‖²`, `[1]`, in \[0, 4\].
    fn distance(&self, estimate: Tensor<4>, clean: Tensor<4>) -> Tensor<1> {
        let recorded = estimate.is_autodiff();
        let found = if recorded { &self.recorded } else { &self.net }.stages(estimate);
        let wanted = self.net.stages(clean);
        let distances = found.zip(wanted).take(STAGES).map(|(found, wanted)| {
            let wanted = direction(wanted);
            let wanted = if recorded { wanted.autodiff() } else { wanted };
            (direction(found) - wanted).square().sum_dim(3).mean()
        });
        Tensor::cat(distances.collect(), 0).mean()
    }
}

/// Features of unit length, `[batch, rows, columns, channels]`.
fn direction(x: Tensor<4>) -> Tensor<4> {
    let length = (x.clone().square().sum_dim(3) + LEAST_SQUARE).sqrt();
    x / length
}

#[cfg(test)]
mod tests {
    use burn::module::{Module, ModuleMapper, Param};
    use burn::tensor::Device;

    use super::*;
    use crate::nets::EfficientNetLite0;
    use crate::testing::Draws;

    fn perceptual(weight: f64) -> Perceptual {
        let net = EfficientNetLite0::new(&Device::flex()).map(&mut Draws::new(2, 0.3));
        Perceptual::new(net.map(&mut Positive).folded(), weight, 0.4)
    }

    /// Makes the variances of batch norms positive.
    struct Positive;

    impl ModuleMapper for Positive {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            match D {
                1 => param.map(|x| x.abs() + 0.5),
                _ => param,
            }
        }
    }

    fn level(sigma: f64) -> Level {
        Level { alpha: 1.0, sigma, timestep: 0.0 }
    }

    #[test]
    fn only_pictures_with_little_noise_count_each_alike() {
        let perceptual = perceptual(2.0);
        let mut draws = Draws::new(4, 0.5);
        let [clean, estimate] = [0, 1].map(|_| draws.tensor::<4>([3, 3, 16, 16]));
        let value = |levels: [f64; 3]| {
            let term = perceptual.term(estimate.clone(), clean.clone(), &levels.map(level))?;
            Some(term.into_scalar::<f32>())
        };
        // A share of 0.4 is σ = 2/3.
        assert_eq!(value([0.7, 1.0, 9.0]), None);
        let alone = [[0.6, 1.0, 9.0], [1.0, 0.6, 9.0], [9.0, 1.0, 0.1]].map(value);
        let sum: f32 = alone.iter().map(|value| value.expect("one counts")).sum();
        let all = value([0.1, 0.2, 0.3]).expect("all count");
        assert!((all / sum - 1.0).abs() < 1e-5, "{all}, {sum}");
        assert!(all > 0.01);
        let same = perceptual.term(clean.clone(), clean.clone(), &[level(0.1); 3]);
        assert_eq!(same.expect("all count").into_scalar::<f32>(), 0.0);
    }

    /// A step along the negative gradient makes the distance smaller, by as much as the gradient says.
    #[test]
    fn gradients_lead_to_the_picture() {
        let perceptual = perceptual(1.0);
        let mut draws = Draws::new(5, 0.5);
        let [clean, estimate] = [0, 1].map(|_| draws.tensor::<4>([2, 3, 16, 16]));
        let of = |estimate: Tensor<4>| {
            perceptual.term(estimate, clean.clone(), &[level(0.1); 2]).expect("both count")
        };
        let leaf = estimate.clone().autodiff().require_grad();
        let gradient = leaf.grad(&of(leaf.clone()).backward()).expect("depends on it");
        let square: f32 = gradient.clone().square().sum().into_scalar();
        let step = 1e-3 / square.sqrt();
        let moved = |sign: f32| -> f32 {
            of(estimate.clone() + gradient.clone() * (sign * step)).into_scalar()
        };
        let slope = (moved(1.0) - moved(-1.0)) / (2.0 * step);
        assert!((slope / square - 1.0).abs() < 0.02, "{slope}, {square}");
    }
}
