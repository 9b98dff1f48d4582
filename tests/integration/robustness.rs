//! Broken and hostile files: always a typed error or a valid read, quickly, never a panic.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use burn::tensor::Device;
use pyrograph_weights::{Bundle, Checkpoint, Error};

use crate::util::cases;

/// Mutations of each file.
const MUTATIONS: u64 = 120;

/// A mutated copy: cut somewhere, bits flipped in the first kilobytes or anywhere, a length replaced.
fn mutated(bytes: &[u8], number: u64) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) + 1;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % below.max(1)
    };
    let mut bytes = bytes.to_vec();
    let length = bytes.len();
    match number % 6 {
        0 => bytes.truncate(random(length)),
        1 => bytes.truncate(random(64)),
        2 => bytes[..8].copy_from_slice(&(random(usize::MAX) as u64).to_le_bytes()),
        3 => {
            for _ in 0..1 + random(8) {
                let at = random(length.min(4096));
                bytes[at] ^= 1 << random(8);
            }
        }
        4 => {
            for _ in 0..1 + random(64) {
                let at = random(length);
                bytes[at] = random(256) as u8;
            }
        }
        _ => {
            let (from, to) = (random(length), random(length));
            let part: Vec<u8> = bytes[from..(from + 32).min(length)].to_vec();
            let end = (to + part.len()).min(length);
            bytes[to..end].copy_from_slice(&part[..end - to]);
        }
    }
    bytes
}

fn read_everything(path: &Path) -> Result<usize, Error> {
    let checkpoint = Checkpoint::open(path)?;
    let mut values = 0;
    for name in checkpoint.tensors().keys() {
        values += checkpoint.read_f32(name)?.0.len();
    }
    Ok(values)
}

fn survive(name: &str, original: &Path, read: impl Fn(&Path) -> Result<usize, Error>) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(name);
    let bytes = std::fs::read(original).expect("a golden file");
    std::fs::write(&path, &bytes).expect("written");
    read(&path).expect("the original is fine");
    let mut refused = 0;
    for number in 0..MUTATIONS {
        std::fs::write(&path, mutated(&bytes, number)).expect("written");
        let started = Instant::now();
        if let Err(error) = read(&path) {
            refused += 1;
            assert!(!error.to_string().is_empty());
        }
        let elapsed = started.elapsed();
        assert!(elapsed < Duration::from_secs(2), "mutation {number} took {elapsed:?}");
    }
    println!("{name}: {refused} of {MUTATIONS} refused");
    assert!(refused >= MUTATIONS / 3, "only {refused} refused");
}

fn golden(prefix: &str, file: &str) -> PathBuf {
    cases(prefix)[0].join(file)
}

#[test]
fn mutated_safetensors_files() {
    survive("a.safetensors", &golden("dit-pipeline", "case.safetensors"), read_everything);
}

#[test]
fn mutated_pytorch_files() {
    survive("a.pt", &golden("dit-original", "checkpoint.pt"), read_everything);
}

#[test]
fn mutated_shard_indices() {
    let folder = tempfile::tempdir().expect("a folder");
    let index = shards(folder.path(), |_| ());
    let shard = folder.path().join("a-00001-of-00001.safetensors");
    survive("a.safetensors.index.json", &index, |path| {
        let target = path.with_file_name("a-00001-of-00001.safetensors");
        std::fs::copy(&shard, target).expect("copied");
        read_everything(path)
    });
}

#[test]
fn mutated_manifests() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model");
    let layer = burn::nn::LinearConfig::new(4, 4).init(&Device::flex());
    let manifest = pyrograph_weights::Manifest::new("test", &vec![1; 200]).expect("JSON");
    let parts = vec![("net", pyrograph_weights::Part::module(&layer))];
    pyrograph_weights::save_bundle(&path, manifest, parts, Default::default(), false)
        .expect("saved");
    let part = path.join("net.safetensors");
    survive("model.json", &path.join("model.json"), |manifest| {
        let folder = manifest.parent().expect("a folder");
        std::fs::copy(&part, folder.join("net.safetensors")).expect("copied");
        let bundle = Bundle::open(folder)?;
        bundle.verify("net")?;
        Ok(bundle.checkpoint("net")?.elements())
    });
}

