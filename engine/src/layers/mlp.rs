//! The feed-forward half of a block.

use burn::module::Module;
use burn::tensor::Tensor;

use super::dense::{Dense, DenseConfig};
use super::init::Init;
use super::lora::Lora;
use crate::ops::{Activation, gated};

/// Two linear layers with an activation between them, which one half of a gated first layer multiplies by the other (GLU,
/// Shazeer 2020).
#[derive(Module, Debug)]
pub struct Mlp {
    /// `[hidden, inner]`; if it is gated twice as wide, what is activated first.
    pub up: Dense,
    /// `[inner, hidden]`.
    pub down: Dense,
    #[module(skip)]
    activation: Activation,
    gated: bool,
}

impl Mlp {
    /// Makes the layers from a description of each.
    pub fn new(
        up: DenseConfig,
        down: DenseConfig,
        activation: Activation,
        init: &Init<'_>,
    ) -> Self {
        let gated = up.outputs == 2 * down.inputs;
        Self { up: up.init(init), down: down.init(init), activation, gated }
    }

    /// # Shapes
    /// `[.., hidden]` to the same
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        self.adapted(x, None)
    }

    /// [`Mlp::forward`] with adapters of `up` and `down`.
    pub fn adapted<const D: usize>(&self, x: Tensor<D>, adapters: Option<[&Lora; 2]>) -> Tensor<D> {
        let up = adapters.map(|[up, _]| up);
        let inner = match self.gated {
            false => self.up.adapted(x, Some(self.activation), up),
            true => gated(self.up.adapted(x, None, up), self.activation),
        };
        self.down.adapted(inner, None, adapters.map(|[_, down]| down))
    }

    /// See [`Dense::folded`].
    pub fn folded(mut self) -> Self {
        self.up = self.up.folded();
        self.down = self.down.folded();
        self
    }
}
