//! The two halves of an autoencoder.

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{GroupNorm, GroupNormConfig, PaddingConfig2d};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor, module::attention, ops::AttentionModuleOptions};

use super::VaeConfig;
use crate::layers::dense::DenseConfig;
use crate::layers::{Dense, Init};
use crate::ops::{conv3x3, norm_silu};

/// ε of the group norms.
const EPSILON: f64 = 1e-6;

pub(super) fn conv(inputs: usize, outputs: usize, kernel: usize, device: &Device) -> Conv2d {
    let padding = kernel / 2;
    Conv2dConfig::new([inputs, outputs], [kernel, kernel])
        .with_padding(PaddingConfig2d::Explicit(padding, padding, padding, padding))
        .init(device)
}

/// What changes an image of one resolution.
#[derive(Module, Debug)]
pub struct ResBlock {
    /// Before each of two convolutions, with SiLU; an AutoencoderTiny has neither, and three convolutions with ReLU after
    /// each.
    norm1: Option<GroupNorm>,
    conv1: Conv2d,
    norm2: Option<GroupNorm>,
    conv2: Conv2d,
    conv3: Option<Conv2d>,
    shortcut: Option<Conv2d>,
}

impl ResBlock {
    fn new(inputs: usize, outputs: usize, groups: usize, device: &Device) -> Self {
        Self {
            norm1: Some(norm(groups, inputs, device)),
            conv1: conv(inputs, outputs, 3, device),
            norm2: Some(norm(groups, outputs, device)),
            conv2: conv(outputs, outputs, 3, device),
            conv3: None,
            shortcut: (inputs != outputs).then(|| conv(inputs, outputs, 1, device)),
        }
    }

    fn tiny(width: usize, device: &Device) -> Self {
        let conv = || conv(width, width, 3, device);
        let (conv1, conv2, conv3) = (conv(), conv(), Some(conv()));
        Self { norm1: None, conv1, norm2: None, conv2, conv3, shortcut: None }
    }

    fn forward(&self, x: Tensor<4>, rounds: bool) -> Tensor<4> {
        let conv = |layer: &Conv2d, x| conv3x3(layer, x, false, rounds);
        let (first, second) = match (&self.norm1, &self.norm2, &self.conv3) {
            (Some(first), Some(second), None) => (first, second),
            (None, None, Some(last)) => {
                let h = relu(conv(&self.conv2, relu(conv(&self.conv1, x.clone()))));
                return relu(conv(last, h) + x);
            }
            _ => unreachable!("a block of an AutoencoderKL or of an AutoencoderTiny"),
        };
        let h = conv(&self.conv1, norm_silu(first, x.clone()));
        let h = conv(&self.conv2, norm_silu(second, h));
        match &self.shortcut {
            Some(shortcut) => shortcut.forward(x) + h,
            None => x + h,
        }
    }
}

fn norm(groups: usize, width: usize, device: &Device) -> GroupNorm {
    GroupNormConfig::new(groups, width).with_epsilon(EPSILON).init(device)
}

/// Single-head self-attention over all positions, with a shortcut.
#[derive(Module, Debug)]
pub struct SpatialAttention {
    norm: GroupNorm,
    q: Dense,
    k: Dense,
    v: Dense,
    out: Dense,
}

impl SpatialAttention {
    fn new(width: usize, groups: usize, device: &Device) -> Self {
        let init = Init::new(0, device);
        let dense = || DenseConfig::new(width, width, false).init(&init);
        Self { norm: norm(groups, width, device), q: dense(), k: dense(), v: dense(), out: dense() }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [batch, width, rows, columns] = x.dims();
        let h = self.norm.forward(x.clone()).reshape([batch, width, rows * columns]);
        let h: Tensor<3> = h.swap_dims(1, 2); // [batch, positions, width]
        let head = |dense: &Dense| dense.forward(h.clone()).unsqueeze_dim::<4>(1);
        let (q, k, v) = (head(&self.q), head(&self.k), head(&self.v));
        let mixed = attention(q, k, v, None, None, AttentionModuleOptions::default());
        let mixed = self.out.forward(mixed.squeeze_dim::<3>(1));
        x + mixed.swap_dims(1, 2).reshape([batch, width, rows, columns])
    }
}

/// The coarsest level: residual block, attention, residual block.
#[derive(Module, Debug)]
pub struct Middle {
    first: ResBlock,
    attention: Option<SpatialAttention>,
    second: ResBlock,
}

impl Middle {
    fn new(config: &VaeConfig, width: usize, device: &Device) -> Self {
        let block = || ResBlock::new(width, width, config.groups, device);
        let attention = || SpatialAttention::new(width, config.groups, device);
        Self { first: block(), attention: config.attention.then(attention), second: block() }
    }

    fn forward(&self, x: Tensor<4>, rounds: bool) -> Tensor<4> {
        let h = self.first.forward(x, rounds);
        let h = match &self.attention {
            Some(attention) => attention.forward(h),
            None => h,
        };
        self.second.forward(h, rounds)
    }
}

/// Residual blocks at one resolution, then the convolution that changes it.
#[derive(Module, Debug)]
pub struct Level {
    blocks: Vec<ResBlock>,
    sample: Option<Conv2d>,
}

