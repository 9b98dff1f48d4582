//! Model files and folders that say more than they hold: an error within a second, with the number.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use burn::tensor::{Device, TensorData};
use pyrograph::model::{self, Recognised};
use pyrograph_weights::{Checkpoint, write_safetensors};
use serde_json::{Value, json};

use crate::util::{assets, cases, copy_folder, fixtures};

/// A second, on a machine that does other things besides.
const AT_ONCE: Duration = Duration::from_secs(4);

/// At once, an error with each of the words.
fn refused<T>(what: &str, words: &[&str], open: impl FnOnce() -> pyrograph::error::Result<T>) {
    let started = Instant::now();
    let Err(error) = open() else { panic!("{what} is accepted") };
    let elapsed = started.elapsed();
    assert!(elapsed < AT_ONCE, "{what} took {elapsed:?}");
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(inner) = source {
        text += &format!(": {inner}");
        source = inner.source();
    }
    assert!(words.iter().all(|word| text.contains(word)), "{what}: {text}, expected {words:?}");
}

fn case(name: &str) -> PathBuf {
    fixtures().join("cases/hostile-sizes").join(name)
}

/// A copy of a folder, with a JSON file of it changed.
fn changed(from: &Path, file: &str, change: impl FnOnce(&mut Value)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    copy_folder(from, folder.path());
    let path = folder.path().join(file);
    let mut value: Value =
        serde_json::from_slice(&std::fs::read(&path).expect("there")).expect("JSON");
    change(&mut value);
    std::fs::write(path, value.to_string()).expect("written");
    folder
}

fn open(path: &Path) -> pyrograph::error::Result<Recognised> {
    model::recognise(path)
}

#[test]
fn sizes_in_tensors_are_bounded() {
    refused("blocks", &["300001"], || open(&case("blocks-300k.safetensors")));
    refused("positions", &["268435456", "1048576"], || open(&case("positions-2e28.safetensors")));
    refused("a repeated number", &["2147483648"], || open(&case("expand-2GB.pt")));
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.safetensors");
    let net = |hidden: usize, tokens: usize, block: &str| {
        let zeros = |shape: &[usize]| TensorData::zeros::<f32, _>(shape.to_vec());
        let tensors = [
            ("x_embedder.proj.weight", zeros(&[hidden, 4, 2, 2])),
            ("y_embedder.embedding_table.weight", zeros(&[11, hidden])),
            ("final_layer.linear.weight", zeros(&[32, hidden])),
            ("pos_embed", zeros(&[1, tokens, 0])),
            (block, zeros(&[0])),
        ];
        let tensors = tensors.map(|(name, data)| (name.to_owned(), data));
        write_safetensors(&path, &tensors, &Default::default()).expect("written");
    };
    for block in
        ["blocks.18446744073709551615.x", "blocks.4294967295.x", "blocks.1023.x", "blocks.9.x"]
    {
        net(384, 16, block);
        refused(block, &["depth"], || open(&path));
    }
    for tokens in [1 << 20, 1 << 16] {
        net(384, tokens, "blocks.0.x");
        let side = (tokens as f64).sqrt().to_string();
        refused("a table of positions", &["positions", &side], || open(&path));
    }
    for size in ["input_size", "num_heads", "history_layers"] {
        net(384, 16, "blocks.0.x");
        let hint = folder.path().join("config.json");
        std::fs::write(&hint, json!({ size: u64::MAX }).to_string()).expect("written");
        if size != "history_layers" {
            refused(size, &["18446744073709551615"], || open(&path));
        }
        std::fs::remove_file(hint).expect("removed");
    }
}

