//! The original DiT and its diffusers port.

use crate::layout::{Layout, Rule, Transform};
use Transform::{Copy, PatchKernel, Transpose};

/// Chunks of adaLN: both have shift, scale, gate per branch, and we have scale, shift, gate.
const BLOCK_CHUNKS: [usize; 6] = [1, 0, 2, 4, 3, 5];
/// Chunks of the head's modulation.
const HEAD_CHUNKS: [usize; 2] = [1, 0];

/// A linear layer: weight and bias.
fn linear(target: &str, source: &str) -> [Rule; 2] {
    [
        Rule::new(&format!("{target}.weight"), &format!("{source}.weight"), Transpose),
        Rule::new(&format!("{target}.bias"), &format!("{source}.bias"), Copy),
    ]
}

fn chunked(rules: [Rule; 2], order: &[usize]) -> [Rule; 2] {
    rules.map(|rule| Rule { chunks: Some(order.to_vec()), ..rule })
}

fn patch(source: &str) -> [Rule; 2] {
    [
        Rule::new("patch.weight", &format!("{source}.weight"), PatchKernel),
        Rule::new("patch.bias", &format!("{source}.bias"), Copy),
    ]
}

/// State dicts of the original code.
pub fn dit_original() -> Layout {
    let rules = [
        patch("x_embedder.proj"),
        linear("time.mlp.up", "t_embedder.mlp.0"),
        linear("time.mlp.down", "t_embedder.mlp.2"),
        linear("blocks.*.attention.qkv", "blocks.*.attn.qkv"),
        linear("blocks.*.attention.out", "blocks.*.attn.proj"),
        linear("blocks.*.mlp.up", "blocks.*.mlp.fc1"),
        linear("blocks.*.mlp.down", "blocks.*.mlp.fc2"),
        chunked(
            linear("blocks.*.modulation.dense", "blocks.*.adaLN_modulation.1"),
            &BLOCK_CHUNKS,
        ),
        chunked(linear("head.modulation.dense", "final_layer.adaLN_modulation.1"), &HEAD_CHUNKS),
        linear("head.out", "final_layer.linear"),
    ];
    let mut rules = rules.concat();
    rules.push(Rule::new("label.weight", "y_embedder.embedding_table.weight", Copy));
    Layout::new("original DiT", rules, vec!["pos_embed"])
}

/// `DiTTransformer2DModel`: every block holds a copy of the time and label embedders.
pub fn dit_diffusers() -> Layout {
    let block = |name: &str| format!("transformer_blocks.*.{name}");
    let embedder = |name: &str| format!("norm1.emb.{name}");
    let mut rules = [
        patch("pos_embed.proj"),
        linear("blocks.*.attention.out", &block("attn1.to_out.0")),
        linear("blocks.*.mlp.up", &block("ff.net.0.proj")),
        linear("blocks.*.mlp.down", &block("ff.net.2")),
        chunked(linear("blocks.*.modulation.dense", &block("norm1.linear")), &BLOCK_CHUNKS),
        chunked(linear("head.modulation.dense", "proj_out_1"), &HEAD_CHUNKS),
        linear("head.out", "proj_out_2"),
    ]
    .concat();
    for (kind, transform) in [("weight", Transpose), ("bias", Copy)] {
        let sources = ["q", "k", "v"].map(|part| block(&format!("attn1.to_{part}.{kind}")));
        let target = format!("blocks.*.attention.qkv.{kind}");
        // The captured index serves each of the three sources.
        rules.push(Rule::concat(&target, sources.to_vec(), transform));
    }
    let shared = [
        linear("time.mlp.up", &embedder("timestep_embedder.linear_1")),
        linear("time.mlp.down", &embedder("timestep_embedder.linear_2")),
    ]
    .concat();
    let label = Rule::new("label.weight", &embedder("class_embedder.embedding_table.weight"), Copy);
    rules.extend(shared.into_iter().chain([label]).map(|rule| Rule {
        copies: Some(block(&rule.sources[0])),
        sources: vec![format!("transformer_blocks.0.{}", rule.sources[0])],
        ..rule
    }));
    Layout::new("diffusers DiT", rules, Vec::new())
}
