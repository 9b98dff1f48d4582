//! Convolutions as TensorFlow stores them, and what they see.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use crate::layers::{Fresh, Init};
use crate::nets::features::conv_norm::{Folded, windows};
use crate::ops;

/// Mean red, green and blue, from 0 to 255, of the pictures that the reader and the recogniser were trained on.
pub(super) const MEAN: [f64; 3] = [122.782, 117.001, 104.298];

/// A convolution with a bias.
#[derive(Module, Debug)]
pub struct Conv {
    /// `[rows, columns, in, out]`.
    pub filters: Param<Tensor<4>>,
    /// `[out]`.
    pub bias: Param<Tensor<1>>,
}

/// A convolution of 3 x 3 with one filter per channel, then one of 1 x 1 with a bias, without anything between.
#[derive(Module, Debug)]
pub struct Separable {
    /// `[3, 3, in, 1]`.
    pub depthwise: Param<Tensor<4>>,
    /// `[1, 1, in, out]`.
    pub pointwise: Param<Tensor<4>>,
    /// `[out]`.
    pub bias: Param<Tensor<1>>,
}

/// A [`Separable`] for inference.
#[derive(Debug, Clone)]
pub(super) struct FoldedSeparable {
    /// `[9, in]`.
    filters: Tensor<2>,
    /// `[in]`: zeros.
    none: Tensor<1>,
    pointwise: Folded,
}

impl Conv {
    /// Fresh weights of a square kernel.
    pub(super) fn new(kernel: usize, [inputs, outputs]: [usize; 2], init: &Init<'_>) -> Self {
        Self {
            filters: init.param(Fresh::Constant(0.0), [kernel, kernel, inputs, outputs]),
            bias: init.param(Fresh::Constant(0.0), [outputs]),
        }
    }

    pub(super) fn folded(&self) -> Folded {
        let [rows, columns, inputs, outputs] = self.filters.dims();
        let weight = self.filters.val().reshape([rows * columns * inputs, outputs]);
        Folded { weight, bias: self.bias.val() }
    }
}

impl Separable {
    /// Fresh weights.
    pub(super) fn new([inputs, outputs]: [usize; 2], init: &Init<'_>) -> Self {
        Self {
            depthwise: init.param(Fresh::Constant(0.0), [3, 3, inputs, 1]),
            pointwise: init.param(Fresh::Constant(0.0), [1, 1, inputs, outputs]),
            bias: init.param(Fresh::Constant(0.0), [outputs]),
        }
    }

    pub(super) fn folded(&self) -> FoldedSeparable {
        let [.., inputs, outputs] = self.pointwise.dims();
        FoldedSeparable {
            filters: self.depthwise.val().reshape([9, inputs]),
            none: Tensor::zeros([inputs], &self.bias.val().device()),
            pointwise: Folded {
                weight: self.pointwise.val().reshape([inputs, outputs]),
                bias: self.bias.val(),
            },
        }
    }
}

impl FoldedSeparable {
    /// With the border that TensorFlow calls `same`.
    ///
    /// # Shapes
    /// `[batch, height, width, in]` to `[batch, height / stride, width / stride, out]`, rounded up
    pub(super) fn forward(&self, x: Tensor<4>, stride: usize) -> Tensor<4> {
        let x = ops::depthwise(x, self.filters.clone(), self.none.clone(), stride, None);
        self.pointwise.pointwise(x, None)
    }
}

/// Pixels with the channels last, less a mean from 0 to 255, one unit for all levels.
///
/// # Shapes
/// `[batch, 3, height, width]` in [-1, 1] to `[batch, height, width, 3]`
pub(super) fn seen(x: Tensor<4>, mean: [f64; 3]) -> Tensor<4> {
    let offset = mean.map(|mean| (0.5 - mean / 255.0) as f32);
    let offset = Tensor::<1>::from_floats(offset, &x.device()).reshape([1, 1, 1, 3]);
    x.permute([0, 2, 3, 1]) * 0.5 + offset
}

/// A square kernel over all places where it fits, `stride` apart.
///
/// # Shapes
/// `[batch, height, width, in]` to `[batch, _, _, out]`
pub(super) fn convolve(layer: &Folded, x: &Tensor<4>, kernel: usize, stride: usize) -> Tensor<4> {
    layer.pointwise(Tensor::cat(windows(x, [kernel; 2], stride), 3), None)
}

/// The sides with zeros before and after.
///
/// # Shapes
/// `[batch, height, width, channels]` to `[batch, height + before + after, width + before + after, channels]`
pub(super) fn bordered(x: Tensor<4>, before: usize, after: usize) -> Tensor<4> {
    x.pad([(0, 0), (before, after), (before, after), (0, 0)], 0.0)
}
