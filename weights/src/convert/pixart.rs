//! PixArt: the original code, and its diffusers port.

use super::dit::{BLOCK_CHUNKS, HEAD_CHUNKS, chunked, linear, patch};
use crate::layout::{Layout, Rule, Transform};
use Transform::{Copy, Flatten, Transpose};

/// State dicts of the original code.
pub fn pixart_original() -> Layout {
    let mut rules = [
        patch("x_embedder.proj"),
        linear("embedder.time.mlp.up", "t_embedder.mlp.0"),
        linear("embedder.time.mlp.down", "t_embedder.mlp.2"),
        linear("embedder.size.side.mlp.up", "csize_embedder.mlp.0"),
        linear("embedder.size.side.mlp.down", "csize_embedder.mlp.2"),
        linear("embedder.size.ratio.mlp.up", "ar_embedder.mlp.0"),
        linear("embedder.size.ratio.mlp.down", "ar_embedder.mlp.2"),
        chunked(linear("single", "t_block.1"), &BLOCK_CHUNKS),
        linear("caption.up", "y_embedder.y_proj.fc1"),
        linear("caption.down", "y_embedder.y_proj.fc2"),
        linear("blocks.*.attention.qkv", "blocks.*.attn.qkv"),
        linear("blocks.*.attention.out", "blocks.*.attn.proj"),
        linear("blocks.*.cross.q", "blocks.*.cross_attn.q_linear"),
        linear("blocks.*.cross.kv", "blocks.*.cross_attn.kv_linear"),
        linear("blocks.*.cross.out", "blocks.*.cross_attn.proj"),
        linear("blocks.*.mlp.up", "blocks.*.mlp.fc1"),
        linear("blocks.*.mlp.down", "blocks.*.mlp.fc2"),
        linear("head.out", "final_layer.linear"),
    ]
    .concat();
    rules.extend(tables("blocks.*.scale_shift_table", "final_layer.scale_shift_table"));
    // The table of positions follows from the configuration; for no text stands the encoded empty one, as in diffusers.
    Layout::new("original PixArt", rules, vec!["pos_embed", "y_embedder.y_embedding"])
}

/// `PixArtTransformer2DModel`, and `Transformer2DModel` as it was called before.
pub fn pixart_diffusers() -> Layout {
    let block = |name: &str| format!("transformer_blocks.*.{name}");
    let embedder = |target: &str, source: &str| -> Vec<Rule> {
        let (target, source) =
            (format!("embedder.{target}.mlp"), format!("adaln_single.emb.{source}"));
        [
            linear(&format!("{target}.up"), &format!("{source}.linear_1")),
            linear(&format!("{target}.down"), &format!("{source}.linear_2")),
        ]
        .concat()
    };
    let mut rules = [
        patch("pos_embed.proj"),
        linear("caption.up", "caption_projection.linear_1"),
        linear("caption.down", "caption_projection.linear_2"),
        chunked(linear("single", "adaln_single.linear"), &BLOCK_CHUNKS),
        linear("blocks.*.attention.out", &block("attn1.to_out.0")),
        linear("blocks.*.cross.q", &block("attn2.to_q")),
        linear("blocks.*.cross.out", &block("attn2.to_out.0")),
        linear("blocks.*.mlp.up", &block("ff.net.0.proj")),
        linear("blocks.*.mlp.down", &block("ff.net.2")),
        linear("head.out", "proj_out"),
    ]
    .concat();
    rules.extend(embedder("time", "timestep_embedder"));
    rules.extend(embedder("size.side", "resolution_embedder"));
    rules.extend(embedder("size.ratio", "aspect_ratio_embedder"));
    for (kind, transform) in [("weight", Transpose), ("bias", Copy)] {
        for (target, attention, parts) in
            [("attention.qkv", "attn1", &["q", "k", "v"][..]), ("cross.kv", "attn2", &["k", "v"])]
        {
            let source = |part: &&str| block(&format!("{attention}.to_{part}.{kind}"));
            let target = format!("blocks.*.{target}.{kind}");
            rules.push(Rule::concat(&target, parts.iter().map(source).collect(), transform));
        }
    }
    rules.extend(tables(&block("scale_shift_table"), "scale_shift_table"));
    // As in the original.
    let fixed = vec!["pos_embed.pos_embed", "caption_projection.y_embedding"];
    Layout::new("diffusers PixArt", rules, fixed)
}

/// The modulation of the blocks and that of the head, which are tables beside what all blocks share.
fn tables(blocks: &str, head: &str) -> [Rule; 2] {
    [("blocks.*", blocks, &BLOCK_CHUNKS[..]), ("head", head, &HEAD_CHUNKS)].map(
        |(part, source, order)| {
            let rule = Rule::new(&format!("{part}.modulation.table"), source, Flatten);
            Rule { chunks: Some(order.to_vec()), ..rule }
        },
    )
}

/// The spellings of a PixArt's weights that LoRA files have: our own, the original code's, and that of diffusers.
pub fn pixart_lora() -> [Layout; 3] {
    [Layout::native(), pixart_original(), pixart_diffusers()]
}
