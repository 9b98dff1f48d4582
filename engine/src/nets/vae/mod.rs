//! Latent autoencoders: AutoencoderKL (Rombach et al. 2022) and AutoencoderTiny (TAESD), a small one without norms that reads
//! and writes the latents of another.

mod halves;

use burn::module::{Module, Param};
use burn::nn::conv::Conv2d;
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::ConfigError;
use crate::layers::{Fresh, Init};
use halves::conv;
pub use halves::{Decoder, Encoder};

/// An AutoencoderTiny keeps its latents within this, smoothly.
const TINY_RANGE: f64 = 3.0;
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
    /// The diffusion model sees squares of 2 x 2 cells as one, its channels normalised by statistics beside the weights,
    /// with this ε added to their variance (FLUX.2); scale and shift are 1 and 0 then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub squares: Option<f64>,
    /// An AutoencoderTiny, which has none of the other blocks and no groups, attention or quant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tiny: Option<TinyBlocks>,
}

/// Residual blocks of each level of an AutoencoderTiny, finest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TinyBlocks {
    /// Of the encoder.
    pub encoder: Vec<usize>,
    /// Of the decoder.
    pub decoder: Vec<usize>,
}

/// Most residual blocks of a level.
const MAX_BLOCKS: usize = 64;

impl TinyBlocks {
    fn check(&self, config: &VaeConfig) -> Result<(), ConfigError> {
        let VaeConfig { widths, blocks_per_level, groups, attention, quant, .. } = config;
        for blocks in [&self.encoder, &self.decoder] {
            if blocks.len() != widths.len() || blocks.iter().any(|count| *count > MAX_BLOCKS) {
                let expected = format!("{} of at most {MAX_BLOCKS} each", widths.len());
                return Err(ConfigError::value("blocks", format!("{blocks:?}"), expected));
            }
        }
        if widths.iter().any(|width| *width == 0 || *width != widths[0]) {
            return Err(ConfigError::value(
                "widths",
                format!("{widths:?}"),
                "the same at all levels",
            ));
        }
        match (blocks_per_level, groups, attention, quant) {
            (0, 0, false, false) => Ok(()),
            other => Err(ConfigError::value(
                "blocks, groups, attention and quant of an AutoencoderTiny",
                format!("{other:?}"),
                "0, 0, false and false",
            )),
        }
    }
}

impl VaeConfig {
    /// Pixels along a side per cell of a latent as the diffusion model sees it.
    pub fn factor(&self) -> usize {
        self.reduction() * if self.squares.is_some() { SQUARE } else { 1 }
    }

    /// Pixels along a side per cell of an unscaled latent.
    fn reduction(&self) -> usize {
        1 << (self.widths.len() - 1)
    }