#[test]
fn sizes_in_configurations_are_bounded() {
    let pipeline = &cases("dit-pipeline")[0];
    open(pipeline).expect("unspoilt");
    let whole = |file: &str| -> Value {
        serde_json::from_slice(&std::fs::read(case(file)).expect("there")).expect("JSON")
    };
    for (file, name, number) in [
        ("transformer/config.json", "diffusers-layers1M.json", "1000000"),
        ("vae/config.json", "diffusers-vae_layers1e5.json", "100000"),
    ] {
        let folder = changed(pipeline, file, |value| *value = whole(name));
        refused(name, &[number], || open(folder.path()));
    }
    for (file, key) in [
        ("transformer/config.json", "num_layers"),
        ("transformer/config.json", "num_attention_heads"),
        ("transformer/config.json", "attention_head_dim"),
        ("transformer/config.json", "in_channels"),
        ("transformer/config.json", "sample_size"),
        ("transformer/config.json", "patch_size"),
        ("transformer/config.json", "num_embeds_ada_norm"),
        ("vae/config.json", "layers_per_block"),
        ("vae/config.json", "latent_channels"),
        ("vae/config.json", "in_channels"),
        ("vae/config.json", "norm_num_groups"),
    ] {
        for number in [0, 1 << 25, u64::from(u32::MAX), u64::MAX] {
            let folder = changed(pipeline, file, |value| value[key] = number.into());
            if key != "num_embeds_ada_norm" || number > 0 {
                refused(&format!("{key} {number}"), &[], || open(folder.path()));
            }
        }
    }
    let folder = changed(pipeline, "vae/config.json", |value| {
        value["block_out_channels"] = vec![8; 64].into();
    });
    refused("levels", &["64"], || open(folder.path()));
}

/// Which key, what it is, and what it should be.
#[test]
fn values_of_another_kind_are_named() {
    let pipeline = &cases("dit-pipeline")[0];
    for (file, key, value, expected) in [
        ("transformer/config.json", "num_attention_heads", "-2", "-2, expected a whole number"),
        ("transformer/config.json", "num_layers", "2.5", "2.5, expected a whole number"),
        ("transformer/config.json", "attention_bias", "\"no\"", "\"no\", expected true or false"),
        ("vae/config.json", "scaling_factor", "Infinity", "Infinity, expected a number"),
        ("vae/config.json", "scaling_factor", "NaN", "NaN, expected a number"),
        ("vae/config.json", "block_out_channels", "[8, \"x\"]", "[8, \"x\"], expected a whole"),
    ] {
        let folder = changed(pipeline, file, |values| values[key] = "HERE".into());
        let path = folder.path().join(file);
        // As Python writes it, with a space.
        let text = std::fs::read_to_string(&path).expect("there");
        let text = text.replace("\":", "\": ").replace("\"HERE\"", value);
        std::fs::write(&path, text).expect("written");
        refused(key, &[&format!("`{key}` is {expected}")], || open(folder.path()));
    }
    let bundle = assets().join("models/emoji-class");
    let folder = changed(&bundle, "model.json", |value| {
        value["config"]["defaults"]["steps"] = (-3).into();
    });
    refused("steps", &["`steps` is -3, expected a whole number"], || open(folder.path()));
}

/// A number that cannot be is named even where there are no weights.
#[test]
fn numbers_are_compared_before_the_weights() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::copy(case("bundle-depth16M.json"), folder.path().join("model.json")).expect("copied");
    refused("depth", &["16777216"], || open(folder.path()));
    let pipeline = &cases("dit-pipeline")[0];
    for (file, key) in [
        ("transformer/config.json", "num_layers"),
        ("scheduler/scheduler_config.json", "num_train_timesteps"),
        ("vae/config.json", "layers_per_block"),
    ] {
        let folder = changed(pipeline, file, |value| value[key] = 1_000_000_007.into());
        for part in ["transformer", "vae"] {
            let weights = folder.path().join(part).join("diffusion_pytorch_model.safetensors");
            std::fs::remove_file(weights).expect("removed");
        }
        refused(key, &["1000000007"], || open(folder.path()));
    }
}

