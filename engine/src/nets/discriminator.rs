//! Heads that tell generated images from real ones by the features of a frozen network (section 7 of the ARD
//! specification of Kim et al. 2025; heads after StyleGAN-T, Sauer et al. 2023).

use burn::module::{Module, Param};
use burn::tensor::activation::leaky_relu;
use burn::tensor::{Device, Tensor};

use crate::layers::{Fresh, Init};
use crate::ops;

/// Neighbouring tokens that a head looks at.
const WINDOW: usize = 9;
/// Width of the comparison of tokens with the condition.
const COMPARED: usize = 64;
/// Images normalised together.
const GROUP: usize = 8;
/// Steps of the power iteration that estimates a spectral norm.
const ITERATIONS: usize = 4;
const SLOPE: f64 = 0.2;

/// One head for the tokens after each block of a frozen network.
#[derive(Module, Debug)]
pub struct Discriminator {
    heads: Vec<TokenHead>,
}

#[derive(Module, Debug)]
struct TokenHead {
    first: Linear,
    first_norm: LocalNorm,
    second: Linear,
    second_norm: LocalNorm,
    out: Linear,
    condition: Linear,
}

impl Discriminator {
    /// Fresh heads for a network of `blocks` blocks of `hidden` channels.
    pub fn new(blocks: usize, hidden: usize, seed: u64, device: &Device) -> Self {
        let init = Init::new(seed, device);
        let head = |_| TokenHead {
            first: Linear::new(hidden, hidden, &init),
            first_norm: LocalNorm::new(hidden, &init),
            second: Linear::new(WINDOW * hidden, hidden, &init),
            second_norm: LocalNorm::new(hidden, &init),
            out: Linear::new(hidden, COMPARED, &init),
            condition: Linear::new(hidden, COMPARED, &init),
        };
        Self { heads: (0..blocks).map(head).collect() }
    }

    /// How real the tokens look to each head, above 0 for real ones.
    ///
    /// # Shapes
    /// each of `features`: `[batch, tokens, hidden]`, `condition`: `[batch, 1, hidden]`, each output:
    /// `[batch, tokens, 1]`
    ///
    /// # Panics
    /// If there are not as many features as heads.
    pub fn forward(&self, features: &[Tensor<3>], condition: &Tensor<3>) -> Vec<Tensor<3>> {
        assert_eq!(features.len(), self.heads.len(), "features and heads");
        let judge =
            |(head, x): (&TokenHead, &Tensor<3>)| head.forward(x.clone(), condition.clone());
        self.heads.iter().zip(features).map(judge).collect()
    }
}

impl TokenHead {
    fn forward(&self, x: Tensor<3>, condition: Tensor<3>) -> Tensor<3> {
        let x = leaky_relu(self.first_norm.forward(self.first.spectral(x)), SLOPE);
        let seen = self.second.spectral(windows(x.clone()));
        let seen = leaky_relu(self.second_norm.forward(seen), SLOPE);
        let x = self.out.spectral((seen + x) * 0.5f64.sqrt());
        let condition = self.condition.forward(condition).expand(x.dims());
        (x * condition).sum_dim(2) * (1.0 / COMPARED as f64).sqrt()
    }
}

/// Each token with its neighbours in reading order, around the ends:
/// `[batch, tokens, width]` to `[batch, tokens, WINDOW · width]`.
fn windows(x: Tensor<3>) -> Tensor<3> {
    let tokens = x.dims()[1] as i64;
    let half = (WINDOW / 2) as i64;
    let turned = |by: i64| match by.rem_euclid(tokens) {
        0 => x.clone(),
        by => Tensor::cat(
            vec![
                x.clone().narrow(1, by as usize, (tokens - by) as usize),
                x.clone().narrow(1, 0, by as usize),
            ],
            1,
        ),
    };
    Tensor::cat((-half..=half).map(turned).collect(), 2)
}

#[derive(Module, Debug)]
struct Linear {
    weight: Param<Tensor<2>>,
    bias: Param<Tensor<1>>,
}

impl Linear {
    fn new(inputs: usize, outputs: usize, init: &Init<'_>) -> Self {
        let bound = (1.0 / inputs as f64).sqrt();
        Self {
            weight: init.param(Fresh::Uniform(-bound, bound), [inputs, outputs]),
            bias: init.param(Fresh::Constant(0.0), [outputs]),
        }
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        ops::linear(x, self.weight.val(), Some(self.bias.val()), None)
    }

    /// With the weight divided by its largest singular value (Miyato et al. 2018), which is estimated
    /// anew at each call, so that nothing but the weights is kept.
    fn spectral(&self, x: Tensor<3>) -> Tensor<3> {
        let weight = self.weight.val();
        let norm = spectral_norm(weight.clone()).unsqueeze();
        ops::linear(x, weight / norm, Some(self.bias.val()), None)
    }
}

