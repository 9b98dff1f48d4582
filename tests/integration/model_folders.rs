//! Models as people have them: in folders and files of every layout.

use std::path::{Path, PathBuf};

use burn::tensor::TensorData;
use pyrograph::model::{self, Parts};
use pyrograph_weights::{Checkpoint, write_safetensors};
use serde_json::json;

use crate::command::TestCommand;
use crate::util::{assets, cases, copy_folder};

fn pipeline() -> PathBuf {
    cases("dit-pipeline")[0].clone()
}

fn fingerprint(path: &Path) -> String {
    let found = model::recognise(path).unwrap_or_else(|error| panic!("{error}"));
    found.net.checkpoint.fingerprint()
}

const NAME: &str = "diffusion_pytorch_model";

#[test]
fn shards_variants_and_capitals_open_as_the_one_file_does() {
    let expected = fingerprint(&pipeline());
    for (index, shard) in [
        ("NAME.safetensors.index.json", "NAME-0000I-of-00002.safetensors"),
        ("NAME.safetensors.index.fp16.json", "NAME.fp16-0000I-of-00002.safetensors"),
        ("NAME.fp16.safetensors.index.json", "NAME.fp16-0000I-of-00002.safetensors"),
        ("", "NAME.fp16.safetensors"),
        ("", "NAME.SAFETENSORS"),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        copy_folder(&pipeline(), folder.path());
        let part = folder.path().join("transformer");
        let whole = part.join(format!("{NAME}.safetensors"));
        let checkpoint = Checkpoint::open(&whole).expect("whole");
        let tensor = |name: &String| {
            let (values, shape) = checkpoint.read_f32(name).expect("there");
            (name.clone(), TensorData::new(values, shape))
        };
        let tensors: Vec<_> = checkpoint.tensors().keys().map(tensor).collect();
        std::fs::remove_file(whole).expect("removed");
        let shard = |i: usize| shard.replace("NAME", NAME).replace('I', &i.to_string());
        let shards = if index.is_empty() { 1 } else { 2 };
        let mut map = serde_json::Map::new();
        for (i, tensors) in tensors.chunks(tensors.len().div_ceil(shards)).enumerate() {
            write_safetensors(&part.join(shard(i + 1)), tensors, &Default::default())
                .expect("written");
            map.extend(tensors.iter().map(|(name, _)| (name.clone(), shard(i + 1).into())));
        }
        if !index.is_empty() {
            let text = json!({ "metadata": {}, "weight_map": map }).to_string();
            std::fs::write(part.join(index.replace("NAME", NAME)), text).expect("written");
        }
        // What macOS puts beside a file, and into an archive.
        std::fs::write(part.join(format!("._{NAME}.safetensors")), "x").expect("written");
        std::fs::create_dir(folder.path().join("__MACOSX")).expect("created");
        assert_eq!(fingerprint(folder.path()), expected, "{index} {}", shard(1));
    }
}

#[cfg(unix)]
#[test]
fn a_cache_of_the_hub_opens() {
    use std::os::unix::fs::symlink;
    let folder = tempfile::tempdir().expect("a folder");
    let repository = folder.path().join("models--org--name");
    copy_folder(&pipeline(), &repository.join("blobs/pipeline"));
    let snapshot = repository.join("snapshots/0123abc");
    for part in ["transformer", "vae", "scheduler"] {
        std::fs::create_dir_all(snapshot.join(part)).expect("created");
        for entry in std::fs::read_dir(pipeline().join(part)).expect("a folder") {
            let name = entry.expect("an entry").file_name();
            let blob = Path::new("../../../blobs/pipeline").join(part).join(&name);
            symlink(blob, snapshot.join(part).join(name)).expect("linked");
        }
    }
    symlink("../../blobs/pipeline/model_index.json", snapshot.join("model_index.json"))
        .expect("linked");
    std::fs::create_dir(repository.join("refs")).expect("created");
    std::fs::write(repository.join("refs/main"), "0123abc").expect("written");
    for path in [&repository, &snapshot] {
        assert_eq!(fingerprint(path), fingerprint(&pipeline()));
    }
    let file = cases("dit-original")[0].join("checkpoint.pt");
    for vae in [repository.clone(), snapshot.join("vae"), pipeline(), pipeline().join("vae")] {
        let found = model::recognise_with(&file, Parts { vae: Some(&vae), ..Parts::default() });
        assert!(found.unwrap_or_else(|error| panic!("{error}")).vae.is_some());
    }
}

#[test]
fn one_file_in_a_folder_is_the_model() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = cases("dit-original")[0].clone();
    let inside = folder.path().join("DiT");
    std::fs::create_dir(&inside).expect("created");
    std::fs::copy(source.join("checkpoint.pt"), inside.join("DiT.PT")).expect("copied");
    std::fs::copy(source.join("config.json"), inside.join("config.json")).ok();
    std::fs::write(inside.join("._DiT.PT"), "x").expect("written");
    let expected = fingerprint(&source.join("checkpoint.pt"));
    assert_eq!([fingerprint(folder.path()), fingerprint(&inside)], [expected.clone(), expected]);
}

