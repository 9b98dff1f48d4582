//! Pictures are made again from what they hold, or say what is missing.

use std::path::Path;

use burn::tensor::TensorData;
use pyrograph::metadata;

use crate::command::TestCommand;
use crate::util::{assert_same_pixels, assets, case_file, cases, copy_folder, fixtures, text};

fn assert_same(a: &Path, b: &Path) {
    let pixels = |path: &Path| image::open(path).expect("a picture").into_rgb8();
    assert_same_pixels(&format!("{} and {}", a.display(), b.display()), &pixels(a), &pixels(b));
}

fn made(folder: &Path, options: &[&str]) -> TestCommand {
    TestCommand::new(folder, ["generate", "class"]).args(options)
}

fn write_noise(path: &Path, images: usize, frequency: f32) {
    let values = (0..images * 3 * 64 * 64).map(|i| 1.4 * (i as f32 * frequency).sin()).collect();
    let data = TensorData::new(values, [images, 3, 64, 64]);
    let tensors = [("noise".to_owned(), data)];
    pyrograph_weights::write_safetensors(path, &tensors, &Default::default()).expect("written");
}

#[test]
fn every_format_keeps_the_settings() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    for kind in ["png", "jpg", "webp"] {
        let (first, again) = (format!("a.{kind}"), format!("b.{kind}"));
        let options = ["-c", "cat,2", "--grid", "1", "--steps", "3", "-s", "5", "--eta", "0.3"];
        let sampler = ["--sampler", "ddim", "--cfg-scale", "1.7", "-W", "96", "-o", &first];
        made(folder.path(), &options).args(sampler).succeeded();
        made(folder.path(), &["--from-metadata", &first, "-o", &again]).succeeded();
        assert_same(&path(&first), &path(&again));
        let texts = metadata::read(&path(&first)).expect("texts");
        assert!(texts["parameters"].contains("Steps: 3"), "{texts:?}");
        assert_eq!(texts, metadata::read(&path(&again)).expect("texts"));
    }
}

/// As earlier versions wrote them.
#[test]
fn old_pictures_are_made_again() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["old-start.png", "old-grid.png"] {
        let old = case_file(name);
        made(folder.path(), &["--from-metadata", text(&old), "-o", name]).succeeded();
        let pixels = |path: &Path| image::open(path).expect("a picture").into_rgb8();
        let (old, new) = (pixels(&old), pixels(&folder.path().join(name)));
        assert_eq!(old.dimensions(), new.dimensions());
        // They were made on other processors, whose vectors add up in another order: where a value is between two levels,
        // it can fall to either.
        let apart: Vec<u8> = old.iter().zip(new.iter()).map(|(a, b)| a.abs_diff(*b)).collect();
        let differ = apart.iter().filter(|apart| **apart > 0).count();
        assert!(apart.iter().all(|apart| *apart <= 1), "{name}");
        assert!(differ * 1000 <= apart.len(), "{name}: {differ} of {}", apart.len());
    }
}

