//! Gemma 2 (Gemma Team 2024) as an encoder of texts: the stream of a language model.

use std::str::FromStr;

use pyrograph_engine::nets::{Places, Scores, TextEncoderConfig};
use pyrograph_weights::Checkpoint;
use serde::Deserialize;

use super::text_encoder::{Positions, activation, blocks, unknown};

/// The parts of its configuration that its states depend on. What a file leaves out is as in the transformers library, which
/// is as in Gemma 2 2B.
#[derive(Deserialize)]
#[serde(default)]
pub(super) struct Gemma2 {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: usize,
    rms_norm_eps: f64,
    hidden_activation: String,
    attention_bias: bool,
    query_pre_attn_scalar: f64,
    sliding_window: Option<usize>,
    layer_types: Option<Vec<String>>,
    attn_logit_softcapping: Option<f64>,
    use_bidirectional_attention: Option<bool>,
    #[serde(flatten)]
    positions: Positions,
    /// The factors of the norms are stored less 1.
    #[serde(skip)]
    centred: bool,
}

impl Default for Gemma2 {
    fn default() -> Self {
        Self {
            vocab_size: 256_000,
            hidden_size: 2304,
            intermediate_size: 9216,
            num_hidden_layers: 26,
            num_attention_heads: 8,
            num_key_value_heads: 4,
            head_dim: 256,
            rms_norm_eps: 1e-6,
            hidden_activation: "gelu_pytorch_tanh".into(),
            attention_bias: false,
            query_pre_attn_scalar: 256.0,
            sliding_window: Some(4096),
            layer_types: None,
            attn_logit_softcapping: Some(50.0),
            use_bidirectional_attention: None,
            positions: Positions::default(),
            centred: true,
        }
    }
}

/// Of Gemma 2 27B, the width of its tokens, which tells it, and what it alone has otherwise: the width of heads, and the number by
/// whose root scores are divided.
const LARGE: (usize, usize, f64) = (4608, 128, 144.0);
/// Base of its rotary places, where a file does not tell.
const THETA: f64 = 1e4;
/// The kinds of its blocks, in turn.
const TYPES: [&str; 2] = ["sliding_attention", "full_attention"];
/// What llama.cpp calls it.
const ARCHITECTURE: &str = "gemma2";

impl Gemma2 {
    /// That of tensors under the names of the transformers library, if they are those of a Gemma 2; what they do not tell is
    /// in the metadata of llama.cpp, or that of Gemma 2 2B.
    pub(super) fn of(checkpoint: &Checkpoint) -> Option<Self> {
        let tensors = checkpoint.tensors();
        let start = if tensors.contains_key("model.norm.weight") { "model." } else { "" };
        let shape =
            |name: &str| tensors.get(&format!("{start}{name}.weight")).map(|t| &t.shape[..]);
        let first = |part: &str| shape(&format!("layers.0.{part}"));
        let &[vocab_size, hidden_size] = shape("embed_tokens")? else { return None };
        // Gemma 3 has norms of queries, too.
        if first("self_attn.q_norm").is_some() || first("post_feedforward_layernorm").is_none() {
            return None;
        }
        let rows = |part: &str| first(part)?.first().copied();
        let metadata = checkpoint.metadata();
        let of_llama =
            metadata.get("general.architecture").is_some_and(|name| name == ARCHITECTURE);
        let usual = Self::default();
        let (large, head_dim, scalar) = LARGE;
        let (head_dim, scalar) = match hidden_size == large {
            true => (head_dim, Some(scalar)),
            false => (usual.head_dim, None),
        };
        let head_dim = told(checkpoint, "attention.key_length").unwrap_or(head_dim);
        Some(Self {
            vocab_size,
            hidden_size,
            intermediate_size: rows("mlp.gate_proj")?,
            num_hidden_layers: blocks(checkpoint, start)?,
            num_attention_heads: rows("self_attn.q_proj")?.checked_div(head_dim)?,
            num_key_value_heads: rows("self_attn.k_proj")?.checked_div(head_dim)?,
            head_dim,
            rms_norm_eps: told(checkpoint, "attention.layer_norm_rms_epsilon")
                .unwrap_or(usual.rms_norm_eps),
            query_pre_attn_scalar: scalar.unwrap_or(head_dim as f64),
            sliding_window: told(checkpoint, "attention.sliding_window").or(usual.sliding_window),
            attn_logit_softcapping: told(checkpoint, "attn_logit_softcapping")
                .or(usual.attn_logit_softcapping),
            centred: !of_llama,
            ..usual
        })
    }

