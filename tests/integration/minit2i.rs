//! MiniT2I against its authors' code: the transformer, and pictures of pixels.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use pyrograph::{Noise, Request, TextPipeline};
use pyrograph_engine::nets::{Conditioning, Net, Text};
use pyrograph_weights::write_safetensors;
use serde_json::Value;

use crate::command::TestCommand;
use crate::flows;
use crate::lora::assert_product;
use crate::util::{Case, assert_close, cases, copy_folder, device, json, open_changed, tolerance};

/// Layers that a LoRA changes, by the ends of their names.
const CHANGED: [&str; 5] = ["qkv", "attn_proj", "w1", "w3", "w2"];

fn folders() -> Vec<PathBuf> {
    cases("minit2i")
}

/// The output, and the tokens of the image behind each block, of texts with nothing in particular behind their ends.
fn output(net: &Net, case: &Case) -> (Tensor<4>, Vec<Tensor<3>>) {
    let mask: Tensor<2> = case.tensor("forward_mask", &device());
    let sum = |i: usize| mask.clone().narrow(0, i, 1).sum().into_scalar::<f32>() as usize;
    let [batch, _] = mask.dims();
    let lengths = (0..batch).map(sum).collect();
    let tokens = case.tensor::<3>("text_states", &device()).repeat_dim(0, batch);
    let text = Text { tokens, lengths: Some(lengths), pooled: None };
    let told = Conditioning { text: Some(text), ..Conditioning::default() };
    let (x, time) =
        (case.tensor("forward_image", &device()), case.tensor("forward_time", &device()));
    let (net, mut blocks) = (net.trunk(), Vec::new());
    let output = net.forward_with(x, time, &told, net.config().patch, &mut |_, tokens| {
        blocks.push(tokens.clone());
        tokens
    });
    (output, blocks)
}

#[test]
fn blocks_and_output_are_those_of_its_authors() {
    for folder in folders() {
        let (case, net) = (Case::open(&folder), open_changed(&folder, |_| ()).net);
        let (found, blocks) = output(&net, &case);
        for (i, tokens) in blocks.into_iter().enumerate() {
            let name = format!("forward_block_{i}");
            assert_close(&name, tokens, case.tensor(&name, &device()), tolerance(1e-5));
        }
        assert_close("output", found, case.tensor("forward_output", &device()), tolerance(1e-5));
    }
}

/// Of streams for themselves and of those that both go through.
#[test]
fn a_lora_is_its_product() {
    for folder in folders() {
        let (case, work) = (Case::open(&folder), tempfile::tempdir().expect("a folder"));
        let (path, file) = (work.path().join("model"), flows::single(&folder.join("transformer")));
        copy_folder(&folder, &path);
        let open = |weights: &Path| {
            let place = path.join("transformer").join(file.file_name().expect("a name"));
            std::fs::copy(weights, place).expect("copied");
            open_changed(&path, |_| ()).net
        };
        let named = |layer: &str| {
            let is_changed = CHANGED.iter().any(|end| layer.ends_with(end));
            is_changed.then(|| layer.to_owned())
        };
        assert_product(&file, named, open, |net| output(net, &case).0);
    }
}

#[test]
fn pictures_in_fewer_bits_are_nearly_the_same() {
    folders().iter().for_each(|folder| flows::assert_types(folder));
}

fn request(settings: &Value, case: &Case) -> Request<String> {
    let mut request = Request::new([settings["prompt"].as_str().expect("a prompt").to_owned()]);
    request.steps = settings["steps"].as_u64().map(|steps| steps as usize);
    request.guidance.scale = settings["guidance_scale"].as_f64();
    request.noise = Some(Noise::Values(case.tensor("pipe_noise", &device())));
    request
}