/// Whatever a description says, it is opened or refused at once.
#[test]
fn mutated_configurations() {
    let folder = tempfile::tempdir().expect("a folder");
    let pipeline = golden("dit-pipeline", "");
    let bundle = crate::util::assets().join("models/emoji-class");
    for (model, files) in [
        (
            pipeline,
            &[
                "model_index.json",
                "transformer/config.json",
                "scheduler/scheduler_config.json",
                "vae/config.json",
                "transformer/diffusion_pytorch_model.safetensors",
                "vae/diffusion_pytorch_model.safetensors",
            ][..],
        ),
        (bundle, &["model.json", "dit.safetensors"]),
    ] {
        let copy = folder.path().join("model");
        for file in files {
            let target = copy.join(file);
            std::fs::create_dir_all(target.parent().expect("a folder")).expect("created");
            std::fs::copy(model.join(file), target).expect("copied");
        }
        for file in files.iter().filter(|file| file.ends_with(".json")) {
            let bytes = std::fs::read(copy.join(file)).expect("there");
            for number in 0..MUTATIONS {
                let bytes = match number % 2 {
                    0 => mutated(&bytes, number / 2),
                    _ => other_number(&bytes, number),
                };
                std::fs::write(copy.join(file), bytes).expect("written");
                let started = Instant::now();
                if let Ok(model) = pyrograph::model::recognise(&copy) {
                    let settings = model.config.defaults.settings(0);
                    let _ = settings.grid(&model.config.process);
                    let _ = model.config.net.parameters();
                }
                let elapsed = started.elapsed();
                assert!(elapsed < Duration::from_secs(2), "{file} {number} took {elapsed:?}");
            }
            std::fs::write(copy.join(file), bytes).expect("written");
        }
        std::fs::remove_dir_all(copy).expect("removed");
    }
}

/// A copy of a JSON text in which one number is another, such as a very large one.
fn other_number(bytes: &[u8], number: u64) -> Vec<u8> {
    const NUMBERS: [&str; 8] =
        ["0", "-1", "1e308", "65537", "4294967296", "18446744073709551615", "0.5", "1e-300"];
    let text = String::from_utf8_lossy(bytes);
    let starts: Vec<usize> = text
        .match_indices(|c: char| c.is_ascii_digit())
        .map(|(at, _)| at)
        .filter(|at| {
            !text[..*at].ends_with(|c: char| c.is_ascii_alphanumeric() || ".-_".contains(c))
        })
        .collect();
    let start = starts[number as usize / 2 % starts.len()];
    let rest = text[start..].trim_start_matches(|c: char| c.is_ascii_digit() || ".e-".contains(c));
    format!("{}{}{rest}", &text[..start], NUMBERS[number as usize % NUMBERS.len()]).into_bytes()
}

/// A sharded checkpoint of one shard whose index `change` can spoil; returns the index.
fn shards(folder: &Path, change: impl Fn(&mut serde_json::Value)) -> PathBuf {
    let source = golden("dit-pipeline", "transformer/diffusion_pytorch_model.safetensors");
    let name = "a-00001-of-00001.safetensors";
    std::fs::copy(&source, folder.join(name)).expect("copied");
    let checkpoint = Checkpoint::open(&source).expect("fine");
    let names = checkpoint.tensors().keys().map(|tensor| (tensor.clone(), name.into()));
    let map: serde_json::Map<String, serde_json::Value> = names.collect();
    let mut index = serde_json::json!({ "metadata": { "total_size": 1 }, "weight_map": map });
    change(&mut index);
    let path = folder.join("a.safetensors.index.json");
    std::fs::write(&path, index.to_string()).expect("written");
    path
}

