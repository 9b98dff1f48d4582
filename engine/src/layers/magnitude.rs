//! Magnitude preservation: operations that map unit variance to unit variance
//! (Karras et al. 2024, "EDM2"; Bill et al. 2025, "MP-DiT").

use burn::tensor::{DType, FloatDType, Tensor, activation};
use serde::{Deserialize, Serialize};

/// Added to a norm before dividing by it.
pub(crate) const EPSILON: f64 = 1e-4;

/// RMS of `silu(z)` for `z ~ N(0, 1)`, as rounded in EDM2 (Eq. 81).
pub const SILU_RMS: f64 = 0.596;

/// Balance of a branch in [`Residual::Blend`] used by the published block.
pub const PUBLISHED_BLEND: f64 = 0.3;

/// Which operations of a network preserve magnitude.
///
/// The switches are the components of the published ablation; [`Magnitude::FREE`] is a plain DiT and
/// [`Magnitude::PRESERVED`] the complete MP-DiT. Removing the layer norms, the remaining component,
/// is [`Norm::None`](crate::nets::Norm).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Magnitude {
    /// Queries and keys are normalised per head, so that a logit is `√d · cos θ`.
    pub cosine_attention: bool,
    /// Every unit of a [`Dense`](super::Dense) has a weight vector of unit length in the forward
    /// pass (EDM2 Eq. 47).
    pub normalized_weights: bool,
    /// The stored weights are normalised after each optimiser step (EDM2 Eq. 66).
    pub forced_normalization: bool,
    /// How a branch joins the residual stream.
    pub residual: Residual,
    /// SiLU is divided by its RMS (EDM2 Eq. 81).
    pub scaled_silu: bool,
    /// Label and time tables are normalised per row.
    pub normalized_embeddings: bool,
    /// The output of the attention is brought back to the magnitude of its input, which averaging
    /// over keys had reduced.
    pub renormalized_attention: bool,
}

impl Magnitude {
    /// Nothing is preserved: the plain DiT.
    pub const FREE: Self = Self {
        cosine_attention: false,
        normalized_weights: false,
        forced_normalization: false,
        residual: Residual::Add,
        scaled_silu: false,
        normalized_embeddings: false,
        renormalized_attention: false,
    };

    /// Everything is preserved: MP-DiT as published.
    pub const PRESERVED: Self = Self {
        cosine_attention: true,
        normalized_weights: true,
        forced_normalization: true,
        residual: Residual::Blend { balance: Some(PUBLISHED_BLEND) },
        scaled_silu: true,
        normalized_embeddings: true,
        renormalized_attention: false,
    };
}

/// How a branch `f` joins the residual stream `h`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Residual {
    /// `h + f`.
    Add,
    /// [`mp_sum`]`(h, f, balance)`; the two sums of embeddings use a balance of ½.
    Blend {
        /// Share of the branch in `(0, 1)`. `None` is the depth rule `e / (1 + e)` with
        /// `e = 1 / √(2 · depth)`, which keeps the magnitude of deep stacks of random blocks; the
        /// published constant is [`PUBLISHED_BLEND`].
        balance: Option<f64>,
    },
}

impl Residual {
    /// Share of a branch in a network of `depth` blocks; `None` for plain addition.
    pub fn balance(self, depth: usize) -> Option<f64> {
        match self {
            Residual::Add => None,
            Residual::Blend { balance } => Some(balance.unwrap_or_else(|| {
                let e = 1.0 / (2.0 * depth as f64).sqrt();
                e / (1.0 + e)
            })),
        }
    }

    /// Sum of two embeddings of equal standing.
    pub fn sum<const D: usize>(self, a: Tensor<D>, b: Tensor<D>) -> Tensor<D> {
        join(a, b, matches!(self, Residual::Blend { .. }).then_some(0.5))
    }
}

/// `a + b`, or [`mp_sum`] when a balance is given.
pub(crate) fn join<const D: usize>(a: Tensor<D>, b: Tensor<D>, balance: Option<f64>) -> Tensor<D> {
    match balance {
        Some(balance) => mp_sum(a, b, balance),
        None => a + b,
    }
}

