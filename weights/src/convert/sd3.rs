//! Stable Diffusion 3: the names of diffusers, and those of the original code.

use super::dit::{BLOCK_CHUNKS, HEAD_CHUNKS, chunked, linear, patch};
use crate::layout::{Layout, Rule, Transform};
use Transform::{Copy, Transpose, Unbatch};

/// Parts of the modulation of a block with a second attention: shift, scale and gate of each branch, ours scale, shift and
/// gate.
const DUAL_CHUNKS: [usize; 9] = [1, 0, 2, 4, 3, 5, 7, 6, 8];

/// Blocks whose layers are not those of the others.
#[derive(Debug, Clone, Copy)]
pub struct Sd3Blocks {
    /// All of them; the last one closes.
    pub depth: usize,
    /// The first ones, which have a second attention.
    pub dual: usize,
}

/// Names of the layers of a block, but for the feed-forward ones.
struct Attention {
    /// Queries, keys and values; one name where they are side by side.
    qkv: &'static [&'static str],
    out: &'static str,
    /// Of queries and of keys.
    norms: [&'static str; 2],
}

/// What a block of the image, the text or a second attention is called.
struct Side {
    ours: &'static str,
    attention: Attention,
    modulation: Option<&'static str>,
    mlp: Option<[&'static str; 2]>,
}

/// `SD3Transformer2DModel`.
pub fn sd3_diffusers(blocks: Sd3Blocks) -> Layout {
    let mut rules = [
        patch("pos_embed.proj"),
        linear("embedder.time.mlp.up", "time_text_embed.timestep_embedder.linear_1"),
        linear("embedder.time.mlp.down", "time_text_embed.timestep_embedder.linear_2"),
        linear("embedder.pooled.up", "time_text_embed.text_embedder.linear_1"),
        linear("embedder.pooled.down", "time_text_embed.text_embedder.linear_2"),
        linear("caption.up", "context_embedder"),
        linear("head.modulation.dense", "norm_out.linear"),
        linear("head.out", "proj_out"),
    ]
    .concat();
    let sides = [
        Side {
            ours: "",
            attention: Attention {
                qkv: &["attn.to_q", "attn.to_k", "attn.to_v"],
                out: "attn.to_out.0",
                norms: ["attn.norm_q", "attn.norm_k"],
            },
            modulation: Some("norm1.linear"),
            mlp: Some(["ff.net.0.proj", "ff.net.2"]),
        },
        Side {
            ours: "text.",
            attention: Attention {
                qkv: &["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
                out: "attn.to_add_out",
                norms: ["attn.norm_added_q", "attn.norm_added_k"],
            },
            modulation: Some("norm1_context.linear"),
            mlp: Some(["ff_context.net.0.proj", "ff_context.net.2"]),
        },
        Side {
            ours: "second.",
            attention: Attention {
                qkv: &["attn2.to_q", "attn2.to_k", "attn2.to_v"],
                out: "attn2.to_out.0",
                norms: ["attn2.norm_q", "attn2.norm_k"],
            },
            modulation: None,
            mlp: None,
        },
    ];
    // The text of the last block is scaled before it is shifted, as with us.
    rules.extend(of_blocks("transformer_blocks", &sides, blocks, false));
    rules.push(table("pos_embed.pos_embed"));
    Layout::new("diffusers SD3", rules, Vec::new())
}

/// State dicts of the original code.
pub fn sd3_original(blocks: Sd3Blocks) -> Layout {
    let mut rules = [
        patch("x_embedder.proj"),
        linear("embedder.time.mlp.up", "t_embedder.mlp.0"),
        linear("embedder.time.mlp.down", "t_embedder.mlp.2"),
        linear("embedder.pooled.up", "y_embedder.mlp.0"),
        linear("embedder.pooled.down", "y_embedder.mlp.2"),
        linear("caption.up", "context_embedder"),
        chunked(linear("head.modulation.dense", "final_layer.adaLN_modulation.1"), &HEAD_CHUNKS),
        linear("head.out", "final_layer.linear"),
    ]
    .concat();
    let sides = [
        Side {
            ours: "",
            attention: Attention {
                qkv: &["x_block.attn.qkv"],
                out: "x_block.attn.proj",
                norms: ["x_block.attn.ln_q", "x_block.attn.ln_k"],
            },
            modulation: Some("x_block.adaLN_modulation.1"),
            mlp: Some(["x_block.mlp.fc1", "x_block.mlp.fc2"]),
        },
        Side {
            ours: "text.",
            attention: Attention {
                qkv: &["context_block.attn.qkv"],
                out: "context_block.attn.proj",
                norms: ["context_block.attn.ln_q", "context_block.attn.ln_k"],
            },
            modulation: Some("context_block.adaLN_modulation.1"),
            mlp: Some(["context_block.mlp.fc1", "context_block.mlp.fc2"]),
        },
        Side {
            ours: "second.",
            attention: Attention {
                qkv: &["x_block.attn2.qkv"],
                out: "x_block.attn2.proj",
                norms: ["x_block.attn2.ln_q", "x_block.attn2.ln_k"],
            },
            modulation: None,
            mlp: None,
        },
    ];
    rules.extend(of_blocks("joint_blocks", &sides, blocks, true));
    rules.push(table("pos_embed"));
    Layout::new("original SD3", rules, Vec::new())
}

/// The table of positions, `[1, tokens, hidden]`.
fn table(source: &str) -> Rule {
    Rule::new("table", source, Unbatch)
}

/// The spellings of an SD3's weights that LoRA files have: our own, the original code's, and that of diffusers.
pub fn sd3_lora(blocks: Sd3Blocks) -> [Layout; 3] {
    [Layout::native(), sd3_original(blocks), sd3_diffusers(blocks)]
}

/// Rules of all blocks; `shift_first` is the order of the text's modulation in the last.
fn of_blocks(theirs: &str, sides: &[Side], blocks: Sd3Blocks, shift_first: bool) -> Vec<Rule> {
    let mut rules = Vec::new();
    // Before the rules of the others, whose pattern they have, too.
    for side in sides {
        let Some(source) = side.modulation else { continue };
        let mut own = |block: usize, chunks: Option<&[usize]>| {
            let (target, source) = (
                format!("blocks.{block}.{}modulation.dense", side.ours),
                format!("{theirs}.{block}.{source}"),
            );
            rules.extend(match chunks {
                Some(order) => chunked(linear(&target, &source), order),
                None => linear(&target, &source),
            });
        };
        match side.ours {
            "text." => own(blocks.depth.saturating_sub(1), shift_first.then_some(&HEAD_CHUNKS)),
            _ => (0..blocks.dual).for_each(|block| own(block, Some(&DUAL_CHUNKS))),
        }
    }
    for Side { ours, attention, modulation, mlp } in sides {
        let (target, source) = (format!("blocks.*.{ours}"), format!("{theirs}.*."));
        // A second attention is no branch with a name.
        let layer = if *ours == "second." { target.clone() } else { format!("{target}attention.") };
        for (kind, transform) in [("weight", Transpose), ("bias", Copy)] {
            let qkv = attention.qkv.iter().map(|part| format!("{source}{part}.{kind}")).collect();
            rules.push(Rule::concat(&format!("{layer}qkv.{kind}"), qkv, transform));
        }
        rules.extend(linear(&format!("{layer}out"), &format!("{source}{}", attention.out)));
        for (own, name) in ["query", "key"].into_iter().zip(attention.norms) {
            let name = format!("{source}{name}.weight");
            rules.push(Rule::new(&format!("{layer}norm.{own}"), &name, Copy));
        }
        if let Some(name) = modulation {
            let own = linear(&format!("{target}modulation.dense"), &format!("{source}{name}"));
            rules.extend(chunked(own, &BLOCK_CHUNKS));
        }
        for (own, name) in ["up", "down"].into_iter().zip(mlp.iter().flatten()) {
            rules.extend(linear(&format!("{target}mlp.{own}"), &format!("{source}{name}")));
        }
    }
    rules
}
