//! Names of text encoders: llama.cpp's, and those of the transformers library.

/// What llama.cpp calls the tensors of a kind of network, and what transformers does.
pub(crate) struct Names {
    /// Of what is there once.
    once: &'static [(&'static str, &'static str)],
    /// What stands before the number of a block.
    start: [&'static str; 2],
    /// Of what is in each block.
    in_blocks: Vec<(&'static str, &'static str)>,
}

const T5_ONCE: [(&str, &str); 2] =
    [("token_embd", "shared"), ("enc.output_norm", "encoder.final_layer_norm")];
const T5_BLOCKS: [(&str, &str); 8] = [
    ("attn_norm", "layer.0.layer_norm"),
    ("attn_q", "layer.0.SelfAttention.q"),
    ("attn_k", "layer.0.SelfAttention.k"),
    ("attn_v", "layer.0.SelfAttention.v"),
    ("attn_o", "layer.0.SelfAttention.o"),
    ("attn_rel_b", "layer.0.SelfAttention.relative_attention_bias"),
    ("ffn_norm", "layer.1.layer_norm"),
    ("ffn_down", "layer.1.DenseReluDense.wo"),
];
/// Of the feed-forward layers of T5 with gates (v1.1).
const T5_GATED: [(&str, &str); 2] =
    [("ffn_gate", "layer.1.DenseReluDense.wi_0"), ("ffn_up", "layer.1.DenseReluDense.wi_1")];
/// Of those without (v1.0).
const T5_PLAIN: [(&str, &str); 1] = [("ffn_up", "layer.1.DenseReluDense.wi")];

const DECODER_ONCE: [(&str, &str); 3] =
    [("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];
const DECODER_BLOCKS: [(&str, &str); 8] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];
const QWEN3_BLOCKS: [(&str, &str); 3] = [
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
];
const GEMMA2_BLOCKS: [(&str, &str); 3] = [
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

impl Names {
    /// Those of T5, with gates or without.
    fn t5(gated: bool) -> Self {
        let wider: &[_] = if gated { &T5_GATED } else { &T5_PLAIN };
        let (start, in_blocks) = (["enc.blk.", "encoder.block."], [&T5_BLOCKS, wider].concat());
        Self { once: &T5_ONCE, start, in_blocks }
    }

    /// Those of a language model with these beside what all have.
    fn decoder(own: &[(&'static str, &'static str)]) -> Self {
        let (start, in_blocks) = (["blk.", "model.layers."], [&DECODER_BLOCKS, own].concat());
        Self { once: &DECODER_ONCE, start, in_blocks }
    }

    /// Those of the kind that all of these are of.
    pub(crate) fn of<'a>(names: impl Iterator<Item = &'a String> + Clone) -> Option<Self> {
        let gated = names.clone().any(|name| name.ends_with(".ffn_gate.weight"));
        // Other language models have no norms of queries, or none behind their branches.
        let has = |part: &str| names.clone().any(|name| name.ends_with(part));
        let qwen3 = has(".attn_q_norm.weight").then(|| Self::decoder(&QWEN3_BLOCKS));
        let gemma2 = has(".post_ffw_norm.weight").then(|| Self::decoder(&GEMMA2_BLOCKS));
        let kinds = std::iter::once(Self::t5(gated)).chain(qwen3).chain(gemma2);
        let is_some = names.clone().next().is_some();
        let mut kinds =
            kinds.filter(|kind| is_some && names.clone().all(|n| kind.name(n).is_some()));
        kinds.next()
    }

    /// The name that transformers gives to a tensor; none for one of another network.
    pub(crate) fn name(&self, name: &str) -> Option<String> {
        let stem = name.strip_suffix(".weight")?;
        let find = |table: &[(&str, &'static str)], stem: &str| {
            table.iter().find(|(from, _)| *from == stem).map(|(_, to)| *to)
        };
        if let Some(whole) = find(self.once, stem) {
            return Some(format!("{whole}.weight"));
        }
        let [from, to] = self.start;
        let (block, part) = stem.strip_prefix(from)?.split_once('.')?;
        let part = find(&self.in_blocks, part)?;
        let is_number = !block.is_empty() && block.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| format!("{to}{block}.{part}.weight"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_names_are_not_taken_for_those_of_an_encoder() {
        let t5 = Names::t5(true);
        for name in ["", "token_embd", "enc.blk..attn_q.weight", "enc.blk.x.attn_q.weight"] {
            assert_eq!(t5.name(name), None, "{name}");
        }
        for name in ["dec.blk.0.attn_q.weight", "enc.blk.0.attn_x.weight", "blk.0.attn_q.weight"] {
            assert_eq!(t5.name(name), None, "{name}");
        }
        let last = t5.name("enc.blk.23.ffn_norm.weight");
        assert_eq!(last.as_deref(), Some("encoder.block.23.layer.1.layer_norm.weight"));
        // What is one layer without a gate is the second with one.
        let wider = [true, false].map(|gated| Names::t5(gated).name("enc.blk.0.ffn_up.weight"));
        let names = ["wi_1", "wi"]
            .map(|name| Some(format!("encoder.block.0.layer.1.DenseReluDense.{name}.weight")));
        assert_eq!(wider, names);
        assert_eq!(Names::t5(false).name("enc.blk.0.ffn_gate.weight"), None);
    }

    #[test]
    fn kinds_are_told_apart_by_all_of_their_names() {
        let kind = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| format!("{name}.weight")).collect();
            Names::of(names.iter()).and_then(|kind| kind.name(&names[0]))
        };
        let qwen3 = ["blk.7.attn_output", "token_embd", "blk.0.attn_q_norm", "output"];
        assert_eq!(kind(&qwen3).as_deref(), Some("model.layers.7.self_attn.o_proj.weight"));
        let gemma2 = ["blk.3.ffn_norm", "blk.3.post_ffw_norm", "blk.3.post_attention_norm"];
        let name = "model.layers.3.pre_feedforward_layernorm.weight";
        assert_eq!(kind(&gemma2).as_deref(), Some(name));
        // Of Gemma 3, which has all of these norms.
        assert_eq!(kind(&[&gemma2[..], &qwen3].concat()), None);
        let t5 = ["token_embd", "enc.blk.0.attn_q"];
        assert_eq!(kind(&t5).as_deref(), Some("shared.weight"));
        assert_eq!(kind(&["blk.7.attn_output", "token_embd"]), None);
        assert_eq!(kind(&["blk.0.attn_q_norm", "enc.blk.0.attn_q"]), None);
        assert_eq!(kind(&[]), None);
    }
}
