//! Names of T5 encoders.

/// Of what is there once: llama.cpp's name and that of transformers.
const ONCE: [(&str, &str); 2] =
    [("token_embd", "shared"), ("enc.output_norm", "encoder.final_layer_norm")];
/// Of what is in each block, likewise.
const IN_BLOCKS: [(&str, &str); 10] = [
    ("attn_norm", "layer.0.layer_norm"),
    ("attn_q", "layer.0.SelfAttention.q"),
    ("attn_k", "layer.0.SelfAttention.k"),
    ("attn_v", "layer.0.SelfAttention.v"),
    ("attn_o", "layer.0.SelfAttention.o"),
    ("attn_rel_b", "layer.0.SelfAttention.relative_attention_bias"),
    ("ffn_norm", "layer.1.layer_norm"),
    ("ffn_gate", "layer.1.DenseReluDense.wi_0"),
    ("ffn_up", "layer.1.DenseReluDense.wi_1"),
    ("ffn_down", "layer.1.DenseReluDense.wo"),
];

/// The name that transformers gives to a tensor of a T5 encoder with gates, from llama.cpp's name; none for any other
/// tensor.
pub(crate) fn t5_name(name: &str) -> Option<String> {
    let stem = name.strip_suffix(".weight")?;
    let find = |table: &[(&str, &'static str)], stem: &str| {
        table.iter().find(|(from, _)| *from == stem).map(|(_, to)| *to)
    };
    if let Some(whole) = find(&ONCE, stem) {
        return Some(format!("{whole}.weight"));
    }
    let (block, part) = stem.strip_prefix("enc.blk.")?.split_once('.')?;
    let part = find(&IN_BLOCKS, part)?;
    let is_number = !block.is_empty() && block.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| format!("encoder.block.{block}.{part}.weight"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_names_are_not_taken_for_those_of_an_encoder() {
        for name in ["", "token_embd", "enc.blk..attn_q.weight", "enc.blk.x.attn_q.weight"] {
            assert_eq!(t5_name(name), None, "{name}");
        }
        for name in ["dec.blk.0.attn_q.weight", "enc.blk.0.attn_x.weight", "blk.0.attn_q.weight"] {
            assert_eq!(t5_name(name), None, "{name}");
        }
        let last = t5_name("enc.blk.23.ffn_norm.weight");
        assert_eq!(last.as_deref(), Some("encoder.block.23.layer.1.layer_norm.weight"));
    }
}
