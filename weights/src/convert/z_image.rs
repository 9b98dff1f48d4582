//! Z-Image and Lumina Image 2.0, of which it has its blocks: the names of diffusers, and those of the original code, which
//! ComfyUI keeps.

use super::dit::linear;
use crate::layout::{Layout, Rule, Transform};
use Transform::{Copy, Flatten, Transpose};

/// How files spell the same network.
struct Spelling {
    /// The layer from patches, and modulation and projection of the head.
    ends: [String; 3],
    /// Both layers of the embedding of the noise level.
    time: [&'static str; 2],
    /// Norm and layer of a text's tokens.
    caption: &'static str,
    /// Queries, keys and values; one name where they are side by side.
    qkv: &'static [&'static str],
    /// The output of the attention, and the norms of queries and of keys.
    attention: [&'static str; 3],
    /// What the MLP activates, what that is multiplied by, and its output.
    mlp: [&'static str; 3],
    /// Before and behind the attention, before and behind the MLP.
    norms: [&'static str; 4],
    /// The norm before the attention of blocks of texts alone.
    unmodulated: &'static str,
    modulation: &'static str,
    /// Heads of queries, and of keys.
    heads: [usize; 2],
}

/// `ZImageTransformer2DModel` with patches of this side, and so many heads of queries, and of keys.
pub fn z_image_diffusers(patch: usize, heads: [usize; 2]) -> Layout {
    let [up, head] = ["all_x_embedder", "all_final_layer"].map(|name| format!("{name}.{patch}-1"));
    let spelling = Spelling {
        ends: [up, format!("{head}.adaLN_modulation.1"), format!("{head}.linear")],
        qkv: &["attention.to_q", "attention.to_k", "attention.to_v"],
        attention: ["attention.to_out.0", "attention.norm_q", "attention.norm_k"],
        modulation: "adaLN_modulation.0",
        heads,
        ..lumina2()
    };
    Layout::new("diffusers Z-Image", rules(&spelling), Vec::new())
}

/// State dicts of the original code.
pub fn z_image_original() -> Layout {
    let spelling = Spelling { modulation: "adaLN_modulation.0", ..lumina2() };
    Layout::new("original Z-Image", rules(&spelling), NO_NORM.to_vec())
}

/// `Lumina2Transformer2DModel` with so many heads of queries, and of keys.
pub fn lumina2_diffusers(heads: [usize; 2]) -> Layout {
    let spelling = Spelling {
        ends: ["x_embedder", "norm_out.linear_1", "norm_out.linear_2"].map(str::to_owned),
        time: [
            "time_caption_embed.timestep_embedder.linear_1",
            "time_caption_embed.timestep_embedder.linear_2",
        ],
        caption: "time_caption_embed.caption_embedder",
        qkv: &["attn.to_q", "attn.to_k", "attn.to_v"],
        attention: ["attn.to_out.0", "attn.norm_q", "attn.norm_k"],
        mlp: ["linear_1", "linear_3", "linear_2"],
        norms: ["norm1.norm", "norm2", "ffn_norm1", "ffn_norm2"],
        unmodulated: "norm1",
        modulation: "norm1.linear",
        heads,
    };
    Layout::new("diffusers Lumina Image 2.0", rules(&spelling), Vec::new())
}

/// State dicts of the original code of Lumina Image 2.0.
pub fn lumina2_original() -> Layout {
    Layout::new("original Lumina Image 2.0", rules(&lumina2()), NO_NORM.to_vec())
}

/// The spellings of a Z-Image's weights that LoRA files have: our own, the original code's, and that of diffusers.
pub fn z_image_lora(patch: usize, heads: [usize; 2]) -> [Layout; 3] {
    [Layout::native(), z_image_original(), z_image_diffusers(patch, heads)]
}

/// The same of Lumina Image 2.0.
pub fn lumina2_lora(heads: [usize; 2]) -> [Layout; 3] {
    [Layout::native(), lumina2_original(), lumina2_diffusers(heads)]
}

/// Some original files hold a norm that nothing goes through.
const NO_NORM: [&str; 1] = ["norm_final.weight"];

/// That of the original code.
fn lumina2() -> Spelling {
    Spelling {
        ends: ["x_embedder", "final_layer.adaLN_modulation.1", "final_layer.linear"]
            .map(str::to_owned),
        time: ["t_embedder.mlp.0", "t_embedder.mlp.2"],
        caption: "cap_embedder",
        qkv: &["attention.qkv"],
        attention: ["attention.out", "attention.q_norm", "attention.k_norm"],
        mlp: ["w1", "w3", "w2"],
        norms: ["attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2"],
        unmodulated: "attention_norm1",
        modulation: "adaLN_modulation.1",
        heads: [1; 2],
    }
}

fn rules(spelling: &Spelling) -> Vec<Rule> {
    let [patch, modulation, head] = &spelling.ends;
    let ([up, down], caption) = (spelling.time, spelling.caption);
    let mut rules = [
        linear("patch", patch),
        linear("embedder.time.mlp.up", up),
        linear("embedder.time.mlp.down", down),
        linear("caption.up", &format!("{caption}.1")),
        linear("head.modulation.dense", modulation),
        linear("head.out", head),
    ]
    .concat();
    rules.extend([
        Rule::new("caption.norm", &format!("{caption}.0.weight"), Copy),
        Rule::new("refiners.fill.image", "x_pad_token", Flatten),
        Rule::new("refiners.fill.text", "cap_pad_token", Flatten),
    ]);
    let [before, ..] = spelling.norms;
    for (target, source, before) in [
        ("blocks", "layers", before),
        ("refiners.image", "noise_refiner", before),
        ("refiners.text", "context_refiner", spelling.unmodulated),
    ] {
        rules.extend(block(spelling, target, source, before));
    }
    rules
}

fn block(spelling: &Spelling, target: &str, source: &str, before: &str) -> Vec<Rule> {
    let ([out, query, key], [gate, up, down]) = (spelling.attention, spelling.mlp);
    let [_, behind, before_mlp, behind_mlp] = spelling.norms;
    let (target, source) = (format!("{target}.*"), format!("{source}.*"));
    let weight = |name: &str| format!("{source}.{name}.weight");
    let qkv: Vec<String> = spelling.qkv.iter().map(|part| weight(part)).collect();
    let [queries, keys] = spelling.heads;
    let shares = (qkv.len() > 1).then(|| vec![queries, keys, keys]);
    let gated = [gate, up].map(|part| weight(&format!("feed_forward.{part}"))).to_vec();
    let down = format!("feed_forward.{down}");
    let mut rules = vec![
        Rule { shares, ..Rule::concat(&format!("{target}.attention.qkv.weight"), qkv, Transpose) },
        Rule::concat(&format!("{target}.mlp.up.weight"), gated, Transpose),
    ];
    for (ours, theirs, transform) in [
        ("attention.out.weight", out, Transpose),
        ("attention.norm.query", query, Copy),
        ("attention.norm.key", key, Copy),
        ("mlp.down.weight", &down, Transpose),
        ("norms.before_attention", before, Copy),
        ("norms.after_attention", behind, Copy),
        ("norms.before_mlp", before_mlp, Copy),
        ("norms.after_mlp", behind_mlp, Copy),
    ] {
        rules.push(Rule::new(&format!("{target}.{ours}"), &weight(theirs), transform));
    }
    let modulation = format!("{source}.{}", spelling.modulation);
    rules.extend(linear(&format!("{target}.modulation.dense"), &modulation));
    rules
}
