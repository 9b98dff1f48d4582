//! Which parts of a network preserve magnitude
//! (Karras et al. 2024, "EDM2"; Bill et al. 2025, "MP-DiT").

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::ops::magnitude::sum;

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
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Residual {
    /// `h + f`.
    Add,
    /// [`mp_sum`](crate::ops::magnitude::mp_sum)`(h, f, balance)`; the two sums of embeddings use a balance of ½.
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
        sum(a, b, matches!(self, Residual::Blend { .. }).then_some(0.5))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_rule_shrinks_branches_of_deep_networks() {
        let rule = Residual::Blend { balance: None };
        for (depth, expected) in [(6, 0.224), (12, 0.169), (28, 0.118)] {
            let balance = rule.balance(depth).expect("a blend");
            assert!((balance - expected).abs() < 1e-3, "{depth}: {balance}");
        }
    }
}
