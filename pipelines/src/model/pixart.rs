//! The transformers of PixArt-α and PixArt-Σ in a diffusers folder (Chen et al. 2023, 2024), without what makes pictures of
//! them.

use std::path::Path;

use burn::tensor::Device;
use pyrograph_engine::layers::ModulationConfig;
use pyrograph_engine::nets::{Dit, DitConfig, Norm, TextAttention, TextConfig};
use pyrograph_weights::{Checkpoint, FloatDtype, convert};
use serde::Deserialize;
use serde_json::Value;

use super::folders::weights_file;
use super::{Source, check_trunk, load_part, read_json};
use crate::error::{Error, Result};
use crate::hooks::Notice;

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
const BASE: usize = 64;

fn epsilon() -> f64 {
    1e-6
}

/// Opens the folder of a transformer, with its `config.json`; `notify` hears of weights that are not finite.
///
/// # Errors
/// Files that are missing or hold something else, and keys of the configuration that cannot have their effect.
pub fn open(
    folder: &Path,
    dtype: FloatDtype,
    device: &Device,
    notify: &mut dyn FnMut(Notice),
) -> Result<Dit> {
    let path = folder.join("config.json");
    let transformer: Transformer = read_json(path.clone())?;
    let fault = |reason: String| Error::NotAModel { path: path.clone(), reason };
    let config = transformer.net().map_err(fault)?;
    config.check().map_err(|error| fault(error.to_string()))?;
    let checkpoint = Checkpoint::open(weights_file(folder)?)?;
    check_trunk(&path, &config, &checkpoint)?;
    let source = Source::new(checkpoint, convert::pixart_diffusers());
    load_part(config.init(0, device), &source, dtype, device, notify)
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
            classes: 0,
            learned_variance,
            span: Some((sample_size / patch_size) as f64 / scale),
            sized: self.use_additional_conditions.unwrap_or(sample_size == SIZED),
            norm: Norm::Layer { epsilon: norm_eps, mlp_epsilon: norm_eps },
            modulation: ModulationConfig::ADALN_SINGLE,
            text: Some(TextConfig {
                width: self.caption_channels,
                pooled: None,
                attention: TextAttention::Cross,
            }),
            ..DitConfig::dit(hidden, self.num_layers, self.num_attention_heads)
        })
    }
}
