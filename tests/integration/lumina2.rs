//! Lumina Image 2.0 against diffusers: the transformer, pictures, the file of the original code.

use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use pyrograph::model::{Parts, recognise, recognise_with};
use pyrograph_engine::nets::{Conditioning, Net, Text};
use pyrograph_weights::FloatDtype;

use crate::command::TestCommand;
use crate::flows;
use crate::text_encoders::write_gemma2;
use crate::util::{
    Case, assert_close, cases, copy_folder, device, json, open_changed, relative_difference,
    tolerance,
};

fn pipelines() -> impl Iterator<Item = PathBuf> {
    cases("lumina2").into_iter().filter(|folder| folder.join("model_index.json").is_file())
}

/// Cases of the transformer alone.
fn transformers() -> impl Iterator<Item = PathBuf> {
    cases("lumina2-transformer").into_iter().filter(|folder| folder.join("config.json").is_file())
}

/// The tokens behind the blocks of a case: of each image those of its text, then those of the image.
fn assert_block(name: &str, found: &Tensor<3>, case: &Case, lengths: &[usize], tokens: usize) {
    let expected: Tensor<3> = case.tensor(name, &device());
    for (i, &length) in lengths.iter().enumerate() {
        let part = |x: &Tensor<3>, first: usize, count: usize| {
            x.clone().narrow(0, i, 1).narrow(1, first, count)
        };
        // Here the text comes behind.
        let own = Tensor::cat(vec![part(found, tokens, length), part(found, 0, tokens)], 1);
        let name = format!("{name} of {i}");
        assert_close(&name, own, part(&expected, 0, length + tokens), tolerance(1e-5));
    }
}

/// Blocks and output of a case.
fn assert_output(net: &Net, case: &Case) {
    let mask: Tensor<2> = case.tensor("mask", &device());
    let [batch, longest] = mask.dims();
    let sum = |i: usize| mask.clone().narrow(0, i, 1).sum().into_scalar::<f32>() as usize;
    let lengths: Vec<usize> = (0..batch).map(sum).collect();
    // Nothing may depend on what stands behind the ends.
    let text: Tensor<3> = case.tensor("text", &device());
    let width = text.dims()[2];
    let behind = mask.equal_elem(0.0).unsqueeze_dim::<3>(2).expand([batch, longest, width]);
    let tokens = text.mask_fill(behind, 3.0);
    let text = Text { tokens, lengths: Some(lengths.clone()), pooled: None };
    let told = Conditioning { text: Some(text), ..Conditioning::default() };
    let (x, time): (Tensor<4>, Tensor<1>) =
        (case.tensor("latents", &device()), case.tensor("time", &device()));
    let (net, mut blocks) = (net.trunk(), Vec::new());
    let patch = net.config().patch;
    let [_, _, height, width] = x.dims();
    let output = net.forward_with(x, time, &told, patch, &mut |_, tokens| {
        blocks.push(tokens.clone());
        tokens
    });
    let tokens = (height / patch) * (width / patch);
    for (i, found) in blocks.iter().enumerate() {
        assert_block(&format!("block_{i}"), found, case, &lengths, tokens);
    }
    assert_close("output", output, case.tensor("output", &device()), tolerance(1e-5));
}

/// A pipeline around a transformer that is there alone, without an autoencoder and a text encoder.
fn around(folder: &Path, work: &Path) -> PathBuf {
    let model = work.join("model");
    std::fs::create_dir_all(model.join("scheduler")).expect("made");
    for (file, values) in [
        ("model_index.json", serde_json::json!({"_class_name": "Lumina2Pipeline"})),
        (
            "scheduler/scheduler_config.json",
            serde_json::json!({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 6.0}),
        ),
    ] {
        std::fs::write(model.join(file), values.to_string()).expect("written");
    }
    copy_folder(folder, &model.join("transformer"));
    model
}

/// A tokenizer of one word.
const TOKENIZER: &str = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
    "pre_tokenizer": null, "post_processor": null, "decoder": null,
    "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}"#;

#[test]
fn blocks_and_output_are_those_of_diffusers() {
    for folder in transformers() {
        let (case, work) = (Case::open(&folder), tempfile::tempdir().expect("a folder"));
        let model = around(&folder, work.path());
        let config = json(&folder.join("config.json"));
        let encoder = work.path().join("encoder");
        write_gemma2(&encoder, config["cap_feat_dim"].as_u64().expect("a width") as usize);
        std::fs::write(encoder.join("tokenizer.json"), TOKENIZER).expect("written");
        let parts = Parts { text_encoder: Some(&encoder), ..Parts::default() };
        let model = recognise_with(&model, parts).expect("a model");
        let model = model.load(FloatDtype::F32, &device(), &mut |_| ()).expect("its weights");
        assert_output(&model.net, &case);
        let hints = serde_json::json!({"axes_dims": config["axes_dim_rope"]}).to_string();
        let copy = work.path().join("model.safetensors");
        let error = {
            std::fs::copy(folder.join("lumina2_tiny_original.safetensors"), &copy).expect("copied");
            recognise(&copy).map(drop).expect_err("other axes")
        };
        assert!(error.to_string().contains("axes_dims"), "{error}");
        std::fs::write(work.path().join("config.json"), hints).expect("written");
        assert_output(&open_changed(&copy, |_| ()).net, &case);
    }
}