/// A class that is not known, or none at all: said so, with the option that helps, and another can be named.
#[test]
fn a_missing_or_other_autoencoder_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model");
    copy_folder(&pipeline(), &path);
    let run = |arguments: &[&str]| TestCommand::new(folder.path(), arguments).on_cpu();
    let generate =
        ["generate", "class", "-m", "model", "--class", "1", "--steps", "1", "-o", "a.png"];
    let vae = pipeline().join("vae").to_string_lossy().into_owned();
    let config = path.join("vae/config.json");
    let text = std::fs::read_to_string(&config).expect("there");
    std::fs::write(&config, text.replace("AutoencoderKL", "AutoencoderDC")).expect("written");
    let error = run(&generate).failed();
    assert!(error.contains("AutoencoderDC") && error.contains("--vae"), "{error}");
    run(&generate).args(["--vae", &vae]).succeeded();
    std::fs::remove_dir_all(path.join("vae")).expect("removed");
    let error = run(&generate).failed();
    assert!(error.contains("without an autoencoder") && error.contains("--vae"), "{error}");
    run(&generate).args(["--vae", &vae]).succeeded();
    let pixels = assets().join("models/emoji-class").to_string_lossy().into_owned();
    let error = run(&generate).args(["--vae", &pixels]).failed();
    assert!(error.contains("no autoencoder") && error.contains("--vae"), "{error}");
    // What helps is an option that the command has.
    image::RgbImage::new(4, 4).save(folder.path().join("1.png")).expect("written");
    std::fs::create_dir(folder.path().join("data")).expect("created");
    for name in ["1.png", "2.png"] {
        let picture = folder.path().join("data").join(name);
        std::fs::copy(folder.path().join("1.png"), picture).expect("copied");
    }
    let error = run(&["eval", "-m", "model", "-r", "data", "-n", "2"]).failed();
    assert!(error.contains("`pyrograph convert --vae`"), "{error}");
    let vae = format!("vae={pixels}");
    let error = run(&["train", "class", "-d", "data", "-o", "run", "--set", &vae]).failed();
    assert!(error.contains("--set vae="), "{error}");
}

#[test]
fn inspect_reads_all_of_a_bundle_and_fails_for_what_is_no_model() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = folder.path().join("model");
    copy_folder(&assets().join("models/emoji-class"), &model);
    let run = |path: &str| TestCommand::new(folder.path(), ["inspect", path]).on_cpu();
    run("model").succeeded();
    let part = model.join("dit.safetensors");
    let mut bytes = std::fs::read(&part).expect("there");
    *bytes.last_mut().expect("bytes") ^= 1;
    std::fs::write(&part, bytes).expect("written");
    let error = run("model").failed();
    assert!(error.contains("sha256"), "{error}");
    let tensors = [("noise".to_owned(), TensorData::new(vec![0f32], [1]))];
    let path = folder.path().join("a.safetensors");
    write_safetensors(&path, &tensors, &Default::default()).expect("written");
    let error = run("a.safetensors").failed();
    assert!(error.contains("known model"), "{error}");
}

/// Whatever is in the place of a bundle stays, unless it is a bundle and nothing else.
#[test]
fn overwrite_replaces_bundles_only() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = assets().join("models/emoji-class").to_string_lossy().into_owned();
    let convert = |output: &str, overwrite: bool| {
        let run = TestCommand::new(folder.path(), ["convert", &model, "-o", output]).on_cpu();
        run.args(overwrite.then_some("--overwrite"))
    };
    let path = |name: &str| folder.path().join(name);
    std::fs::create_dir_all(path("thesis/chapters")).expect("created");
    std::fs::write(path("thesis/chapters/1.tex"), "years of work").expect("written");
    std::fs::write(path("file"), "x").expect("written");
    convert("with notes", false).succeeded();
    std::fs::write(path("with notes/notes.txt"), "x").expect("written");
    std::fs::create_dir(path("other")).expect("created");
    std::fs::write(path("other/model.json"), r#"{"name": "of another program"}"#).expect("written");
    for (output, word) in [
        ("thesis", "no bundle"),
        ("file", "not a folder"),
        ("with notes", "notes.txt"),
        ("other", "no bundle"),
    ] {
        let error = convert(output, true).failed();
        assert!(error.contains(word), "{error}");
        let error = convert(output, false).failed();
        assert!(error.contains("exists"), "{error}");
    }
    let text = std::fs::read_to_string(path("thesis/chapters/1.tex")).expect("still there");
    assert_eq!(text, "years of work");
    std::fs::create_dir(path("empty")).expect("created");
    convert("empty", true).succeeded();
    let first = std::fs::read(path("empty/model.json")).expect("a bundle");
    convert("empty", true).succeeded();
    assert_eq!(std::fs::read(path("empty/model.json")).expect("a bundle"), first);
    let left = std::fs::read_dir(folder.path()).expect("a folder");
    assert_eq!(left.count(), 5, "leftovers");
    // A part that is something else by now.
    let part = path("empty/dit.safetensors");
    std::fs::remove_file(&part).expect("removed");
    std::fs::write(&part, "mine").expect("written");
    assert!(convert("empty", true).failed().contains("dit.safetensors"));
    assert_eq!(std::fs::read(&part).expect("still there"), b"mine");
    std::fs::remove_file(&part).expect("removed");
    std::fs::create_dir(&part).expect("created");
    std::fs::write(part.join("mine"), "x").expect("written");
    assert!(convert("empty", true).failed().contains("dit.safetensors"));
    assert!(part.join("mine").exists());
}
