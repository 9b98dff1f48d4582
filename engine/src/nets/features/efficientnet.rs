//! EfficientNet-Lite0 (Tan & Le 2019; the Lite variants of 2020): a classifier of photographs whose features
//! measure how far two sets of images are apart.

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use super::conv_norm::{Folded, Unit, mean, windows};
use crate::layers::Init;
use crate::ops::{self, Activation};

/// Length of the features.
pub const FEATURES: usize = 1280;
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
/// After all convolutions but the last one of each block.
const RELU6: Option<Activation> = Some(Activation::Relu6);
/// Width after the first convolution.
const STEM: usize = 32;

/// The network without its classifier.
#[derive(Module, Debug)]
pub struct EfficientNetLite0 {
    /// 3 x 3, stride 2.
    pub stem: Unit,
    /// First to last.
    pub blocks: Vec<Block>,
    /// 1 x 1 to 1280 features.
    pub head: Unit,
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
                    expand: (expansion > 1).then(|| Unit::new([width, inner], [1, 1], 1, init)),
                    depthwise: Unit::new([inner, inner], [kernel; 2], inner, init),
                    project: Unit::new([inner, out], [1, 1], 1, init),
                    stride,
                    residual: stride == 1 && width == out,
                });
                width = out;
            }
        }
        Self {
            stem: Unit::new([3, STEM], [3, 3], 1, init),
            blocks,
            head: Unit::new([width, FEATURES], [1, 1], 1, init),
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
        let last = self.stages(x).last().expect("seven stages");
        mean(self.head.pointwise(last, RELU6))
    }

    /// What each of the seven stages gives, one after the other, as far as is asked for.
    ///
    /// # Shapes
    /// `x`: `[batch, 3, height, width]` in [-1, 1], both even, outputs: `[batch, rows, columns, channels]`, of half the
    /// height and width or less
    pub fn stages(&self, x: Tensor<4>) -> impl Iterator<Item = Tensor<4>> {
        // The network was trained on (value - 127) / 128 of values from 0 to 255.
        let x = x * (127.5 / 128.0) + 0.5 / 128.0;
        // Windows of 3 x 3, 2 apart, with a row and a column of zeros at the end.
        let padded = x.permute([0, 2, 3, 1]).pad([(0, 0), (0, 1), (0, 1), (0, 0)], 0.0);
        let stem = self.stem.pointwise(Tensor::cat(windows(&padded, [3, 3], 2), 3), RELU6);
        let mut left = self.blocks.iter();
        STAGES.iter().scan(stem, move |x, stage| {
            let blocks = left.by_ref().take(stage[4]);
            *x = blocks.fold(x.clone(), |x, block| block.forward(x));
            Some(x.clone())
        })
    }

    /// The same for images whose gradients are recorded; its own weights have none.
    pub fn autodiff(self) -> Self {
        let block = |block: FoldedBlock| FoldedBlock {
            expand: block.expand.map(Folded::autodiff),
            depthwise: block.depthwise.autodiff(),
            project: block.project.autodiff(),
            ..block
        };
        Self {
            stem: self.stem.autodiff(),
            blocks: self.blocks.into_iter().map(block).collect(),
            head: self.head.autodiff(),
        }
    }
}

impl FoldedBlock {
    /// `[batch, height, width, channels]`
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let inner = match &self.expand {
            Some(expand) => expand.pointwise(x.clone(), RELU6),
            None => x.clone(),
        };
        let Folded { weight, bias } = self.depthwise.clone();
        let y = ops::depthwise(inner, weight, bias, self.stride, RELU6);
        let y = self.project.pointwise(y, None);
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
