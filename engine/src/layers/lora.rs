//! Low-rank adapters (Hu et al. 2022).

use burn::module::{Module, Param};
use burn::tensor::{FloatDType, Tensor};

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

    /// What it adds, times a factor for each output, `[out]`.
    pub(super) fn times(self, factor: Tensor<1>) -> Self {
        let up = self.up.map(|up| {
            let factor = factor.to_device(&up.device()).cast(FloatDType::from(up.dtype()));
            up * factor.unsqueeze()
        });
        Self { up, ..self }
    }

    /// In another type.
    pub(super) fn cast(self, dtype: FloatDType) -> Self {
        let cast = |value: Param<Tensor<2>>| value.map(|value| value.cast(dtype));
        Self { down: cast(self.down), up: cast(self.up) }
    }
}

/// `x · down · up`, added to a range of the outputs of a [`Dense`](super::Dense) at run time.
#[derive(Debug, Clone)]
pub struct LowRank {
    /// `[in, rank]`, f32.
    pub down: Tensor<2>,
    /// `[rank, width]`, f32.
    pub up: Tensor<2>,
    /// The first of the outputs.
    pub start: usize,
}

impl LowRank {
    /// Whether it goes with a layer of these inputs and outputs.
    pub fn fits(&self, [inputs, outputs]: [usize; 2]) -> bool {
        let ([rows, rank], [same, width]) = (self.down.dims(), self.up.dims());
        rows == inputs && rank == same && width > 0 && self.start + width <= outputs
    }

    /// The same times a factor.
    pub fn scaled(&self, factor: f64) -> Self {
        Self { up: self.up.clone() * factor, ..self.clone() }
    }

    /// All terms as one, whose rank is the sum of theirs: outputs that a term leaves alone have zeros in
    /// its rows of `up`. `None` if there are none.
    pub(super) fn sum(terms: &[Self], widths: [usize; 2]) -> Option<Lora> {
        let wide = |term: &Self| {
            let ([rank, width], start) = (term.up.dims(), term.start);
            assert!(term.fits(widths), "{width} outputs from {start} on a layer of {widths:?}");
            let zeros =
                |count: usize| (count > 0).then(|| Tensor::zeros([rank, count], &term.up.device()));
            let after = zeros(widths[1] - start - width);
            let parts = [zeros(start), Some(term.up.clone()), after];
            Tensor::cat(parts.into_iter().flatten().collect(), 1)
        };
        let down: Vec<_> = terms.iter().map(|term| term.down.clone()).collect();
        let up: Vec<_> = terms.iter().map(wide).collect();
        (!terms.is_empty()).then(|| Lora {
            down: Param::from_tensor(Tensor::cat(down, 1)),
            up: Param::from_tensor(Tensor::cat(up, 0)),
        })
    }
}
