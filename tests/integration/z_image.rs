//! Z-Image against diffusers: the transformer, pictures, the file of the original code, LoRAs.

use std::path::PathBuf;

use burn::tensor::Tensor;
use pyrograph_engine::nets::{Conditioning, Net, Text};

use crate::util::{Case, assert_close, cases, device, files, json, open_changed, tolerance};
use crate::{flows, lora};

/// Timesteps from noise to data.
const TIMESTEPS: f64 = 1000.0;

/// The texts of a case, of different lengths.
fn told(case: &Case) -> Conditioning {
    let texts = (0..).map(|i| format!("forward_text_{i}")).take_while(|name| case.has(name));
    let texts: Vec<Tensor<2>> = texts.map(|name| case.tensor(&name, &device())).collect();
    let lengths: Vec<usize> = texts.iter().map(|text| text.dims()[0]).collect();
    let longest = *lengths.iter().max().expect("texts");
    let padded = texts.into_iter().map(|text| {
        let [tokens, width] = text.dims();
        Tensor::cat(vec![text, Tensor::ones([longest - tokens, width], &device())], 0)
    });
    let text =
        Text { tokens: Tensor::stack(padded.collect(), 0), lengths: Some(lengths), pooled: None };
    Conditioning { text: Some(text), ..Conditioning::default() }
}

fn output(net: &Net, case: &Case) -> (Tensor<4>, Vec<Tensor<3>>) {
    let time: Tensor<1> = case.tensor("forward_time", &device());
    let (x, mut blocks) = (case.tensor("forward_latents", &device()), Vec::new());
    let net = net.trunk();
    let output =
        net.forward_with(x, time * TIMESTEPS, &told(case), net.config().patch, &mut |_, tokens| {
            blocks.push(tokens.clone());
            tokens
        });
    (output, blocks)
}

#[test]
fn blocks_and_loras_of_every_spelling_are_those_of_diffusers() {
    for folder in cases("z-image-lora") {
        let (case, settings) = (Case::open(&folder), json(&folder.join("case.json")));
        let base = folder.join(settings["base"].as_str().expect("a folder"));
        let mut net = open_changed(&base, |_| ()).net;
        let of_base = Case::open(&base);
        for (i, tokens) in output(&net, &case).1.into_iter().enumerate() {
            let name = format!("forward_block_{i}");
            assert_close(&name, tokens, of_base.tensor(&name, &device()), tolerance(2e-5));
        }
        let spellings =
            files(&folder).filter(|path| path.file_stem().is_none_or(|name| name != "case"));
        let seen =
            lora::assert_spellings(spellings, &mut net, &case, &[0.0, 0.5, 1.0], 2e-5, |net| {
                output(net, &case).0
            });
        assert!(seen >= 3, "{seen} spellings");
    }
}

/// The file does not tell the axes of positions, from which the number of heads follows.
#[test]
fn files_of_the_original_code_open_with_a_word_on_positions() {
    for folder in cases("z-image-single") {
        let work = tempfile::tempdir().expect("a folder");
        let known = &json(&folder.join("case.json"))["not_in_the_file"];
        let copy = work.path().join("model.safetensors");
        std::fs::copy(flows::single(&folder), &copy).expect("copied");
        let error = pyrograph::model::recognise(&copy).map(drop).expect_err("other axes");
        assert!(error.to_string().contains("axes_dims"), "{error}");
        std::fs::write(work.path().join("config.json"), known.to_string()).expect("written");
        let net = open_changed(&copy, |_| ()).net;
        let case = Case::open(&folder);
        let expected = case.tensor("forward_output", &device());
        assert_close("output", output(&net, &case).0, expected, tolerance(2e-5));
    }
}

fn folders() -> impl Iterator<Item = PathBuf> {
    cases("z-image").into_iter().filter(|folder| folder.join("model_index.json").is_file())
}

/// There, guidance of 0 is none.
fn cfg_scale(scale: f64) -> f64 {
    scale + 1.0
}

#[test]
fn pictures_are_those_of_diffusers() {
    folders().for_each(|folder| flows::assert_pictures(&folder, cfg_scale));
}

#[test]
fn pictures_in_fewer_bits_are_nearly_the_same() {
    folders().for_each(|folder| flows::assert_types(&folder));
}

#[test]
fn the_command_makes_the_pictures_of_diffusers() {
    folders().for_each(|folder| flows::assert_command(&folder, cfg_scale));
}

#[test]
fn a_lora_is_trained_and_written_as_diffusers_names_it() {
    let layers =
        ["layers.0.attention.to_q", "layers.1.attention.to_out.0", "layers.0.feed_forward.w3"];
    folders().for_each(|folder| flows::assert_lora(&folder, &layers));
}

/// Keys count, or are refused by name.
#[test]
fn keys_of_a_transformer_count_or_are_refused() {
    let golden = &cases("z-image")[0];
    let faults = [
        ("transformer", "qk_norm", false.into(), "true"),
        ("transformer", "t_scale", 1.0.into(), "1000"),
        ("transformer", "all_patch_size", serde_json::json!([2, 4]), "[2, 4]"),
        ("transformer", "all_f_patch_size", serde_json::json!([2]), "[1]"),
        ("transformer", "siglip_feat_dim", 64.into(), "siglip_feat_dim"),
        ("transformer", "axes_dims", serde_json::json!([8, 6, 4]), "width of a head, 20"),
        ("transformer", "rope_theta", 0.5.into(), "theta"),
        ("transformer", "n_kv_heads", 3.into(), "heads of keys"),
        ("transformer", "gated", true.into(), "gated is not a key"),
        ("transformer", "cap_feat_dim", 31.into(), "31"),
        ("text_encoder", "attention_bias", true.into(), "attention_bias"),
        ("text_encoder", "rope_scaling", serde_json::json!({"factor": 2}), "scaled"),
        ("text_encoder", "use_sliding_window", true.into(), "use_sliding_window"),
        ("text_encoder", "num_key_value_heads", 3.into(), "heads of keys"),
    ];
    flows::assert_refused(golden, &faults);
}
