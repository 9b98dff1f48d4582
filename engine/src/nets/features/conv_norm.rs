//! Convolutions with batch norms, of the classifiers whose features measure pictures.

use burn::module::{Module, Param};
use burn::tensor::{Tensor, s};

use crate::layers::{Fresh, Init};
use crate::ops::{self, Activation};

/// ε of the batch norms.
const EPSILON: f64 = 1e-3;

/// A convolution and its batch norm.
#[derive(Module, Debug)]
pub struct Unit {
    /// `[out, in / groups, rows, columns]`.
    pub conv: Param<Tensor<4>>,
    /// `[channels]`.
    pub gain: Param<Tensor<1>>,
    /// `[channels]`.
    pub bias: Param<Tensor<1>>,
    /// `[channels]`: mean over the training set.
    pub mean: Param<Tensor<1>>,
    /// `[channels]`: variance over the training set.
    pub variance: Param<Tensor<1>>,
}

/// A convolution with a bias.
#[derive(Debug, Clone)]
pub(in crate::nets) struct Folded {
    /// `[taps · in, out]`, of a filter per channel `[taps, out]`.
    pub(in crate::nets) weight: Tensor<2>,
    /// `[out]`.
    pub(in crate::nets) bias: Tensor<1>,
}

impl Unit {
    /// Fresh weights of a kernel `[rows, columns]`.
    pub(super) fn new(
        [inputs, outputs]: [usize; 2],
        [rows, columns]: [usize; 2],
        groups: usize,
        init: &Init<'_>,
    ) -> Self {
        let each = |value| init.param(Fresh::Constant(value), [outputs]);
        Self {
            conv: init.param(Fresh::Constant(0.0), [outputs, inputs / groups, rows, columns]),
            gain: each(1.0),
            bias: each(0.0),
            mean: each(0.0),
            variance: each(1.0),
        }
    }

    /// The batch norm multiplied into the convolution.
    pub(super) fn folded(&self) -> Folded {
        let factor = self.gain.val() / (self.variance.val() + EPSILON).sqrt();
        let bias = self.bias.val() - self.mean.val() * factor.clone();
        let [outputs, inputs, rows, columns] = self.conv.dims();
        let weight = self.conv.val() * factor.reshape([outputs, 1, 1, 1]);
        // Of a filter per channel, `inputs` is 1.
        let weight = weight.permute([2, 3, 1, 0]).reshape([rows * columns * inputs, outputs]);
        Folded { weight, bias }
    }
}

impl Folded {
    /// The same on an autodiff device, without gradients of its own.
    pub(super) fn autodiff(self) -> Self {
        Self { weight: self.weight.autodiff(), bias: self.bias.autodiff() }
    }

    /// The convolution with a kernel over [`windows`] of the input, or of 1 x 1 over the input itself, and an activation.
    ///
    /// # Shapes
    /// `[batch, height, width, taps · in]` to `[batch, height, width, out]`
    pub(in crate::nets) fn pointwise(
        &self,
        x: Tensor<4>,
        activation: Option<Activation>,
    ) -> Tensor<4> {
        let [batch, height, width, channels] = x.dims();
        let x = x.reshape([batch, height * width, channels]);
        let y = ops::linear(x, self.weight.clone(), Some(self.bias.clone()), activation);
        let outputs = y.dims()[2];
        y.reshape([batch, height, width, outputs])
    }
}

/// What each tap of a kernel `[rows, columns]` sees of an image, `stride` apart.
///
/// # Shapes
/// `[batch, height, width, channels]` to as many of `[batch, rows that fit, columns that fit, channels]`
pub(in crate::nets) fn windows(
    x: &Tensor<4>,
    [rows, columns]: [usize; 2],
    stride: usize,
) -> Vec<Tensor<4>> {
    let [_, height, width, _] = x.dims();
    let (down, across) = (height - rows + 1, width - columns + 1);
    let tap = |i: usize| {
        let (row, column) = (i / columns, i % columns);
        let (to_row, to_column) = (row + down, column + across);
        let step = stride as isize;
        x.clone().slice([s![..], s![row..to_row;step], s![column..to_column;step], s![..]])
    };
    (0..rows * columns).map(tap).collect()
}

/// Largest of each square window, over all places where it fits.
///
/// # Shapes
/// `[batch, height, width, channels]` to `[batch, rows that fit, columns that fit, channels]`
pub(in crate::nets) fn largest(x: &Tensor<4>, kernel: usize, stride: usize) -> Tensor<4> {
    let windows = windows(x, [kernel; 2], stride).into_iter();
    windows.reduce(|a, b| a.max_pair(b)).expect("a kernel of one place or more")
}

/// The mean over all places.
///
/// # Shapes
/// `[batch, height, width, channels]` to `[batch, channels]`
pub(in crate::nets) fn mean(x: Tensor<4>) -> Tensor<2> {
    let [batch, rows, columns, channels] = x.dims();
    x.reshape([batch, rows * columns, channels]).mean_dim(1).squeeze_dim(1)
}
