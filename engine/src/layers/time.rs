//! Embedding of the noise level.

use burn::module::{Module, Param};
use burn::tensor::{FloatDType, Int, Tensor};
use serde::{Deserialize, Serialize};
use std::f64::consts::{SQRT_2, TAU};

use super::dense::DenseConfig;
use super::init::{Fresh, Init};
use super::mlp::Mlp;
use crate::device::is_host;
use crate::ops::Activation;
use crate::ops::magnitude::normalize;

/// Wavelengths of the sinusoidal code run from 2π to 2π times this.
const MAX_PERIOD: f64 = 10_000.0;

/// How a noise level becomes a vector, before the embedding MLP.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum TimeCode {
    /// `[cos(t f_k), sin(t f_k)]`, `f_k = 10000^(-k / (channels / 2 - shift))` (DiT).
    Sinusoidal {
        /// Length of the code, even.
        channels: usize,
        /// 0 in the original DiT; 1 in the diffusers port.
        frequency_shift: f64,
    },
    /// `√2 cos(t · scale_k + shift_k)` with fixed random scales and shifts (EDM2 Eq. 75).
    Fourier {
        /// Length of the code.
        channels: usize,
        /// With the factor √2 that gives unit variance; the public MP-DiT code leaves it out.
        unit_variance: bool,
    },
    /// A learned row per integer timestep, normalised.
    Table {
        /// Number of timesteps.
        steps: usize,
    },
}

impl TimeCode {
    /// Length of the code, in a network of this width.
    pub fn channels(self, hidden: usize) -> usize {
        match self {
            TimeCode::Sinusoidal { channels, .. } | TimeCode::Fourier { channels, .. } => channels,
            TimeCode::Table { .. } => hidden,
        }
    }
}

/// Embeds noise levels: a code, then an MLP.
#[derive(Module, Debug)]
pub struct TimeEmbedder {
    /// Frequencies and phases of [`TimeCode::Fourier`].
    pub fourier: Option<Fourier>,
    /// Rows of [`TimeCode::Table`].
    pub table: Option<Table>,
    /// `[channels, inner]` and `[inner, hidden]`.
    pub mlp: Mlp,
    #[module(skip)]
    code: TimeCode,
}

/// Random features, fixed but saved: both `[channels]`, in radians.
#[derive(Module, Debug)]
pub struct Fourier {
    /// Frequencies, `2π N(0, 1)`.
    pub scale: Param<Tensor<1>>,
    /// Phases, `2π U(0, 1)`.
    pub shift: Param<Tensor<1>>,
}

/// A table of vectors, `[rows, hidden]`, normalised per row on look-up if `preserved`.
#[derive(Module, Debug)]
pub struct Table {
    /// `[rows, hidden]`.
    pub weight: Param<Tensor<2>>,
    preserved: bool,
}

impl Table {
    /// A table with fresh rows: N(0, 1) when preserved, N(0, 0.02) otherwise.
    pub fn new(rows: usize, hidden: usize, preserved: bool, init: &Init<'_>) -> Self {
        let std = if preserved { 1.0 } else { EMBEDDING_STD };
        Self { weight: init.param(Fresh::Normal(std), [rows, hidden]), preserved }
    }

    /// Rows of the table.
    ///
    /// # Shapes
    /// `[batch]` to `[batch, hidden]`
    pub fn forward(&self, rows: Tensor<1, Int>) -> Tensor<2> {
        let rows = self.weight.val().select(0, rows);
        if self.preserved { normalize(rows, 1) } else { rows }
    }

    /// The same function with normalised rows stored.
    pub fn folded(mut self) -> Self {
        if self.preserved {
            self.weight = self.weight.map(|weight| normalize(weight, 1));
        }
        self.preserved = false;
        self
    }
}

/// Standard deviation of fresh embeddings of a plain DiT.
pub const EMBEDDING_STD: f64 = 0.02;

impl TimeEmbedder {
    /// Makes an embedder with these widths; `projection` describes its two layers.
    pub fn new(
        code: TimeCode,
        [inner, hidden]: [usize; 2],
        activation: Activation,
        projection: impl Fn(usize, usize) -> DenseConfig,
        init: &Init<'_>,
    ) -> Self {
        let channels = code.channels(hidden);
        let small = Fresh::Normal(EMBEDDING_STD);
        let layer = |i, o| projection(i, o).with_free_weights(small);
        let frozen = |fresh: Fresh| init.param(fresh, [channels]).set_require_grad(false);
        Self {
            fourier: matches!(code, TimeCode::Fourier { .. }).then(|| Fourier {
                scale: frozen(Fresh::Normal(TAU)),
                shift: frozen(Fresh::Uniform(0.0, TAU)),
            }),
            table: match code {
                TimeCode::Table { steps } => Some(Table::new(steps, hidden, true, init)),
                _ => None,
            },
            mlp: Mlp::new(layer(channels, inner), layer(inner, hidden), activation, init),
            code,
        }
    }