#[test]
fn sizes_in_bundles_are_bounded() {
    let model = assets().join("models/emoji-class");
    let hostile: Value =
        serde_json::from_slice(&std::fs::read(case("bundle-depth16M.json")).expect("there"))
            .expect("JSON");
    let folder = changed(&model, "model.json", |value| {
        value["config"] = hostile["config"].clone();
    });
    refused("depth", &["16777216"], || open(folder.path()));
    for path in ["depth", "hidden", "heads", "channels", "patch", "classes"] {
        for number in [1 << 25, u64::MAX >> 1] {
            let folder =
                changed(&model, "model.json", |v| v["config"]["net"][path] = number.into());
            refused(path, &[&number.to_string()], || open(folder.path()));
        }
    }
    for depth in [200, 1024] {
        let folder = changed(&model, "model.json", |v| v["config"]["net"]["depth"] = depth.into());
        refused("more blocks than tensors", &[&depth.to_string(), "tensors"], || {
            open(folder.path())
        });
    }
    let folder = changed(&model, "model.json", |value| {
        let patches: Vec<usize> = (1..100_000).collect();
        let flexible = json!({ "patches": patches, "sharing": { "adapters": { "rank": 1 } } });
        value["config"]["net"]["flexible"] = flexible;
    });
    refused("patch sizes", &[], || open(folder.path()));
}

/// Not a file: read to its end it has none, or it waits for ever.
#[cfg(unix)]
#[test]
fn devices_and_pipes_are_no_files() {
    use std::os::unix::fs::symlink;
    let folder = tempfile::tempdir().expect("a folder");
    let pipe = folder.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo");
    assert!(made.success());
    let pipeline = &cases("dit-pipeline")[0];
    let bundle = &assets().join("models/emoji-class");
    for (from, file) in [
        (pipeline, "model_index.json"),
        (pipeline, "transformer/config.json"),
        (pipeline, "scheduler/scheduler_config.json"),
        (pipeline, "vae/config.json"),
        (pipeline, "transformer/diffusion_pytorch_model.safetensors"),
        (bundle, "model.json"),
        (bundle, "dit.safetensors"),
    ] {
        for target in [Path::new("/dev/zero"), &pipe] {
            let folder = tempfile::tempdir().expect("a folder");
            copy_folder(from, folder.path());
            std::fs::remove_file(folder.path().join(file)).expect("removed");
            symlink(target, folder.path().join(file)).expect("linked");
            refused(file, &[], || open(folder.path()));
        }
    }
    // A part that is said to be empty.
    let folder = changed(bundle, "model.json", |value| {
        for (_, part) in value["parts"].as_object_mut().expect("parts") {
            part["bytes"] = 0.into();
        }
    });
    std::fs::remove_file(folder.path().join("dit.safetensors")).expect("removed");
    symlink("/dev/zero", folder.path().join("dit.safetensors")).expect("linked");
    refused("an empty part", &["device"], || open(folder.path()));
}

#[test]
fn large_configurations_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    copy_folder(&cases("dit-pipeline")[0], folder.path());
    // A hole of the disk, which takes no room there.
    let path = folder.path().join("vae/config.json");
    File::create(&path).expect("made").set_len(8 << 30).expect("a sparse file");
    refused("8 GB", &["larger than"], || open(folder.path()));
}

/// As many names that fit nothing as a file can hold in a few megabytes.
#[test]
fn a_hundred_thousand_strange_names_are_refused_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = cases("dit-original")[0].join("checkpoint.pt");
    let checkpoint = Checkpoint::open(&source).expect("fine");
    let mut tensors = Vec::new();
    for name in checkpoint.tensors().keys() {
        let (values, shape) = checkpoint.read_f32(name).expect("fine");
        tensors.push((name.clone(), TensorData::new(values, shape)));
    }
    let strange =
        |i: usize| (format!("blocks.0.mlp.{i:050}.weight"), TensorData::new(vec![0u8], [1]));
    tensors.extend((0..100_000).map(strange));
    let path = folder.path().join("model.safetensors");
    write_safetensors(&path, &tensors, &Default::default()).expect("written");
    std::fs::copy(source.with_file_name("config.json"), folder.path().join("config.json")).ok();
    refused("strange names", &["unused (100000)"], || model::open(&path, &Device::flex()));
}
