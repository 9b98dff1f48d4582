//! FLUX.2 klein against diffusers: the transformer, pictures, the autoencoder, the file of the original code.

use std::path::Path;

use burn::module::Module;
use burn::tensor::Tensor;
use pyrograph::WeightType;
use pyrograph::model::Limits;
use pyrograph_engine::nets::{Conditioning, Net, Text};
use pyrograph_weights::FloatDtype;

use crate::flows;
use crate::lora::assert_product;
use crate::util::{
    Case, assert_close, cases, device, device_name, files, identical, json, open_changed, tolerance,
};

/// Layers that a LoRA changes, by the ends of their names.
const CHANGED: [&str; 5] = ["linear1", "linear2", "img_mlp.0", "txt_attn.qkv", "img.lin"];
/// Timesteps from data to noise.
const TIMESTEPS: f64 = 1000.0;

/// The output as tokens, `[batch, tokens, channels]`, and the tokens of image and text behind every block that both share.
fn output(net: &Net, case: &Case) -> (Tensor<3>, Vec<Tensor<3>>) {
    let text = Text { tokens: case.tensor("forward_text", &device()), lengths: None, pooled: None };
    let told = Conditioning { text: Some(text), ..Conditioning::default() };
    let time: Tensor<1> = case.tensor("forward_time", &device());
    let x: Tensor<4> = case.tensor("forward_latents", &device());
    let [batch, channels, height, width] = x.dims();
    let mut blocks = Vec::new();
    let output = net.trunk().forward_with(x, time * TIMESTEPS, &told, 1, &mut |_, tokens| {
        blocks.push(tokens.clone());
        tokens
    });
    (output.permute([0, 2, 3, 1]).reshape([batch, height * width, channels]), blocks)
}

/// The folder's transformer on the inputs of the single file's case, and that file, with a word on positions.
#[test]
fn blocks_and_output_are_those_of_diffusers() {
    for (folder, base) in cases("flux2-single").into_iter().zip(cases("flux2-klein")) {
        let (case, of_base) = (Case::open(&folder), Case::open(&base));
        let net = open_changed(&base, |_| ()).net;
        let (found, blocks) = output(&net, &case);
        let separate = net.trunk().config().first_shared().expect("shared blocks");
        for (i, tokens) in blocks.into_iter().enumerate() {
            let (name, tokens) = match i.checked_sub(separate) {
                None => (format!("forward_double_{i}.1"), tokens),
                // There, the text comes first.
                Some(i) => {
                    let image = found.dims()[1];
                    let text = tokens.dims()[1] - image;
                    let parts = [(image, text), (0, image)];
                    let parts = parts.map(|(first, count)| tokens.clone().narrow(1, first, count));
                    (format!("forward_single_{i}"), Tensor::cat(parts.to_vec(), 1))
                }
            };
            assert_close(&name, tokens, of_base.tensor(&name, &device()), tolerance(1e-5));
        }
        let expected = case.tensor("forward_output", &device());
        assert_close("output", found, expected, tolerance(1e-5));

        let work = tempfile::tempdir().expect("a folder");
        let known = &json(&folder.join("case.json"))["not_in_the_file"];
        let copy = work.path().join("model.safetensors");
        std::fs::copy(flows::single(&folder), &copy).expect("copied");
        let error = pyrograph::model::recognise(&copy).map(drop).expect_err("other axes");
        assert!(error.to_string().contains("axes_dims"), "{error}");
        std::fs::write(work.path().join("config.json"), known.to_string()).expect("written");
        let net = open_changed(&copy, |_| ()).net;
        let expected = case.tensor("forward_output", &device());
        assert_close("single file", output(&net, &case).0, expected, tolerance(1e-5));
    }
}

/// A file of blocks of few bits is read as diffusers has their numbers, and used as it is without being unpacked first.
#[test]
fn weights_of_few_bits_stay_as_they_are_stored() {
    for folder in cases("flux2-gguf") {
        let (case, work) = (Case::open(&folder), tempfile::tempdir().expect("a folder"));
        let known = &json(&folder.join("case.json"))["not_in_the_file"];
        std::fs::write(work.path().join("config.json"), known.to_string()).expect("written");
        let file = files(&folder).find(|file| file.extension().is_some_and(|end| end == "gguf"));
        let copy = work.path().join("model.gguf");
        std::fs::copy(file.expect("weights"), &copy).expect("copied");
        let open = |dtype: &str| {
            let recognised = pyrograph::model::recognise(&copy).expect("a model");
            let own = recognised.weight_type(&device(), Limits::default());
            let dtype: WeightType = dtype.parse().expect("a type");
            (own, recognised.load(dtype, &device(), &mut |_| ()))
        };
        let (own, whole) = open("f32");
        let expected = case.tensor("forward_output", &device());
        let whole = whole.expect("its weights");
        assert_close("f32", output(&whole.net, &case).0, expected, tolerance(1e-5));
        let stored = open("stored").1.expect("its weights");
        let found = output(&stored.net, &case).0;
        if device_name() != "cpu" {
            // Where they are unpacked to f32 for each product.
            assert_eq!(own, WeightType::default());
            assert_close("stored", found, output(&whole.net, &case).0, tolerance(1e-5));
            continue;
        }
        assert_eq!(own, WeightType::Stored);
        // As with weights that are rounded to bf16, whose products are the same.
        let rounded = open("bf16").1.expect("its weights");
        let rounded = output(&rounded.net.clone().folded(), &case).0;
        assert_close("stored", found.clone(), output(&whole.net, &case).0, 0.03);
        assert_close("stored, bf16", found.clone(), rounded, 0.03);
        assert!(identical(output(&stored.net.clone().folded(), &case).0, found));
        let parameters = |net: &Net| net.num_params();
        assert!(parameters(&stored.net) < parameters(&whole.net) / 4, "held twice");
        let manifest = stored.manifest().expect("a description");
        let path = work.path().join("saved");
        let error = stored.save(&path, manifest, FloatDtype::F32, false).expect_err("not plain");
        assert!(error.to_string().contains("saved") && !path.exists(), "{error}");
    }
}