/// With the encoder and the autoencoder of a folder, a file makes what that folder does.
#[test]
fn a_file_and_its_parts_make_what_a_folder_makes() {
    for folder in pipelines() {
        let (work, path) = (tempfile::tempdir().expect("a folder"), "transformer/config.json");
        copy_folder(&folder, &work.path().join("folder"));
        let mut config = json(&folder.join(path));
        // What the file does not tell.
        config["norm_eps"] = 1e-5.into();
        std::fs::write(work.path().join("folder").join(path), config.to_string()).expect("written");
        let hints = serde_json::json!({"axes_dims": config["axes_dim_rope"]}).to_string();
        std::fs::write(work.path().join("config.json"), hints).expect("written");
        let file = work.path().join("model.safetensors");
        std::fs::copy(flows::single(&folder), &file).expect("copied");
        let run = |output: &str, args: &[&Path]| -> Tensor<4> {
            let options = ["generate", "text", "a cat", "--steps", "2", "-s", "3", "-W", "96"];
            let latents = format!("{output}.safetensors");
            let saved = ["-H", "64", "-o", &format!("{output}.png"), "--save-latents", &latents];
            TestCommand::new(&work, options).args(saved).args(["-m"]).args(args).succeeded();
            flows::saved(&work.path().join(&latents))
        };
        let parts = ["--vae".as_ref(), &*folder.join("vae"), "--text-encoder".as_ref(), &folder];
        let of_file = run("file", &[&[Path::new("model.safetensors")], &parts[..]].concat());
        let apart = relative_difference(of_file, run("folder", &[Path::new("folder")]));
        assert!(apart <= tolerance(1e-5), "{apart}");
    }
}

#[test]
fn pictures_are_those_of_diffusers() {
    pipelines().for_each(|folder| flows::assert_pictures(&folder, |scale| scale));
}

#[test]
fn pictures_in_fewer_bits_are_nearly_the_same() {
    pipelines().for_each(|folder| flows::assert_types(&folder));
}

#[test]
fn the_command_makes_the_pictures_of_diffusers() {
    pipelines().for_each(|folder| flows::assert_command(&folder, |scale| scale));
}

#[test]
fn a_lora_is_trained_and_written_as_diffusers_names_it() {
    let layers = ["layers.0.attn.to_q", "layers.1.attn.to_out.0", "layers.0.feed_forward.linear_3"];
    pipelines().for_each(|folder| flows::assert_lora(&folder, &layers));
}

/// diffusers takes the number of channels for that of tokens.
#[test]
fn times_are_shifted_by_the_number_of_channels() {
    let Some(golden) = pipelines().next() else { return };
    let work = tempfile::tempdir().expect("a folder");
    let path = work.path().join("model");
    copy_folder(&golden, &path);
    let file = path.join("scheduler/scheduler_config.json");
    let mut config = json(&file);
    config["use_dynamic_shifting"] = true.into();
    std::fs::write(&file, config.to_string()).expect("written");
    let sigmas = |path: &Path| -> Vec<f64> {
        let config = recognise(path).expect("a model").config;
        let grid = config.grid(&config.defaults.settings(0)).expect("a grid");
        grid.steps.iter().map(|[level, _]| level.sigma / (level.alpha + level.sigma)).collect()
    };
    let (given, moved) = (sigmas(&golden), sigmas(&path));
    let channels = json(&golden.join("transformer/config.json"))["in_channels"].as_f64();
    let number = |key: &str| config[key].as_f64().expect("a number");
    let [few, many] = ["base_image_seq_len", "max_image_seq_len"].map(number);
    let [low, high] = ["base_shift", "max_shift"].map(number);
    let mu = low + (high - low) * (channels.expect("a number") - few) / (many - few);
    let shifted = |sigma: f64, shift: f64| shift * sigma / (1.0 + (shift - 1.0) * sigma);
    for (found, plain) in moved.iter().zip(given) {
        let even = shifted(plain, 1.0 / number("shift"));
        assert!((found - shifted(even, mu.exp())).abs() < 1e-9, "{found} of {even}");
    }
}

/// Keys count, or are refused by name.
#[test]
fn keys_of_a_transformer_and_of_gemma_count_or_are_refused() {
    let Some(golden) = pipelines().next() else { return };
    let faults = [
        ("transformer", "patch_size", 0.into(), "patch_size is 0"),
        ("transformer", "multiple_of", 0.into(), "multiple_of is 0"),
        ("transformer", "ffn_dim_multiplier", (-1.0).into(), "ffn_dim_multiplier is -1"),
        ("transformer", "out_channels", 8.into(), "in_channels, 16"),
        ("transformer", "axes_dim_rope", serde_json::json!([8, 6, 4]), "width of a head, 16"),
        ("transformer", "num_kv_heads", 2.into(), "heads of keys"),
        ("transformer", "qk_norm", true.into(), "qk_norm is not a key"),
        ("transformer", "cap_feat_dim", 31.into(), "31"),
        ("transformer", "sample_size", 15.into(), "multiples of the patch size"),
        ("text_encoder", "attention_bias", true.into(), "attention_bias"),
        ("text_encoder", "use_bidirectional_attention", true.into(), "use_bidirectional"),
        ("text_encoder", "rope_scaling", serde_json::json!({"factor": 2}), "scaled"),
        (
            "text_encoder",
            "layer_types",
            serde_json::json!(["full_attention", "sliding_attention"]),
            "layer_types",
        ),
        ("text_encoder", "hidden_activation", "tanh".into(), "hidden_activation"),
        ("text_encoder", "attn_logit_softcapping", 0.0.into(), "cap of the scores"),
        ("text_encoder", "query_pre_attn_scalar", 0.0.into(), "divisor of the scores"),
        ("text_encoder", "sliding_window", 0.into(), "window of the attention"),
    ];
    flows::assert_refused(&golden, &faults);
}
