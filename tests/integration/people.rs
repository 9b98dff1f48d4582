//! A person whom a model learns from a few photos, and portraits of them stage by stage.

use std::fs;
use std::path::Path;

use burn::tensor::TensorData;
use image::{Rgb, RgbImage};
use pyrograph_weights::{Checkpoint, write_safetensors};

use crate::command::TestCommand;
use crate::portraits::{MODEL, SIDE, UNSEEN, apart, halves, people, person};
use crate::util::fixtures;

/// A model of people as one class, and photos of one whom it does not know.
fn base(folder: &Path, steps: &str) {
    people(folder);
    let at = |name: &str| folder.join(name);
    fs::create_dir(at("all")).expect("created");
    for entry in fs::read_dir(at("people")).expect("people") {
        let of = entry.expect("read").path();
        for picture in fs::read_dir(&of).expect("pictures") {
            let picture = picture.expect("read").path();
            let name =
                |path: &Path| path.file_name().expect("a name").to_string_lossy().into_owned();
            fs::copy(&picture, at("all").join(name(&of) + &name(&picture))).expect("copied");
        }
    }
    fs::create_dir(at("somebody special")).expect("created");
    for pose in 0..4 {
        let picture = RgbImage::from_fn(SIDE, SIDE, |x, y| {
            let [r, g, b, _] = person(UNSEEN[0], pose, [x, y]);
            Rgb([r, g, b])
        });
        picture.save(at(&format!("somebody special/{pose}.png"))).expect("written");
    }
    fs::write(at("base.toml"), MODEL).expect("written");
    let train = ["train", "class", "--data", "all", "-o", "base", "--config", "base.toml"];
    TestCommand::new(folder, train).on_cpu().args(["--steps", steps]).reported();
}

fn fit(folder: &Path, file: &str) -> TestCommand {
    let asked = ["portrait", "fit", "--photos", "somebody special", "-m", "base", "-o", file];
    TestCommand::new(folder, asked).on_cpu()
}

/// How far the lighter half of a picture is from the colour of the person who was learnt.
fn distance(path: &Path, own: [f64; 3]) -> f64 {
    let [left, right] = halves(path);
    let light = |colour: &[f64; 3]| colour.iter().sum::<f64>();
    apart(if light(&left) > light(&right) { left } else { right }, own)
}

#[test]
fn a_person_is_learnt_from_photos_and_put_into_a_picture() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let command = |args: &[&str]| TestCommand::new(folder.path(), args).on_cpu();
    base(folder.path(), "500");
    let own = halves(&at(&format!("{}-0.png", UNSEEN[0])))[0];
    let before = fs::read(at("base/model/dit.safetensors")).expect("weights");

    let learning = ["--steps", "150", "--lr", "0.02", "--prior-images", "8", "--seed", "1"];
    let said = fit(folder.path(), "me.safetensors").args(learning).reported();
    // A LoRA of rank 8 for four layers of three blocks, and the token.
    let (hidden, rank) = (48, 8);
    let layers =
        [[hidden, 3 * hidden], [hidden, hidden], [hidden, 4 * hidden], [4 * hidden, hidden]];
    let expected: usize = layers.iter().map(|[inputs, outputs]| rank * (inputs + outputs)).sum();
    let expected = 3 * expected + hidden;
    assert!(said.contains(&format!("{expected} parameters from 4 photos")), "{said}");
    let file = fs::read(at("me.safetensors")).expect("a file");
    assert!(!file.windows(8).any(|part| part == b"somebody"));
    fit(folder.path(), "same.safetensors").args(learning).reported();
    assert!(file == fs::read(at("same.safetensors")).expect("a file"));
    assert_eq!(before, fs::read(at("base/model/dit.safetensors")).expect("weights"));

    let make = |name: &str, more: &[&str]| -> Vec<f64> {
        let pattern = format!("{name}-%d.png");
        let asked = ["generate", "class", "-m", "base", "--class", "0", "-n", "8", "--seed", "3"];
        command(&asked).args(["-o", &pattern, "--steps", "10"]).args(more).reported();
        (0..8).map(|i| distance(&at(&format!("{name}-{i}.png")), own)).collect()
    };
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let strangers = make("stranger", &[]);
    let known = make("known", &["--lora", "me.safetensors"]);
    assert!(
        mean(&known) < 50.0 && mean(&strangers) > 2.0 * mean(&known),
        "{known:?}, {strangers:?}"
    );
    make("off", &["--lora", "me.safetensors:0"]);
    assert_eq!(halves(&at("off-3.png")), halves(&at("stranger-3.png")));
    // A weaker model, of another width, knows nothing of the person.
    let weak = ["train", "class", "--data", "all", "-o", "weak", "--config", "base.toml"];
    command(&weak).args(["--steps", "1"]).settings(&["model.hidden=32"]).reported();
    let guided = ["--lora", "me.safetensors", "--guide-model", "weak", "--cfg-scale", "1.2"];
    assert!(mean(&make("guided", &guided)) < 80.0);

    // Without the token nobody in particular is meant, and the prior has kept strangers strangers; without it all are the person.
    let alone = ["--steps", "150", "--lr", "0.02", "--prior", "0", "--seed", "1"];
    fit(folder.path(), "alone.safetensors").args(alone).reported();
    let [kept, lost] = ["me.safetensors", "alone.safetensors"].map(|file| {
        without_token(&at(file), &at("bare.safetensors"));
        make("bare", &["--lora", "bare.safetensors"])
    });
    assert!(mean(&kept) > 0.7 * mean(&strangers) && mean(&lost) < 50.0, "{kept:?}, {lost:?}");
    stages(folder.path(), own);
    refused(folder.path());
}