    pub(super) fn config(&self) -> Result<TextEncoderConfig, String> {
        let theta = self.positions.theta(Some(THETA))?;
        let bidirectional = self.use_bidirectional_attention.unwrap_or(false);
        for (key, on) in [
            ("attention_bias", self.attention_bias),
            ("use_bidirectional_attention", bidirectional),
        ] {
            if on {
                return Err(format!("{key} is true, expected false"));
            }
        }
        let name = &self.hidden_activation;
        let (vocabulary, hidden) = (self.vocab_size, self.hidden_size);
        let (depth, heads) = (self.num_hidden_layers, self.num_attention_heads);
        Ok(TextEncoderConfig {
            key_heads: Some(self.num_key_value_heads),
            head: self.head_dim,
            inner: self.intermediate_size,
            activation: activation(name).ok_or_else(|| unknown("hidden_activation", name))?,
            gated: true,
            places: Places::Rotary { theta },
            causal: true,
            epsilon: self.rms_norm_eps,
            sandwich: true,
            centred: self.centred,
            scaled: true,
            scores: Scores {
                divisor: Some(self.query_pre_attn_scalar),
                softcap: self.attn_logit_softcapping,
                window: self.window()?,
            },
            ..TextEncoderConfig::new(vocabulary, hidden, depth, heads)
        })
    }

    /// The window of the first block and every second one behind it, if they have one.
    fn window(&self) -> Result<Option<usize>, String> {
        let Some(types) = &self.layer_types else { return Ok(self.sliding_window) };
        let [sliding, full] = TYPES;
        if types.iter().all(|kind| kind == full) {
            return Ok(None);
        }
        let in_turn = types.iter().zip(TYPES.iter().cycle()).all(|(found, kind)| found == kind);
        match in_turn && types.len() == self.num_hidden_layers {
            true => Ok(self.sliding_window),
            false => Err(format!(
                "layer_types is {types:?}, expected `{sliding}` and `{full}` in turn of {} blocks",
                self.num_hidden_layers
            )),
        }
    }
}

/// A number that llama.cpp notes of such a model.
fn told<T: FromStr>(checkpoint: &Checkpoint, key: &str) -> Option<T> {
    checkpoint.metadata().get(&format!("{ARCHITECTURE}.{key}"))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use burn::tensor::TensorData;
    use pyrograph_weights::write_safetensors;

    use super::*;

    /// Files do not tell the width of a head; of 27B it is another than of 2B and 9B.
    #[test]
    fn heads_are_those_of_the_published_size() {
        let folder = tempfile::tempdir().expect("a folder");
        for (hidden, rows, heads, scalar) in [(2304, 512, 2, 256.0), (4608, 512, 4, 144.0)] {
            let shapes = [
                ("embed_tokens", vec![3, hidden]),
                ("layers.0.self_attn.q_proj", vec![rows, hidden]),
                ("layers.0.self_attn.k_proj", vec![rows / 2, hidden]),
                ("layers.0.mlp.gate_proj", vec![5, hidden]),
                ("layers.0.post_feedforward_layernorm", vec![hidden]),
                ("norm", vec![hidden]),
            ];
            let tensors = shapes.map(|(name, shape)| {
                let values = vec![0.0f32; shape.iter().product()];
                (format!("model.{name}.weight"), TensorData::new(values, shape))
            });
            let path = folder.path().join("gemma.safetensors");
            write_safetensors(&path, &tensors, &BTreeMap::new()).expect("written");
            let checkpoint = Checkpoint::open(&path).expect("a file");
            let config = Gemma2::of(&checkpoint).expect("a Gemma 2").config().expect("known");
            assert_eq!((config.heads, config.key_heads), (heads, Some(heads / 2)));
            assert_eq!(config.scores.divisor, Some(scalar));
        }
    }
}
