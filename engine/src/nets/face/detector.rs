//! The detector: for each cell of a grid and each of five anchors, a box and whether a face is in it.

use burn::module::Module;
use burn::tensor::activation::leaky_relu;
use burn::tensor::{Device, Tensor};

use super::boxes::ANCHORS;
use super::conv::{Conv, FoldedSeparable, Separable, convolve, seen};
use crate::layers::Init;
use crate::nets::features::conv_norm::{Folded, largest};

/// Pixels of a cell: the side of a picture must be a multiple.
pub const DETECTOR_STEP: usize = 32;
/// Width after the first layer and after each separable one.
const WIDTHS: [usize; 6] = [16, 32, 64, 128, 256, 512];
/// Answers for each anchor.
pub(super) const ANSWERS: usize = 5;
/// Slope of the activation below zero.
const SLOPE: f64 = 0.1;
/// Mean red, green and blue, from 0 to 255, of the pictures that it was trained on.
const MEAN: [f64; 3] = [117.001, 114.697, 97.404];

/// The network.
#[derive(Module, Debug)]
pub struct FaceDetector {
    /// 3 x 3, without a border.
    pub stem: Conv,
    /// First to last.
    pub layers: Vec<Separable>,
    /// 1 x 1, to the answers of all anchors.
    pub head: Conv,
}

impl FaceDetector {
    /// Makes the network with fresh weights.
    pub fn new(device: &Device) -> Self {
        let init = &Init::new(0, device);
        Self {
            stem: Conv::new(3, [3, WIDTHS[0]], init),
            layers: WIDTHS.windows(2).map(|w| Separable::new([w[0], w[1]], init)).collect(),
            head: Conv::new(1, [WIDTHS[5], ANCHORS.len() * ANSWERS], init),
        }
    }

    /// The network for inference.
    pub fn folded(&self) -> FoldedFaceDetector {
        FoldedFaceDetector {
            stem: self.stem.folded(),
            layers: self.layers.iter().map(Separable::folded).collect(),
            head: self.head.folded(),
        }
    }
}

/// A [`FaceDetector`] for inference.
#[derive(Debug, Clone)]
pub struct FoldedFaceDetector {
    stem: Folded,
    layers: Vec<FoldedSeparable>,
    head: Folded,
}

impl FoldedFaceDetector {
    /// What [`found`](super::found) reads boxes from.
    ///
    /// # Shapes
    /// `x`: `[batch, 3, side, side]` in [-1, 1], output: `[batch, side / 32, side / 32, 25]`
    ///
    /// # Panics
    /// For sides that are no multiples of 32, or of different lengths.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [_, _, height, width] = x.dims();
        let whole = height == width && height > 0 && height.is_multiple_of(DETECTOR_STEP);
        assert!(
            whole,
            "{width}x{height} pixels, expected a square of multiples of {DETECTOR_STEP}"
        );
        let x = leaky_relu(convolve(&self.stem, &seen(x, MEAN), 3, 1), SLOPE);
        let x = self.layers.iter().fold(x, |x, layer| {
            leaky_relu(layer.forward(pooled(x, 2), 1), SLOPE) // [batch, side / 2, side / 2, width]
        });
        self.head.pointwise(pooled(x, 1), None)
    }
}

/// Largest of 2 x 2, `stride` apart, and at the end of the sides of what is there.
fn pooled(x: Tensor<4>, stride: usize) -> Tensor<4> {
    let [_, height, width, _] = x.dims();
    // A line that is there already stands for one beyond the end, where it changes nothing.
    let ended = |x: Tensor<4>, axis: usize, side: usize| match (side - 1).is_multiple_of(stride) {
        true => Tensor::cat(vec![x.clone(), x.narrow(axis, side - 1, 1)], axis),
        false => x,
    };
    largest(&ended(ended(x, 1, height), 2, width), 2, stride)
}
