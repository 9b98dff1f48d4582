//! AutoencoderKL in its three spellings, and AutoencoderTiny.

use crate::checkpoint::Checkpoint;
use crate::layout::{Layout, Rule, Transform};
use Transform::{Copy, Transpose};

/// A norm, a convolution or a linear layer: weight and bias.
fn pair(rules: &mut Vec<Rule>, target: [&str; 3], source: &str, transform: Transform) {
    let [layer, weight, bias] = target;
    let name = |kind: &str| format!("{source}.{kind}");
    rules.push(Rule::new(&format!("{layer}.{weight}"), &name("weight"), transform));
    rules.push(Rule::new(&format!("{layer}.{bias}"), &name("bias"), Copy));
}

fn conv(rules: &mut Vec<Rule>, target: &str, source: &str) {
    pair(rules, [target, "weight", "bias"], source, Copy);
}

fn norm(rules: &mut Vec<Rule>, target: &str, source: &str) {
    pair(rules, [target, "gamma", "beta"], source, Copy);
}

fn res_block(rules: &mut Vec<Rule>, target: &str, source: &str, shortcut: &str) {
    for i in ["1", "2"] {
        norm(rules, &format!("{target}.norm{i}"), &format!("{source}.norm{i}"));
        conv(rules, &format!("{target}.conv{i}"), &format!("{source}.conv{i}"));
    }
    conv(rules, &format!("{target}.shortcut"), &format!("{source}.{shortcut}"));
}

/// Names of the attention's norm, queries, keys, values and output.
fn attention(rules: &mut Vec<Rule>, target: &str, source: &str, names: [&str; 5]) {
    norm(rules, &format!("{target}.norm"), &format!("{source}.{}", names[0]));
    for (ours, theirs) in ["q", "k", "v", "out"].into_iter().zip(&names[1..]) {
        let layer = format!("{target}.{ours}");
        pair(rules, [&layer, "weight", "bias"], &format!("{source}.{theirs}"), Transpose);
    }
}

const DIFFUSERS_ATTENTION: [&str; 5] = ["group_norm", "to_q", "to_k", "to_v", "to_out.0"];
const FORMER_ATTENTION: [&str; 5] = ["group_norm", "query", "key", "value", "proj_attn"];
const COMPVIS_ATTENTION: [&str; 5] = ["norm", "q", "k", "v", "proj_out"];

/// Whether these are the tensors of an AutoencoderKL.
pub fn is_autoencoder(checkpoint: &Checkpoint) -> bool {
    let has = |name: &str| checkpoint.tensors().contains_key(name);
    has("decoder.norm_out.weight") || has("decoder.conv_norm_out.weight")
}

/// The table for an AutoencoderTiny with so many residual blocks at each level, finest first: its layers are numbered
/// through, those without weights as well.
pub fn autoencoder_tiny(encoder: &[usize], decoder: &[usize]) -> Layout {
    let mut rules = Vec::new();
    let mut half = |half: &str, levels: &str, blocks: &[usize], first: usize| {
        conv(&mut rules, &format!("{half}.conv_in"), &format!("{half}.layers.0"));
        let mut next = first;
        for (level, &count) in blocks.iter().enumerate() {
            for block in 0..count {
                for i in 0..3 {
                    let target = format!("{half}.{levels}.{level}.blocks.{block}.conv{}", i + 1);
                    let source = format!("{half}.layers.{next}.conv.{}", 2 * i);
                    conv(&mut rules, &target, &source);
                }
                next += 1;
            }
            // An image is doubled in a layer of its own, before its convolution.
            let is_last = level + 1 == blocks.len();
            next += usize::from(half == "decoder" && !is_last);
            let target = match is_last {
                true => format!("{half}.conv_out"),
                false => format!("{half}.{levels}.{level}.sample"),
            };
            conv(&mut rules, &target, &format!("{half}.layers.{next}"));
            next += 1;
        }
    };
    half("encoder", "down", encoder, 1);
    let from_coarsest: Vec<usize> = decoder.iter().rev().copied().collect();
    // After the first convolution and its ReLU.
    half("decoder", "up", &from_coarsest, 2);
    Layout::new("AutoencoderTiny", rules, Vec::new())
}

