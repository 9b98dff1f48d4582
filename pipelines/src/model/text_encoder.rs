//! Text encoders in folders of their own, as the transformers library writes them.

use std::path::Path;

use burn::tensor::Device;
use pyrograph_engine::layers::Activation;
use pyrograph_engine::nets::{Places, TextEncoder, TextEncoderConfig};
use pyrograph_weights::{Checkpoint, FloatDtype, convert};
use serde::Deserialize;

use super::folders::text_weights_file;
use super::gemma2::Gemma2;
use super::{Notice, Source, load_part, read_json};
use crate::error::{Error, Result};

/// A text encoder that was recognised but not loaded.
#[derive(Debug)]
pub struct TextEncoderSource {
    /// Description.
    pub config: TextEncoderConfig,
    /// Its weights.
    pub source: Source,
    /// The token that ends a text; of a text without it, and where it is unknown, the largest one does.
    pub(super) end: Option<usize>,
}

#[derive(Deserialize)]
struct Kind {
    #[serde(default)]
    architectures: Vec<String>,
    model_type: Option<String>,
}

/// The parts of T5's configuration that its encoder reads.
#[derive(Deserialize)]
struct T5 {
    vocab_size: usize,
    d_model: usize,
    d_kv: usize,
    d_ff: usize,
    num_layers: usize,
    num_heads: usize,
    #[serde(default = "buckets")]
    relative_attention_num_buckets: usize,
    #[serde(default = "farthest")]
    relative_attention_max_distance: usize,
    #[serde(default = "t5_epsilon")]
    layer_norm_epsilon: f64,
    #[serde(default = "relu")]
    feed_forward_proj: String,
}

fn buckets() -> usize {
    32
}

fn farthest() -> usize {
    128
}

fn t5_epsilon() -> f64 {
    1e-6
}

fn relu() -> String {
    "relu".into()
}

impl T5 {
    /// That of tensors under the names of the transformers library, if they are those of an encoder. Where its blocks have
    /// gates, it is of the kind that is activated by GELU (v1.1), else by ReLU.
    fn of(checkpoint: &Checkpoint) -> Option<Self> {
        let shape = |name: &str| -> Option<[usize; 2]> {
            checkpoint.tensors().get(name)?.shape.as_slice().try_into().ok()
        };
        let first = |part: &str| shape(&format!("encoder.block.0.layer.{part}.weight"));
        let [vocab_size, d_model] = shape("shared.weight")?;
        let [buckets, num_heads] = first("0.SelfAttention.relative_attention_bias")?;
        let [inner, _] = first("0.SelfAttention.q")?;
        let gated = first("1.DenseReluDense.wi_0");
        let [d_ff, _] = gated.or(first("1.DenseReluDense.wi"))?;
        let number = |name: &String| -> Option<usize> {
            name.strip_prefix("encoder.block.")?.split('.').next()?.parse().ok()
        };
        let last = checkpoint.tensors().keys().filter_map(number).max()?;
        Some(Self {
            vocab_size,
            d_model,
            d_kv: inner.checked_div(num_heads)?,
            d_ff,
            num_layers: last.saturating_add(1),
            num_heads,
            relative_attention_num_buckets: buckets,
            relative_attention_max_distance: farthest(),
            layer_norm_epsilon: t5_epsilon(),
            feed_forward_proj: if gated.is_some() { "gated-gelu" } else { "relu" }.into(),
        })
    }

    fn config(&self) -> Result<TextEncoderConfig, String> {
        let (gated, name) = match self.feed_forward_proj.strip_prefix("gated-") {
            // Of this one name, the approximation is meant.
            Some("gelu") => (true, "gelu_new"),
            Some(name) => (true, name),
            None => (false, self.feed_forward_proj.as_str()),
        };
        let activation = activation(name)
            .ok_or_else(|| unknown("feed_forward_proj", &self.feed_forward_proj))?;
        let (vocabulary, hidden) = (self.vocab_size, self.d_model);
        Ok(TextEncoderConfig {
            head: self.d_kv,
            inner: self.d_ff,
            activation,
            gated,
            places: Places::Relative {
                buckets: self.relative_attention_num_buckets,
                farthest: self.relative_attention_max_distance,
            },
            epsilon: self.layer_norm_epsilon,
            ..TextEncoderConfig::new(vocabulary, hidden, self.num_layers, self.num_heads)
        })
    }
}