/// The LoRA of a person alone.
fn without_token(file: &Path, bare: &Path) {
    let file = Checkpoint::open(file).expect("a file");
    let names = file.tensors().keys().filter(|name| *name != "pyrograph.token");
    let tensors: Vec<(String, TensorData)> = names
        .map(|name| {
            let (values, shape) = file.read_f32(name).expect("values");
            (name.clone(), TensorData::new(values, shape))
        })
        .collect();
    assert_eq!(tensors.len() + 1, file.tensors().len());
    write_safetensors(bare, &tensors, file.metadata()).expect("written");
}

/// The person takes the place of somebody else, of whose picture the rest stays.
fn stages(folder: &Path, own: [f64; 3]) {
    let at = |name: &str| folder.join(name);
    let command = |args: &[&str]| TestCommand::new(folder, args).on_cpu();
    for kind in ["edges", "luminance", "tile"] {
        let train = ["train", "control", "-m", "base", "--data", "all", "--kind", kind, "-o", kind];
        let train = command(&train).args(["--steps", "200", "--batch", "16", "--lr", "0.003"]);
        train.settings(&["sample_every=0", "control.depth=2"]).reported();
    }
    let right = |x: u32| x >= SIDE / 2;
    let mask = RgbImage::from_fn(SIDE, SIDE, |x, _| Rgb([if right(x) { 255 } else { 0 }; 3]));
    mask.save(at("mask.png")).expect("written");
    let reference = format!("{}-1.png", UNSEEN[1]);
    let make = |file: &str, more: &[&str]| {
        let asked = ["generate", "portrait", "--adapter", "me.safetensors", "--base", "base"];
        let branches = ["--edges", "edges", "--luminance", "luminance", "--tile", "tile"];
        let command = command(&asked).args(branches).args(["--reference", &reference]);
        command.args(["--face-mask", "mask.png", "--seed", "5", "-o", file]).args(more).succeeded()
    };
    assert_eq!(make("portrait.png", &["--stages", "stages"]).trim(), "portrait.png");
    let pixels = |name: &str| image::open(at(name)).expect("a picture").to_rgb8();
    let (found, before) = (pixels("portrait.png"), pixels(&reference));
    for (x, y, pixel) in found.enumerate_pixels() {
        // The seam is one pixel wide.
        assert!(x + 1 >= SIDE / 2 || pixel == before.get_pixel(x, y), "{x}, {y}");
    }
    let other = halves(&at(&reference))[1];
    let stands = halves(&at("portrait.png"))[1];
    assert!(2.0 * apart(stands, own) < apart(stands, other), "{stands:?}: {own:?}, {other:?}");
    let stage = |name: &str| pixels(&format!("stages/{name}.png"));
    assert_eq!(stage("4-portrait"), found);
    assert_ne!(stage("1-identity"), stage("2-shaded"));
    // A picture of the person is compared, and changes nothing.
    let compared = ["--profile", "somebody special/0.png", "--report", "--json"];
    let told: serde_json::Value =
        serde_json::from_str(&make("again.png", &compared)).expect("JSON");
    assert!(told["report"]["identity"].is_null() && told["report"]["light"].is_null(), "{told}");
    assert_eq!(pixels("again.png"), found);

    let less = ["--shading", "off", "--harmonization", "0", "--paste", "hard"];
    make("less.png", &[&["--stages", "less"][..], &less].concat());
    let stage = |name: &str| pixels(&format!("less/{name}.png"));
    assert_eq!(stage("1-identity"), stage("2-shaded"));
    assert_eq!(stage("3-composite"), stage("4-portrait"));
    for (x, y, pixel) in stage("3-composite").enumerate_pixels() {
        let from = if right(x) { stage("2-shaded") } else { before.clone() };
        assert_eq!(pixel, from.get_pixel(x, y));
    }
    for more in
        [&["--shading", "analytic"][..], &["--shading", "tones"], &["--adapter-scale", "1,0.5,0.5"]]
    {
        make("other.png", more);
        assert_ne!(pixels("other.png"), found, "{more:?}");
    }
}