/// Largest singular value of a matrix, `[1]`; the gradient is that for fixed singular vectors.
fn spectral_norm(weight: Tensor<2>) -> Tensor<1> {
    let unit = |x: Tensor<2>| {
        let norm = x.clone().square().sum().sqrt().unsqueeze();
        x / (norm + 1e-12)
    };
    let fixed = weight.clone().detach();
    let mut right = unit(fixed.clone().sum_dim(0).transpose());
    let mut left = unit(fixed.clone().matmul(right.clone()));
    for _ in 1..ITERATIONS {
        right = unit(fixed.clone().transpose().matmul(left));
        left = unit(fixed.clone().matmul(right.clone()));
    }
    left.transpose().matmul(weight).matmul(right).reshape([1])
}

/// Batch normalisation over groups of [`GROUP`] images and their tokens, without running statistics.
#[derive(Module, Debug)]
struct LocalNorm {
    gain: Param<Tensor<1>>,
    bias: Param<Tensor<1>>,
}

impl LocalNorm {
    fn new(width: usize, init: &Init<'_>) -> Self {
        Self {
            gain: init.param(Fresh::Constant(1.0), [width]),
            bias: init.param(Fresh::Constant(0.0), [width]),
        }
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [batch, tokens, width] = x.dims();
        let groups = match batch.div_ceil(GROUP) {
            groups if batch.is_multiple_of(groups) => groups,
            _ => 1,
        };
        let x = x.reshape([groups, batch / groups * tokens, width]);
        let (variance, mean) = x.clone().var_mean_bias(1);
        let x = (x - mean) / (variance + 1e-5).sqrt();
        let x = x * self.gain.val().unsqueeze() + self.bias.val().unsqueeze();
        x.reshape([batch, tokens, width])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::random;

    fn close<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> bool {
        (a - b).abs().max().into_scalar::<f32>() < 1e-5
    }

    #[test]
    fn heads_have_the_published_size_and_one_logit_per_token() {
        let one = Discriminator::new(1, 1152, 0, &Device::flex());
        assert_eq!(one.num_params(), 13_425_536);
        let judge = Discriminator::new(2, 16, 0, &Device::flex());
        let features = [random([3, 12, 16]), random([3, 12, 16])];
        let logits = judge.forward(&features, &random([3, 1, 16]));
        assert_eq!(logits.iter().map(Tensor::dims).collect::<Vec<_>>(), [[3, 12, 1]; 2]);
    }

    #[test]
    fn groups_of_images_are_normalised_apart() {
        let norm = LocalNorm::new(6, &Init::new(0, &Device::flex()));
        let (a, b): (Tensor<3>, _) = (random([8, 5, 6]) * 3.0, random([8, 5, 6]) + 2.0);
        let both = norm.forward(Tensor::cat(vec![a.clone(), b.clone()], 0));
        let apart = Tensor::cat(vec![norm.forward(a.clone()), norm.forward(b)], 0);
        assert!(close(both, apart));
        let rows = norm.forward(a).reshape([40, 6]);
        let (variance, mean) = rows.var_mean_bias(0);
        assert!(close(mean, Tensor::zeros([1, 6], &Device::flex())));
        assert!((variance - 1.0).abs().max().into_scalar::<f32>() < 1e-3);
    }

    #[test]
    fn spectral_norms_are_the_largest_singular_values() {
        // A matrix of known singular values 5 and 1, and a random one against a long power iteration.
        let known = Tensor::<2>::from_data([[3.0, 4.0], [0.8, -0.6]], &Device::flex());
        assert!((spectral_norm(known).into_scalar::<f32>() - 5.0).abs() < 1e-4);
        let weight = random([40, 20]);
        let mut x = random([20, 1]);
        for _ in 0..200 {
            x = weight.clone().transpose().matmul(weight.clone().matmul(x));
            x = x.clone() / x.square().sum().sqrt().unsqueeze();
        }
        let expected: f32 = weight.clone().matmul(x).square().sum().sqrt().into_scalar();
        let found: f32 = spectral_norm(weight).into_scalar();
        assert!(found <= expected * 1.0001 && found > 0.85 * expected, "{found} of {expected}");
    }

    #[test]
    fn windows_go_around_the_ends() {
        let x = Tensor::<1>::from_floats([0.0, 1.0, 2.0, 3.0, 4.0], &Device::flex());
        let seen: Vec<f32> =
            windows(x.reshape([1, 5, 1])).narrow(1, 0, 1).into_data().try_to_vec().expect("f32");
        assert_eq!(seen, [1.0, 2.0, 3.0, 4.0, 0.0, 1.0, 2.0, 3.0, 4.0]);
    }
}