/// The parts of the configuration of CLIP's text half that it reads.
#[derive(Deserialize)]
struct Clip {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    max_position_embeddings: usize,
    #[serde(default = "quick")]
    hidden_act: String,
    #[serde(default = "clip_epsilon")]
    layer_norm_eps: f64,
    #[serde(default = "clip_projection")]
    projection_dim: usize,
    eos_token_id: Option<usize>,
}

fn quick() -> String {
    "quick_gelu".into()
}

fn clip_epsilon() -> f64 {
    1e-5
}

fn clip_projection() -> usize {
    512
}

impl Clip {
    fn config(&self, projected: bool) -> Result<TextEncoderConfig, String> {
        let Self { hidden_size: hidden, num_attention_heads: heads, .. } = *self;
        if heads == 0 || !hidden.is_multiple_of(heads) {
            return Err(format!("hidden_size is {hidden}, expected a multiple of {heads} heads"));
        }
        let name = &self.hidden_act;
        let (vocabulary, depth) = (self.vocab_size, self.num_hidden_layers);
        Ok(TextEncoderConfig {
            inner: self.intermediate_size,
            activation: activation(name).ok_or_else(|| unknown("hidden_act", name))?,
            places: Places::Learned(self.max_position_embeddings),
            causal: true,
            bias: true,
            epsilon: self.layer_norm_eps,
            projection: projected.then_some(self.projection_dim),
            ..TextEncoderConfig::new(vocabulary, hidden, depth, heads)
        })
    }

    /// Files of the first years name 2, which ends no text: there, the largest token does.
    fn end(&self) -> Option<usize> {
        self.eos_token_id.filter(|&id| id != 2)
    }
}

/// ε of the norms of every published Qwen3.
const QWEN3_EPSILON: f64 = 1e-6;
/// Base of their rotary places.
const QWEN3_THETA: f64 = 1e6;

/// The parts of Qwen3's configuration that its states depend on.
#[derive(Deserialize)]
struct Qwen3 {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: usize,
    rms_norm_eps: f64,
    hidden_act: String,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    use_sliding_window: bool,
    #[serde(flatten)]
    positions: Positions,
}

/// Rotary positions in a configuration of the transformers library.
#[derive(Default, Deserialize)]
pub(super) struct Positions {
    rope_theta: Option<f64>,
    rope_parameters: Option<RopeParameters>,
    rope_scaling: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct RopeParameters {
    rope_theta: f64,
    #[serde(default = "default_rope")]
    rope_type: String,
}

fn default_rope() -> String {
    "default".into()
}

impl Positions {
    /// Their base, or this one where nothing is said; they are not scaled.
    pub(super) fn theta(&self, usual: Option<f64>) -> Result<f64, String> {
        let kind = self.rope_parameters.as_ref().map_or("default", |rope| &rope.rope_type);
        if kind != "default" || self.rope_scaling.is_some() {
            let found = self.rope_scaling.as_ref().map_or(kind.to_owned(), ToString::to_string);
            return Err(format!("positions are scaled by {found}, expected none of it"));
        }
        let of_parameters = self.rope_parameters.as_ref().map(|rope| rope.rope_theta);
        of_parameters.or(self.rope_theta).or(usual).ok_or_else(|| "no rope_theta".into())
    }
}

/// How many blocks of a language model there are, under names that begin like this.
pub(super) fn blocks(checkpoint: &Checkpoint, start: &str) -> Option<usize> {
    let number = |name: &String| -> Option<usize> {
        name.strip_prefix(start)?.strip_prefix("layers.")?.split('.').next()?.parse().ok()
    };
    Some(checkpoint.tensors().keys().filter_map(number).max()?.saturating_add(1))
}

impl Qwen3 {
    /// That of tensors under the names of the transformers library, if they are those of a Qwen3; what they do not tell is
    /// that of all published ones.
    fn of(checkpoint: &Checkpoint) -> Option<Self> {
        let tensors = checkpoint.tensors();
        let start = if tensors.contains_key("model.norm.weight") { "model." } else { "" };
        let shape =
            |name: &str| Some(tensors.get(&format!("{start}{name}.weight"))?.shape.as_slice());
        let first = |part: &str| shape(&format!("layers.0.{part}"));
        let &[vocab_size, hidden_size] = shape("embed_tokens")? else { return None };
        let &[head_dim] = first("self_attn.q_norm")? else { return None };
        let rows = |part: &str| first(part)?.first().copied();
        Some(Self {
            vocab_size,
            hidden_size,
            intermediate_size: rows("mlp.gate_proj")?,
            num_hidden_layers: blocks(checkpoint, start)?,
            num_attention_heads: rows("self_attn.q_proj")?.checked_div(head_dim)?,
            num_key_value_heads: rows("self_attn.k_proj")?.checked_div(head_dim)?,
            head_dim,
            rms_norm_eps: QWEN3_EPSILON,
            hidden_act: "silu".into(),
            attention_bias: false,
            use_sliding_window: false,
            positions: Positions { rope_theta: Some(QWEN3_THETA), ..Positions::default() },
        })
    }

