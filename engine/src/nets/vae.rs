//! The latent autoencoder AutoencoderKL (Rombach et al. 2022).

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{GroupNorm, GroupNormConfig, PaddingConfig2d};
use burn::tensor::{Device, Tensor, module::attention, ops::AttentionModuleOptions};
use serde::{Deserialize, Serialize};

use super::ConfigError;
use crate::layers::dense::DenseConfig;
use crate::layers::{Dense, Init};
use crate::ops::{conv3x3, norm_silu};

/// ε of the group norms.
const EPSILON: f64 = 1e-6;
/// Range of the log-variance of the posterior.
const LOG_VARIANCE_RANGE: (f64, f64) = (-30.0, 20.0);

/// Shape of an autoencoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaeConfig {
    /// Channels of the image.
    pub channels: usize,
    /// Channels of the latent.
    pub latent_channels: usize,
    /// Width of each level, finest first; every level but the last halves the resolution.
    pub widths: Vec<usize>,
    /// Residual blocks of a level of the encoder; the decoder has one more.
    pub blocks_per_level: usize,
    /// Groups of the norms; divides every width.
    pub groups: usize,
    /// Self-attention at the coarsest level.
    pub attention: bool,
    /// 1x1 convolutions around the latent.
    pub quant: bool,
    /// The diffusion model sees `(latent − shift) · scale`.
    pub scale: f64,
    /// See `scale`.
    pub shift: f64,
}

impl VaeConfig {
    /// Pixels per latent cell along a side.
    pub fn factor(&self) -> usize {
        1 << (self.widths.len() - 1)
    }

    /// Whether there can be such an autoencoder.
    ///
    /// # Errors
    /// The first number that is out of range or does not go with the others.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.widths.is_empty() || self.widths.len() > 8 {
            return Err(ConfigError::value("number of levels", self.widths.len(), "1 to 8"));
        }
        let counts = [
            ("channels of an autoencoder", self.channels, 1 << 10),
            ("channels of a latent", self.latent_channels, 1 << 12),
            ("blocks of a level", self.blocks_per_level, 64),
        ];
        for (name, value, limit) in counts {
            if !(1..=limit).contains(&value) {
                return Err(ConfigError::value(name, value, format!("1 to {limit}")));
            }
        }
        if let Some(width) = self.widths.iter().find(|width| **width > 1 << 14) {
            return Err(ConfigError::value("width", width, format!("at most {}", 1 << 14)));
        }
        let fine =
            |width: &usize| self.groups > 0 && *width > 0 && width.is_multiple_of(self.groups);
        match self.widths.iter().find(|width| !fine(width)) {
            Some(width) => {
                let expected = format!("a multiple of {} groups", self.groups);
                Err(ConfigError::value("width", width, expected))
            }
            None if self.scale == 0.0 || !self.scale.is_finite() => {
                Err(ConfigError::value("latent scale", self.scale, "finite and not zero"))
            }
            None => Ok(()),
        }
    }

    /// Makes the network with fresh weights.
    ///
    /// # Panics
    /// If [`VaeConfig::check`] finds a fault.
    pub fn init(&self, device: &Device) -> Vae {
        if let Err(fault) = self.check() {
            panic!("{fault}");
        }
        let quant = |width| self.quant.then(|| conv(width, width, 1, device));
        Vae {
            encoder: Encoder::new(self, device),
            decoder: Decoder::new(self, device),
            quant: quant(2 * self.latent_channels),
            post_quant: quant(self.latent_channels),
            config: self.clone(),
            rounds: false,
        }
    }
}

/// An autoencoder: images to latents and back.
#[derive(Module, Debug)]
pub struct Vae {
    /// Image to posterior.
    pub encoder: Encoder,
    /// Latent to image.
    pub decoder: Decoder,
    quant: Option<Conv2d>,
    post_quant: Option<Conv2d>,
    #[module(skip)]
    config: VaeConfig,
    /// See [`Vae::rounding`].
    rounds: bool,
}

/// A diagonal Gaussian over latents, both `[batch, latent_channels, height, width]`, unscaled.
#[derive(Debug, Clone)]
pub struct Posterior {
    /// Mean, and mode.
    pub mean: Tensor<4>,
    /// Log-variance, within [-30, 20].
    pub log_variance: Tensor<4>,
}

impl Posterior {
    /// `mean + exp(log_variance / 2) · z`.
    pub fn sample(&self, z: Tensor<4>) -> Tensor<4> {
        self.mean.clone() + (self.log_variance.clone() * 0.5).exp() * z
    }
}

