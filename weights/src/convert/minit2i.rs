//! MiniT2I: the names of its authors.

use super::dit::linear;
use crate::layout::{Layout, Rule, Transform};
use Transform::{Copy, Flatten, PatchKernel, Transpose};

/// `MiniT2IMMJiTModel`, without the beginning that all its names have.
pub fn minit2i() -> Layout {
    let mut rules = [
        linear("embedder.time.mlp.up", "t_embedder.mlp.0"),
        linear("embedder.time.mlp.down", "t_embedder.mlp.2"),
        linear("head.out", "final_layer.linear"),
        linear("widen", "img_embedder.proj2"),
    ]
    .concat();
    rules.extend([
        Rule::new("patch.weight", "img_embedder.proj1.weight", PatchKernel),
        Rule::new("caption.up.weight", "txt_embedder.weight", Transpose),
        Rule::new("refiners.fill.text", "mask_token", Flatten),
        Rule::new("head.gain", "final_layer.norm_final.weight", Copy),
    ]);
    for (ours, theirs, start) in [
        ("blocks.*", "double_blocks.*", "img_"),
        ("blocks.*.text", "double_blocks.*", "txt_"),
        ("refiners.text.*", "txt_preamble_blocks.*", ""),
    ] {
        rules.extend(branches(ours, theirs, start));
    }
    // Nothing of a text as one vector reaches the output.
    Layout::new("MiniT2I", rules, vec!["pooled_embedder.weight"])
}

/// The spellings of its weights that LoRA files have: our own, and that of its authors.
pub fn minit2i_lora() -> [Layout; 3] {
    [Layout::native(), minit2i(), minit2i()]
}

/// Both branches of a stream, whose names in a block begin with `start`; of both streams, heads have the same norms.
fn branches(target: &str, block: &str, start: &str) -> Vec<Rule> {
    let own = |part: &str| format!("{block}.{start}{part}");
    let gated = ["w1", "w3"].map(|part| own(&format!("mlp.{part}.weight"))).to_vec();
    let mut rules = [
        linear(&format!("{target}.attention.qkv"), &own("qkv")),
        linear(&format!("{target}.attention.out"), &own("attn_proj")),
    ]
    .concat();
    rules.push(Rule::concat(&format!("{target}.mlp.up.weight"), gated, Transpose));
    for (ours, theirs, transform) in [
        ("mlp.down.weight", own("mlp.w2.weight"), Transpose),
        ("norms.before_attention", own("norm1.weight"), Copy),
        ("norms.before_mlp", own("norm2.weight"), Copy),
        ("attention.norm.query", format!("{block}.q_norm.weight"), Copy),
        ("attention.norm.key", format!("{block}.k_norm.weight"), Copy),
    ] {
        rules.push(Rule::new(&format!("{target}.{ours}"), &theirs, transform));
    }
    rules
}
