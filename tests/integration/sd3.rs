//! Stable Diffusion 3 and 3.5-medium against diffusers: the transformer, pictures, files of the original code.

use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use pyrograph_engine::nets::{Conditioning, Net, Text};

use crate::command::TestCommand;
use crate::util::{Case, assert_close, cases, device, json, open_changed, tolerance};
use crate::{flows, lora};

/// Folders of pipelines, with T5 and without.
fn folders() -> impl Iterator<Item = PathBuf> {
    let all = ["sd3", "sd35-medium"].into_iter().flat_map(cases);
    all.filter(|folder| folder.join("model_index.json").is_file())
}

/// The output, and the tokens of the image behind each block.
fn output(net: &Net, case: &Case) -> (Tensor<4>, Vec<Tensor<3>>) {
    let text = Text {
        tokens: case.tensor("forward_text", &device()),
        lengths: None,
        pooled: Some(case.tensor("forward_pooled", &device())),
    };
    let told = Conditioning { text: Some(text), ..Conditioning::default() };
    let [x, time] = ["forward_latents", "forward_timestep"];
    let (net, mut blocks) = (net.trunk(), Vec::new());
    let output = net.forward_with(
        case.tensor(x, &device()),
        case.tensor(time, &device()),
        &told,
        net.config().patch,
        &mut |_, tokens| {
            blocks.push(tokens.clone());
            tokens
        },
    );
    (output, blocks)
}

#[test]
fn blocks_and_output_are_those_of_diffusers() {
    for folder in folders() {
        let (case, net) = (Case::open(&folder), open_changed(&folder, |_| ()).net);
        let (found, blocks) = output(&net, &case);
        for (i, tokens) in blocks.into_iter().enumerate() {
            // The last block gives the image alone.
            let of_image = format!("forward_block_{i}.1");
            let name = if case.has(&of_image) { of_image } else { format!("forward_block_{i}") };
            assert_close(&name, tokens, case.tensor(&name, &device()), tolerance(1e-5));
        }
        assert_close("output", found, case.tensor("forward_output", &device()), tolerance(1e-5));
    }
}

#[test]
fn loras_of_every_spelling_give_what_diffusers_gives() {
    for folder in cases("sd35-medium-lora") {
        let (case, settings) = (Case::open(&folder), json(&folder.join("case.json")));
        let base = folder.join(settings["base"].as_str().expect("a folder"));
        let mut net = open_changed(&base, |_| ()).net;
        let scales = lora::scales(&settings);
        let spellings = ["diffusers", "kohya", "comfy"];
        let paths = spellings.map(|name| folder.join(name).with_extension("safetensors"));
        lora::assert_spellings(paths, &mut net, &case, &scales, 1e-5, |net| output(net, &case).0);
    }
}

#[test]
fn files_of_the_original_code_open_with_a_word_on_heads() {
    for folder in ["sd3-single", "sd35-medium-single"].into_iter().flat_map(cases) {
        let (case, work) = (Case::open(&folder), tempfile::tempdir().expect("a folder"));
        let heads = &json(&folder.join("case.json"))["not_in_the_file"]["heads"];
        let hints = serde_json::json!({"num_heads": heads, "input_size": 16}).to_string();
        std::fs::write(work.path().join("config.json"), hints).expect("written");
        let copy = work.path().join("model.safetensors");
        std::fs::copy(flows::single(&folder), &copy).expect("copied");
        let net = open_changed(&copy, |_| ()).net;
        let expected = case.tensor("forward_output", &device());
        assert_close("output", output(&net, &case).0, expected, tolerance(1e-5));
    }
}

/// With the encoders and the autoencoder of a folder, a file makes what that folder does, but for the rounding of its weights.
#[test]
fn a_file_and_its_parts_make_what_a_folder_makes() {
    let (folder, golden) = (&cases("sd3-single")[0], &folders().next().expect("a pipeline"));
    let work = tempfile::tempdir().expect("a folder");
    let heads = &json(&folder.join("case.json"))["not_in_the_file"]["heads"];
    let hints = serde_json::json!({"num_heads": heads, "input_size": 16}).to_string();
    std::fs::write(work.path().join("config.json"), hints).expect("written");
    std::fs::copy(flows::single(folder), work.path().join("model.safetensors")).expect("copied");
    let run = |args: &[&Path]| {
        let options =
            ["generate", "text", "a cat", "--steps", "2", "-s", "3", "-W", "96", "-H", "64"];
        TestCommand::new(&work, options).args(["--max-tokens", "24", "-m"]).args(args)
    };
    let file = Path::new("model.safetensors");
    let error = run(&[file]).failed();
    assert!(error.contains("name one with --text-encoder"), "{error}");
    let parts = ["--vae".as_ref(), &*golden.join("vae"), "--text-encoder".as_ref(), golden];
    run(&[file]).args(parts).args(["-o", "file.png"]).succeeded();
    run(&[golden]).args(["-o", "folder.png"]).succeeded();
    let [a, b] = ["file.png", "folder.png"]
        .map(|name| image::open(work.path().join(name)).expect("a picture").into_rgb8().into_raw());
    let apart = a.iter().zip(&b).map(|(a, b)| u64::from(a.abs_diff(*b))).sum::<u64>();
    assert!(a.len() == b.len() && apart < a.len() as u64, "{apart} of {}", a.len());
}

#[test]
fn pictures_are_those_of_diffusers() {
    folders().for_each(|folder| flows::assert_pictures(&folder, |scale| scale));
}

#[test]
fn pictures_in_fewer_bits_are_nearly_the_same() {
    folders().for_each(|folder| flows::assert_types(&folder));
}

#[test]
fn the_command_makes_the_pictures_of_diffusers() {
    folders().for_each(|folder| flows::assert_command(&folder, |scale| scale));
}

/// What cannot be is refused before it is tried: keys, images beyond the table of positions, training.
#[test]
fn what_cannot_be_is_refused() {
    let golden = &cases("sd35-medium")[0];
    let faults = [
        ("transformer", "qk_norm", "layer_norm".into(), "rms_norm"),
        ("transformer", "dual_attention_layers", serde_json::json!([1]), "the first ones"),
        ("transformer", "caption_projection_dim", 16.into(), "32, the width of tokens"),
        ("transformer", "out_channels", 4.into(), "in_channels, 16"),
        ("transformer", "gated", true.into(), "gated is not a key"),
        ("transformer", "joint_attention_dim", 12.into(), "those of CLIP together"),
        ("transformer", "pooled_projection_dim", 41.into(), "reads 41"),
        ("transformer", "pos_embed_max_size", 4.into(), "at most 8"),
    ];
    flows::assert_refused(golden, &faults);
    let work = tempfile::tempdir().expect("a folder");
    let run = |args: &[&str]| TestCommand::new(&work, args).args([golden]).failed();
    let error = run(&["generate", "text", "a cat", "-W", "448", "-H", "64", "-m"]);
    assert!(error.contains("384"), "{error}");
    let error = run(&["train", "lora", "--data", ".", "-o", "out", "--steps", "1", "-m"]);
    assert!(error.contains("several encoders"), "{error}");
}