/// Here, signal and noise have factors whose sum is 1: `t : 2 (1 - t)` there is `t / (2 - t) : 2 (1 - t) / (2 - t)`.
#[test]
fn pictures_are_those_of_its_authors() {
    for folder in folders() {
        let (case, model) = (Case::open(&folder), open_changed(&folder, |_| ()));
        let pipeline = TextPipeline::new(model, &device()).expect("a model of texts");
        let request = request(&json(&folder.join("case.json")), &case);
        let mut states = Vec::new();
        let generated = pipeline.generate(&request, &mut |progress| {
            states.push(progress.x.clone());
            ControlFlow::Continue(())
        });
        let generated = generated.unwrap_or_else(|error| panic!("{error}"));
        let expected: Tensor<5> = case.tensor("pipe_image_per_step", &device());
        let steps = states.len();
        assert_eq!(steps, expected.dims()[0]);
        for (i, state) in states.into_iter().enumerate() {
            let time = (i + 1) as f64 / steps as f64;
            let expected: Tensor<4> = expected.clone().narrow(0, i, 1).squeeze_dim(0);
            assert_close(&format!("{i}"), state * (2.0 - time), expected, tolerance(1e-4));
        }
        let settings = pipeline.resolve(&request).expect("possible");
        let pixels = pipeline.pixels(generated.latents, &settings);
        let image = (pixels * 0.5 + 0.5).clamp(0.0, 1.0).permute([0, 2, 3, 1]);
        let expected: Tensor<4> = case.tensor("pipe_image", &device());
        let worst: f32 = (image - expected).abs().max().into_scalar();
        println!("image {worst:.1e}");
        assert!(f64::from(worst) <= tolerance(2e-4), "image differs by {worst}");
    }
}

/// From the folder and from what `convert` writes; without a text, guidance moves away from none.
#[test]
fn the_command_makes_the_pictures_of_its_authors() {
    for folder in folders() {
        let (case, work) = (Case::open(&folder), tempfile::tempdir().expect("a folder"));
        let settings = json(&folder.join("case.json"));
        let noise = ("noise".into(), case.tensor::<4>("pipe_noise", &device()).into_data());
        let path = work.path().join("noise.safetensors");
        write_safetensors(&path, &[noise], &Default::default()).expect("written");
        let convert = TestCommand::new(&work, ["convert", "-o", "own", "--dtype", "f32"]);
        convert.args([&folder]).succeeded();
        let all: Tensor<5> = case.tensor("pipe_image_per_step", &device());
        let expected: Tensor<4> = all.clone().narrow(0, all.dims()[0] - 1, 1).squeeze_dim(0);
        let made = |model: &Path, further: &[&str]| {
            let number = |key: &str| settings[key].to_string();
            let prompt = settings["prompt"].as_str().expect("a prompt");
            let asked = TestCommand::new(&work, ["generate", "text", prompt, "--seed", "0"])
                .args(["--noise", "noise.safetensors", "--save-latents", "made.safetensors"])
                .args(["--steps", &number("steps"), "--cfg-scale", &number("guidance_scale")]);
            asked.args(further).args(["-m"]).args([model]).ended();
            let made = flows::saved(&work.path().join("made.safetensors"));
            std::fs::remove_file(work.path().join("made.safetensors")).expect("removed");
            made
        };
        for model in [&*folder, Path::new("own")] {
            assert_close("made", made(model, &[]), expected.clone(), tolerance(1e-4));
        }
        let apart = made(&folder, &["--negative-prompt", ""]) - expected;
        assert!(apart.abs().max().into_scalar::<f32>() > 1e-3, "an empty text is none");
    }
}

/// Keys count, or are refused by name; so is training.
#[test]
fn what_cannot_be_is_refused() {
    let golden = &folders()[0];
    let config = json(&golden.join("transformer/config.json"));
    let [width, channels] = ["hidden_size", "in_channels"].map(|key| config[key].to_string());
    let faults = [
        ("transformer", "prediction", "v".into(), "prediction is v, expected x"),
        ("transformer", "sampler", "heun".into(), "sampler is heun"),
        ("transformer", "cfg_channels", 1.into(), &*format!("expected {channels}")),
        ("transformer", "cfg_interval", serde_json::json!([0.1, 1.0]), "cfg_interval"),
        ("transformer", "txt_hidden_size", 16.into(), &*format!("expected {width}")),
        ("transformer", "head_dim", 8.into(), "num_heads times head_dim"),
        ("transformer", "n_T", 0.into(), "n_T is 0"),
        ("transformer", "mlp_ratio", 0.0.into(), "mlp_ratio is 0"),
        ("transformer", "patch_size", 7.into(), "patch size"),
        ("transformer", "pca_channels", 0.into(), "bottleneck"),
        ("transformer", "prompt_length", 1_000_000.into(), "length of a text"),
        ("transformer", "txt_input_size", 31.into(), "31"),
        ("transformer", "gated", true.into(), "gated is not a key"),
    ];
    flows::assert_refused(golden, &faults);
    let work = tempfile::tempdir().expect("a folder");
    let train = ["train", "lora", "--data", ".", "-o", "out", "--steps", "1", "-m"];
    let error = TestCommand::new(&work, train).args([golden]).failed();
    assert!(error.contains("none at all"), "{error}");
}
