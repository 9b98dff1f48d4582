//! The recogniser: a residual network (He et al. 2016) as dlib trained it, whose descriptors of the same person are near to
//! each other.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};

use super::conv::{Conv, MEAN, bordered, convolve, seen};
use crate::layers::{Fresh, Init};
use crate::nets::features::conv_norm::{Folded, largest, mean, windows};
use crate::ops;

/// Side of the pictures that it was trained on.
pub const RECOGNISER_SIDE: usize = 150;
/// Length of a descriptor.
pub const DESCRIPTOR: usize = 128;
/// Width of each block, and whether it halves the sides.
const BLOCKS: [(usize, bool); 14] = [
    (32, false),
    (32, false),
    (32, false),
    (64, true),
    (64, false),
    (64, false),
    (64, false),
    (128, true),
    (128, false),
    (128, false),
    (256, true),
    (256, false),
    (256, false),
    (256, true),
];

/// The network.
#[derive(Module, Debug)]
pub struct FaceRecogniser {
    /// 7 x 7, stride 2.
    pub stem: Layer,
    /// First to last.
    pub blocks: Vec<Residual>,
    /// `[256, 128]`.
    pub head: Param<Tensor<2>>,
}

/// A convolution, then a factor and an offset for each channel.
#[derive(Module, Debug)]
pub struct Layer {
    /// The convolution.
    pub conv: Conv,
    /// `[out]`.
    pub gain: Param<Tensor<1>>,
    /// `[out]`.
    pub shift: Param<Tensor<1>>,
}

/// Two convolutions of 3 x 3 beside a path that goes around them.
#[derive(Module, Debug)]
pub struct Residual {
    /// With stride 2 and without a border where the block halves the sides.
    pub first: Layer,
    /// With stride 1 and a border.
    pub second: Layer,
    halves: bool,
}

impl FaceRecogniser {
    /// Makes the network with fresh weights.
    pub fn new(device: &Device) -> Self {
        let init = &Init::new(0, device);
        let mut before = BLOCKS[0].0;
        let stem = Layer::new(7, [3, before], init);
        let blocks = BLOCKS.map(|(width, halves)| {
            let first = Layer::new(3, [before, width], init);
            before = width;
            Residual { first, second: Layer::new(3, [width, width], init), halves }
        });
        let head = init.param(Fresh::Constant(0.0), [before, DESCRIPTOR]);
        Self { stem, blocks: blocks.into(), head }
    }

    /// The network for inference, with the factors multiplied into the convolutions.
    pub fn folded(&self) -> FoldedFaceRecogniser {
        FoldedFaceRecogniser {
            stem: self.stem.folded(),
            blocks: self.blocks.iter().map(Residual::folded).collect(),
            head: self.head.val(),
        }
    }
}

impl Layer {
    fn new(kernel: usize, channels: [usize; 2], init: &Init<'_>) -> Self {
        Self {
            conv: Conv::new(kernel, channels, init),
            gain: init.param(Fresh::Constant(1.0), [channels[1]]),
            shift: init.param(Fresh::Constant(0.0), [channels[1]]),
        }
    }

    fn folded(&self) -> Folded {
        let (Folded { weight, bias }, gain) = (self.conv.folded(), self.gain.val());
        Folded { weight: weight * gain.clone().unsqueeze(), bias: bias * gain + self.shift.val() }
    }
}

impl Residual {
    fn folded(&self) -> FoldedResidual {
        FoldedResidual {
            first: self.first.folded(),
            second: self.second.folded(),
            halves: self.halves,
        }
    }
}

/// A [`FaceRecogniser`] for inference.
#[derive(Debug, Clone)]
pub struct FoldedFaceRecogniser {
    stem: Folded,
    blocks: Vec<FoldedResidual>,
    head: Tensor<2>,
}

#[derive(Debug, Clone)]
struct FoldedResidual {
    first: Folded,
    second: Folded,
    halves: bool,
}

impl FoldedFaceRecogniser {
    /// Descriptors, to be compared by their Euclidean distance: they share a large mean, which hides differences from
    /// the cosine.
    ///
    /// # Shapes
    /// `x`: `[batch, 3, 150, 150]` in [-1, 1], output: `[batch, 128]`
    ///
    /// # Panics
    /// For other sides.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<2> {
        let [_, channels, height, width] = x.dims();
        let expected = [3, RECOGNISER_SIDE, RECOGNISER_SIDE];
        assert_eq!([channels, height, width], expected, "sides of a face");
        let x = convolve(&self.stem, &seen(x, MEAN), 7, 2).clamp_min(0.0); // [batch, 72, 72, 32]
        let x = self.blocks.iter().fold(largest(&x, 3, 2), |x, block| block.forward(x));
        ops::linear(mean(x), self.head.clone(), None, None)
    }
}

impl FoldedResidual {
    /// `[batch, height, width, channels]`
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let first = match self.halves {
            true => convolve(&self.first, &x, 3, 2),
            false => convolve(&self.first, &bordered(x.clone(), 1, 1), 3, 1),
        };
        let y = convolve(&self.second, &bordered(first.clamp_min(0.0), 1, 1), 3, 1);
        let around = if self.halves { averaged(&x) } else { x };
        let ([_, rows, _, channels], [_, height, _, width]) = (around.dims(), y.dims());
        // The convolution may make one row and column less, and more channels, than the path around it.
        let y = bordered(y, 0, rows - height);
        let around = around.pad([(0, 0), (0, 0), (0, 0), (0, width - channels)], 0.0);
        (y + around).clamp_min(0.0)
    }
}

/// Means of 2 x 2, two apart, where they fit.
fn averaged(x: &Tensor<4>) -> Tensor<4> {
    windows(x, [2, 2], 2).into_iter().reduce(|a, b| a + b).expect("four") * 0.25
}
