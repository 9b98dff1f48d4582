//! Folders written by diffusers' `Flux2KleinPipeline`, and files of the original code of FLUX.2.

use std::path::Path;

use pyrograph_engine::layers::modulation::ModulationConfig;
use pyrograph_engine::layers::{Activation, Position, Rope};
use pyrograph_engine::nets::{
    Branches, DitConfig, Norm, Placing, TextAttention, TextConfig, TextEntry,
};
use pyrograph_engine::ops::Pairs;
use pyrograph_weights::convert::{self, Flux2Widths};
use serde::Deserialize;
use serde_json::Value;

use super::autoencoder::Latents;
use super::diffusers::{Flow, Network, as_many, no_others};
use super::text::{Filling, States, Template, TextInput};
use super::{Source, read_json};
use crate::error::{Error, Result};

#[derive(Deserialize)]
struct Transformer {
    attention_head_dim: usize,
    num_attention_heads: usize,
    num_layers: usize,
    num_single_layers: usize,
    in_channels: usize,
    out_channels: Option<usize>,
    joint_attention_dim: usize,
    mlp_ratio: f64,
    patch_size: usize,
    axes_dims_rope: Vec<usize>,
    rope_theta: f64,
    eps: f64,
    #[serde(default)]
    guidance_embeds: bool,
    timestep_guidance_channels: usize,
    #[serde(flatten)]
    rest: serde_json::Map<String, Value>,
}

/// Squares of latent cells a side of the images that it was trained on, about.
const SIDE: usize = 64;
/// Tokens of a text, which is filled up to so many.
const TOKENS: usize = 512;
/// Length of the code of the noise level.
const TIME_CHANNELS: usize = 256;
/// Channels of an axis of positions, their number and their base, and ε of the norms, where a file does not tell.
pub(super) const AXIS: usize = 32;
pub(super) const AXES: usize = 4;
pub(super) const THETA: f64 = 2000.0;
pub(super) const EPSILON: f64 = 1e-6;
/// Of its autoencoder.
pub(super) const LATENTS: Latents = Latents::Squares { epsilon: 1e-4 };
/// Steps and guidance where the user says nothing: those of the base model, and of the distilled one.
const BASE: (usize, f64) = (50, 4.0);
const DISTILLED: (usize, f64) = (4, 1.0);

/// The network in a folder.
pub(super) fn network(folder: &Path, is_distilled: bool) -> Result<Network> {
    let path = folder.join("transformer/config.json");
    let transformer: Transformer = read_json(path.clone())?;
    let net = transformer.net().map_err(|reason| Error::NotAModel { path, reason })?;
    let usual = defaults(is_distilled);
    let weights = |net: DitConfig, checkpoint| {
        let layout = convert::flux2_diffusers(widths(&net));
        Ok((net, Source::new(checkpoint, layout)))
    };
    Ok(Network {
        latents: Some(LATENTS),
        flow: Some(Flow::Flux2),
        ..Network::of_texts(net, reads(), usual, weights)
    })
}

/// Steps and guidance where the user says nothing.
pub(super) fn defaults(is_distilled: bool) -> (usize, f64) {
    if is_distilled { DISTILLED } else { BASE }
}

/// How such a model reads texts, but for its encoder.
pub(super) fn reads() -> TextInput {
    TextInput {
        template: Some(Template::Qwen3Unthinking),
        states: States::Quarters,
        filled: Filling::Hidden,
        ..TextInput::new(TOKENS)
    }
}

/// Of a network's layers that its files join.
pub(crate) fn widths(net: &DitConfig) -> Flux2Widths {
    let separate = net.first_shared().unwrap_or(net.depth);
    Flux2Widths { hidden: net.hidden, inner: net.inner(), separate, shared: net.depth - separate }
}

impl Transformer {
    fn net(&self) -> Result<DitConfig, String> {
        no_others(&self.rest, "Flux2Transformer2DModel")?;
        as_many(self.out_channels, self.in_channels)?;
        if self.guidance_embeds {
            return Err("guidance_embeds is true, expected false".into());
        }
        for (key, found, expected) in [
            ("patch_size", self.patch_size, 1),
            ("timestep_guidance_channels", self.timestep_guidance_channels, TIME_CHANNELS),
        ] {
            if found != expected {
                return Err(format!("{key} is {found}, expected {expected}"));
            }
        }
        if self.axes_dims_rope.len() != AXES {
            return Err(format!("axes_dims_rope is {:?}, expected four", self.axes_dims_rope));
        }
        let sizes = Sizes {
            channels: self.in_channels,
            heads: self.num_attention_heads,
            head: self.attention_head_dim,
            blocks: [self.num_layers, self.num_single_layers],
            text: self.joint_attention_dim,
            mlp_ratio: self.mlp_ratio,
            axes: self.axes_dims_rope.clone(),
            theta: self.rope_theta,
            epsilon: self.eps,
        };
        Ok(sizes.net())
    }
}

/// What is not the same in every such network.
pub(super) struct Sizes {
    pub(super) channels: usize,
    pub(super) heads: usize,
    pub(super) head: usize,
    /// Those with layers of their own for the text, and those without.
    pub(super) blocks: [usize; 2],
    pub(super) text: usize,
    pub(super) mlp_ratio: f64,
    pub(super) axes: Vec<usize>,
    pub(super) theta: f64,
    pub(super) epsilon: f64,
}

impl Sizes {
    pub(super) fn net(self) -> DitConfig {
        let hidden = self.heads.saturating_mul(self.head);
        let [separate, shared] = self.blocks;
        DitConfig {
            channels: self.channels,
            size: [SIDE; 2],
            patch: 1,
            mlp_ratio: self.mlp_ratio,
            classes: 0,
            learned_variance: false,
            bias: false,
            homogeneous: true,
            position: Position::Absent,
            norm: Norm::Layer { epsilon: self.epsilon, mlp_epsilon: self.epsilon },
            modulation: ModulationConfig { common: true, ..ModulationConfig::ADALN_ZERO },
            activation: Activation::Silu,
            branches: Branches {
                key_heads: None,
                head_norm: Some(self.epsilon),
                gated: true,
                unbiased: true,
                unbiased_mlp: false,
            },
            placing: Some(Placing {
                rope: Rope { axes: self.axes, theta: self.theta, pairs: Pairs::Interleaved },
                rows: 1,
                text: 3,
                first: 0,
                behind: false,
                own: false,
            }),
            text: Some(TextConfig {
                entry: TextEntry::Linear,
                shared,
                parallel: shared > 0,
                ..TextConfig::new(self.text, TextAttention::Joint)
            }),
            ..DitConfig::dit(hidden, separate.saturating_add(shared), self.heads)
        }
    }
}
