//! The reader of a face that fills the picture: its landmarks, or its expression, by the same layers before the last.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};

use super::conv::{Conv, FoldedSeparable, MEAN, Separable, bordered, convolve, seen};
use crate::layers::{Fresh, Init};
use crate::nets::features::conv_norm::{Folded, mean};
use crate::ops;

/// Side of the pictures that it was trained on.
pub const READER_SIDE: usize = 112;
/// Number of landmarks, in the order of the annotation of 300-W (Sagonas et al. 2013): jaw from 0, brows from 17, nose from
/// 27, eyes from 36, mouth from 48.
pub const LANDMARKS: usize = 68;
/// Names of the expressions, in order.
pub const EXPRESSIONS: [&str; 7] =
    ["neutral", "happy", "sad", "angry", "fearful", "disgusted", "surprised"];
/// Width of each block.
const WIDTHS: [usize; 4] = [32, 64, 128, 256];
/// Convolutions of a block.
const DEPTH: usize = 4;

/// The network.
#[derive(Module, Debug)]
pub struct FaceReader {
    /// The first convolution of the first block, 3 x 3, stride 2.
    pub stem: Conv,
    /// All other convolutions, block by block: the first of a block has stride 2.
    pub layers: Vec<Separable>,
    /// `[256, answers]`.
    pub weight: Param<Tensor<2>>,
    /// `[answers]`.
    pub bias: Param<Tensor<1>>,
}

impl FaceReader {
    /// Fresh weights of a network that gives x and y of each landmark.
    pub fn landmarks(device: &Device) -> Self {
        Self::new(2 * LANDMARKS, device)
    }

    /// Fresh weights of a network that gives a logit for each of [`EXPRESSIONS`].
    pub fn expressions(device: &Device) -> Self {
        Self::new(EXPRESSIONS.len(), device)
    }

    fn new(answers: usize, device: &Device) -> Self {
        let init = &Init::new(0, device);
        let mut layers = Vec::new();
        let mut before = WIDTHS[0];
        for (block, width) in WIDTHS.into_iter().enumerate() {
            for layer in usize::from(block == 0)..DEPTH {
                let inputs = if layer == 0 { before } else { width };
                layers.push(Separable::new([inputs, width], init));
            }
            before = width;
        }
        Self {
            stem: Conv::new(3, [3, WIDTHS[0]], init),
            layers,
            weight: init.param(Fresh::Constant(0.0), [before, answers]),
            bias: init.param(Fresh::Constant(0.0), [answers]),
        }
    }

    /// The network for inference.
    pub fn folded(&self) -> FoldedFaceReader {
        FoldedFaceReader {
            stem: self.stem.folded(),
            layers: self.layers.iter().map(Separable::folded).collect(),
            weight: self.weight.val(),
            bias: self.bias.val(),
        }
    }
}

/// A [`FaceReader`] for inference.
#[derive(Debug, Clone)]
pub struct FoldedFaceReader {
    stem: Folded,
    layers: Vec<FoldedSeparable>,
    weight: Tensor<2>,
    bias: Tensor<1>,
}

impl FoldedFaceReader {
    /// Landmarks as shares of the sides, x before y; or logits of expressions.
    ///
    /// # Shapes
    /// `x`: `[batch, 3, 112, 112]` in [-1, 1], output: `[batch, 136]` or `[batch, 7]`
    ///
    /// # Panics
    /// For other sides.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<2> {
        let [_, channels, height, width] = x.dims();
        assert_eq!([channels, height, width], [3, READER_SIDE, READER_SIDE], "sides of a face");
        let x = bordered(seen(x, MEAN), 0, 1);
        let first = convolve(&self.stem, &x, 3, 2).clamp_min(0.0);
        let (inner, blocks) = self.layers.split_at(DEPTH - 1);
        let x = blocks.chunks(DEPTH).fold(dense(inner, first), |x, layers| {
            dense(&layers[1..], layers[0].forward(x, 2).clamp_min(0.0))
        });
        // [batch, 7, 7, 256]
        ops::linear(mean(x), self.weight.clone(), Some(self.bias.clone()), None)
    }
}

/// Each layer reads the sum of all before, and adds to it; what is read is clipped at zero.
fn dense(layers: &[FoldedSeparable], first: Tensor<4>) -> Tensor<4> {
    let add = |sum: Tensor<4>, layer: &FoldedSeparable| {
        let read = sum.clone().clamp_min(0.0);
        sum + layer.forward(read, 1)
    };
    layers.iter().fold(first, add).clamp_min(0.0)
}
