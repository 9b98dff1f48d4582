//! PixArt against diffusers.

use burn::tensor::Tensor;
use pyrograph::model::pixart;
use pyrograph_engine::nets::{Conditioning, Text};
use pyrograph_weights::FloatDtype;

use crate::util::{Case, assert_close, cases, copy_folder, device, json, tolerance};

#[test]
fn pixart_blocks_and_output_are_those_of_diffusers() {
    for folder in ["pixart-sigma", "pixart-alpha"].iter().flat_map(|name| cases(name)) {
        let (case, device) = (Case::open(&folder), device());
        let net = pixart::open(&folder.join("transformer"), FloatDtype::F32, &device, &mut |_| ());
        let net = net.unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let mask: Tensor<2> = case.tensor("forward_mask", &device);
        let size = case.has("forward_resolution").then(|| {
            let parts = ["forward_resolution", "forward_aspect_ratio"];
            Tensor::cat(parts.map(|part| case.tensor::<2>(part, &device)).to_vec(), 1)
        });
        let told = Conditioning {
            text: Some(Text {
                tokens: case.tensor("forward_text", &device),
                padding: Some(mask.equal_elem(0.0)),
                pooled: None,
            }),
            size,
            ..Conditioning::default()
        };
        let mut blocks = Vec::new();
        let output = net.forward_with(
            case.tensor("forward_latents", &device),
            case.tensor("forward_timestep", &device),
            &told,
            net.config().patch,
            &mut |i, tokens| {
                blocks.push((i, tokens.clone()));
                tokens
            },
        );
        for (i, tokens) in blocks {
            let name = format!("forward_block_{i}");
            let expected = case.tensor(&name, &device);
            assert_close(&name, tokens, expected, tolerance(1e-5));
        }
        let expected = case.tensor("forward_output", &device);
        assert_close("output", output, expected, tolerance(1e-5));
    }
}

/// Keys count, or are refused by name.
#[test]
fn keys_of_a_transformer_count_or_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let golden = cases("pixart-sigma")[0].join("transformer");
    let path = folder.path().join("transformer");
    copy_folder(&golden, &path);
    let written = |key: &str, value: serde_json::Value| {
        let mut config = json(&golden.join("config.json"));
        config[key] = value;
        std::fs::write(path.join("config.json"), config.to_string()).expect("written");
        pixart::open(&path, FloatDtype::F32, &device(), &mut |_| ())
    };
    let span = |scale: serde_json::Value| {
        written("interpolation_scale", scale).expect("opens").config().span.expect("a span")
    };
    assert_eq!((span(2.0.into()), span(serde_json::Value::Null)), (8.0, 16.0));
    for (key, value, word) in [
        ("activation_fn", "gelu".into(), "gelu-approximate"),
        ("norm_type", "ada_norm_zero".into(), "ada_norm_single"),
        ("attention_bias", false.into(), "true"),
        ("attention_type", "gated".into(), "default"),
        ("num_vector_embeds", 7.into(), "7"),
        ("cross_attention_dim", 48.into(), "24"),
        ("out_channels", 5.into(), "in_channels, 4"),
        ("patch_size", 0.into(), "1 or more"),
        ("interpolation_scale", 0.0.into(), "above 0"),
        ("use_additional_conditions", true.into(), "embedder.size"),
        ("num_layers", (1 << 20).into(), "depth"),
        ("sample_size", 65536.into(), "positions"),
    ] {
        let error = written(key, value).map(drop).expect_err(key).to_string();
        assert!(error.contains(word), "{key}: {error}");
    }
}