#[test]
fn noise_and_pictures_are_known_by_what_they_hold() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    write_noise(&path("noise.safetensors"), 3, 0.7);
    std::fs::copy(case_file("start.png"), path("start.png")).expect("copied");
    std::fs::create_dir(path("sub")).expect("made");
    let start = path("start.png");
    let options = ["-c", "1,4", "--steps", "4", "-s", "5", "--batch-size", "2"];
    made(folder.path(), &options)
        .args(["-i", text(&start), "--mask", "start.png", "--noise", "noise.safetensors"])
        .args(["-o", "k%d.png"])
        .succeeded();
    let again = |options: &[&str]| made(folder.path(), options).args(["-o", "again.png"]);
    for name in ["k0.png", "k1.png", "k2.png"] {
        again(&["--from-metadata", name]).succeeded();
        assert_same(&path(name), &path("again.png"));
    }
    // Moved into another folder, it is still found; changed, it is missed.
    std::fs::rename(path("noise.safetensors"), path("sub/noise.safetensors")).expect("moved");
    again(&["--from-metadata", "k1.png"]).succeeded();
    assert_same(&path("k1.png"), &path("again.png"));
    std::fs::rename(path("sub/noise.safetensors"), path("sub/other.safetensors")).expect("moved");
    let missing = again(&["--from-metadata", "k1.png"]).failed();
    assert!(missing.contains("`noise.safetensors`") && missing.contains("--noise"), "{missing}");
    write_noise(&path("noise.safetensors"), 3, 0.9);
    let changed = again(&["--from-metadata", "k1.png"]).failed();
    assert!(changed.contains("another content"), "{changed}");
    let given =
        again(&["--from-metadata", "k1.png", "--noise", "sub/other.safetensors"]).reported();
    assert!(!given.contains("warning"), "{given}");
    assert_same(&path("k1.png"), &path("again.png"));
    // Another one is a wish, and a word on it.
    write_noise(&path("one.safetensors"), 1, 0.9);
    let other = again(&["--from-metadata", "k1.png", "--noise", "one.safetensors"]).reported();
    assert!(other.contains("warning: one.safetensors is not noise.safetensors"), "{other}");
    std::fs::remove_file(path("start.png")).expect("removed");
    let given = ["--from-metadata", "k1.png", "--noise", "sub/other.safetensors"];
    let missing = again(&given).failed();
    assert!(missing.contains("`start.png`") && missing.contains("--init-image"), "{missing}");
}

/// Whatever it is, beside its old place.
#[test]
fn what_was_renamed_is_found_by_its_content() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let golden = cases("dit-pipeline").remove(0);
    copy_folder(&golden, &path("model"));
    copy_folder(&golden.join("vae"), &path("vae"));
    let lora = fixtures().join("lora/kohya.safetensors");
    std::fs::copy(lora, path("lora.safetensors")).expect("copied");
    std::fs::copy(case_file("start.png"), path("start.png")).expect("copied");
    std::fs::copy(case_file("old-grid.png"), path("mask.png")).expect("copied");
    let options = ["-m", "model", "--vae", "vae", "--lora", "lora.safetensors:0.5", "-c", "1"];
    made(folder.path(), &options)
        .args(["-i", "start.png", "--mask", "mask.png", "--steps", "2", "-s", "5"])
        .args(["-o", "a.png"])
        .succeeded();
    write_noise(&path("noise.safetensors"), 1, 0.7);
    made(folder.path(), &["-c", "1", "--steps", "2", "--noise", "noise.safetensors"])
        .args(["-o", "b.png"])
        .succeeded();
    for (from, to) in [
        ("vae", "autoencoder"),
        ("lora.safetensors", "style.safetensors"),
        ("start.png", "first.png"),
        ("mask.png", "hole.png"),
        ("noise.safetensors", "grain.safetensors"),
    ] {
        std::fs::rename(path(from), path(to)).expect("renamed");
        for name in ["a.png", "b.png"] {
            let again = ["--from-metadata", name, "-o", "again.png"];
            let said = made(folder.path(), &again).reported();
            assert!(!said.contains("is not") && !said.contains(" was "), "{to}: {said}");
            assert_same(&path(name), &path("again.png"));
        }
    }
    // A missing one is named with its weight.
    std::fs::remove_file(path("style.safetensors")).expect("removed");
    let missing = made(folder.path(), &["--from-metadata", "a.png", "-o", "again.png"]).failed();
    assert!(missing.contains("--lora lora.safetensors:0.5"), "{missing}");
}

