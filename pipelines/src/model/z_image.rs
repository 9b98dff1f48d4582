//! Folders written by diffusers' `ZImagePipeline`, and files of the original code.

use std::path::Path;

use pyrograph_engine::layers::modulation::{GateForm, ModulationConfig};
use pyrograph_engine::layers::{Activation, Position, Rope};
use pyrograph_engine::nets::{
    Branches, DitConfig, Norm, Placing, TextAttention, TextConfig, TextEntry,
};
use pyrograph_engine::ops::Pairs;
use pyrograph_weights::convert;
use serde::Deserialize;
use serde_json::Value;

use super::autoencoder::Latents;
use super::diffusers::{Flow, Network, no_others};
use super::text::{States, Template, TextInput};
use super::{Source, read_json};
use crate::error::{Error, Result};

#[derive(Deserialize)]
struct Transformer {
    all_patch_size: Vec<usize>,
    all_f_patch_size: Vec<usize>,
    in_channels: usize,
    dim: usize,
    n_layers: usize,
    n_refiner_layers: usize,
    n_heads: usize,
    n_kv_heads: usize,
    norm_eps: f64,
    qk_norm: bool,
    cap_feat_dim: usize,
    rope_theta: f64,
    t_scale: f64,
    axes_dims: Vec<usize>,
    /// Most places on each axis, which no picture comes near.
    #[serde(rename = "axes_lens")]
    _places: Option<Vec<usize>>,
    siglip_feat_dim: Option<Value>,
    #[serde(flatten)]
    rest: serde_json::Map<String, Value>,
}

/// Inner width of the embedding of the noise level, and most of its width.
const CONDITION: [usize; 2] = [1024, 256];
/// ε of the norms of queries and keys.
const HEAD_EPSILON: f64 = 1e-5;
/// ε of the norms, where a file does not tell.
pub(super) const EPSILON: f64 = 1e-5;
/// Side of its patches, where a file does not tell.
pub(super) const PATCH: usize = 2;
/// ε of the layer norm of the head.
const OUT_EPSILON: f64 = 1e-6;
/// Image and text are filled up to multiples of this.
const MULTIPLE: usize = 32;
/// Latent cells a side of the images that it was trained on, about.
const SIDE: usize = 128;
/// Most tokens of a text.
const TOKENS: usize = 512;
/// Steps where the user says nothing, and guidance: those of the distilled model, Z-Image-Turbo.
pub(super) const STEPS: usize = 8;
pub(super) const CFG_SCALE: f64 = 1.0;
/// Time shift of Z-Image-Turbo.
pub(super) const SHIFT: f64 = 3.0;
/// Of FLUX.1's autoencoder.
pub(super) const LATENTS: Latents = Latents::Scaled { scale: 0.3611, shift: 0.1159 };
/// Channels of each axis of positions and their base, where a file does not tell.
pub(super) const AXES: [usize; 3] = [32, 48, 48];
pub(super) const THETA: f64 = 256.0;

/// The network in a folder.
pub(super) fn network(folder: &Path) -> Result<Network> {
    let path = folder.join("transformer/config.json");
    let transformer: Transformer = read_json(path.clone())?;
    let net = transformer.net().map_err(|reason| Error::NotAModel { path, reason })?;
    let weights = |net: DitConfig, checkpoint| {
        let layout = convert::z_image_diffusers(net.patch, heads(&net));
        Ok((net, Source::new(checkpoint, layout)))
    };
    Ok(Network {
        latents: Some(LATENTS),
        flow: Some(Flow::Backward),
        ..Network::of_texts(net, reads(), (STEPS, CFG_SCALE), weights)
    })
}

/// Heads of queries and of keys of such a network.
pub(crate) fn heads(net: &DitConfig) -> [usize; 2] {
    [net.heads, net.branches.key_heads.unwrap_or(net.heads)]
}

