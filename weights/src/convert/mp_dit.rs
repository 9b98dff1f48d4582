//! MP-DiT: the public code's second generation, whose switches choose the modulations.

use crate::layout::{Layout, Rule, Transform};
use Transform::{Copy, Transpose};

/// State dicts with these modulations.
pub fn mp_dit(scale: bool, shift: bool, gate: bool, rotation: bool) -> Layout {
    let mods = [scale, shift, rotation].into_iter().filter(|on| *on).count();
    let branch = |number: usize| -> Vec<String> {
        let mods = (0..mods).map(|j| format!("blocks.*.mod{number}.mods.{j}.net.1"));
        mods.chain(gate.then(|| format!("blocks.*.gate{number}.net.1"))).collect()
    };
    let block = [branch(1), branch(2)].concat();
    let head: Vec<String> = (0..mods).map(|j| format!("final_layer.mod.mods.{j}.net.1")).collect();
    let of = |parts: &[String], kind: &str| -> Vec<String> {
        parts.iter().map(|part| format!("{part}.{kind}")).collect()
    };
    let rules = vec![
        Rule::new("patch.weight", "x_embedder.weight", Transpose),
        Rule::new("embedder.time.fourier.scale", "t_embedder.embedding.scale", Copy),
        Rule::new("embedder.time.fourier.shift", "t_embedder.embedding.shift", Copy),
        Rule::new("embedder.time.mlp.up.weight", "t_embedder.mlp.net.0.weight", Transpose),
        Rule::new("embedder.time.mlp.down.weight", "t_embedder.mlp.net.2.weight", Transpose),
        Rule::new("embedder.label.weight", "y_embedder.embedding.weight", Copy),
        Rule::new("blocks.*.attention.qkv.weight", "blocks.*.attn.qkv_proj.weight", Transpose),
        Rule::new("blocks.*.attention.out.weight", "blocks.*.attn.out_proj.weight", Transpose),
        Rule::new("blocks.*.mlp.up.weight", "blocks.*.mlp.net.0.weight", Transpose),
        Rule::new("blocks.*.mlp.down.weight", "blocks.*.mlp.net.2.weight", Transpose),
        Rule::concat("blocks.*.modulation.dense.weight", of(&block, "weight"), Transpose),
        Rule::concat("blocks.*.modulation.gain", of(&block, "gain"), Copy),
        Rule::concat("head.modulation.dense.weight", of(&head, "weight"), Transpose),
        Rule::concat("head.modulation.gain", of(&head, "gain"), Copy),
        Rule::new("head.out.weight", "final_layer.linear.weight", Transpose),
        Rule::new("head.out.gain", "final_layer.linear.gain", Copy),
    ];
    Layout::new("MP-DiT", rules, vec!["pos_embed"])
}