    /// # Shapes
    /// `[batch]`, in the unit the network was trained with, to `[batch, hidden]`
    pub fn forward(&self, time: Tensor<1>) -> Tensor<2> {
        self.mlp.forward(self.encode(time).cast(self.mlp.up.dtype()))
    }

    /// The code before the MLP, in f32 except for a table: `[batch]` to `[batch, channels]`.
    pub fn encode(&self, time: Tensor<1>) -> Tensor<2> {
        let device = time.device();
        match (self.code, &self.fourier, &self.table) {
            (TimeCode::Sinusoidal { channels, frequency_shift }, ..) => {
                let half = channels / 2;
                let last = half as f32 - frequency_shift as f32;
                // Their logarithms are rounded where networks of this code were trained: with a time of 1000, it shows.
                let log = |k: usize| f64::from(-MAX_PERIOD.ln() as f32 * k as f32 / last);
                let frequencies: Vec<f32> = (0..half).map(|k| log(k).exp() as f32).collect();
                let frequencies = Tensor::<1>::from_floats(frequencies.as_slice(), &device);
                let angles: Tensor<2> = time.unsqueeze_dim::<2>(1) * frequencies.unsqueeze();
                let angles = wrapped(angles);
                Tensor::cat(vec![angles.clone().cos(), angles.sin()], 1)
            }
            (TimeCode::Fourier { unit_variance, .. }, Some(fourier), _) => {
                let angles: Tensor<2> = time.unsqueeze_dim::<2>(1)
                    * fourier.scale.val().cast(FloatDType::F32).unsqueeze()
                    + fourier.shift.val().cast(FloatDType::F32).unsqueeze();
                wrapped(angles).cos() * if unit_variance { SQRT_2 } else { 1.0 }
            }
            (TimeCode::Table { .. }, _, Some(table)) => table.forward(time.round().int()),
            (code, ..) => unreachable!("an embedder for {code:?} holds its parameters"),
        }
    }

    /// See [`Dense::folded`](super::Dense::folded).
    pub fn folded(mut self) -> Self {
        self.mlp = self.mlp.folded();
        self.table = self.table.map(Table::folded);
        self
    }
}

/// The same angles within ±π: sines of larger ones are inexact on a GPU. Other devices need no help.
fn wrapped(angles: Tensor<2>) -> Tensor<2> {
    match is_host(&angles.device()) {
        true => angles,
        false => within_half_a_turn(angles),
    }
}

fn within_half_a_turn(angles: Tensor<2>) -> Tensor<2> {
    /// The upper bits of 2π: a multiple of it by less than 2^16 turns is exact in f32.
    const UPPER: f64 = 6.28125;
    let turns = (angles.clone() * TAU.recip()).round();
    angles - turns.clone() * UPPER - turns * (TAU - UPPER)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;
    use std::f64::consts::PI;

    #[test]
    fn angles_within_half_a_turn_have_the_same_sine() {
        let angles = Tensor::<1, Int>::arange(-2000..2000, &Device::flex()).float() * 0.7531;
        let angles: Tensor<2> = angles.unsqueeze();
        let found = within_half_a_turn(angles.clone());
        assert!(found.clone().abs().max().into_scalar::<f32>() < PI as f32 + 1e-5);
        assert!(found.sin().all_close(angles.sin(), None, Some(1e-6)));
    }

    #[test]
    fn sinusoidal_code_matches_the_published_numbers() {
        let device = Device::flex();
        let code = TimeCode::Sinusoidal { channels: 8, frequency_shift: 0.0 };
        let project = |i, o| DenseConfig::new(i, o, false);
        let embedder =
            TimeEmbedder::new(code, [16; 2], Activation::Silu, project, &Init::new(0, &device));
        let code = embedder.encode(Tensor::from_floats([999.0], &device));
        let expected = [
            0.99964982,
            0.80745506,
            -0.84446979,
            0.54114354,
            -0.02646075,
            -0.58992910,
            -0.53560317,
            0.84093022,
        ];
        let expected = Tensor::<1>::from_floats(expected, &device).reshape([1, 8]);
        assert!(code.all_close(expected, None, Some(5e-5)));
    }

    #[test]
    fn fourier_code_has_unit_variance_with_the_factor() {
        let device = Device::flex();
        let code = TimeCode::Fourier { channels: 256, unit_variance: true };
        let project = |i, o| DenseConfig::new(i, o, true);
        let embedder =
            TimeEmbedder::new(code, [16; 2], Activation::MpSilu, project, &Init::new(0, &device));
        let times = Tensor::<1, Int>::arange(0..512, &device).float() * (1.0 / 64.0);
        let rms: f32 = embedder.encode(times).square().mean().sqrt().into_scalar();
        assert!((rms - 1.0).abs() < 0.03, "{rms}");
    }
}