/// How such a model reads texts, but for its encoder.
pub(super) fn reads() -> TextInput {
    TextInput {
        template: Some(Template::Qwen3),
        states: States::BeforeLast,
        ..TextInput::new(TOKENS)
    }
}

impl Transformer {
    fn net(&self) -> Result<DitConfig, String> {
        no_others(&self.rest, "ZImageTransformer2DModel")?;
        let &[patch] = self.all_patch_size.as_slice() else {
            return Err(format!("all_patch_size is {:?}, expected one", self.all_patch_size));
        };
        for (key, found, expected) in [
            ("all_f_patch_size", format!("{:?}", self.all_f_patch_size), "[1]"),
            ("qk_norm", self.qk_norm.to_string(), "true"),
            ("t_scale", self.t_scale.to_string(), "1000"),
            ("siglip_feat_dim", format!("{:?}", self.siglip_feat_dim), "None"),
        ] {
            if found != expected {
                return Err(format!("{key} is {found}, expected {expected}"));
            }
        }
        let axes = Axes { axes: self.axes_dims.clone(), theta: self.rope_theta };
        let sizes = Sizes {
            channels: self.in_channels,
            patch,
            hidden: self.dim,
            depth: self.n_layers,
            refiners: self.n_refiner_layers,
            heads: [self.n_heads, self.n_kv_heads],
            inner: inner(self.dim),
            text: self.cap_feat_dim,
            epsilon: self.norm_eps,
        };
        Ok(sizes.net(axes))
    }
}

/// Inner width of its MLPs.
pub(super) fn inner(hidden: usize) -> usize {
    (hidden as f64 / 3.0 * 8.0) as usize
}

/// Axes of positions.
pub(super) struct Axes {
    pub(super) axes: Vec<usize>,
    pub(super) theta: f64,
}

/// What is not the same in every such network.
pub(super) struct Sizes {
    pub(super) channels: usize,
    pub(super) patch: usize,
    pub(super) hidden: usize,
    pub(super) depth: usize,
    pub(super) refiners: usize,
    /// Of queries, and of keys.
    pub(super) heads: [usize; 2],
    pub(super) inner: usize,
    pub(super) text: usize,
    pub(super) epsilon: f64,
}

impl Sizes {
    pub(super) fn net(&self, Axes { axes, theta }: Axes) -> DitConfig {
        let Self { hidden, depth, heads: [heads, key_heads], .. } = *self;
        let [inner, widest] = CONDITION;
        let text = TextConfig {
            entry: TextEntry::Normed(self.epsilon),
            shared: depth,
            refiners: self.refiners,
            multiple: Some(MULTIPLE),
            ..TextConfig::new(self.text, TextAttention::Joint)
        };
        DitConfig {
            channels: self.channels,
            size: [SIDE.next_multiple_of(self.patch.max(1)); 2],
            patch: self.patch,
            // A little more, so that it is this one when it is rounded down.
            mlp_ratio: (self.inner as f64 + 0.5) / hidden.max(1) as f64,
            classes: 0,
            learned_variance: false,
            position: Position::Absent,
            norm: Norm::Sandwich { epsilon: self.epsilon, head_epsilon: OUT_EPSILON },
            modulation: ModulationConfig {
                scale: true,
                gate: true,
                gate_form: GateForm::Tanh,
                unactivated: true,
                ..ModulationConfig::NONE
            },
            activation: Activation::Silu,
            branches: Branches {
                key_heads: Some(key_heads),
                head_norm: Some(HEAD_EPSILON),
                gated: true,
                unbiased: true,
                unbiased_mlp: false,
            },
            placing: Some(Placing {
                rope: Rope { axes, theta, pairs: Pairs::Interleaved },
                rows: 1,
                text: 0,
                first: 1,
                behind: true,
                own: false,
            }),
            condition: Some([inner, hidden.min(widest)]),
            text: Some(text),
            ..DitConfig::dit(hidden, depth, heads)
        }
    }
}
