//! Folders written by diffusers' `StableDiffusion3Pipeline` (Esser et al. 2024), and files of the original code.

use std::path::Path;

use pyrograph_engine::layers::Position;
use pyrograph_engine::nets::{Branches, DitConfig, Norm, TextAttention, TextConfig, TextEntry};
use pyrograph_weights::convert::{self, Sd3Blocks};
use serde::Deserialize;
use serde_json::Value;

use super::autoencoder::Latents;
use super::diffusers::{Network, as_many, no_others};
use super::text::{Filling, Template, TextInput};
use super::{Source, read_json};
use crate::error::{Error, Result};

#[derive(Deserialize)]
struct Transformer {
    sample_size: usize,
    patch_size: usize,
    in_channels: usize,
    out_channels: Option<usize>,
    num_layers: usize,
    attention_head_dim: usize,
    num_attention_heads: usize,
    joint_attention_dim: usize,
    caption_projection_dim: usize,
    pooled_projection_dim: usize,
    pos_embed_max_size: usize,
    #[serde(default)]
    dual_attention_layers: Vec<usize>,
    qk_norm: Option<String>,
    #[serde(flatten)]
    rest: serde_json::Map<String, Value>,
}

/// ε of all norms.
pub(super) const EPSILON: f64 = 1e-6;
/// Latent cells a side of the images that it was trained for, and the shift of its times, where a file does not tell.
pub(super) const SIDE: usize = 128;
pub(super) const SHIFT: f64 = 3.0;
/// Of its autoencoder.
pub(super) const LATENTS: Latents = Latents::Scaled { scale: 1.5305, shift: 0.0609 };
/// Most tokens of a text of T5.
pub(super) const TOKENS: usize = 256;
/// Steps and guidance where the user says nothing; diffusers' own defaults for this pipeline.
pub(super) const STEPS: usize = 28;
pub(super) const CFG_SCALE: f64 = 7.0;

/// The network in a folder.
pub(super) fn network(folder: &Path) -> Result<Network> {
    let path = folder.join("transformer/config.json");
    let transformer: Transformer = read_json(path.clone())?;
    let net = transformer.net().map_err(|reason| Error::NotAModel { path, reason })?;
    let weights = |net: DitConfig, checkpoint| {
        let layout = convert::sd3_diffusers(blocks(&net));
        Ok((net, Source::new(checkpoint, layout)))
    };
    Ok(Network {
        latents: Some(LATENTS),
        ..Network::of_texts(net, reads(), (STEPS, CFG_SCALE), weights)
    })
}

/// How such a model reads texts, but for its encoders.
pub(super) fn reads() -> TextInput {
    TextInput { template: Some(Template::Bare), filled: Filling::Seen, ..TextInput::new(TOKENS) }
}

/// Which of a network's blocks have other layers than the rest.
pub(crate) fn blocks(net: &DitConfig) -> Sd3Blocks {
    Sd3Blocks { depth: net.depth, dual: net.text.as_ref().map_or(0, |text| text.dual) }
}

impl Transformer {
    fn net(&self) -> Result<DitConfig, String> {
        no_others(&self.rest, "SD3Transformer2DModel")?;
        as_many(self.out_channels, self.in_channels)?;
        let hidden = self.num_attention_heads.saturating_mul(self.attention_head_dim);
        if self.caption_projection_dim != hidden {
            let found = self.caption_projection_dim;
            return Err(format!(
                "caption_projection_dim is {found}, expected {hidden}, the width of tokens"
            ));
        }
        let dual = self.dual_attention_layers.len();
        if self.dual_attention_layers.iter().copied().ne(0..dual) {
            let found = &self.dual_attention_layers;
            return Err(format!("dual_attention_layers is {found:?}, expected the first ones"));
        }
        let head_norm = match self.qk_norm.as_deref() {
            None => None,
            Some("rms_norm") => Some(EPSILON),
            Some(other) => return Err(format!("qk_norm is `{other}`, expected `rms_norm`")),
        };
        if self.patch_size == 0 {
            return Err("patch_size is 0, expected 1 or more".into());
        }
        let sizes = Sizes {
            channels: self.in_channels,
            side: self.sample_size,
            patch: self.patch_size,
            hidden,
            heads: self.num_attention_heads,
            depth: self.num_layers,
            dual,
            head_norm,
            text: self.joint_attention_dim,
            pooled: self.pooled_projection_dim,
            table: self.pos_embed_max_size,
        };
        Ok(sizes.net())
    }
}

/// What is not the same in every such network.
pub(super) struct Sizes {
    pub(super) channels: usize,
    /// Latent cells a side of the images that it was trained for.
    pub(super) side: usize,
    pub(super) patch: usize,
    pub(super) hidden: usize,
    pub(super) heads: usize,
    pub(super) depth: usize,
    pub(super) dual: usize,
    pub(super) head_norm: Option<f64>,
    pub(super) text: usize,
    pub(super) pooled: usize,
    /// Tokens a side of the table of positions.
    pub(super) table: usize,
}

impl Sizes {
    pub(super) fn net(&self) -> DitConfig {
        let text = TextConfig {
            pooled: Some(self.pooled),
            entry: TextEntry::Linear,
            closing: true,
            dual: self.dual,
            ..TextConfig::new(self.text, TextAttention::Joint)
        };
        DitConfig {
            channels: self.channels,
            size: [self.side; 2],
            patch: self.patch,
            classes: 0,
            learned_variance: false,
            position: Position::Absent,
            table: Some(self.table),
            norm: Norm::Layer { epsilon: EPSILON, mlp_epsilon: EPSILON },
            branches: Branches { head_norm: self.head_norm, ..Branches::default() },
            text: Some(text),
            ..DitConfig::dit(self.hidden, self.depth, self.heads)
        }
    }
}
