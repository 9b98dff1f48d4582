//! Low-rank adapters (Hu et al. 2022).

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use super::init::{Fresh, Init};

/// `x · down · up`, added to the output of a [`Dense`](super::Dense) whose own weight stays as it is.
///
/// The usual factor `alpha / rank` is 1.
#[derive(Module, Debug)]
pub struct Lora {
    /// `[in, rank]`.
    pub down: Param<Tensor<2>>,
    /// `[rank, out]`; zero at the start, so that nothing is added.
    pub up: Param<Tensor<2>>,
}

impl Lora {
    /// Makes an adapter that adds nothing yet.
    pub fn new(inputs: usize, outputs: usize, rank: usize, init: &Init<'_>) -> Self {
        Self {
            down: init.param(Fresh::Normal((1.0 / inputs as f64).sqrt()), [inputs, rank]),
            up: init.param(Fresh::Constant(0.0), [rank, outputs]),
        }
    }

    /// # Shapes
    /// `[.., in]` to `[.., out]`
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let down = crate::ops::linear(x, self.down.val(), None, None);
        crate::ops::linear(down, self.up.val(), None, None)
    }
}
