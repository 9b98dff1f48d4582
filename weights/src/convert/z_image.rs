//! Z-Image: the names of diffusers, and those of the original code, which ComfyUI keeps.

use super::dit::linear;
use crate::layout::{Layout, Rule, Transform};
use Transform::{Copy, Flatten, Transpose};

/// How files spell the same network.
struct Spelling {
    /// The layer from patches, and the head.
    ends: [String; 2],
    /// Queries, keys and values; one name where they are side by side.
    qkv: &'static [&'static str],
    /// The output of the attention, and the norms of queries and of keys.
    attention: [&'static str; 3],
}

/// `ZImageTransformer2DModel` with patches of this side.
pub fn z_image_diffusers(patch: usize) -> Layout {
    let spelling = Spelling {
        ends: ["all_x_embedder", "all_final_layer"].map(|name| format!("{name}.{patch}-1")),
        qkv: &["to_q", "to_k", "to_v"],
        attention: ["to_out.0", "norm_q", "norm_k"],
    };
    Layout::new("diffusers Z-Image", rules(&spelling), Vec::new())
}

/// State dicts of the original code.
pub fn z_image_original() -> Layout {
    let spelling = Spelling {
        ends: ["x_embedder", "final_layer"].map(str::to_owned),
        qkv: &["qkv"],
        attention: ["out", "q_norm", "k_norm"],
    };
    // Some hold a norm that nothing goes through.
    Layout::new("original Z-Image", rules(&spelling), vec!["norm_final.weight"])
}

/// The spellings of a Z-Image's weights that LoRA files have: our own, the original code's, and that of diffusers.
pub fn z_image_lora(patch: usize) -> [Layout; 3] {
    [Layout::native(), z_image_original(), z_image_diffusers(patch)]
}

fn rules(spelling: &Spelling) -> Vec<Rule> {
    let [patch, head] = &spelling.ends;
    let mut rules = [
        linear("patch", patch),
        linear("embedder.time.mlp.up", "t_embedder.mlp.0"),
        linear("embedder.time.mlp.down", "t_embedder.mlp.2"),
        linear("caption.up", "cap_embedder.1"),
        linear("head.modulation.dense", &format!("{head}.adaLN_modulation.1")),
        linear("head.out", &format!("{head}.linear")),
    ]
    .concat();
    rules.extend([
        Rule::new("caption.norm", "cap_embedder.0.weight", Copy),
        Rule::new("refiners.fill.image", "x_pad_token", Flatten),
        Rule::new("refiners.fill.text", "cap_pad_token", Flatten),
    ]);
    for (target, source) in [
        ("blocks", "layers"),
        ("refiners.image", "noise_refiner"),
        ("refiners.text", "context_refiner"),
    ] {
        rules.extend(block(spelling, target, source));
    }
    rules
}

fn block(spelling: &Spelling, target: &str, source: &str) -> Vec<Rule> {
    let [out, query, key] = spelling.attention;
    let (target, source) = (format!("{target}.*"), format!("{source}.*"));
    let weight = |name: &str| format!("{source}.{name}.weight");
    let qkv = spelling.qkv.iter().map(|part| weight(&format!("attention.{part}"))).collect();
    let gated = ["w1", "w3"].map(|part| weight(&format!("feed_forward.{part}"))).to_vec();
    let mut rules = vec![
        Rule::concat(&format!("{target}.attention.qkv.weight"), qkv, Transpose),
        Rule::concat(&format!("{target}.mlp.up.weight"), gated, Transpose),
    ];
    for (ours, theirs, transform) in [
        ("attention.out.weight", format!("attention.{out}"), Transpose),
        ("attention.norm.query", format!("attention.{query}"), Copy),
        ("attention.norm.key", format!("attention.{key}"), Copy),
        ("mlp.down.weight", "feed_forward.w2".into(), Transpose),
        ("norms.before_attention", "attention_norm1".into(), Copy),
        ("norms.after_attention", "attention_norm2".into(), Copy),
        ("norms.before_mlp", "ffn_norm1".into(), Copy),
        ("norms.after_mlp", "ffn_norm2".into(), Copy),
    ] {
        rules.push(Rule::new(&format!("{target}.{ours}"), &weight(&theirs), transform));
    }
    rules.extend(linear(
        &format!("{target}.modulation.dense"),
        &format!("{source}.adaLN_modulation.0"),
    ));
    rules
}