fn refused(folder: &Path) {
    let at = |name: &str| folder.join(name);
    let command = |args: &[&str]| TestCommand::new(folder, args).on_cpu();
    let other = ["train", "class", "--data", "people", "-o", "other", "--config", "base.toml"];
    command(&other).args(["--steps", "1"]).reported();
    let asked = ["generate", "class", "--class", "0", "-m", "other", "--lora", "me.safetensors"];
    let error = command(&asked).args(["-o", "x.png"]).failed();
    assert!(error.contains("me.safetensors") && error.contains("made for the network"), "{error}");
    let merge = ["merge", "base", "--lora", "me.safetensors", "-o", "x"];
    assert!(command(&merge).failed().contains("put on a model, and not merged"));

    let portrait = |more: &[&str]| {
        let asked = ["generate", "portrait", "--adapter", "me.safetensors", "--base", "base"];
        command(&asked).args(["--reference", "mask.png", "-o", "x.png"]).args(more).failed()
    };
    let all = ["--edges", "edges", "--luminance", "luminance", "--tile", "tile"];
    for (more, part) in [
        (vec![], "the branch of the kind edges"),
        (all[..2].to_vec(), "the branch of the kind luminance"),
        (all[..4].to_vec(), "the branch of the kind tile"),
        (all.to_vec(), "--face-mask"),
        ([&all[..], &["--profile", "mask.png"]].concat(), "--profile has no effect"),
        (
            ["--edges", "tile", "--luminance", "luminance", "--tile", "tile"].to_vec(),
            "Tile, expected Edges",
        ),
        ([&all[..], &["--class", "nobody"]].concat(), "nobody"),
        ([&all[..], &["--prompt", "a face"]].concat(), "the model is told classes"),
        ([&all[..], &["--harmonization", "1.5"]].concat(), "strength is 1.5"),
        ([&all[..], &["--inner-edges", "2"]].concat(), "outlines inside the face"),
        ([&all[..], &["--adapter-scale", "1,2"]].concat(), "2 weights, expected 3"),
        ([&all[..], &["--sampler", "ddim"]].concat(), "--sampler has no effect"),
    ] {
        let error = portrait(&more);
        assert!(error.contains(part), "{more:?}: {error}");
    }
    assert!(!at("x.png").exists());

    let error = fit(folder, "me.safetensors").failed();
    assert!(error.contains("me.safetensors exists"), "{error}");
    let error = fit(folder, "x.safetensors").args(["--prompt", "a face"]).failed();
    assert!(error.contains("the model is told classes"), "{error}");
    let error = fit(folder, "x.safetensors").args(["--lr", "-1"]).failed();
    assert!(error.contains("learning rate -1"), "{error}");
    let error = fit(folder, "x.safetensors").args(["--rank", "100"]).failed();
    assert!(error.contains("rank is 100"), "{error}");
    let error = fit(folder, "x.safetensors").args(["--find-faces"]).failed();
    assert!(error.contains("no face found"), "{error}");
    let error = fit(folder, "x.safetensors").args(["--best-of", "2"]).failed();
    assert!(error.contains("no photo shows a face by which states could be chosen"), "{error}");
    fs::write(at("somebody special/broken.png"), b"no picture").expect("written");
    let said = fit(folder, "x.safetensors").args(["--steps", "1", "--prior", "0"]).reported();
    assert!(said.contains("broken.png is left out") && said.contains("from 4 photos"), "{said}");
}

/// States are judged beside the training, which goes on as if nobody looked; of those without a face the last is kept.
#[test]
fn the_state_is_kept_that_is_most_like_the_photos() {
    let folder = tempfile::tempdir().expect("a folder");
    let read = |name: &str| fs::read(folder.path().join(name)).expect("a file");
    base(folder.path(), "5");
    for i in 0..3 {
        let head = fixtures().join(format!("faces/head-{i}.png"));
        fs::copy(head, folder.path().join(format!("somebody special/{i}.png"))).expect("copied");
    }
    let learning = ["--steps", "6", "--prior", "0", "--seed", "1"];
    fit(folder.path(), "last.safetensors").args(learning).reported();
    let judged = fit(folder.path(), "best.safetensors").args(learning);
    let said = judged.args(["--best-of", "3"]).reported();
    for step in [4, 5, 6] {
        let told = format!("after {step} steps 1.00 from the photos");
        assert!(said.contains(&told), "{told}: {said}");
    }
    assert_eq!(read("best.safetensors"), read("last.safetensors"));
}
