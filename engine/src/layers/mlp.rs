//! The feed-forward half of a block.

use burn::module::Module;
use burn::tensor::Tensor;

use super::dense::{Dense, DenseConfig};
use super::init::Init;
use super::lora::Lora;
use crate::ops::Activation;

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
