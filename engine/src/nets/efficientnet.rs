//! EfficientNet-Lite0 (Tan & Le 2019; the Lite variants of 2020): a classifier of photographs whose features
//! measure how far two sets of images are apart.

use burn::module::{Module, Param};
use burn::nn::PaddingConfig2d;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::tensor::{Device, Tensor};

use crate::layers::{Fresh, Init};

/// Length of the features.
pub const FEATURES: usize = 1280;
/// ε of the batch norms.
const EPSILON: f64 = 1e-3;
/// Expansion, kernel, stride of the first, width, and number of the blocks of each stage.
const STAGES: [[usize; 5]; 7] = [
    [1, 3, 1, 16, 1],
    [6, 3, 2, 24, 2],
    [6, 5, 2, 40, 2],
    [6, 3, 2, 80, 3],
    [6, 5, 1, 112, 3],
    [6, 5, 2, 192, 4],
    [6, 3, 1, 320, 1],
];
/// Width after the first convolution.
const STEM: usize = 32;

/// The network without its classifier.
#[derive(Module, Debug)]
pub struct EfficientNetLite0 {
    /// 3 x 3, stride 2.
    pub stem: Unit,
    /// First to last.
    pub blocks: Vec<Block>,
    /// 1 x 1 to [`FEATURES`].
    pub head: Unit,
}

/// A convolution and its batch norm.
#[derive(Module, Debug)]
pub struct Unit {
    /// Without a bias.
    pub conv: Conv2d,
    /// `[channels]`.
    pub gain: Param<Tensor<1>>,
    /// `[channels]`.
    pub bias: Param<Tensor<1>>,
    /// `[channels]`: mean over the training set.
    pub mean: Param<Tensor<1>>,
    /// `[channels]`: variance over the training set.
    pub variance: Param<Tensor<1>>,
    stride: usize,
}

/// An inverted residual block.
#[derive(Module, Debug)]
pub struct Block {
    /// 1 x 1, to more channels.
    pub expand: Option<Unit>,
    /// One filter per channel.
    pub depthwise: Unit,
    /// 1 x 1, to the block's width, without an activation.
    pub project: Unit,
    residual: bool,
}

impl EfficientNetLite0 {
    /// Makes the network with fresh weights.
    pub fn new(device: &Device) -> Self {
        let init = &Init::new(0, device);
        let mut blocks = Vec::new();
        let mut width = STEM;
        for [expansion, kernel, stride, out, count] in STAGES {
            for i in 0..count {
                let (stride, inner) = (if i == 0 { stride } else { 1 }, width * expansion);
                blocks.push(Block {
                    expand: (expansion > 1).then(|| Unit::new([width, inner], 1, 1, 1, init)),
                    depthwise: Unit::new([inner, inner], kernel, stride, inner, init),
                    project: Unit::new([inner, out], 1, 1, 1, init),
                    residual: stride == 1 && width == out,
                });
                width = out;
            }
        }
        Self {
            stem: Unit::new([3, STEM], 3, 2, 1, init),
            blocks,
            head: Unit::new([width, FEATURES], 1, 1, 1, init),
        }
    }

    /// The mean over all places of the last layer.
    ///
    /// # Shapes
    /// `x`: `[batch, 3, height, width]` in [-1, 1], output: `[batch, 1280]`
    pub fn forward(&self, x: Tensor<4>) -> Tensor<2> {
        // The network was trained on (value - 127) / 128 of values from 0 to 255.
        let x = x * (127.5 / 128.0) + 0.5 / 128.0;
        let x = relu6(self.stem.forward(x));
        let x = self.blocks.iter().fold(x, |x, block| block.forward(x));
        let x = relu6(self.head.forward(x));
        let [batch, channels, ..] = x.dims();
        let x: Tensor<3> = x.reshape([batch as i64, channels as i64, -1]);
        x.mean_dim(2).reshape([batch, channels])
    }
}

impl Block {
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let inner = match &self.expand {
            Some(expand) => relu6(expand.forward(x.clone())),
            None => x.clone(),
        };
        let y = self.project.forward(relu6(self.depthwise.forward(inner)));
        if self.residual { y + x } else { y }
    }
}

impl Unit {
    fn new(
        channels: [usize; 2],
        kernel: usize,
        stride: usize,
        groups: usize,
        init: &Init<'_>,
    ) -> Self {
        let each = |value| init.param(Fresh::Constant(value), [channels[1]]);
        // With a stride, the padding that TensorFlow calls `same` depends on the size: see `forward`.
        let padding = if stride == 1 { kernel / 2 } else { 0 };
        Self {
            conv: Conv2dConfig::new(channels, [kernel, kernel])
                .with_stride([stride, stride])
                .with_groups(groups)
                .with_padding(PaddingConfig2d::Explicit(padding, padding, padding, padding))
                .with_bias(false)
                .init(init.device),
            gain: each(1.0),
            bias: each(0.0),
            mean: each(0.0),
            variance: each(1.0),
            stride,
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [.., kernel] = self.conv.weight.dims();
        let [.., height, width] = x.dims();
        let x = match self.stride {
            1 => x,
            stride => {
                let pad = |side: usize| {
                    let total =
                        ((side.div_ceil(stride) - 1) * stride + kernel).saturating_sub(side);
                    (total / 2, total - total / 2)
                };
                x.pad([pad(height), pad(width)], 0.0)
            }
        };
        let factor = self.gain.val() / (self.variance.val() + EPSILON).sqrt();
        let shift = self.bias.val() - self.mean.val() * factor.clone();
        let channels = factor.dims()[0];
        let y = self.conv.forward(x);
        y * factor.reshape([1, channels, 1, 1]) + shift.reshape([1, channels, 1, 1])
    }
}

fn relu6(x: Tensor<4>) -> Tensor<4> {
    x.clamp(0.0, 6.0)
}
