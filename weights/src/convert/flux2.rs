//! FLUX.2: the names of diffusers, and those of the original code.

use super::dit::{BLOCK_CHUNKS, HEAD_CHUNKS};
use crate::layout::{Layout, Part, Rule, Transform};
use Transform::{Copy, Transpose};

/// Parts of the modulation of a block that adds attention and MLP: shift, scale and gate, ours scale, shift and gate.
const SHARED_CHUNKS: [usize; 3] = [1, 0, 2];

/// Widths of the layers that hold several of ours.
#[derive(Debug, Clone, Copy)]
pub struct Flux2Widths {
    /// Width of a token.
    pub hidden: usize,
    /// Inner width of the MLPs.
    pub inner: usize,
    /// Blocks with layers of their own for the text, which come first.
    pub separate: usize,
    /// Blocks that text and image share.
    pub shared: usize,
}

/// What differs between the spellings but for the names of blocks.
struct Spelling {
    /// Our names of layers, and theirs.
    ends: [(&'static str, &'static str); 9],
    /// Of blocks with layers of their own for the text, theirs for the image and for the text: queries, keys and values;
    /// output; norms of queries and keys; both layers of the MLP.
    separate: [[&'static [&'static str]; 6]; 2],
    /// Of blocks that text and image share: the first layer, the last, and the norms.
    shared: [&'static str; 4],
    /// Names of both kinds of blocks.
    blocks: [&'static str; 2],
    /// Whether the head's modulation begins with the shift.
    head_shift_first: bool,
}

/// `Flux2Transformer2DModel`.
pub fn flux2_diffusers(widths: Flux2Widths) -> Layout {
    let spelling = Spelling {
        ends: [
            ("patch", "x_embedder"),
            ("caption.up", "context_embedder"),
            ("embedder.time.mlp.up", "time_guidance_embed.timestep_embedder.linear_1"),
            ("embedder.time.mlp.down", "time_guidance_embed.timestep_embedder.linear_2"),
            ("single", "double_stream_modulation_img.linear"),
            ("common.text", "double_stream_modulation_txt.linear"),
            ("common.shared", "single_stream_modulation.linear"),
            ("head.modulation.dense", "norm_out.linear"),
            ("head.out", "proj_out"),
        ],
        separate: [
            [
                &["attn.to_q", "attn.to_k", "attn.to_v"],
                &["attn.to_out.0"],
                &["attn.norm_q"],
                &["attn.norm_k"],
                &["ff.linear_in"],
                &["ff.linear_out"],
            ],
            [
                &["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
                &["attn.to_add_out"],
                &["attn.norm_added_q"],
                &["attn.norm_added_k"],
                &["ff_context.linear_in"],
                &["ff_context.linear_out"],
            ],
        ],
        shared: ["attn.to_qkv_mlp_proj", "attn.to_out", "attn.norm_q", "attn.norm_k"],
        blocks: ["transformer_blocks", "single_transformer_blocks"],
        head_shift_first: false,
    };
    Layout::new("diffusers FLUX.2", rules(&spelling, "weight", widths), Vec::new())
}

/// State dicts of the original code.
pub fn flux2_original(widths: Flux2Widths) -> Layout {
    let spelling = Spelling {
        ends: [
            ("patch", "img_in"),
            ("caption.up", "txt_in"),
            ("embedder.time.mlp.up", "time_in.in_layer"),
            ("embedder.time.mlp.down", "time_in.out_layer"),
            ("single", "double_stream_modulation_img.lin"),
            ("common.text", "double_stream_modulation_txt.lin"),
            ("common.shared", "single_stream_modulation.lin"),
            ("head.modulation.dense", "final_layer.adaLN_modulation.1"),
            ("head.out", "final_layer.linear"),
        ],
        separate: [
            [
                &["img_attn.qkv"],
                &["img_attn.proj"],
                &["img_attn.norm.query_norm"],
                &["img_attn.norm.key_norm"],
                &["img_mlp.0"],
                &["img_mlp.2"],
            ],
            [
                &["txt_attn.qkv"],
                &["txt_attn.proj"],
                &["txt_attn.norm.query_norm"],
                &["txt_attn.norm.key_norm"],
                &["txt_mlp.0"],
                &["txt_mlp.2"],
            ],
        ],
        shared: ["linear1", "linear2", "norm.query_norm", "norm.key_norm"],
        blocks: ["double_blocks", "single_blocks"],
        head_shift_first: true,
    };
    Layout::new("original FLUX.2", rules(&spelling, "scale", widths), Vec::new())
}

/// The spellings of a FLUX.2's weights that LoRA files have: our own, the original code's, and that of diffusers.
pub fn flux2_lora(widths: Flux2Widths) -> [Layout; 3] {
    [Layout::native(), flux2_original(widths), flux2_diffusers(widths)]
}

/// The rules; factors of norms have the name `gain`.
fn rules(spelling: &Spelling, gain: &str, widths: Flux2Widths) -> Vec<Rule> {
    let mut rules = Vec::new();
    let [separate, shared] = spelling.blocks;
    // Before the rules of the others, whose pattern they have, too.
    let [first, last, query, key] = spelling.shared;
    let (qkv, all) = (3 * widths.hidden, 3 * widths.hidden + 2 * widths.inner);
    let out = widths.hidden + widths.inner;
    for (ours, theirs, part) in [
        ("attention.qkv", first, Part::Outputs(0..qkv)),
        ("mlp.up", first, Part::Outputs(qkv..all)),
        ("attention.out", last, Part::Inputs(0..widths.hidden)),
        ("mlp.down", last, Part::Inputs(widths.hidden..out)),
    ] {
        for block in 0..widths.shared {
            let ours = format!("blocks.{}.{ours}.weight", widths.separate + block);
            let rule = Rule::new(&ours, &format!("{shared}.{block}.{theirs}.weight"), Transpose);
            rules.push(Rule { part: Some(part.clone()), ..rule });
        }
    }
    for (ours, theirs) in [("query", query), ("key", key)] {
        for block in 0..widths.shared {
            let ours = format!("blocks.{}.attention.norm.{ours}", widths.separate + block);
            rules.push(Rule::new(&ours, &format!("{shared}.{block}.{theirs}.{gain}"), Copy));
        }
    }
    for (ours, theirs) in spelling.ends {
        let rule = Rule::new(&format!("{ours}.weight"), &format!("{theirs}.weight"), Transpose);
        let chunks = match ours {
            "single" | "common.text" => Some(BLOCK_CHUNKS.to_vec()),
            "common.shared" => Some(SHARED_CHUNKS.to_vec()),
            "head.modulation.dense" if spelling.head_shift_first => Some(HEAD_CHUNKS.to_vec()),
            _ => None,
        };
        rules.push(Rule { chunks, ..rule });
    }
    for (side, names) in ["", "text."].into_iter().zip(spelling.separate) {
        for ((ours, transform), theirs) in LAYERS.into_iter().zip(names) {
            let kind = if transform == Copy { gain } else { "weight" };
            let sources = theirs.iter().map(|name| format!("{separate}.*.{name}.{kind}")).collect();
            rules.push(Rule::concat(&format!("blocks.*.{side}{ours}"), sources, transform));
        }
    }
    rules
}

/// Our layers of a block, for the image and for the text, in the order of [`Spelling::separate`].
const LAYERS: [(&str, Transform); 6] = [
    ("attention.qkv.weight", Transpose),
    ("attention.out.weight", Transpose),
    ("attention.norm.query", Copy),
    ("attention.norm.key", Copy),
    ("mlp.up.weight", Transpose),
    ("mlp.down.weight", Transpose),
];