impl Vae {
    /// What the network was made from.
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// Posterior over latents of an image with pixels in [-1, 1].
    ///
    /// # Shapes
    /// `[batch, channels, height, width]`; a latent cell covers [`VaeConfig::factor`] pixels a side
    pub fn encode(&self, image: Tensor<4>) -> Posterior {
        let h = self.encoder.forward(image, self.rounds);
        let h = match &self.quant {
            Some(quant) => quant.forward(h),
            None => h,
        };
        let channels = self.config.latent_channels;
        Posterior {
            mean: h.clone().narrow(1, 0, channels),
            log_variance: h
                .narrow(1, channels, channels)
                .clamp(LOG_VARIANCE_RANGE.0, LOG_VARIANCE_RANGE.1),
        }
    }

    /// With convolutions that round what they multiply to bf16, where the CPU has tile units for that.
    pub fn rounding(self) -> Self {
        Self { rounds: true, ..self }
    }

    /// Image, nominally in [-1, 1], of an unscaled latent.
    ///
    /// # Shapes
    /// `[batch, latent_channels, height, width]` to `[batch, channels, height · f, width · f]`
    pub fn decode(&self, latent: Tensor<4>) -> Tensor<4> {
        let h = match &self.post_quant {
            Some(quant) => quant.forward(latent),
            None => latent,
        };
        self.decoder.forward(h, self.rounds)
    }

    /// A raw latent as the diffusion model sees it.
    pub fn scale(&self, latent: Tensor<4>) -> Tensor<4> {
        (latent - self.config.shift) * self.config.scale
    }

    /// Inverse of [`Vae::scale`].
    pub fn unscale(&self, latent: Tensor<4>) -> Tensor<4> {
        latent * (1.0 / self.config.scale) + self.config.shift
    }

    /// [`Vae::decode`] in overlapping tiles of `tile` latent cells a side, blended linearly, so that
    /// memory does not grow with the image.
    ///
    /// Tiles change the result slightly, as attention and norms see a part of the image only. A latent no
    /// larger than a tile is decoded whole.
    pub fn decode_tiled(&self, latent: Tensor<4>, tile: usize) -> Tensor<4> {
        let [batch, _, height, width] = latent.dims();
        let tile = tile.max(2);
        if height <= tile && width <= tile {
            return self.decode(latent);
        }
        let device = latent.device();
        let factor = self.config.factor();
        let shape = [batch, self.config.channels, height * factor, width * factor];
        let mut image = Tensor::<4>::zeros(shape, &device);
        let mut weights = Tensor::<4>::zeros([1, 1, shape[2], shape[3]], &device);
        let overlap = (tile / 4).max(1);
        for row in tile_starts(height, tile, overlap) {
            for column in tile_starts(width, tile, overlap) {
                let (rows, columns) = (tile.min(height), tile.min(width));
                let part = latent.clone().narrow(2, row, rows).narrow(3, column, columns);
                let ramp = tile_ramp(rows, overlap, factor, &device).reshape([1, 1, -1, 1])
                    * tile_ramp(columns, overlap, factor, &device).reshape([1, 1, 1, -1]);
                let (y, x) = (row * factor, column * factor);
                let (y, x) = (y..y + rows * factor, x..x + columns * factor);
                let at = [0..batch, 0..shape[1], y.clone(), x.clone()];
                let sum = image.clone().slice(at.clone()) + self.decode(part) * ramp.clone();
                image = image.slice_assign(at, sum);
                let at = [0..1, 0..1, y, x];
                let sum = weights.clone().slice(at.clone()) + ramp;
                weights = weights.slice_assign(at, sum);
            }
        }
        image / weights
    }
}

/// First cells of tiles that cover `length` with at least `overlap` cells in common.
fn tile_starts(length: usize, tile: usize, overlap: usize) -> Vec<usize> {
    if length <= tile {
        return vec![0];
    }
    let mut starts: Vec<usize> = (0..length - tile).step_by(tile - overlap).collect();
    starts.push(length - tile);
    starts
}

/// Weight of each pixel along a tile: it rises and falls linearly over the overlap.
fn tile_ramp(cells: usize, overlap: usize, factor: usize, device: &Device) -> Tensor<1> {
    let (pixels, edge) = (cells * factor, (overlap * factor) as f32);
    let weight = |i: usize| ((i.min(pixels - 1 - i) + 1) as f32 / edge).min(1.0);
    let ramp: Vec<f32> = (0..pixels).map(weight).collect();
    Tensor::from_floats(ramp.as_slice(), device)
}

fn conv(inputs: usize, outputs: usize, kernel: usize, device: &Device) -> Conv2d {
    let padding = kernel / 2;
    Conv2dConfig::new([inputs, outputs], [kernel, kernel])
        .with_padding(PaddingConfig2d::Explicit(padding, padding, padding, padding))
        .init(device)
}