    /// Channels of a latent as the diffusion model sees it.
    pub fn scaled_channels(&self) -> usize {
        self.latent_channels * if self.squares.is_some() { SQUARE * SQUARE } else { 1 }
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
        ];
        counts.into_iter().try_for_each(|(name, value, limit)| counted(name, value, limit))?;
        if let Some(width) = self.widths.iter().find(|width| **width > 1 << 14) {
            return Err(ConfigError::value("width", width, format!("at most {}", 1 << 14)));
        }
        match &self.tiny {
            Some(tiny) => tiny.check(self)?,
            None => self.check_groups()?,
        }
        if let Some(epsilon) = self.squares
            && !(epsilon >= 0.0 && epsilon.is_finite() && (self.scale, self.shift) == (1.0, 0.0))
        {
            let found = format!("{epsilon}, {} and {}", self.scale, self.shift);
            let expected = "finite and 0 or more, 1 and 0";
            return Err(ConfigError::value("ε, scale and shift of squares", found, expected));
        }
        match self.scale == 0.0 || !self.scale.is_finite() {
            true => Err(ConfigError::value("latent scale", self.scale, "finite and not zero")),
            false => Ok(()),
        }
    }

    /// What an AutoencoderKL has and an AutoencoderTiny has not.
    fn check_groups(&self) -> Result<(), ConfigError> {
        counted("blocks of a level", self.blocks_per_level, MAX_BLOCKS)?;
        let fine =
            |width: &usize| self.groups > 0 && *width > 0 && width.is_multiple_of(self.groups);
        match self.widths.iter().find(|width| !fine(width)) {
            Some(width) => {
                let expected = format!("a multiple of {} groups", self.groups);
                Err(ConfigError::value("width", width, expected))
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
        let init = &Init::new(0, device);
        let numbers = |value| init.param(Fresh::Constant(value), [self.scaled_channels()]);
        Vae {
            encoder: Encoder::new(self, device),
            decoder: Decoder::new(self, device),
            quant: quant(2 * self.latent_channels),
            post_quant: quant(self.latent_channels),
            statistics: self.squares.map(|_| Statistics {
                mean: numbers(0.0).set_require_grad(false),
                variance: numbers(1.0).set_require_grad(false),
            }),
            config: self.clone(),
            rounds: false,
        }
    }
}

/// Refuses a number of something that is 0 or above a limit.
fn counted(name: &'static str, value: usize, limit: usize) -> Result<(), ConfigError> {
    match (1..=limit).contains(&value) {
        true => Ok(()),
        false => Err(ConfigError::value(name, value, format!("1 to {limit}"))),
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
    /// Of the squares of latents.
    pub statistics: Option<Statistics>,
    #[module(skip)]
    config: VaeConfig,
    /// See [`Vae::rounding`].
    rounds: bool,
}

/// What the channels of squares of cells are normalised by, each `[scaled channels]`.
#[derive(Module, Debug)]
pub struct Statistics {
    /// Taken off.
    pub mean: Param<Tensor<1>>,
    /// Of which the square root divides.
    pub variance: Param<Tensor<1>>,
}

/// Cells along a side of a square.
const SQUARE: usize = 2;

impl Statistics {
    /// The mean and the divisor of a latent, `[1, channels, 1, 1]`.
    fn numbers(&self, epsilon: f64) -> [Tensor<4>; 2] {
        let divisor = (self.variance.val() + epsilon).sqrt();
        [self.mean.val(), divisor].map(|numbers| numbers.reshape([1, -1, 1, 1]))
    }
}

/// `[batch, channels, height, width]` to `[batch, channels · 4, height / 2, width / 2]`, ordered channel, row, column.
fn squares(latent: Tensor<4>) -> Tensor<4> {
    let [batch, channels, height, width] = latent.dims();
    let [rows, columns] = [height, width].map(|side| side / SQUARE);
    let cells: Tensor<6> = latent.reshape([batch, channels, rows, SQUARE, columns, SQUARE]);
    let cells = cells.permute([0, 1, 3, 5, 2, 4]);
    cells.reshape([batch, channels * SQUARE * SQUARE, rows, columns])
}

/// The inverse of [`squares`].
fn cells(latent: Tensor<4>) -> Tensor<4> {
    let [batch, channels, rows, columns] = latent.dims();
    let channels = channels / (SQUARE * SQUARE);
    let cells: Tensor<6> = latent.reshape([batch, channels, SQUARE, SQUARE, rows, columns]);
    let cells = cells.permute([0, 1, 4, 2, 5, 3]);
    cells.reshape([batch, channels, rows * SQUARE, columns * SQUARE])
}

/// A diagonal Gaussian over latents, both `[batch, latent_channels, height, width]`, unscaled.
#[derive(Debug, Clone)]
pub struct Posterior {
    /// Mean, and mode.
    pub mean: Tensor<4>,
    /// Log-variance, within [-30, 20]; none of an AutoencoderTiny, which gives one latent.
    pub log_variance: Option<Tensor<4>>,
}

impl Posterior {
    /// `mean + exp(log_variance / 2) · z`.
    pub fn sample(&self, z: Tensor<4>) -> Tensor<4> {
        self.mean.clone() + self.deviation() * z
    }

    /// `exp(log_variance / 2)`, zeros without a variance.
    pub fn deviation(&self) -> Tensor<4> {
        match &self.log_variance {
            Some(log_variance) => (log_variance.clone() * 0.5).exp(),
            None => self.mean.zeros_like(),
        }
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
    /// `[batch, channels, height, width]`
    pub fn encode(&self, image: Tensor<4>) -> Posterior {
        if self.config.tiny.is_some() {
            // Its pixels are in [0, 1].
            let mean = self.encoder.forward((image + 1.0) / 2.0, self.rounds);
            return Posterior { mean, log_variance: None };
        }
        let h = self.encoder.forward(image, self.rounds);
        let h = match &self.quant {
            Some(quant) => quant.forward(h),
            None => h,
        };
        let channels = self.config.latent_channels;
        Posterior {
            mean: h.clone().narrow(1, 0, channels),
            log_variance: Some(
                h.narrow(1, channels, channels).clamp(LOG_VARIANCE_RANGE.0, LOG_VARIANCE_RANGE.1),
            ),
        }
    }

    /// With convolutions that round what they multiply to bf16, where the CPU is faster at that.
    pub fn rounding(self) -> Self {
        Self { rounds: true, ..self }
    }

    /// Image, nominally in [-1, 1], of an unscaled latent.
    ///
    /// # Shapes
    /// `[batch, latent_channels, height, width]` to `[batch, channels, height · f, width · f]`
    pub fn decode(&self, latent: Tensor<4>) -> Tensor<4> {
        if self.config.tiny.is_some() {
            let bounded = (latent / TINY_RANGE).tanh() * TINY_RANGE;
            return self.decoder.forward(bounded, self.rounds) * 2.0 - 1.0;
        }
        let h = match &self.post_quant {
            Some(quant) => quant.forward(latent),
            None => latent,
        };
        self.decoder.forward(h, self.rounds)
    }

    /// A raw latent as the diffusion model sees it, whose cells cover [`VaeConfig::factor`] pixels a side.
    pub fn scale(&self, latent: Tensor<4>) -> Tensor<4> {
        if let (Some(epsilon), Some(statistics)) = (self.config.squares, &self.statistics) {
            let [mean, divisor] = statistics.numbers(epsilon);
            return (squares(latent) - mean) / divisor;
        }
        (latent - self.config.shift) * self.config.scale
    }

    /// Inverse of [`Vae::scale`].
    pub fn unscale(&self, latent: Tensor<4>) -> Tensor<4> {
        if let (Some(epsilon), Some(statistics)) = (self.config.squares, &self.statistics) {
            let [mean, divisor] = statistics.numbers(epsilon);
            return cells(latent * divisor + mean);
        }
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
        let factor = self.config.reduction();
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

#[cfg(test)]
mod tests;