    fn config(&self) -> Result<TextEncoderConfig, String> {
        for (key, on) in [
            ("attention_bias", self.attention_bias),
            ("use_sliding_window", self.use_sliding_window),
        ] {
            if on {
                return Err(format!("{key} is true, expected false"));
            }
        }
        let theta = self.positions.theta(None)?;
        let name = &self.hidden_act;
        let (vocabulary, hidden) = (self.vocab_size, self.hidden_size);
        let (depth, heads) = (self.num_hidden_layers, self.num_attention_heads);
        Ok(TextEncoderConfig {
            key_heads: Some(self.num_key_value_heads),
            head: self.head_dim,
            head_norm: true,
            inner: self.intermediate_size,
            activation: activation(name).ok_or_else(|| unknown("hidden_act", name))?,
            gated: true,
            places: Places::Rotary { theta },
            causal: true,
            epsilon: self.rms_norm_eps,
            ..TextEncoderConfig::new(vocabulary, hidden, depth, heads)
        })
    }
}

/// An activation by its name in the transformers library.
pub(super) fn activation(name: &str) -> Option<Activation> {
    Some(match name {
        "gelu" => Activation::Gelu,
        "gelu_new" | "gelu_pytorch_tanh" => Activation::GeluTanh,
        "quick_gelu" => Activation::GeluQuick,
        "relu" => Activation::Relu,
        "silu" | "swish" => Activation::Silu,
        _ => return None,
    })
}

pub(super) fn unknown(key: &str, found: &str) -> String {
    format!("{key} is `{found}`, expected gelu, gelu_new, quick_gelu, relu or silu")
}

impl TextEncoderSource {
    /// The encoder in a folder with a `config.json`: that of T5, the text half of CLIP, Qwen3 or Gemma 2; or that of T5, Qwen3 or
    /// Gemma 2 in a file.
    ///
    /// # Errors
    /// Another network, a configuration that no encoder can have, weights that do not fit it.
    pub fn recognise(folder: &Path) -> Result<Self> {
        if folder.is_file() {
            return Self::file(folder);
        }
        let fault = |reason: String| Error::NotAModel { path: folder.to_owned(), reason };
        let config = || folder.join("config.json");
        let Kind { architectures, model_type } = read_json(config())?;
        let class = architectures.first().map(String::as_str);
        let checkpoint = Checkpoint::open(text_weights_file(folder)?)?;
        let (config, layout, end) = match (model_type.as_deref(), class) {
            (Some("t5"), _) | (None, Some("T5EncoderModel")) => {
                let t5: T5 = read_json(config())?;
                (t5.config().map_err(fault)?, convert::t5(&checkpoint), None)
            }
            (Some("clip_text_model"), _)
            | (None, Some("CLIPTextModel" | "CLIPTextModelWithProjection")) => {
                let clip: Clip = read_json(config())?;
                let projected = checkpoint.tensors().contains_key("text_projection.weight");
                let end = clip.end();
                (clip.config(projected).map_err(fault)?, convert::clip(&checkpoint), end)
            }
            (Some("qwen3"), _) | (None, Some("Qwen3Model" | "Qwen3ForCausalLM")) => {
                let qwen3: Qwen3 = read_json(config())?;
                (qwen3.config().map_err(fault)?, convert::qwen3(&checkpoint), None)
            }
            (Some("gemma2"), _) | (None, Some("Gemma2Model" | "Gemma2ForCausalLM")) => {
                let gemma2: Gemma2 = read_json(config())?;
                (gemma2.config().map_err(fault)?, convert::gemma2(&checkpoint), None)
            }
            (kind, class) => {
                let found = kind.or(class).unwrap_or("none that is named");
                let expected = "`t5`, `clip_text_model`, `qwen3` or `gemma2`";
                return Err(fault(format!("text encoder `{found}`, expected {expected}")));
            }
        };
        Self::checked(folder, config, Source::new(checkpoint, layout), end)
    }

