//! EfficientNet-Lite as PyTorch packages name it.

use crate::layout::{Layout, Rule, Transform::Copy};

/// State dicts of `efficientnet_lite_pytorch`; the classifier is left out.
pub fn efficientnet_lite() -> Layout {
    let unit = |target: &str, conv: &str, norm: &str| {
        let rule =
            |part: &str, source: String| Rule::new(&format!("{target}.{part}"), &source, Copy);
        [
            rule("conv", format!("{conv}.weight")),
            rule("gain", format!("{norm}.weight")),
            rule("bias", format!("{norm}.bias")),
            rule("mean", format!("{norm}.running_mean")),
            rule("variance", format!("{norm}.running_var")),
        ]
    };
    let rules = [
        unit("stem", "_conv_stem", "_bn0"),
        unit("blocks.*.expand", "_blocks.*._expand_conv", "_blocks.*._bn0"),
        unit("blocks.*.depthwise", "_blocks.*._depthwise_conv", "_blocks.*._bn1"),
        unit("blocks.*.project", "_blocks.*._project_conv", "_blocks.*._bn2"),
        unit("head", "_conv_head", "_bn1"),
    ];
    let unused = vec!["_fc.weight", "_fc.bias"];
    Layout::new("EfficientNet-Lite", rules.concat(), unused)
}