#[test]
fn indices_stay_in_their_folder_and_tell_the_truth() {
    let folder = tempfile::tempdir().expect("a folder");
    let open = |change: &dyn Fn(&mut serde_json::Value)| {
        Checkpoint::open(shards(folder.path(), change)).map(|_| ())
    };
    open(&|_| ()).expect("unspoilt");
    let refused = |change: &dyn Fn(&mut serde_json::Value), word: &str| {
        let error = open(change).expect_err(word).to_string();
        assert!(error.contains(word), "{error}");
    };
    let key = "proj_out_2.weight";
    refused(&|index| index["weight_map"][key] = "../a.safetensors".into(), "../a.safetensors");
    refused(&|index| index["weight_map"][key] = "/etc/passwd".into(), "/etc/passwd");
    refused(&|index| index["weight_map"]["extra"] = index["weight_map"][key].clone(), "extra");
    refused(
        &|index| {
            index["weight_map"].as_object_mut().expect("an object").remove(key);
        },
        key,
    );
    refused(&|index| *index = serde_json::json!([]), "JSON");
    refused(
        &|index| index["weight_map"][key] = "missing.safetensors".into(),
        "missing.safetensors",
    );
}

/// A safetensors file with this header and this many bytes of data.
fn safetensors(path: &Path, header: &str, data: usize) {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(vec![0; data]);
    std::fs::write(path, bytes).expect("written");
}

#[test]
fn hostile_headers_are_refused_with_their_fault() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.safetensors");
    let one = r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
    for (header, data) in [
        (format!(r#"{{"a":{one},"a":{one}}}"#), 4),
        (format!(r#"{{"a":{one},"b":{one}}}"#), 4),
        (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#.to_owned(), 4),
        (
            r#"{"a":{"dtype":"F32","shape":[18446744073709551615,2],"data_offsets":[0,4]}}"#
                .to_owned(),
            4,
        ),
        (r#"{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}"#.to_owned(), 4),
        (r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#.to_owned(), 8),
        (format!(r#"{{"a":{one}}}"#), 400),
        ("[]".to_owned(), 0),
        ("{".repeat(10_000), 0),
    ] {
        safetensors(&path, &header, data);
        let error = Checkpoint::open(&path).map(|_| ()).expect_err(&header[..header.len().min(80)]);
        assert!(matches!(error, Error::Header { .. }), "{error}");
    }
    std::fs::write(&path, u64::MAX.to_le_bytes()).expect("written");
    assert!(Checkpoint::open(&path).is_err());
}

#[test]
fn pickles_that_name_code_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.pt");
    // A dictionary {"model": os.system("echo")} in protocol 2.
    let pickle = b"\x80\x02}X\x05\x00\x00\x00modelcposix\nsystem\nX\x04\x00\x00\x00echo\x85Rs.";
    std::fs::write(&path, pickle).expect("written");
    let error = Checkpoint::open(&path).map(|_| ()).expect_err("code");
    assert!(error.to_string().contains("posix.system"), "{error}");
}

#[test]
fn everything_that_does_not_fit_is_listed() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = golden("mp-dit-scale", "model.safetensors");
    let checkpoint = Checkpoint::open(&source).expect("fine");
    let mut tensors = Vec::new();
    for name in checkpoint.tensors().keys() {
        let (values, shape) = checkpoint.read_f32(name).expect("fine");
        let renamed = match name.as_str() {
            "x_embedder.weight" | "t_embedder.mlp.net.0.weight" => name.clone(),
            "blocks.0.attn.out_proj.weight" => "blocks.0.attn.out_projj.weight".to_owned(),
            _ => name.clone(),
        };
        let shape = match name.as_str() {
            "blocks.1.mlp.net.0.weight" => vec![shape[1], shape[0]],
            _ => shape,
        };
        tensors.push((renamed, burn::tensor::TensorData::new(values, shape)));
    }
    let path = folder.path().join("model.safetensors");
    pyrograph_weights::write_safetensors(&path, &tensors, &Default::default()).expect("written");
    std::fs::copy(source.with_file_name("config.json"), folder.path().join("config.json"))
        .expect("copied");
    let error = pyrograph::model::open(&path, &Device::flex()).map(|_| ()).expect_err("spoilt");
    let text = error.to_string();
    for part in [
        "missing (1)",
        "unused (1)",
        "different (1)",
        "blocks.0.attention.out.weight (from blocks.0.attn.out_proj.weight)",
        "blocks.0.attn.out_projj.weight",
        "blocks.1.mlp.up.weight",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
}