impl Level {
    /// The levels of one half, of which every one but the last has a `sample` of its width.
    fn row(
        config: &VaeConfig,
        half: Half,
        sample: impl Fn(usize) -> Conv2d,
        device: &Device,
    ) -> Vec<Self> {
        let mut order: Vec<usize> = (0..config.widths.len()).collect();
        if half == Half::Decoder {
            order.reverse();
        }
        let mut inputs = config.widths[order[0]];
        let level = |(place, &level): (usize, &usize)| {
            let (width, before) = (config.widths[level], inputs);
            inputs = width;
            let block = |i| match &config.tiny {
                Some(_) => ResBlock::tiny(width, device),
                None if i == 0 => ResBlock::new(before, width, config.groups, device),
                None => ResBlock::new(width, width, config.groups, device),
            };
            Self {
                blocks: (0..half.blocks(config, level)).map(block).collect(),
                sample: (place + 1 < order.len()).then(|| sample(width)),
            }
        };
        order.iter().enumerate().map(level).collect()
    }

    fn blocks(&self, x: Tensor<4>, rounds: bool) -> Tensor<4> {
        self.blocks.iter().fold(x, |h, block| block.forward(h, rounds))
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Half {
    Encoder,
    Decoder,
}

impl Half {
    /// Residual blocks of a level.
    fn blocks(self, config: &VaeConfig, level: usize) -> usize {
        match (self, &config.tiny) {
            (Self::Encoder, Some(tiny)) => tiny.encoder[level],
            (Self::Decoder, Some(tiny)) => tiny.decoder[level],
            (Self::Encoder, None) => config.blocks_per_level,
            (Self::Decoder, None) => config.blocks_per_level + 1,
        }
    }
}

/// Image to `2 · latent_channels` values per cell; `latent_channels` in an AutoencoderTiny.
#[derive(Module, Debug)]
pub struct Encoder {
    conv_in: Conv2d,
    down: Vec<Level>,
    mid: Option<Middle>,
    norm: Option<GroupNorm>,
    conv_out: Conv2d,
}

impl Encoder {
    pub(super) fn new(config: &VaeConfig, device: &Device) -> Self {
        let (first, last) = (config.widths[0], config.widths[config.widths.len() - 1]);
        let tiny = config.tiny.is_some();
        let halved = |width| {
            let sample = Conv2dConfig::new([width, width], [3, 3]).with_stride([2, 2]);
            match tiny {
                true => sample.with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1)).with_bias(false),
                // `forward` pads.
                false => sample,
            }
            .init(device)
        };
        let outputs = config.latent_channels * if tiny { 1 } else { 2 };
        Self {
            down: Level::row(config, Half::Encoder, halved, device),
            conv_in: conv(config.channels, first, 3, device),
            mid: (!tiny).then(|| Middle::new(config, last, device)),
            norm: (!tiny).then(|| norm(config.groups, last, device)),
            conv_out: conv(last, outputs, 3, device),
        }
    }

    pub(super) fn forward(&self, image: Tensor<4>, rounds: bool) -> Tensor<4> {
        let mut h = conv3x3(&self.conv_in, image, false, rounds);
        for level in &self.down {
            h = level.blocks(h, rounds);
            if let Some(sample) = &level.sample {
                h = sample.forward(match &self.mid {
                    // One row below and one column to the right, as the published weights expect.
                    Some(_) => h.pad((0, 1, 0, 1), 0.0),
                    None => h,
                });
            }
        }
        if let Some(mid) = &self.mid {
            h = mid.forward(h, rounds);
        }
        if let Some(norm) = &self.norm {
            h = norm_silu(norm, h);
        }
        conv3x3(&self.conv_out, h, false, rounds)
    }
}

/// Latent to image.
#[derive(Module, Debug)]
pub struct Decoder {
    conv_in: Conv2d,
    mid: Option<Middle>,
    up: Vec<Level>,
    norm: Option<GroupNorm>,
    conv_out: Conv2d,
}

impl Decoder {
    pub(super) fn new(config: &VaeConfig, device: &Device) -> Self {
        let (first, last) = (config.widths[0], config.widths[config.widths.len() - 1]);
        let tiny = config.tiny.is_some();
        let doubled = |width| {
            let padding = PaddingConfig2d::Explicit(1, 1, 1, 1);
            let sample = Conv2dConfig::new([width, width], [3, 3]).with_padding(padding);
            sample.with_bias(!tiny).init(device)
        };
        Self {
            up: Level::row(config, Half::Decoder, doubled, device),
            conv_in: conv(config.latent_channels, last, 3, device),
            mid: (!tiny).then(|| Middle::new(config, last, device)),
            norm: (!tiny).then(|| norm(config.groups, first, device)),
            conv_out: conv(first, config.channels, 3, device),
        }
    }

    pub(super) fn forward(&self, latent: Tensor<4>, rounds: bool) -> Tensor<4> {
        let mut h = conv3x3(&self.conv_in, latent, false, rounds);
        h = match &self.mid {
            Some(mid) => mid.forward(h, rounds),
            None => relu(h),
        };
        for level in &self.up {
            h = level.blocks(h, rounds);
            if let Some(sample) = &level.sample {
                h = conv3x3(sample, h, true, rounds);
            }
        }
        if let Some(norm) = &self.norm {
            h = norm_silu(norm, h);
        }
        conv3x3(&self.conv_out, h, false, rounds)
    }
}