/// Computes in f32 and goes back to the type of `x`: for sums of squares, which half precision cannot
/// hold.
pub(crate) fn in_f32<const D: usize>(
    x: Tensor<D>,
    compute: impl FnOnce(Tensor<D>) -> Tensor<D>,
) -> Tensor<D> {
    let dtype = x.dtype();
    match dtype {
        DType::F32 => compute(x),
        _ => compute(x.cast(FloatDType::F32)).cast(FloatDType::from(dtype)),
    }
}

/// `x · √n / (‖x‖ + ε)` over dimension `dim` of length `n`: the RMS along it becomes 1.
///
/// Zeros stay zeros.
pub fn normalize<const D: usize>(x: Tensor<D>, dim: usize) -> Tensor<D> {
    let n = x.dims()[dim] as f64;
    in_f32(x, |x| {
        // The small constant keeps the gradient of the root finite at zero.
        let norm = (x.clone().square().sum_dim(dim) + 1e-24).sqrt();
        x * (norm + EPSILON).recip().mul_scalar(n.sqrt())
    })
}

/// `((1 − balance) a + balance b) / √((1 − balance)² + balance²)` (EDM2 Eq. 88).
///
/// Unit variance in, unit variance out, for independent `a` and `b`.
pub fn mp_sum<const D: usize>(a: Tensor<D>, b: Tensor<D>, balance: f64) -> Tensor<D> {
    let norm = ((1.0 - balance).powi(2) + balance.powi(2)).sqrt();
    a * ((1.0 - balance) / norm) + b * (balance / norm)
}

/// `silu(x) / 0.596` (EDM2 Eq. 81).
pub fn mp_silu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    activation::silu(x) * (1.0 / SILU_RMS)
}

/// Root mean square over the last dimension, averaged over all others: the magnitude `M[x]` of a
/// token tensor.
pub fn magnitude<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    x.square().mean_dim(D - 1).sqrt().mean()
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, TensorData};

    use crate::random::Generator;

    fn normal(n: usize, seed: u64) -> Tensor<2> {
        let values = Generator::new(seed).normal(n);
        Tensor::from_data(TensorData::new(values, [n / 64, 64]), &Device::flex())
    }

    fn rms(x: Tensor<2>) -> f32 {
        x.square().mean().sqrt().into_scalar()
    }

    #[test]
    fn normalize_matches_the_published_example() {
        let device = Device::flex();
        let y = normalize(Tensor::<1>::from_floats([3.0, 4.0], &device), 0);
        let expected = Tensor::from_floats([0.848511, 1.131348], &device);
        assert!(y.all_close(expected, None, Some(1e-6)));
        let zeros = normalize(Tensor::<1>::zeros([4], &device), 0);
        assert_eq!(zeros.abs().sum().into_scalar::<f32>(), 0.0);
    }

    #[test]
    fn silu_and_sum_keep_unit_variance() {
        let (a, b) = (normal(1 << 20, 1), normal(1 << 20, 2));
        assert!((rms(mp_silu(a.clone())) - 1.0006).abs() < 0.003);
        for balance in [0.1, 0.3, 0.5, 0.9] {
            let sum = rms(mp_sum(a.clone(), b.clone(), balance));
            assert!((sum - 1.0).abs() < 0.005, "{balance}: {sum}");
        }
    }

    #[test]
    fn constants_match_the_published_numbers() {
        let device = Device::flex();
        let one = || Tensor::<1>::from_floats([1.0], &device);
        assert!((mp_silu(one()).into_scalar::<f32>() - 1.226608).abs() < 1e-6);
        assert!((mp_silu(-one()).into_scalar::<f32>() + 0.451244).abs() < 1e-6);
        let a: f32 = mp_sum(one(), one() * 0.0, 0.3).into_scalar();
        let b: f32 = mp_sum(one() * 0.0, one(), 0.3).into_scalar();
        assert!((a - 0.919145).abs() < 1e-6 && (b - 0.393919).abs() < 1e-6);
    }

    #[test]
    fn depth_rule_shrinks_branches_of_deep_networks() {
        let rule = Residual::Blend { balance: None };
        for (depth, expected) in [(6, 0.224), (12, 0.169), (28, 0.118)] {
            let balance = rule.balance(depth).expect("a blend");
            assert!((balance - expected).abs() < 1e-3, "{depth}: {balance}");
        }
    }
}
