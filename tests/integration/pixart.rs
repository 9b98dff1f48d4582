//! PixArt against diffusers.

use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use pyrograph::adapter::Adapter;
use pyrograph::model::{self, Parts};
use pyrograph_engine::nets::{Conditioning, Net, Text};
use pyrograph_weights::FloatDtype;

use crate::command::TestCommand;
use crate::lora;
use crate::util::{
    Case, assert_close, assert_same_pixels, cases, copy_folder, device, files, json, open_changed,
    tolerance,
};

/// What the transformer of a case was told.
fn told(case: &Case) -> Conditioning {
    let device = device();
    let mask: Tensor<2> = case.tensor("forward_mask", &device);
    let lengths = mask.sum_dim(1).into_data().iter::<f32>().map(|length| length as usize).collect();
    let size = case.has("forward_resolution").then(|| {
        let parts = ["forward_resolution", "forward_aspect_ratio"];
        Tensor::cat(parts.map(|part| case.tensor::<2>(part, &device)).to_vec(), 1)
    });
    Conditioning {
        text: Some(Text {
            tokens: case.tensor("forward_text", &device),
            lengths: Some(lengths),
            pooled: None,
        }),
        size,
        ..Conditioning::default()
    }
}

fn output(net: &Net, case: &Case) -> Tensor<4> {
    let [x, time] = ["forward_latents", "forward_timestep"];
    let (x, time) = (case.tensor(x, &device()), case.tensor(time, &device()));
    net.trunk().forward(x, time, &told(case), net.trunk().config().patch)
}

#[test]
fn pixart_blocks_and_output_are_those_of_diffusers() {
    for folder in ["pixart-sigma", "pixart-alpha"].iter().flat_map(|name| cases(name)) {
        let (case, device) = (Case::open(&folder), device());
        let net = open_changed(&folder, |_| ()).net;
        let net = net.trunk();
        let told = told(&case);
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
    let golden = cases("pixart-sigma")[0].clone();
    let path = folder.path().join("model");
    copy_folder(&golden, &path);
    let written = |key: &str, value: serde_json::Value| {
        let mut config = json(&golden.join("transformer/config.json"));
        config[key] = value;
        std::fs::write(path.join("transformer/config.json"), config.to_string()).expect("written");
        let recognised = model::recognise(&path)?;
        let net = recognised.config.net.dit.clone();
        recognised.load(FloatDtype::F32, &device(), &mut |_| ()).map(|_| net)
    };
    let span = |scale: serde_json::Value| {
        written("interpolation_scale", scale).expect("opens").span.expect("a span")
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

/// A copy of a file of the original code with what the file does not tell beside it.
pub fn original(folder: &Path, work: &Path, kind: &str) -> PathBuf {
    let case = json(&folder.join("case.json"));
    let known = &case["not_in_the_file"];
    let hints = serde_json::json!({
        "num_heads": known["heads"], "input_size": known["sample_size"],
        "interpolation_scale": known["interpolation_scale"],
    });
    std::fs::write(work.join("config.json"), hints.to_string()).expect("written");
    let file = files(folder).find(|file| {
        let name = file.to_string_lossy();
        name.ends_with(kind) && !name.ends_with("case.safetensors")
    });
    let file = file.expect("a file of this kind");
    let copy = work.join(file.file_name().expect("a name"));
    std::fs::copy(file, &copy).expect("copied");
    copy
}

#[test]
fn files_of_the_original_code_open_with_parts_from_elsewhere() {
    for folder in cases("pixart-original") {
        for kind in [".pth", ".safetensors"] {
            let (work, case) = (tempfile::tempdir().expect("a folder"), Case::open(&folder));
            let path = original(&folder, work.path(), kind);
            let net = open_changed(&path, |_| ()).net;
            let expected = case.tensor("forward_output", &device());
            assert_close(kind, output(&net, &case), expected, tolerance(1e-5));
        }
    }
}

/// With an autoencoder and a text encoder, a file makes what the folder of the same model does.
#[test]
fn a_file_and_its_parts_make_what_a_folder_makes() {
    let (work, golden) = (tempfile::tempdir().expect("a folder"), &cases("pixart-alpha")[0]);
    let path = original(&cases("pixart-original")[0], work.path(), ".pth");
    let run = |args: &[&Path]| {
        let options = ["--steps", "2", "-s", "3", "-W", "96", "-H", "64", "--exact-size"];
        let solver = ["--sampler", "dpmpp_2m", "--scheduler", "linspace", "-m"];
        let command = TestCommand::new(&work, ["generate", "text", "a cat"]);
        command.args(options).args(solver).args(args)
    };
    let (vae, text) = (golden.join("vae"), golden.join("text_encoder"));
    let error = run(&[&path]).failed();
    assert!(error.contains("name one with --text-encoder"), "{error}");
    let error = run(&[&path, "--text-encoder".as_ref(), golden]).failed();
    assert!(error.contains("--vae"), "{error}");
    for encoder in [golden, &text] {
        let parts = ["--vae".as_ref(), &*vae, "--text-encoder".as_ref(), encoder];
        run(&[&path]).args(parts).args(["-o", "file.png"]).succeeded();
        run(&[golden]).args(["-o", "folder.png"]).succeeded();
        let pixels =
            |name: &str| image::open(work.path().join(name)).expect("a picture").into_rgb8();
        assert_same_pixels("file and folder", &pixels("file.png"), &pixels("folder.png"));
    }
    let again = ["generate", "text", "--from-metadata", "file.png", "-o", "again.png"];
    let error = TestCommand::new(&work, again).failed();
    assert!(error.contains("name it with --"), "{error}");
    let encoder = cases("clip-projection")[0].join("clip-g");
    let parts = Parts {
        text_encoder: Some(&encoder),
        tokenizer: Some(&golden.join("tokenizer")),
        ..Parts::default()
    };
    let narrow = model::recognise_with(&path, parts).map(drop).expect_err("another width");
    let narrow = narrow.to_string();
    assert!(narrow.contains("width 48, the network reads 32"), "{narrow}");
}

#[test]
fn loras_of_every_spelling_give_what_the_reference_gives() {
    for folder in cases("pixart-lora") {
        let (case, settings) = (Case::open(&folder), json(&folder.join("case.json")));
        let base = folder.join(settings["base"].as_str().expect("a folder"));
        let mut net = open_changed(&base, |_| ()).net;
        let spellings = files(&folder).chain([folder.join("peft")]).filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            !name.starts_with("case") && name != "unused.safetensors"
        });
        let scales = lora::scales(&settings);
        // A file without alpha has it in its matrices.
        let seen = lora::assert_spellings(spellings, &mut net, &case, &scales, 1e-5, |net| {
            output(net, &case)
        });
        assert!(seen >= 6, "{seen} spellings");
        let unused = folder.join("unused.safetensors");
        let error = Adapter::open(&unused, &net, None, &device(), &mut |_| ());
        let error = error.map(drop).expect_err("keys that fit nothing").to_string();
        for key in settings["unused_keys"].as_array().expect("keys") {
            assert!(error.contains(key.as_str().expect("a name")), "{error}");
        }
    }
}
