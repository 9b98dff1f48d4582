//! The networks for faces as face-api names their weights.

use crate::layout::{Layout, Rule, Transform::Copy};

fn rule(target: &str, source: &str) -> Rule {
    Rule::new(target, source, Copy)
}

/// A filter per channel, then 1 x 1.
fn separable(target: &str, source: &str) -> [Rule; 3] {
    let parts =
        [("depthwise", "depthwise_filter"), ("pointwise", "pointwise_filter"), ("bias", "bias")];
    parts.map(|(ours, theirs)| rule(&format!("{target}.{ours}"), &format!("{source}/{theirs}")))
}

fn conv(target: &str, source: &str) -> [Rule; 2] {
    ["filters", "bias"].map(|part| rule(&format!("{target}.{part}"), &format!("{source}/{part}")))
}

/// `tiny_face_detector_model`.
pub fn face_detector() -> Layout {
    let layer = |i: usize| separable(&format!("layers.{i}"), &format!("conv{}", i + 1));
    let layers = (0..5).flat_map(layer);
    let rules = conv("stem", "conv0").into_iter().chain(layers).chain(conv("head", "conv8"));
    Layout::new("face-api detector", rules.collect(), Vec::new())
}

/// `face_landmark_68_model` and `face_expression_model`.
pub fn face_reader() -> Layout {
    // The first of the four convolutions of the first block stands apart.
    let layer = |i: usize| {
        let (block, layer) = ((i + 1) / 4, (i + 1) % 4);
        separable(&format!("layers.{i}"), &format!("dense{block}/conv{layer}"))
    };
    let head = [rule("weight", "fc/weights"), rule("bias", "fc/bias")];
    let stem = conv("stem", "dense0/conv0").into_iter();
    Layout::new(
        "face-api reader",
        stem.chain((0..15).flat_map(layer)).chain(head).collect(),
        Vec::new(),
    )
}

/// `face_recognition_model`.
pub fn face_recogniser() -> Layout {
    let blocks = [
        "32_1",
        "32_2",
        "32_3",
        "64_down",
        "64_1",
        "64_2",
        "64_3",
        "128_down",
        "128_1",
        "128_2",
        "256_down",
        "256_1",
        "256_2",
        "256_down_out",
    ];
    let layer = |target: String, source: String| {
        let scale = [("gain", "weights"), ("shift", "biases")].map(|(ours, theirs)| {
            rule(&format!("{target}.{ours}"), &format!("{source}/scale/{theirs}"))
        });
        let conv = conv(&format!("{target}.conv"), &format!("{source}/conv"));
        conv.into_iter().chain(scale).collect::<Vec<Rule>>()
    };
    let block = |(i, name): (usize, &str)| {
        let first = layer(format!("blocks.{i}.first"), format!("conv{name}/conv1"));
        [first, layer(format!("blocks.{i}.second"), format!("conv{name}/conv2"))].concat()
    };
    let mut rules = layer("stem".to_owned(), "conv32_down".to_owned());
    rules.extend(blocks.into_iter().enumerate().flat_map(block));
    rules.push(rule("head", "fc"));
    Layout::new("face-api recogniser", rules, Vec::new())
}