/// Of layers that files join, a LoRA acts on each of ours.
#[test]
fn a_lora_of_joined_layers_is_its_product() {
    for folder in cases("flux2-single") {
        let (case, work) = (Case::open(&folder), tempfile::tempdir().expect("a folder"));
        let known = json(&folder.join("case.json"))["not_in_the_file"].to_string();
        std::fs::write(work.path().join("config.json"), known).expect("written");
        let open = |file: &Path| {
            let beside = work.path().join("model.safetensors");
            std::fs::copy(file, &beside).expect("copied");
            open_changed(&beside, |_| ()).net
        };
        let named = |layer: &str| {
            let is_changed = CHANGED.iter().any(|end| layer.ends_with(end));
            is_changed.then(|| layer.to_owned())
        };
        assert_product(&flows::single(&folder), named, open, |net| output(net, &case).0);
    }
}

#[test]
fn the_autoencoder_normalises_squares_of_cells() {
    for folder in cases("flux2-klein") {
        let case = Case::open(&folder);
        let vae = open_changed(&folder, |_| ()).vae.expect("an autoencoder");
        let mean = vae.encode(case.tensor("vae_image", &device())).mean;
        assert_close("mean", mean.clone(), case.tensor("vae_mean", &device()), tolerance(1e-5));
        let scaled = vae.scale(mean.clone());
        let expected = case.tensor("vae_packed", &device());
        assert_close("squares", scaled.clone(), expected, tolerance(1e-5));
        assert_close("cells", vae.unscale(scaled.clone()), mean, tolerance(1e-5));
        let decoded = vae.decode(vae.unscale(scaled));
        assert_close("decoded", decoded, case.tensor("vae_decoded", &device()), tolerance(1e-4));
    }
}

#[test]
fn pictures_are_those_of_diffusers() {
    cases("flux2-klein").iter().for_each(|folder| flows::assert_pictures(folder, |scale| scale));
}

#[test]
fn pictures_in_fewer_bits_are_nearly_the_same() {
    cases("flux2-klein").iter().for_each(|folder| flows::assert_types(folder));
}

#[test]
fn the_command_makes_the_pictures_of_diffusers() {
    cases("flux2-klein").iter().for_each(|folder| flows::assert_command(folder, |scale| scale));
}

#[test]
fn a_lora_is_trained_and_written_as_diffusers_names_it() {
    let layers = [
        "transformer_blocks.0.attn.to_q",
        "transformer_blocks.1.ff.linear_in",
        "single_transformer_blocks.0.attn.to_qkv_mlp_proj",
        "single_transformer_blocks.1.attn.to_out",
    ];
    cases("flux2-klein").iter().for_each(|folder| flows::assert_lora(folder, &layers));
}

/// Keys count, or are refused by name.
#[test]
fn keys_count_or_are_refused() {
    let golden = &cases("flux2-klein")[0];
    let faults = [
        ("transformer", "guidance_embeds", true.into(), "guidance_embeds"),
        ("transformer", "patch_size", 2.into(), "patch_size is 2"),
        ("transformer", "out_channels", 5.into(), "in_channels, 24"),
        ("transformer", "axes_dims_rope", serde_json::json!([4, 4, 8]), "four"),
        ("transformer", "axes_dims_rope", serde_json::json!([4, 4, 4, 6]), "width of a head, 16"),
        ("transformer", "timestep_guidance_channels", 128.into(), "128"),
        ("transformer", "gated", true.into(), "gated is not a key"),
        ("transformer", "joint_attention_dim", 40.into(), "40"),
        ("vae", "batch_norm_eps", serde_json::Value::Null, "batch_norm_eps"),
        ("vae", "patch_size", serde_json::json!([1, 1]), "patch_size"),
        ("vae", "decoder_block_out_channels", serde_json::json!([8, 8, 8, 8]), "decoder_block"),
        ("scheduler", "time_shift_type", "linear".into(), "time_shift_type"),
    ];
    flows::assert_refused(golden, &faults);
}
