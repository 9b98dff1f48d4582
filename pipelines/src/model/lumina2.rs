//! Folders written by diffusers' `Lumina2Pipeline` (Lumina Image 2.0, Qin et al. 2025), and files of the original code. The
//! blocks are those of Z-Image, which came after it.

use std::path::Path;

use pyrograph_engine::layers::ModulationConfig;
use pyrograph_engine::nets::{DitConfig, Placing, TextConfig};
use pyrograph_weights::convert;
use serde::Deserialize;
use serde_json::Value;

use super::diffusers::{Flow, Network, as_many, no_others};
use super::text::{States, Template, TextInput};
use super::z_image::{self, Axes};
use super::{Source, read_json};
use crate::error::{Error, Result};

#[derive(Deserialize)]
struct Transformer {
    sample_size: usize,
    patch_size: usize,
    in_channels: usize,
    out_channels: Option<usize>,
    hidden_size: usize,
    num_layers: usize,
    num_refiner_layers: usize,
    num_attention_heads: usize,
    num_kv_heads: usize,
    multiple_of: usize,
    ffn_dim_multiplier: Option<f64>,
    norm_eps: f64,
    axes_dim_rope: Vec<usize>,
    cap_feat_dim: usize,
    /// Most places on each axis, which no picture comes near.
    #[serde(rename = "axes_lens")]
    _places: Option<Vec<usize>>,
    /// diffusers does nothing with it.
    #[serde(rename = "scaling_factor")]
    _scaling: Option<Value>,
    #[serde(flatten)]
    rest: serde_json::Map<String, Value>,
}

/// Most of the width of the embedding of the noise level.
const CONDITION: usize = 1024;
/// Inner width of its MLPs, as a multiple of that of tokens, before it is rounded up.
const INNER: usize = 4;
/// Latent cells a side of the images that it was trained for, and the shift of its times, where a file does not tell.
pub(super) const SIDE: usize = 128;
pub(super) const SHIFT: f64 = 6.0;
/// Most tokens of a text, with those of its template.
const TOKENS: usize = 256;
/// Steps and guidance where the user says nothing; diffusers' own defaults for this pipeline, of which the guided prediction
/// is as long as the other, row by row.
pub(super) const STEPS: usize = 30;
pub(super) const CFG_SCALE: f64 = 4.0;
pub(super) const CFG_NORMALIZED: bool = true;
/// Channels of each axis of positions where a file does not tell, and their base.
pub(super) const AXES: [usize; 3] = [32; 3];
pub(super) const THETA: f64 = 1e4;

/// The network in a folder.
pub(super) fn network(folder: &Path) -> Result<Network> {
    let path = folder.join("transformer/config.json");
    let transformer: Transformer = read_json(path.clone())?;
    let net = transformer.net().map_err(|reason| Error::NotAModel { path, reason })?;
    let weights = |net: DitConfig, checkpoint| {
        let layout = convert::lumina2_diffusers(z_image::heads(&net));
        Ok((net, Source::new(checkpoint, layout)))
    };
    Ok(Network {
        flow: Some(Flow::Lumina2 { channels: net.channels }),
        cfg_normalized: CFG_NORMALIZED,
        latents: Some(z_image::LATENTS),
        ..Network::of_texts(net, reads(), (STEPS, CFG_SCALE), weights)
    })
}

/// How such a model reads texts, but for its encoder.
pub(super) fn reads() -> TextInput {
    TextInput {
        template: Some(Template::Lumina2),
        states: States::BeforeLast,
        ..TextInput::new(TOKENS)
    }
}

impl Transformer {
    fn net(&self) -> Result<DitConfig, String> {
        no_others(&self.rest, "Lumina2Transformer2DModel")?;
        as_many(self.out_channels, self.in_channels)?;
        for (key, value) in [("patch_size", self.patch_size), ("multiple_of", self.multiple_of)] {
            if value == 0 {
                return Err(format!("{key} is 0, expected 1 or more"));
            }
        }
        let inner = self.hidden_size.saturating_mul(INNER);
        let inner = match self.ffn_dim_multiplier {
            Some(factor) if !(factor > 0.0 && factor <= 64.0) => {
                return Err(format!("ffn_dim_multiplier is {factor}, expected within (0, 64]"));
            }
            Some(factor) => (factor * inner as f64) as usize,
            None => inner,
        };
        let sizes = z_image::Sizes {
            channels: self.in_channels,
            patch: self.patch_size,
            hidden: self.hidden_size,
            depth: self.num_layers,
            refiners: self.num_refiner_layers,
            heads: [self.num_attention_heads, self.num_kv_heads],
            inner: inner.div_ceil(self.multiple_of).saturating_mul(self.multiple_of),
            text: self.cap_feat_dim,
            epsilon: self.norm_eps,
        };
        let axes = Axes { axes: self.axes_dim_rope.clone(), theta: THETA };
        Ok(net(&sizes, axes, self.sample_size))
    }
}

/// A network of these sizes, for images of so many latent cells a side.
pub(super) fn net(sizes: &z_image::Sizes, axes: Axes, side: usize) -> DitConfig {
    let net = sizes.net(axes);
    DitConfig {
        size: [side; 2],
        modulation: ModulationConfig { unactivated: false, ..net.modulation },
        placing: net.placing.map(|placing| Placing { first: 0, ..placing }),
        condition: Some([net.hidden.min(CONDITION); 2]),
        text: net.text.map(|text| TextConfig { multiple: None, ..text }),
        ..net
    }
}