    /// The encoder of T5, Qwen3 or Gemma 2 in a file of its own (`t5xxl_fp16.safetensors`), whose sizes its tensors tell.
    fn file(path: &Path) -> Result<Self> {
        let fault = |reason: String| Error::NotAModel { path: path.to_owned(), reason };
        let checkpoint = Checkpoint::open(path)?;
        let (config, layout) = if let Some(t5) = T5::of(&checkpoint) {
            (t5.config(), convert::t5(&checkpoint))
        } else if let Some(qwen3) = Qwen3::of(&checkpoint) {
            (qwen3.config(), convert::qwen3(&checkpoint))
        } else if let Some(gemma2) = Gemma2::of(&checkpoint) {
            (gemma2.config(), convert::gemma2(&checkpoint))
        } else {
            return Err(fault("no text encoder of T5, Qwen3 or Gemma 2".into()));
        };
        Self::checked(path, config.map_err(fault)?, Source::new(checkpoint, layout), None)
    }

    /// Refuses a configuration that no encoder can have, and weights that do not fit it.
    pub(super) fn checked(
        path: &Path,
        config: TextEncoderConfig,
        source: Source,
        end: Option<usize>,
    ) -> Result<Self> {
        config.check().map_err(|error| Error::NotAModel {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
        let fresh = config.init(0, &Device::flex());
        pyrograph_weights::check(fresh, &source.checkpoint, &source.layout)?;
        Ok(Self { config, source, end })
    }

    /// The same with the states of the stream behind so many blocks each; see [`TextEncoderConfig::behind`]. Further blocks
    /// are left out.
    pub(super) fn read_behind(mut self, behind: Vec<usize>) -> Self {
        self.config.depth = behind.last().copied().unwrap_or(self.config.depth).max(1);
        self.config.behind = behind;
        self
    }

    /// Loads the weights onto `device`; `notify` hears of those that are not finite.
    ///
    /// # Errors
    /// Files that can no longer be read, a type that the device does not have.
    pub fn load(
        &self,
        dtype: FloatDtype,
        device: &Device,
        notify: &mut dyn FnMut(Notice),
    ) -> Result<TextEncoder> {
        load_part(self.config.init(0, device), &self.source, dtype, device, notify)
    }

    /// The place of the token that stands for each text as a whole.
    pub fn ends(&self, ids: &[Vec<usize>]) -> Vec<usize> {
        let end = |text: &Vec<usize>| {
            let named = self.end.and_then(|end| text.iter().position(|&id| id == end));
            let largest = || {
                let largest = text.iter().max();
                text.iter().position(|id| Some(id) == largest).unwrap_or(0)
            };
            named.unwrap_or_else(largest)
        };
        ids.iter().map(end).collect()
    }
}