/// A record of a later version is told, and what it has more is refused by name.
#[test]
fn records_of_other_versions_are_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    made(folder.path(), &["-c", "1", "--steps", "2", "-o", "a.png"]).succeeded();
    let changed = |name: &str, change: &dyn Fn(&mut serde_json::Value)| {
        let mut texts = metadata::read(&path("a.png")).expect("texts");
        let mut record = serde_json::from_str(&texts["pyrograph"]).expect("JSON");
        change(&mut record);
        texts.insert("pyrograph".into(), record.to_string());
        let picture = image::open(path("a.png")).expect("a picture").into_rgb8();
        let texts: Vec<(String, String)> = texts.into_iter().collect();
        pyrograph::image::write_image(&path(name), &picture, &texts).expect("written");
    };
    let again = |name| made(folder.path(), &["--from-metadata", name, "-o", "again.png"]);
    assert!(!again("a.png").reported().contains("version"));
    changed("later.png", &|record| record["version"] = "9.8.7".into());
    let said = again("later.png").reported();
    assert!(said.contains("made by version 9.8.7, this is "), "{said}");
    changed("more.png", &|record| {
        record["version"] = "9.8.7".into();
        record["upscaler"] = "x4".into();
    });
    let said = again("more.png").failed();
    assert!(said.contains("unknown key `upscaler`") && said.contains("version 9.8.7"), "{said}");
    changed("pair.png", &|record| record["settings"]["guidance"]["interval"] = [1].into());
    let said = again("pair.png").failed();
    assert!(said.contains("`interval` is [1], expected a list of 2"), "{said}");
}

/// No picture tells where its files lie.
#[test]
fn no_folder_is_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    std::fs::copy(case_file("start.png"), path("start.png")).expect("copied");
    let (start, golden) = (path("start.png"), cases("dit-pipeline").remove(0));
    let vae = golden.join("vae");
    for output in ["a.png", "a.jpg", "a.webp"] {
        made(folder.path(), &["-m", text(&golden), "--vae", text(&vae), "-c", "1", "--steps", "2"])
            .args(["-i", text(&start), "--mask", text(&start), "--guide-model", text(&golden)])
            .args(["--cfg-scale", "2", "-o", text(&path(output))])
            .succeeded();
        let bytes = std::fs::read(path(output)).expect("a file");
        let plain: Vec<u8> = bytes.into_iter().filter(|byte| *byte != 0).collect();
        let holds = |part: &str| plain.windows(part.len()).any(|window| window == part.as_bytes());
        let parent = |path: &Path| text(path.parent().expect("a folder")).to_owned();
        assert!(!holds(&parent(&start)) && !holds(&parent(&golden)), "{output}");
        assert!(holds("start.png"), "{output}");
        let texts = metadata::read(&path(output)).expect("texts");
        let record: serde_json::Value = serde_json::from_str(&texts["pyrograph"]).expect("JSON");
        for part in ["picture", "mask", "vae", "guide"] {
            assert!(record[part]["fingerprint"].is_string(), "{record}");
            assert!(record[part]["file"].is_string(), "{record}");
        }
    }
}

/// Also under another name, and among several of one name.
#[test]
fn models_are_found_by_their_weights() {
    let folder = tempfile::tempdir().expect("a folder");
    let copy = |model: &str, target: &str| {
        let target = folder.path().join(target);
        std::fs::create_dir_all(&target).expect("made");
        for name in ["model.json", "dit.safetensors"] {
            let source = assets().join("models").join(model).join(name);
            std::fs::copy(source, target.join(name)).expect("copied");
        }
    };
    copy("emoji-4step", "runs/a/model");
    copy("emoji-class", "runs/b/model");
    let path = |name: &str| folder.path().join(name);
    let again = |name: &str| {
        let said = made(folder.path(), &["--from-metadata", name, "-o", "again.png"]).reported();
        assert!(!said.contains("warning"), "{said}");
        assert_same(&path(name), &path("again.png"));
    };
    made(folder.path(), &["-m", "runs/b/model", "-c", "3", "--steps", "2", "-o", "b.png"])
        .succeeded();
    again("b.png");
    std::fs::rename(path("runs/b/model"), path("runs/renamed")).expect("moved");
    again("b.png");
    std::fs::remove_dir_all(path("runs/renamed")).expect("removed");
    std::fs::remove_dir_all(path("runs/a/model")).expect("removed");
    // It was a copy of the shipped one.
    again("b.png");
    let golden = cases("dit-pipeline").remove(0);
    made(folder.path(), &["-m", text(&golden), "-c", "3", "--steps", "2", "-o", "c.png"])
        .succeeded();
    let gone = made(folder.path(), &["--from-metadata", "c.png", "-o", "d.png"]).failed();
    assert!(
        gone.contains("the model came from `dit-pipeline") && gone.contains("--model"),
        "{gone}"
    );
}
