//! Text encoders as the transformers library names them.

use crate::checkpoint::Checkpoint;
use crate::layout::{Layout, Rule, Transform};
use Transform::{Copy, Transpose};

/// The encoder of T5, with gates or without.
pub fn t5(checkpoint: &Checkpoint) -> Layout {
    let block = |target: &str, source: &str, transform| {
        let source = format!("encoder.block.*.{source}.weight");
        Rule::new(&format!("blocks.*.{target}"), &source, transform)
    };
    let attention = |part: &str| format!("encoder.block.*.layer.0.SelfAttention.{part}.weight");
    let qkv = ["q", "k", "v"].map(attention).to_vec();
    let places = attention("relative_attention_bias").replace('*', "0");
    let single = "encoder.block.0.layer.1.DenseReluDense.wi.weight";
    let up = if checkpoint.tensors().contains_key(single) { "wi" } else { "wi_0" };
    let feed_forward = |part: &str| format!("layer.1.DenseReluDense.{part}");
    let rules = vec![
        Rule::new("tokens", "shared.weight", Copy),
        Rule::new("places", &places, Copy),
        block("first.gain", "layer.0.layer_norm", Copy),
        Rule::concat("blocks.*.attention.qkv.weight", qkv, Transpose),
        block("attention.out.weight", "layer.0.SelfAttention.o", Transpose),
        block("second.gain", "layer.1.layer_norm", Copy),
        block("up.weight", &feed_forward(up), Transpose),
        block("gate.weight", &feed_forward("wi_1"), Transpose),
        block("down.weight", &feed_forward("wo"), Transpose),
        Rule::new("norm.gain", "encoder.final_layer_norm.weight", Copy),
    ];
    // The table of tokens has two names.
    Layout::new("T5 encoder", rules, vec!["encoder.embed_tokens.weight"])
}

/// The stream of Qwen3, alone or in the language model, with or without `model.` before the names. Blocks and a norm that
/// the configuration leaves out may be there.
pub fn qwen3(checkpoint: &Checkpoint) -> Layout {
    let norms = [
        ("first.gain", "input_layernorm"),
        ("attention.norm.query", "self_attn.q_norm"),
        ("attention.norm.key", "self_attn.k_norm"),
        ("second.gain", "post_attention_layernorm"),
    ];
    decoder("Qwen3", checkpoint, &norms)
}

/// The same of Gemma 2.
pub fn gemma2(checkpoint: &Checkpoint) -> Layout {
    let norms = [
        ("first.gain", "input_layernorm"),
        ("behind.0.gain", "post_attention_layernorm"),
        ("second.gain", "pre_feedforward_layernorm"),
        ("behind.1.gain", "post_feedforward_layernorm"),
    ];
    decoder("Gemma 2", checkpoint, &norms)
}

/// The stream of a language model whose blocks have these norms.
fn decoder(name: &'static str, checkpoint: &Checkpoint, norms: &[(&str, &str)]) -> Layout {
    let is_nested = checkpoint.tensors().keys().any(|name| name.starts_with("model."));
    let start = if is_nested { "model." } else { "" };
    let layer = |part: &str| format!("{start}layers.*.{part}.weight");
    let block = |target: &str, source: &str, transform| {
        Rule::new(&format!("blocks.*.{target}"), &layer(source), transform)
    };
    let qkv = ["q", "k", "v"].map(|part| layer(&format!("self_attn.{part}_proj"))).to_vec();
    let mut rules = vec![
        Rule::new("tokens", &format!("{start}embed_tokens.weight"), Copy),
        Rule::concat("blocks.*.attention.qkv.weight", qkv, Transpose),
        block("attention.out.weight", "self_attn.o_proj", Transpose),
        block("up.weight", "mlp.gate_proj", Transpose),
        block("gate.weight", "mlp.up_proj", Transpose),
        block("down.weight", "mlp.down_proj", Transpose),
        Rule::new("norm.gain", &format!("{start}norm.weight"), Copy),
    ];
    rules.extend(norms.iter().map(|(ours, theirs)| block(ours, theirs, Copy)));
    let ignored = vec![
        // From states to words.
        "lm_head.weight",
        "layers.*.*.weight",
        "layers.*.*.*.weight",
        "model.layers.*.*.weight",
        "model.layers.*.*.*.weight",
        // In files of ComfyUI.
        "spiece_model",
    ];
    Layout::new(name, rules, ignored)
}

/// The text half of CLIP, with or without `text_model.` before the names.
pub fn clip(checkpoint: &Checkpoint) -> Layout {
    let is_nested = checkpoint.tensors().keys().any(|name| name.starts_with("text_model."));
    let start = if is_nested { "text_model." } else { "" };
    let mut rules = vec![
        Rule::new("tokens", &format!("{start}embeddings.token_embedding.weight"), Copy),
        Rule::new("places", &format!("{start}embeddings.position_embedding.weight"), Copy),
        Rule::new("projection.weight", "text_projection.weight", Transpose),
    ];
    let mut pair = |target: &str, [weight, bias]: [&str; 2], sources: &[String], transform| {
        let named =
            |kind: &str| sources.iter().map(|source| format!("{start}{source}.{kind}")).collect();
        rules.push(Rule::concat(&format!("{target}.{weight}"), named("weight"), transform));
        rules.push(Rule::concat(&format!("{target}.{bias}"), named("bias"), Copy));
    };
    let layer = |part: &str| format!("encoder.layers.*.{part}");
    for (ours, theirs) in [("first", "layer_norm1"), ("second", "layer_norm2")] {
        pair(&format!("blocks.*.{ours}"), ["gain", "bias"], &[layer(theirs)], Copy);
    }
    let qkv = ["q", "k", "v"].map(|part| layer(&format!("self_attn.{part}_proj")));
    pair("blocks.*.attention.qkv", ["weight", "bias"], &qkv, Transpose);
    for (ours, theirs) in
        [("attention.out", "self_attn.out_proj"), ("up", "mlp.fc1"), ("down", "mlp.fc2")]
    {
        pair(&format!("blocks.*.{ours}"), ["weight", "bias"], &[layer(theirs)], Transpose);
    }
    pair("norm", ["gain", "bias"], &["final_layer_norm".into()], Copy);
    // Older files hold the numbers of the places.
    let ignored = vec!["embeddings.position_ids", "text_model.embeddings.position_ids"];
    Layout::new("CLIP text encoder", rules, ignored)
}
