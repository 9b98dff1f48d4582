//! The original DiT and its diffusers port.

use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::layout::{Layout, Rule, Transform};
use Transform::{Copy, PatchKernel, Transpose};

/// Chunks of adaLN: both have shift, scale, gate per branch, and we have scale, shift, gate.
pub(super) const BLOCK_CHUNKS: [usize; 6] = [1, 0, 2, 4, 3, 5];
/// Chunks of the head's modulation.
pub(super) const HEAD_CHUNKS: [usize; 2] = [1, 0];

/// A linear layer: weight and bias.
pub(super) fn linear(target: &str, source: &str) -> [Rule; 2] {
    [
        Rule::new(&format!("{target}.weight"), &format!("{source}.weight"), Transpose),
        Rule::new(&format!("{target}.bias"), &format!("{source}.bias"), Copy),
    ]
}

pub(super) fn chunked(rules: [Rule; 2], order: &[usize]) -> [Rule; 2] {
    rules.map(|rule| Rule { chunks: Some(order.to_vec()), ..rule })
}

pub(super) fn patch(source: &str) -> [Rule; 2] {
    [
        Rule::new("patch.weight", &format!("{source}.weight"), PatchKernel),
        Rule::new("patch.bias", &format!("{source}.bias"), Copy),
    ]
}

/// State dicts of the original code, and of students with a head for each of `steps` steps (ARD).
pub fn dit_original(steps: usize) -> Layout {
    let rules = [
        patch("x_embedder.proj"),
        linear("embedder.time.mlp.up", "t_embedder.mlp.0"),
        linear("embedder.time.mlp.down", "t_embedder.mlp.2"),
        linear("blocks.*.attention.qkv", "blocks.*.attn.qkv"),
        linear("blocks.*.attention.out", "blocks.*.attn.proj"),
        linear("blocks.*.mlp.up", "blocks.*.mlp.fc1"),
        linear("blocks.*.mlp.down", "blocks.*.mlp.fc2"),
        chunked(linear("blocks.*.modulation.dense", "blocks.*.adaLN_modulation.1"), &BLOCK_CHUNKS),
        chunked(linear("head.modulation.dense", "final_layer.adaLN_modulation.1"), &HEAD_CHUNKS),
        linear("head.out", "final_layer.linear"),
    ];
    let mut rules = rules.concat();
    rules.push(Rule::new("embedder.label.weight", "y_embedder.embedding_table.weight", Copy));
    for step in 2..=steps {
        let (target, source) = (format!("later_heads.{}", step - 2), format!("final_layer{step}"));
        let modulation =
            linear(&format!("{target}.modulation.dense"), &format!("{source}.adaLN_modulation.1"));
        rules.extend(chunked(modulation, &HEAD_CHUNKS));
        rules.extend(linear(&format!("{target}.out"), &format!("{source}.linear")));
    }
    Layout::new("original DiT", rules, vec!["pos_embed"])
}

/// Pattern of the embedders' tensors in a block.
const EMBEDDERS: &str = "transformer_blocks.*.norm1.emb.";

/// Whether the blocks of a `DiTTransformer2DModel` hold embedders of their own instead of copies of one.
///
/// # Errors
/// A file that cannot be read.
pub fn embedder_per_block(checkpoint: &Checkpoint) -> Result<bool> {
    for name in checkpoint.tensors().keys() {
        let Some((block, rest)) = name.split_once(".norm1.emb.") else { continue };
        let first = format!("transformer_blocks.0.norm1.emb.{rest}");
        let other = block != "transformer_blocks.0" && checkpoint.tensors().contains_key(&first);
        if other && checkpoint.read(name)? != checkpoint.read(&first)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// `DiTTransformer2DModel`; see [`embedder_per_block`].
pub fn dit_diffusers(per_block: bool) -> Layout {
    let block = |name: &str| format!("transformer_blocks.*.{name}");
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
        rules.push(Rule::concat(&target, sources.to_vec(), transform));
    }
    let embedder = |prefix: &str, source: &str| -> Vec<Rule> {
        let mut rules = [
            linear(
                &format!("{prefix}embedder.time.mlp.up"),
                &format!("{source}timestep_embedder.linear_1"),
            ),
            linear(
                &format!("{prefix}embedder.time.mlp.down"),
                &format!("{source}timestep_embedder.linear_2"),
            ),
        ]
        .concat();
        rules.push(Rule::new(
            &format!("{prefix}embedder.label.weight"),
            &format!("{source}class_embedder.embedding_table.weight"),
            Copy,
        ));
        rules
    };
    rules.extend(embedder("", &EMBEDDERS.replace('*', "0")));
    let copies = match per_block {
        true => {
            rules.extend(embedder("blocks.*.", EMBEDDERS));
            Vec::new()
        }
        // Copies of the first block's, as was checked when the checkpoint was recognised.
        false => vec![
            "transformer_blocks.*.norm1.emb.timestep_embedder.*.*",
            "transformer_blocks.*.norm1.emb.class_embedder.embedding_table.weight",
        ],
    };
    Layout::new("diffusers DiT", rules, copies)
}

/// The spellings of a DiT's weights that LoRA files have: our own, the original code's, for a student of
/// `steps` steps, and that of diffusers.
///
/// A network whose blocks share an embedder cannot follow a LoRA of diffusers on the embedder of one block, so
/// these are unknown then.
pub fn dit_lora(steps: usize, per_block: bool) -> [Layout; 3] {
    let diffusers = match per_block {
        true => dit_diffusers(true),
        false => dit_diffusers(false).without("embedder.*.*.*.*"),
    };
    [Layout::native(), dit_original(steps), diffusers]
}
