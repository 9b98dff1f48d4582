//! Names of T5 encoders.

/// Of what is there once: llama.cpp's name and that of transformers.
const ONCE: [(&str, &str); 2] =
    [("token_embd", "shared"), ("enc.output_norm", "encoder.final_layer_norm")];
/// Of what is in each block, likewise.
const IN_BLOCKS: [(&str, &str); 8] = [
    ("attn_norm", "layer.0.layer_norm"),
    ("attn_q", "layer.0.SelfAttention.q"),
    ("attn_k", "layer.0.SelfAttention.k"),
    ("attn_v", "layer.0.SelfAttention.v"),
    ("attn_o", "layer.0.SelfAttention.o"),
    ("attn_rel_b", "layer.0.SelfAttention.relative_attention_bias"),
    ("ffn_norm", "layer.1.layer_norm"),
    ("ffn_down", "layer.1.DenseReluDense.wo"),
];

/// Of the feed-forward layers with gates (v1.1).
const GATED: [(&str, &str); 2] =
    [("ffn_gate", "layer.1.DenseReluDense.wi_0"), ("ffn_up", "layer.1.DenseReluDense.wi_1")];
/// Of those without (v1.0).
const PLAIN: [(&str, &str); 1] = [("ffn_up", "layer.1.DenseReluDense.wi")];

/// Whether this is a gate of a block.
pub(crate) fn is_gate(name: &str) -> bool {
    name.ends_with(".ffn_gate.weight")
}

/// The name that transformers gives to a tensor of a T5 encoder, with gates or without, from llama.cpp's name; none for
/// any other tensor.
pub(crate) fn t5_name(name: &str, gated: bool) -> Option<String> {
    let stem = name.strip_suffix(".weight")?;
    let find = |table: &[(&str, &'static str)], stem: &str| {
        table.iter().find(|(from, _)| *from == stem).map(|(_, to)| *to)
    };
    if let Some(whole) = find(&ONCE, stem) {
        return Some(format!("{whole}.weight"));
    }
    let (block, part) = stem.strip_prefix("enc.blk.")?.split_once('.')?;
    let wider: &[_] = if gated { &GATED } else { &PLAIN };
    let part = find(&IN_BLOCKS, part).or_else(|| find(wider, part))?;
    let is_number = !block.is_empty() && block.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| format!("encoder.block.{block}.{part}.weight"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_names_are_not_taken_for_those_of_an_encoder() {
        for name in ["", "token_embd", "enc.blk..attn_q.weight", "enc.blk.x.attn_q.weight"] {
            assert_eq!(t5_name(name, true), None, "{name}");
        }
        for name in ["dec.blk.0.attn_q.weight", "enc.blk.0.attn_x.weight", "blk.0.attn_q.weight"] {
            assert_eq!(t5_name(name, true), None, "{name}");
        }
        let last = t5_name("enc.blk.23.ffn_norm.weight", true);
        assert_eq!(last.as_deref(), Some("encoder.block.23.layer.1.layer_norm.weight"));
        // What is one layer without a gate is the second with one.
        let wider = [true, false].map(|gated| t5_name("enc.blk.0.ffn_up.weight", gated));
        let names = ["wi_1", "wi"]
            .map(|name| Some(format!("encoder.block.0.layer.1.DenseReluDense.{name}.weight")));
        assert_eq!(wider, names);
        assert_eq!(t5_name("enc.blk.0.ffn_gate.weight", false), None);
    }
}
