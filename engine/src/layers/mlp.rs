//! The feed-forward half of a block.

use burn::module::Module;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::dense::{Dense, DenseConfig};
use super::init::Init;
use super::lora::Lora;
use crate::ops;

/// Nonlinearity of an MLP or an embedder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// GELU with the tanh approximation.
    GeluTanh,
    /// `x · sigmoid(x)`.
    Silu,
    /// [`mp_silu`](super::magnitude::mp_silu).
    MpSilu,
}

/// `2 √(2 / π)`, so that tanh-GELU is `x · sigmoid(GELU_SLOPE · (x + GELU_CUBIC · x³))`.
pub(crate) const GELU_SLOPE: f64 = 1.595_769_121_605_731;
/// Coefficient of the cubic term of tanh-GELU.
pub(crate) const GELU_CUBIC: f64 = 0.044715;

impl Activation {
    /// Applies it to each element.
    pub fn forward<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        ops::pointwise(x, self)
    }
}

/// Two linear layers with an activation between them.
#[derive(Module, Debug)]
pub struct Mlp {
    /// `[hidden, inner]`.
    pub up: Dense,
    /// `[inner, hidden]`.
    pub down: Dense,
    #[module(skip)]
    activation: Activation,
}

impl Mlp {
    /// Makes the layers from a description of each.
    pub fn new(
        up: DenseConfig,
        down: DenseConfig,
        activation: Activation,
        init: &Init<'_>,
    ) -> Self {
        Self { up: up.init(init), down: down.init(init), activation }
    }

    /// # Shapes
    /// `[.., hidden]` to the same
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        self.adapted(x, None)
    }

    /// [`Mlp::forward`] with adapters of `up` and `down`.
    pub fn adapted<const D: usize>(&self, x: Tensor<D>, adapters: Option<[&Lora; 2]>) -> Tensor<D> {
        let inner = self.up.adapted(x, Some(self.activation), adapters.map(|[up, _]| up));
        self.down.adapted(inner, None, adapters.map(|[_, down]| down))
    }

    /// See [`Dense::folded`].
    pub fn folded(mut self) -> Self {
        self.up = self.up.folded();
        self.down = self.down.folded();
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, activation};

    #[test]
    fn gelu_equals_the_tanh_form() {
        let x = Tensor::<1>::from_floats([-3.0, -0.5, 0.0, 0.7, 4.0], &Device::flex());
        let expected = activation::gelu_approximate(x.clone());
        assert!(Activation::GeluTanh.forward(x).all_close(expected, None, Some(1e-6)));
    }
}