/// Two convolutions with a shortcut.
#[derive(Module, Debug)]
pub struct ResBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    norm2: GroupNorm,
    conv2: Conv2d,
    shortcut: Option<Conv2d>,
}

impl ResBlock {
    fn new(inputs: usize, outputs: usize, groups: usize, device: &Device) -> Self {
        Self {
            norm1: norm(groups, inputs, device),
            conv1: conv(inputs, outputs, 3, device),
            norm2: norm(groups, outputs, device),
            conv2: conv(outputs, outputs, 3, device),
            shortcut: (inputs != outputs).then(|| conv(inputs, outputs, 1, device)),
        }
    }

    /// `count` blocks, of which the first changes the width.
    fn row(
        count: usize,
        inputs: usize,
        outputs: usize,
        groups: usize,
        device: &Device,
    ) -> Vec<Self> {
        let width = |i| if i == 0 { inputs } else { outputs };
        (0..count).map(|i| Self::new(width(i), outputs, groups, device)).collect()
    }

    fn forward(&self, x: Tensor<4>, rounds: bool) -> Tensor<4> {
        let h = conv3x3(&self.conv1, norm_silu(&self.norm1, x.clone()), false, rounds);
        let h = conv3x3(&self.conv2, norm_silu(&self.norm2, h), false, rounds);
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
    fn blocks(&self, x: Tensor<4>, rounds: bool) -> Tensor<4> {
        self.blocks.iter().fold(x, |h, block| block.forward(h, rounds))
    }
}

/// Image to `2 · latent_channels` values per cell.
#[derive(Module, Debug)]
pub struct Encoder {
    conv_in: Conv2d,
    down: Vec<Level>,
    mid: Middle,
    norm: GroupNorm,
    conv_out: Conv2d,
}

impl Encoder {
    fn new(config: &VaeConfig, device: &Device) -> Self {
        let (first, last) = (config.widths[0], config.widths[config.widths.len() - 1]);
        let mut inputs = first;
        let down = config.widths.iter().enumerate().map(|(i, &width)| Level {
            blocks: {
                let inputs = std::mem::replace(&mut inputs, width);
                ResBlock::row(config.blocks_per_level, inputs, width, config.groups, device)
            },
            sample: (i + 1 < config.widths.len()).then(|| {
                Conv2dConfig::new([width, width], [3, 3]).with_stride([2, 2]).init(device)
            }),
        });
        Self {
            down: down.collect(),
            conv_in: conv(config.channels, first, 3, device),
            mid: Middle::new(config, last, device),
            norm: norm(config.groups, last, device),
            conv_out: conv(last, 2 * config.latent_channels, 3, device),
        }
    }

    fn forward(&self, image: Tensor<4>, rounds: bool) -> Tensor<4> {
        let mut h = conv3x3(&self.conv_in, image, false, rounds);
        for level in &self.down {
            h = level.blocks(h, rounds);
            if let Some(sample) = &level.sample {
                // One row below and one column to the right, as the published weights expect.
                h = sample.forward(h.pad((0, 1, 0, 1), 0.0));
            }
        }
        conv3x3(&self.conv_out, norm_silu(&self.norm, self.mid.forward(h, rounds)), false, rounds)
    }
}

/// Latent to image.
#[derive(Module, Debug)]
pub struct Decoder {
    conv_in: Conv2d,
    mid: Middle,
    up: Vec<Level>,
    norm: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    fn new(config: &VaeConfig, device: &Device) -> Self {
        let (first, last) = (config.widths[0], config.widths[config.widths.len() - 1]);
        let mut inputs = last;
        let up = config.widths.iter().rev().enumerate().map(|(i, &width)| Level {
            blocks: {
                let inputs = std::mem::replace(&mut inputs, width);
                ResBlock::row(config.blocks_per_level + 1, inputs, width, config.groups, device)
            },
            sample: (i + 1 < config.widths.len()).then(|| conv(width, width, 3, device)),
        });
        Self {
            up: up.collect(),
            conv_in: conv(config.latent_channels, last, 3, device),
            mid: Middle::new(config, last, device),
            norm: norm(config.groups, first, device),
            conv_out: conv(first, config.channels, 3, device),
        }
    }

    fn forward(&self, latent: Tensor<4>, rounds: bool) -> Tensor<4> {
        let mut h = self.mid.forward(conv3x3(&self.conv_in, latent, false, rounds), rounds);
        for level in &self.up {
            h = level.blocks(h, rounds);
            if let Some(sample) = &level.sample {
                h = conv3x3(sample, h, true, rounds);
            }
        }
        conv3x3(&self.conv_out, norm_silu(&self.norm, h), false, rounds)
    }
}

#[cfg(test)]
mod tests;
