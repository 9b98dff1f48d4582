//! Autoencoders that are not part of a model: other kinds, and files without a configuration.

use std::path::{Path, PathBuf};

use pyrograph::model::{self, Model, Parts};
use pyrograph_weights::FloatDtype;

use crate::command::TestCommand;
use crate::util::{Case, assert_close, cases, copy_folder, device, fixtures, json, tolerance};

fn golden(name: &str) -> PathBuf {
    fixtures().join("goldens").join(name)
}

/// A model with the autoencoder at `path` in the place of its own, and what was said about it.
fn with(path: &Path) -> (Model, Vec<String>) {
    let mut said = Vec::new();
    let recognised = model::recognise_with(
        &cases("dit-pipeline")[0],
        Parts { vae: Some(path), ..Parts::default() },
    );
    let recognised = recognised.unwrap_or_else(|error| panic!("{error}"));
    let model = recognised
        .load(FloatDtype::F32, &device(), &mut |notice| said.push(notice.to_string()))
        .unwrap_or_else(|error| panic!("{error}"));
    (model, said)
}

#[test]
fn tiny_and_lone_autoencoders_are_those_of_diffusers() {
    for (name, file, words) in
        [("autoencoder-tiny", "", ""), ("autoencoder-lone", "vae.safetensors", "0.18215")]
    {
        for folder in cases(name) {
            let (model, said) = with(&folder.join(file));
            assert!(said.len() == usize::from(!words.is_empty()), "{said:?}");
            assert!(said.iter().all(|said| said.contains(words)), "{said:?}");
            let (vae, case, device) = (model.vae.expect("named"), Case::open(&folder), device());
            let encoded = vae.encode(case.tensor("image", &device));
            assert_eq!(encoded.log_variance.is_none(), name == "autoencoder-tiny");
            let tolerance = tolerance(1e-5);
            let expected = case.tensor("encoded", &device);
            assert_close(&format!("{name}: latents"), encoded.mean, expected, tolerance);
            let decoded = vae.decode(case.tensor("latent", &device));
            let expected = case.tensor("decoded", &device);
            assert_close(&format!("{name}: image"), decoded, expected, tolerance);
        }
    }
}

/// Those of FLUX.1 and FLUX.2 in files alone, for networks that say how they see latents.
#[test]
fn lone_autoencoders_of_flows_are_those_of_diffusers() {
    for (name, network) in [("autoencoder-flux1", "z-image"), ("autoencoder-flux2", "flux2-klein")]
    {
        for folder in cases(name) {
            let file = folder.join("vae.safetensors");
            let network = fixtures().join("goldens").join(network);
            let parts = Parts { vae: Some(&file), ..Parts::default() };
            let recognised = model::recognise_with(&network, parts).expect("a model");
            let model = recognised.load(FloatDtype::F32, &device(), &mut |_| ()).expect("weights");
            let (vae, case, device) = (model.vae.expect("named"), Case::open(&folder), device());
            let found = vae.encode(case.tensor("image", &device)).mean;
            let expected = case.tensor("encoded", &device);
            assert_close(&format!("{name}: latents"), found, expected, tolerance(1e-5));
            let decoded = vae.decode(case.tensor("latent", &device));
            let expected = case.tensor("decoded", &device);
            assert_close(&format!("{name}: image"), decoded, expected, tolerance(1e-5));
        }
    }
    // A model of classes does not say it, and nor do the files.
    let lone = golden("autoencoder-flux1").join("vae.safetensors");
    let parts = Parts { vae: Some(&lone), ..Parts::default() };
    let error = model::recognise_with(&cases("dit-pipeline")[0], parts).map(drop);
    assert!(error.expect_err("no scale").to_string().contains("16 channels"));
}

/// What only its configuration says counts, and what the network cannot do is refused by name.
#[test]
fn keys_of_a_tiny_autoencoder_count_or_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("vae");
    copy_folder(&golden("autoencoder-tiny"), &path);
    let written = |key: &str, value: serde_json::Value| {
        let mut config = json(&golden("autoencoder-tiny").join("config.json"));
        config[key] = value;
        std::fs::write(path.join("config.json"), config.to_string()).expect("written");
        model::recognise_with(
            &cases("dit-pipeline")[0],
            Parts { vae: Some(&path), ..Parts::default() },
        )
    };
    let vae = written("scaling_factor", 2.5.into()).expect("a model").config.vae.expect("named");
    assert_eq!((vae.scale, vae.shift), (2.5, 0.1));
    for (key, value) in [
        ("act_fn", "gelu".into()),
        ("upsample_fn", "bilinear".into()),
        ("upsampling_scaling_factor", 3.into()),
        ("out_channels", 4.into()),
        ("encoder_block_out_channels", vec![12, 12, 24].into()),
        ("num_encoder_blocks", vec![1, 2].into()),
        ("num_decoder_blocks", vec![1, 2, 1 << 30].into()),
        ("_class_name", "AutoencoderDC".into()),
    ] {
        let error = written(key, value).map(drop).expect_err(key).to_string();
        let key = key.trim_start_matches('_').trim_start_matches("num_");
        let words = [key, "AutoencoderDC", "blocks"];
        assert!(words.iter().any(|word| error.contains(word)), "{key}: {error}");
    }
}

/// Through the command: pictures by it, and the model converted with it.
#[test]
fn a_tiny_autoencoder_serves_generation_and_conversion() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = |arguments: &[&str]| TestCommand::new(folder.path(), arguments).on_cpu();
    let model = cases("dit-pipeline")[0].to_string_lossy().into_owned();
    let vae = golden("autoencoder-tiny").to_string_lossy().into_owned();
    run(&["convert", &model, "-o", "native", "--vae", &vae, "--dtype", "f32"]).succeeded();
    let generate = ["generate", "class", "--class", "1", "--steps", "2", "--seed", "3"];
    run(&generate).args(["-m", &model, "--vae", &vae, "-o", "a.png"]).succeeded();
    run(&generate).args(["-m", "native", "-o", "b.png"]).succeeded();
    run(&generate).args(["-m", &model, "-o", "c.png"]).succeeded();
    let pixels = |name: &str| {
        let picture = image::open(folder.path().join(name)).expect("a picture");
        picture.to_rgb8().into_raw()
    };
    assert_eq!(pixels("a.png"), pixels("b.png"));
    assert_ne!(pixels("a.png").len(), pixels("c.png").len());
}
