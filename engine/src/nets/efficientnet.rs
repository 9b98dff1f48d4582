//! EfficientNet-Lite0 (Tan & Le 2019; the Lite variants of 2020): a classifier of photographs whose features
//! measure how far two sets of images are apart.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, s};

use crate::kernels;
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
    /// `[out, in / groups, kernel, kernel]`.
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

/// An inverted residual block.
#[derive(Module, Debug)]
pub struct Block {
    /// 1 x 1, to more channels.
    pub expand: Option<Unit>,
    /// One filter per channel.
    pub depthwise: Unit,
    /// 1 x 1, to the block's width, without an activation.
    pub project: Unit,
    stride: usize,
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
                    expand: (expansion > 1).then(|| Unit::new([width, inner], 1, 1, init)),
                    depthwise: Unit::new([inner, inner], kernel, inner, init),
                    project: Unit::new([inner, out], 1, 1, init),
                    stride,
                    residual: stride == 1 && width == out,
                });
                width = out;
            }
        }
        Self {
            stem: Unit::new([3, STEM], 3, 1, init),
            blocks,
            head: Unit::new([width, FEATURES], 1, 1, init),
        }
    }

    /// The network for inference, with the batch norms multiplied into the convolutions.
    pub fn folded(&self) -> FoldedEfficientNet {
        FoldedEfficientNet {
            stem: self.stem.folded(),
            blocks: self.blocks.iter().map(Block::folded).collect(),
            head: self.head.folded(),
        }
    }
}

/// An [`EfficientNetLite0`] for inference.
#[derive(Debug, Clone)]
pub struct FoldedEfficientNet {
    stem: Folded,
    blocks: Vec<FoldedBlock>,
    head: Folded,
}

/// A convolution with a bias.
#[derive(Debug, Clone)]
struct Folded {
    /// `[taps · in, out]`, of a filter per channel `[taps, out]`.
    weight: Tensor<2>,
    /// `[out]`.
    bias: Tensor<1>,
}

#[derive(Debug, Clone)]
struct FoldedBlock {
    expand: Option<Folded>,
    depthwise: Folded,
    project: Folded,
    stride: usize,
    residual: bool,
}

impl FoldedEfficientNet {
    /// The mean over all places of the last layer.
    ///
    /// # Shapes
    /// `x`: `[batch, 3, height, width]` in [-1, 1], both even, output: `[batch, 1280]`
    pub fn forward(&self, x: Tensor<4>) -> Tensor<2> {
        let [batch, channels, height, width] = x.dims();
        // The network was trained on (value - 127) / 128 of values from 0 to 255.
        let x = x * (127.5 / 128.0) + 0.5 / 128.0;
        // Windows of 3 x 3, 2 apart, with a row and a column of zeros at the end.
        let padded = x.permute([0, 2, 3, 1]).pad([(0, 0), (0, 1), (0, 1), (0, 0)], 0.0);
        let [rows, columns] = [height / 2, width / 2];
        let taps = (0..9).map(|tap| {
            let part = padded.clone().slice([
                s![..],
                s![tap / 3..tap / 3 + height; 2],
                s![tap % 3..tap % 3 + width; 2],
                s![..],
            ]);
            part.reshape([batch, rows * columns, channels])
        });
        let x = self.stem.pointwise(Tensor::cat(taps.collect(), 2));
        let x = relu6(x).reshape([batch, rows, columns, STEM]);
        let x = self.blocks.iter().fold(x, |x, block| block.forward(x));
        let [_, rows, columns, channels] = x.dims();
        let x = relu6(self.head.pointwise(x.reshape([batch, rows * columns, channels])));
        x.mean_dim(1).squeeze_dim(1)
    }
}

impl Folded {
    /// `[batch, places, in]` to `[batch, places, out]`.
    fn pointwise(&self, x: Tensor<3>) -> Tensor<3> {
        kernels::linear(x, self.weight.clone(), Some(self.bias.clone()), None)
    }
}

impl FoldedBlock {
    /// `[batch, height, width, channels]`
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let everywhere = |x: Tensor<4>, layer: &Folded| -> Tensor<4> {
            let [batch, height, width, channels] = x.dims();
            let y = layer.pointwise(x.reshape([batch, height * width, channels]));
            let outputs = y.dims()[2];
            y.reshape([batch, height, width, outputs])
        };
        let inner = match &self.expand {
            Some(expand) => relu6(everywhere(x.clone(), expand)),
            None => x.clone(),
        };
        let Folded { weight, bias } = self.depthwise.clone();
        let y = everywhere(kernels::depthwise(inner, weight, bias, self.stride), &self.project);
        if self.residual { y + x } else { y }
    }
}

impl Block {
    fn folded(&self) -> FoldedBlock {
        FoldedBlock {
            expand: self.expand.as_ref().map(Unit::folded),
            depthwise: self.depthwise.folded(),
            project: self.project.folded(),
            stride: self.stride,
            residual: self.residual,
        }
    }
}

impl Unit {
    fn new(channels: [usize; 2], kernel: usize, groups: usize, init: &Init<'_>) -> Self {
        let [inputs, outputs] = channels;
        let each = |value| init.param(Fresh::Constant(value), [outputs]);
        Self {
            conv: init.param(Fresh::Constant(0.0), [outputs, inputs / groups, kernel, kernel]),
            gain: each(1.0),
            bias: each(0.0),
            mean: each(0.0),
            variance: each(1.0),
        }
    }

    fn folded(&self) -> Folded {
        let factor = self.gain.val() / (self.variance.val() + EPSILON).sqrt();
        let bias = self.bias.val() - self.mean.val() * factor.clone();
        let [outputs, inputs, rows, columns] = self.conv.dims();
        let weight = self.conv.val() * factor.reshape([outputs, 1, 1, 1]);
        // Of a filter per channel, `inputs` is 1.
        let weight = weight.permute([2, 3, 1, 0]).reshape([rows * columns * inputs, outputs]);
        Folded { weight, bias }
    }
}

fn relu6<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    x.clamp(0.0, 6.0)
}
