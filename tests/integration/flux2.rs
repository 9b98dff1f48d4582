//! FLUX.2 klein against diffusers: the transformer, pictures, the autoencoder, the file of the original code.

use burn::tensor::Tensor;
use pyrograph_engine::nets::{Conditioning, Net, Text};

use crate::flows;
use crate::util::{
    Case, assert_close, cases, copy_folder, device, files, json, open_changed, tolerance,
};

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
        let file = files(&folder).find(|file| {
            let name = file.to_string_lossy();
            name.ends_with(".safetensors") && !name.ends_with("case.safetensors")
        });
        let copy = work.path().join("model.safetensors");
        std::fs::copy(file.expect("weights"), &copy).expect("copied");
        let error = pyrograph::model::recognise(&copy).map(drop).expect_err("other axes");
        assert!(error.to_string().contains("axes_dims"), "{error}");
        std::fs::write(work.path().join("config.json"), known.to_string()).expect("written");
        let net = open_changed(&copy, |_| ()).net;
        let expected = case.tensor("forward_output", &device());
        assert_close("single file", output(&net, &case).0, expected, tolerance(1e-5));
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
fn the_command_makes_the_pictures_of_diffusers() {
    cases("flux2-klein").iter().for_each(|folder| flows::assert_command(folder, |scale| scale));
}

/// Keys count, or are refused by name.
#[test]
fn keys_count_or_are_refused() {
    let (folder, golden) = (tempfile::tempdir().expect("a folder"), &cases("flux2-klein")[0]);
    let path = folder.path().join("model");
    copy_folder(golden, &path);
    for (part, key, value, word) in [
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
    ] {
        let name = if part == "scheduler" { "scheduler_config.json" } else { "config.json" };
        let (file, own) = (path.join(part).join(name), json(&golden.join(part).join(name)));
        let mut config = own.clone();
        config[key] = value;
        std::fs::write(&file, config.to_string()).expect("written");
        let error = pyrograph::model::recognise(&path).map(drop).expect_err(key).to_string();
        assert!(error.contains(word), "{key}: {error}");
        std::fs::write(&file, own.to_string()).expect("written");
    }
}
