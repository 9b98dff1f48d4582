//! Folders written by diffusers' `PixArtAlphaPipeline` and `PixArtSigmaPipeline` (Chen et al. 2023, 2024).

use std::path::Path;

use pyrograph_engine::layers::ModulationConfig;
use pyrograph_engine::nets::{DitConfig, Norm, TextAttention, TextConfig};
use pyrograph_weights::convert;
use serde::Deserialize;
use serde_json::Value;

use super::diffusers::Network;
use super::text::TextInput;
use super::{Source, aspect, read_json};
use crate::error::{Error, Result};

#[derive(Deserialize)]
struct Transformer {
    num_attention_heads: usize,
    attention_head_dim: usize,
    num_layers: usize,
    in_channels: usize,
    out_channels: Option<usize>,
    patch_size: usize,
    sample_size: usize,
    caption_channels: usize,
    cross_attention_dim: Option<usize>,
    #[serde(default = "epsilon")]
    norm_eps: f64,
    interpolation_scale: Option<f64>,
    use_additional_conditions: Option<bool>,
    /// What is left, most of it of other networks of the same class.
    #[serde(flatten)]
    rest: serde_json::Map<String, Value>,
}

/// What further keys have to be; without one, it is so.
const FIXED: [(&str, &str); 8] = [
    ("activation_fn", "\"gelu-approximate\""),
    ("attention_bias", "true"),
    ("attention_type", "\"default\""),
    ("double_self_attention", "false"),
    ("norm_elementwise_affine", "false"),
    ("norm_type", "\"ada_norm_single\""),
    ("num_vector_embeds", "null"),
    ("only_cross_attention", "false"),
];
/// The size of an image beside the noise level is told to networks of this many latent cells a side.
const SIZED: usize = 128;
/// Cells a side for which positions are one apart, where nothing is said.
pub(super) const BASE: usize = 64;

fn epsilon() -> f64 {
    1e-6
}

/// Most tokens of a text of PixArt-α.
pub(super) const ALPHA_TOKENS: usize = 120;
/// Most tokens of a text of PixArt-Σ.
pub(super) const SIGMA_TOKENS: usize = 300;
/// Steps where the user says nothing; diffusers' own default for this pipeline.
pub(super) const STEPS: usize = 20;
/// Guidance where the user says nothing; diffusers' own default for this pipeline.
pub(super) const CFG_SCALE: f64 = 4.5;

/// The network in a folder, whose texts have up to `tokens` tokens.
pub(super) fn network(folder: &Path, tokens: usize) -> Result<Network> {
    let path = folder.join("transformer/config.json");
    let transformer: Transformer = read_json(path.clone())?;
    let net = transformer.net().map_err(|reason| Error::NotAModel { path, reason })?;
    let input = reads(transformer.sample_size, tokens);
    Ok(Network::of_texts(net, input, (STEPS, CFG_SCALE), |net, checkpoint| {
        Ok((net, Source::new(checkpoint, convert::pixart_diffusers())))
    }))
}

/// How such a model reads texts, but for its encoder: one for square images of `side` latent cells a side, and texts of up
/// to so many tokens.
pub(super) fn reads(side: usize, tokens: usize) -> TextInput {
    let sizes = Some(side).filter(|side| aspect::is_known(*side));
    TextInput { clean: true, sizes, ..TextInput::new(tokens) }
}

impl Transformer {
    /// What the network here cannot do is refused by name.
    fn net(&self) -> Result<DitConfig, String> {
        for (key, expected) in FIXED {
            let found = self.rest.get(key).map(Value::to_string);
            if let Some(found) = found.filter(|found| found != expected) {
                return Err(format!("{key} is {found}, expected {expected}"));
            }
        }
        let hidden = self.num_attention_heads.saturating_mul(self.attention_head_dim);
        if let Some(width) = self.cross_attention_dim.filter(|width| *width != hidden) {
            return Err(format!(
                "cross_attention_dim is {width}, expected {hidden}, the width of tokens"
            ));
        }
        let out = self.out_channels.unwrap_or(self.in_channels);
        let learned_variance = out == self.in_channels.saturating_mul(2);
        if !learned_variance && out != self.in_channels {
            let channels = self.in_channels;
            return Err(format!(
                "out_channels is {out}, expected in_channels, {channels}, or twice that"
            ));
        }
        let Self { sample_size, patch_size, norm_eps, .. } = *self;
        if patch_size == 0 {
            return Err("patch_size is 0, expected 1 or more".into());
        }
        let scale = self.interpolation_scale.unwrap_or((sample_size / BASE).max(1) as f64);
        Ok(DitConfig {
            channels: self.in_channels,
            size: [sample_size; 2],
            patch: patch_size,
            learned_variance,
            span: Some((sample_size / patch_size) as f64 / scale),
            sized: self.use_additional_conditions.unwrap_or(sample_size == SIZED),
            norm: Norm::Layer { epsilon: norm_eps, mlp_epsilon: norm_eps },
            ..net(hidden, self.num_layers, self.num_attention_heads, self.caption_channels)
        })
    }
}

/// A PixArt for texts of this width.
pub(super) fn net(hidden: usize, depth: usize, heads: usize, width: usize) -> DitConfig {
    DitConfig {
        classes: 0,
        modulation: ModulationConfig::ADALN_SINGLE,
        text: Some(TextConfig::new(width, TextAttention::Cross)),
        ..DitConfig::dit(hidden, depth, heads)
    }
}