/// The table for an autoencoder of `levels` resolutions, in the spelling that the checkpoint has.
pub fn autoencoder(checkpoint: &Checkpoint, levels: usize) -> Layout {
    let has = |name: &str| checkpoint.tensors().contains_key(name);
    let former = has("decoder.mid_block.attentions.0.query.weight");
    let layout = match has("decoder.norm_out.weight") {
        // That of FLUX.2 has them within its halves.
        true if has("decoder.post_quant_conv.weight") => {
            compvis(levels, ["encoder.quant_conv", "decoder.post_quant_conv"])
        }
        true => compvis(levels, QUANT),
        false => diffusers(if former { FORMER_ATTENTION } else { DIFFUSERS_ATTENTION }),
    };
    let statistics = [("mean", "running_mean"), ("variance", "running_var")]
        .map(|(own, their)| Rule::new(&format!("statistics.{own}"), &format!("bn.{their}"), Copy));
    layout.with(statistics.to_vec(), vec!["bn.num_batches_tracked"])
}

/// The convolutions around the latent.
const QUANT: [&str; 2] = ["quant_conv", "post_quant_conv"];

fn quant(rules: &mut Vec<Rule>, convolutions: [&str; 2]) {
    for (target, source) in ["quant", "post_quant"].into_iter().zip(convolutions) {
        conv(rules, target, source);
    }
}

fn common(rules: &mut Vec<Rule>, half: &str, norm_out: &str) {
    conv(rules, &format!("{half}.conv_in"), &format!("{half}.conv_in"));
    norm(rules, &format!("{half}.norm"), &format!("{half}.{norm_out}"));
    conv(rules, &format!("{half}.conv_out"), &format!("{half}.conv_out"));
}

fn diffusers(names: [&str; 5]) -> Layout {
    let mut rules = Vec::new();
    for (half, levels, sampler) in
        [("encoder", "down", "downsamplers"), ("decoder", "up", "upsamplers")]
    {
        common(&mut rules, half, "conv_norm_out");
        let (ours, theirs) = (format!("{half}.{levels}.*"), format!("{half}.{levels}_blocks.*"));
        let (block, resnet) = (format!("{ours}.blocks.*"), format!("{theirs}.resnets.*"));
        res_block(&mut rules, &block, &resnet, "conv_shortcut");
        conv(&mut rules, &format!("{ours}.sample"), &format!("{theirs}.{sampler}.0.conv"));
        let (ours, theirs) = (format!("{half}.mid"), format!("{half}.mid_block"));
        for (name, i) in [("first", 0), ("second", 1)] {
            let resnet = format!("{theirs}.resnets.{i}");
            res_block(&mut rules, &format!("{ours}.{name}"), &resnet, "conv_shortcut");
        }
        let layer = format!("{theirs}.attentions.0");
        attention(&mut rules, &format!("{ours}.attention"), &layer, names);
    }
    quant(&mut rules, QUANT);
    Layout::new("AutoencoderKL", rules, Vec::new())
}

/// The original code numbers the decoder's levels from the finest.
fn compvis(levels: usize, convolutions: [&str; 2]) -> Layout {
    let mut rules = Vec::new();
    for (half, ours, sampler) in [("encoder", "down", "downsample"), ("decoder", "up", "upsample")]
    {
        common(&mut rules, half, "norm_out");
        for level in 0..levels {
            let theirs = if ours == "up" { levels - 1 - level } else { level };
            let (target, source) =
                (format!("{half}.{ours}.{level}"), format!("{half}.{ours}.{theirs}"));
            let (block, resnet) = (format!("{target}.blocks.*"), format!("{source}.block.*"));
            res_block(&mut rules, &block, &resnet, "nin_shortcut");
            conv(&mut rules, &format!("{target}.sample"), &format!("{source}.{sampler}.conv"));
        }
        let mid = format!("{half}.mid");
        for (name, i) in [("first", 1), ("second", 2)] {
            let block = format!("{mid}.block_{i}");
            res_block(&mut rules, &format!("{mid}.{name}"), &block, "nin_shortcut");
        }
        let layer = format!("{mid}.attn_1");
        attention(&mut rules, &format!("{mid}.attention"), &layer, COMPVIS_ATTENTION);
    }
    quant(&mut rules, convolutions);
    // Training checkpoints hold the discriminator of the loss as well.
    Layout::new("latent diffusion autoencoder", rules, Vec::new())
}
