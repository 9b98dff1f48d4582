//! Branches that steer a model to portraits, from their training to pictures.

use std::fs;
use std::path::Path;

use image::{RgbImage, RgbaImage, imageops};
use pyrograph_weights::Checkpoint;

use crate::command::TestCommand;
use crate::util::{fixtures, text, write_pictures};

/// Side of the pictures.
pub(crate) const SIDE: u32 = 8;
/// People.
const HUES: usize = 36;
/// Two of them, whom nobody is trained on.
pub(crate) const UNSEEN: [usize; 2] = [9, 24];

/// People are colours, their pose is the half of the picture where they stand.
pub(crate) fn person(hue: usize, pose: u32, [x, y]: [u32; 2]) -> [u8; 4] {
    let colour = |phase: usize| {
        let angle = (hue as f64 / HUES as f64 + phase as f64 / 3.0) * std::f64::consts::TAU;
        (128.0 + 110.0 * angle.cos()) as u8
    };
    let stands = if pose.is_multiple_of(2) { x < SIDE / 2 } else { x >= SIDE / 2 };
    // No two pictures of a person are the same.
    let shade = (pose * 7 + y) as u8 % 20;
    match stands {
        true => [colour(0), colour(1), colour(2), 255].map(|value| value.max(shade)),
        false => [shade, shade, shade, 255],
    }
}

/// Five pictures of each, those of two others apart.
pub(crate) fn people(folder: &Path) {
    let hues: Vec<usize> = (0..HUES).filter(|hue| !UNSEEN.contains(hue)).collect();
    let names: Vec<String> = hues.iter().map(|hue| format!("person {hue}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    write_pictures(&folder.join("people"), &names, |class, i, at| person(hues[class], i, at));
    for hue in UNSEEN {
        for pose in 0..2 {
            let picture =
                RgbaImage::from_fn(SIDE, SIDE, |x, y| image::Rgba(person(hue, pose, [x, y])));
            picture.save(folder.join(format!("{hue}-{pose}.png"))).expect("written");
        }
    }
}

/// Mean colours of the two halves of a picture.
pub(crate) fn halves(path: &Path) -> [[f64; 3]; 2] {
    let picture = image::open(path).expect("a picture").to_rgb8();
    [0, SIDE / 2].map(|left| {
        let mut sum = [0.0; 3];
        for y in 0..SIDE {
            for x in left..left + SIDE / 2 {
                let pixel = picture.get_pixel(x, y).0;
                sum.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += f64::from(value));
            }
        }
        sum.map(|sum| sum / f64::from(SIDE * SIDE / 2))
    })
}

pub(crate) fn apart(a: [f64; 3], b: [f64; 3]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt()
}

pub(crate) const MODEL: &str = "sample_every=0\nlog_every=20\nbatch=16\nmicro_batches=2\n\
                     learning_rate={peak=0.003,warmup=20,decay={kind=\"cosine\"}}\nlabel_dropout=0.5\n\
                     [model]\nkind=\"dit\"\nsize=[8,8]\npatch=2\nhidden=48\ndepth=3\nheads=2\n";

/// The people, and a model of them in `base`.
pub(crate) fn base(folder: &Path, options: &[&str]) {
    people(folder);
    fs::write(folder.join("base.toml"), MODEL).expect("written");
    let train = ["train", "class", "--data", "people", "-o", "base", "--config", "base.toml"];
    TestCommand::new(folder, train).on_cpu().args(options).reported();
}

/// A model of the people in `base`, then branches for it in `matching` and `control`.
fn trained(folder: &Path) {
    base(folder, &["--steps", "500"]);
    let command = |args: &[&str]| TestCommand::new(folder, args).on_cpu();
    let control = |args: &[&str]| {
        let train = ["train", "control", "-m", "base", "--data", "people", "--batch", "16"];
        command(&train).args(args).args(["--lr", "0.003"]).settings(&["control.depth=2"])
    };
    let matching = ["-o", "matching", "--steps", "100"];
    let said = control(&matching).settings(&["sample_every=100"]).reported();
    assert!(said.contains("170 images in 34 classes") && said.contains("trains "), "{said}");
    assert!(folder.join("matching/samples/0000100.png").exists());
    let appearance = ["-o", "control", "--matching", "matching", "--steps", "1000"];
    control(&appearance).settings(&["sample_every=0"]).reported();
}

/// Nobody that was trained on: who it is comes from the profile, where they stand from the reference.
#[test]
fn a_portrait_shows_the_person_of_the_profile_in_the_pose_of_the_reference() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    trained(folder.path());

    let weights = fs::read(at("base/model/dit.safetensors")).expect("weights");
    show_the_person(folder.path(), "control", [75.0, 2.0]);
    scales(folder.path());
    matches(folder.path());
    // The same again, to the bit, and nothing told of anybody.
    let read = |file: &str| fs::read(at(file)).expect("a picture");
    make(folder.path(), "control", ["9-0.png", "24-1.png", "again.png"]);
    assert_eq!(read("again.png"), read("01.png"));
    assert!(!String::from_utf8_lossy(&read("01.png")).contains("9-0"));
    assert_eq!(fs::read(at("base/model/dit.safetensors")).expect("weights"), weights);
    refused(folder.path());
}

/// A portrait of the person of a profile in the pose of a reference.
fn make(folder: &Path, branches: &str, [profile, reference, file]: [&str; 3]) -> String {
    let asked = ["generate", "portrait", "--profile", profile, "--reference", reference];
    TestCommand::new(folder, asked)
        .on_cpu()
        .args(["-m", branches, "--base", "base", "--seed", "4", "--steps", "10"])
        .args(["--cfg-scale", "1", "-o", file])
        .succeeded()
}

/// Two people who were not trained on, each in the poses of the other, have their own colour.
fn show_the_person(folder: &Path, branches: &str, [within, ratio]: [f64; 2]) {
    let at = |name: &str| folder.join(name);
    let colours = UNSEEN.map(|hue| halves(&at(&format!("{hue}-0.png")))[0]);
    for (own, other) in [(0, 1), (1, 0)] {
        for pose in 0..2 {
            let (profile, reference) =
                (format!("{}-0.png", UNSEEN[own]), format!("{}-{pose}.png", UNSEEN[other]));
            let file = format!("{own}{pose}.png");
            assert_eq!(make(folder, branches, [&profile, &reference, &file]).trim(), file);
            let found = halves(&at(&file));
            let stands = found[pose];
            let (near, far) = (apart(stands, colours[own]), apart(stands, colours[other]));
            assert!(
                near < within && far > ratio * near,
                "{file}: {stands:?}, {near} of own, {far} of other"
            );
            let empty = found[1 - pose];
            assert!(empty.iter().all(|value| *value < 80.0), "{file}: {empty:?}");
        }
    }
}

/// The same by adapters in context, with matches and without.
#[test]
fn pictures_in_context_show_the_person() {
    let folder = tempfile::tempdir().expect("a folder");
    // Of few steps: a seed with which they suffice.
    base(folder.path(), &["--steps", "1000", "--seed", "3"]);
    let command = |args: &[&str]| TestCommand::new(folder.path(), args).on_cpu();
    let control = |args: &[&str]| {
        let train = ["train", "control", "-m", "base", "--data", "people", "--batch", "16"];
        command(&train)
            .args(args)
            .args(["--lr", "0.01", "--seed", "3"])
            .settings(&["sample_every=0", "control.hidden=0.9"])
    };
    control(&["-o", "matching", "--steps", "20"]).settings(&["control.depth=2"]).reported();
    let alone = ["-o", "alone", "--in-context", "32", "--steps", "1500"];
    control(&alone).reported();
    show_the_person(folder.path(), "alone", [75.0, 2.0]);
    let moved = ["-o", "moved", "--in-context", "32", "--matching", "matching", "--steps", "1500"];
    control(&moved).settings(&["control.depth=2"]).reported();
    show_the_person(folder.path(), "moved", [75.0, 2.0]);

    for (settings, part) in [
        (&["control.depth=2"][..], "control.depth is set, training branches that make portraits"),
        (&["control.fresh=true"], "control.fresh is set, training branches that make portraits"),
        (&["control.panel=true"], "the profile both as a panel and in context"),
        (&["control.kind=\"tile\""], "control.in_context is set, training a branch of this kind"),
        (&["control.matching=\"alone\""], "alone finds no matches"),
    ] {
        let error = control(&["-o", "x", "--in-context", "16"]).settings(settings).failed();
        assert!(error.contains(part), "{settings:?}: {error}");
    }
    let asked = ["generate", "portrait", "--profile", "9-0.png", "--reference", "24-1.png"];
    let asked = command(&asked).args(["-m", "alone", "--base", "base", "-o", "x.png"]);
    let error = asked.args(["--no-warp"]).failed();
    assert!(error.contains("a profile that stays in its place"), "{error}");
    // A model of fewer blocks than branches usually have, of which there are none here.
    let shallow = ["train", "class", "--data", "people", "-o", "shallow", "--config", "base.toml"];
    command(&shallow).args(["--steps", "1"]).settings(&["model.depth=2"]).reported();
    let train = ["train", "control", "-m", "shallow", "--data", "people", "--in-context", "4"];
    let train = command(&train).args(["-o", "shallow context", "--steps", "1"]);
    train.settings(&["sample_every=0"]).reported();
    let error = control(&["-o", "x", "--in-context", "49"]).failed();
    assert!(error.contains("adapters of rank 49, expected 1 to 48"), "{error}");
    assert!(!folder.path().join("x").exists());
}

/// Each part of the condition has a scale that acts, and scales of 1 are none.
fn scales(folder: &Path) {
    let make = |scales: &[&str]| {
        let asked = ["generate", "portrait", "--profile", "9-0.png", "--reference", "24-1.png"];
        let command = TestCommand::new(folder, asked).on_cpu();
        let command =
            command.args(["-m", "control", "--base", "base", "--seed", "4", "--steps", "4"]);
        command.args(scales).args(["-o", "scaled.png"]).succeeded();
        fs::read(folder.join("scaled.png")).expect("a picture")
    };
    let plain = make(&["--cfg-scale", "1"]);
    assert_eq!(make(&["--cfg-scale", "1", "--cfg-light", "1"]), plain);
    let both = make(&["--cfg-scale", "3"]);
    assert_eq!(make(&["--cfg-scale", "3", "--cfg-light", "3"]), both);
    let person = make(&["--cfg-scale", "3", "--cfg-light", "1"]);
    let light = make(&["--cfg-scale", "1", "--cfg-light", "3"]);
    let made = [&plain, &both, &person, &light];
    for (i, a) in made.iter().enumerate() {
        assert!(made[..i].iter().all(|b| a != b), "{i}");
    }
    // As many as are hidden in training.
    assert_eq!(make(&["--cfg-scale", "1", "--rho", "0.8"]), plain);
    let [none, all] = ["0", "1"].map(|rho| make(&["--cfg-scale", "1", "--rho", rho]));
    assert!(none != plain && all != plain && none != all);
}

/// What matches is told and shown, by branches of both stages; where it does not go there, the portrait is another one.
fn matches(folder: &Path) {
    let told = |branches: &str, more: &[&str]| {
        let asked = ["portrait", "matches", "--profile", "9-0.png", "--reference", "24-1.png"];
        TestCommand::new(folder, asked).on_cpu().args(["-m", branches, "--base", "base"]).args(more)
    };
    let said = told("matching", &["--json", "-o", "matches.png"]).succeeded();
    let found: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(found["grid"], serde_json::json!([4, 4]));
    let levels = found["levels"].as_array().expect("levels");
    assert_eq!(levels.len(), 2);
    let cells: Vec<u64> = levels
        .iter()
        .flat_map(|level| level.as_array().expect("cells"))
        .map(|cell| cell.as_u64().expect("a number"))
        .collect();
    assert!(cells.len() == 32 && cells.iter().all(|cell| *cell < 16), "{cells:?}");
    // Cells of two pixels, four pictures, and gaps of two around them.
    let picture = image::open(folder.join("matches.png")).expect("a picture").to_rgb8();
    assert_eq!(picture.dimensions(), (4 * 10 + 2, 12));
    let profile = image::open(folder.join("9-0.png")).expect("a picture").to_rgb8();
    for (to, from) in cells[..16].iter().enumerate() {
        let at = |cell: u32| [cell % 4 * 2, cell / 4 * 2];
        let ([x, y], [left, top]) = (at(to as u32), at(*from as u32));
        assert_eq!(picture.get_pixel(22 + x, 2 + y), profile.get_pixel(left, top), "{to}");
    }
    assert_eq!(told("control", &["--json"]).succeeded(), said);
    assert_ne!(told("control", &["--json", "--rho", "0"]).succeeded(), said);
    let error = told("matching", &[]).failed();
    assert!(error.contains("nothing to write"), "{error}");
    let error = told("matching", &["--json", "--rho", "2"]).failed();
    assert!(error.contains("the hidden share of the reference 2"), "{error}");

    let made = |more: &[&str]| {
        let asked = ["generate", "portrait", "--profile", "9-0.png", "--reference", "24-1.png"];
        let command = TestCommand::new(folder, asked).on_cpu();
        let command = command.args(["-m", "control", "--base", "base", "--seed", "4"]).args(more);
        command.args(["--steps", "4", "-o", "still.png"]).succeeded();
        fs::read(folder.join("still.png")).expect("a picture")
    };
    assert_ne!(made(&["--no-warp"]), made(&[]));
}

fn refused(folder: &Path) {
    let at = |name: &str| folder.join(name);
    let command = |args: &[&str]| TestCommand::new(folder, args).on_cpu();
    let make = |args: &[&str]| {
        let asked = ["generate", "portrait", "--reference", "24-0.png", "-o", "x.png"];
        command(&asked).args(args).failed()
    };
    let whole = |changed: [&'static str; 3]| {
        let [profile, model, base] = changed;
        make(&["--profile", profile, "-m", model, "--base", base])
    };
    let error = whole(["9-0.png", "matching", "base"]);
    assert!(error.contains("the branches find matches so far"), "{error}");
    let error = whole(["9-0.png", "base", "base"]);
    assert!(error.contains("family `class`, expected portrait"), "{error}");
    let error = whole(["9-0.png", "control", "emoji-class"]);
    assert!(error.contains("made for the network "), "{error}");
    let hidden = ["--profile", "9-0.png", "-m", "control", "--base", "base", "--rho", "1.5"];
    let error = make(&hidden);
    assert!(error.contains("the hidden share of the reference 1.5"), "{error}");
    let error = whole(["none.png", "control", "base"]);
    assert!(error.contains("none.png"), "{error}");
    fs::write(at("broken.png"), "no picture").expect("written");
    let error = whole(["broken.png", "control", "base"]);
    assert!(error.contains("broken.png"), "{error}");
    let own = ["generate", "portrait", "--profile", "9-0.png", "--reference", "24-0.png"];
    let own = command(&own).args(["-m", "control", "--base", "base", "-o", "9-0.png"]).failed();
    assert!(own.contains("--output would take the place of --profile"), "{own}");
    assert!(!at("x.png").exists());

    let train = |settings: &[&str]| {
        let train = ["train", "control", "-m", "base", "--data", "people", "-o", "x"];
        command(&train).settings(settings).failed()
    };
    for (setting, part) in [
        ("control.depth=4", "control.depth is 4, expected 1 to 3"),
        ("control.prompt=\"a face\"", "the model is told classes"),
        (
            "label_dropout=0.3",
            "label_dropout is set, training branches that make portraits does not read it",
        ),
        ("flip=true", "flip is set, training branches that make portraits does not read it"),
        ("control.hidden=1.5", "control.hidden is 1.5"),
        ("control.matching=\"none\"", "none"),
    ] {
        let error = train(&[setting]);
        assert!(error.contains(part), "{setting}: {error}");
    }
    let class = ["train", "class", "--data", "people", "--init", "base", "-o", "x"];
    let error = command(&class).settings(&["control.depth=1"]).failed();
    assert!(error.contains("train branches with `pyrograph train control`"), "{error}");
    fs::create_dir(at("people/alone")).expect("created");
    fs::copy(at("9-0.png"), at("people/alone/1.png")).expect("copied");
    let error = train(&[]);
    assert!(error.contains("one picture of `alone`, a pair needs two"), "{error}");
    fs::remove_dir_all(at("people/alone")).expect("removed");
    assert!(!at("x").join("checkpoints").exists());
}

/// A run in two parts ends where one without a break does, in both stages.
#[test]
fn branches_go_on_bit_for_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let command = |args: &[&str]| TestCommand::new(folder.path(), args).on_cpu();
    base(folder.path(), &["--steps", "5"]);
    let weights =
        |run: &str| fs::read(at(run).join("model/branches.safetensors")).expect("weights");
    let mut before: Option<String> = None;
    for stage in ["matching", "appearance"] {
        let run = |name: &str, steps: &str| {
            let train = ["train", "control", "-m", "base", "--data", "people", "--batch", "16"];
            let command = command(&train).args(["-o", name, "--steps", steps]);
            let command =
                command.settings(&["sample_every=0", "learning_rate.decay.kind=\"constant\""]);
            match &before {
                None => command.reported(),
                Some(matching) => command.args(["--matching", matching]).reported(),
            }
        };
        let [whole, parts] = ["whole", "parts"].map(|name| format!("{stage} {name}"));
        run(&whole, "6");
        run(&parts, "4");
        assert_ne!(weights(&whole), weights(&parts));
        let said = command(&["train", "control", "--resume", &parts, "--steps", "6"]).reported();
        assert!(said.contains("resumed at step 4"), "{said}");
        assert_eq!(weights(&whole), weights(&parts), "{stage}");
        before = Some(text(Path::new(&whole)).to_owned());
    }
}

/// A branch begins as a copy of the model's first blocks, or with fresh weights where that is asked.
#[test]
fn branches_start_from_the_model_unless_told_otherwise() {
    let folder = tempfile::tempdir().expect("a folder");
    base(folder.path(), &["--steps", "20"]);
    let of = |path: &Path, name: &str| Checkpoint::open(path).expect("weights").read_f32(name);
    let layer = "blocks.0.attention.qkv.weight";
    let model = folder.path().join("base/model/dit.safetensors");
    let (own, _) = of(&model, layer).expect("a layer");
    for (kind, prefix) in [(&[][..], "matching."), (&["--kind", "tile"], "")] {
        let apart = [false, true].map(|fresh| {
            let train = ["train", "control", "-m", "base", "--data", "people", "-o", "branch"];
            let train = TestCommand::new(folder.path(), train).on_cpu().args(kind);
            let settings = ["sample_every=0", &format!("control.fresh={fresh}")];
            train.args(["--steps", "1", "--lr", "1e-9"]).settings(&settings).reported();
            let branch = folder.path().join("branch/model/branches.safetensors");
            let (found, _) = of(&branch, &format!("{prefix}{layer}")).expect("a layer");
            fs::remove_dir_all(folder.path().join("branch")).expect("removed");
            found.iter().zip(&own).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
        });
        assert!(apart[0] == 0.0 && apart[1] > 0.01, "{kind:?}: {apart:?}");
    }
}

/// What is told of a portrait in a photograph, which is measured by its largest face: that is left as it is where another one is
/// changed.
fn reported(told: &str, largest: bool) {
    let told: serde_json::Value = serde_json::from_str(told).expect("JSON");
    assert_eq!(told["file"], "made.png");
    let report = |key: &str| told["report"][key].as_f64();
    match largest {
        true => assert!(report("light").is_some_and(|light| light > 0.02), "{told}"),
        false => {
            assert_eq!(["leakage", "light"].map(report), [Some(0.0); 2], "{told}");
            assert!(report("identity").is_some_and(|apart| apart > 0.1), "{told}");
        }
    }
}

/// The face of a photograph gives place to the portrait's; all around it is as before.
#[test]
fn a_portrait_is_put_into_a_photograph() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let command = |args: &[&str]| TestCommand::new(folder.path(), args).on_cpu();
    base(folder.path(), &["--steps", "60"]);
    let control = ["train", "control", "-m", "base", "--data", "people", "--steps", "1"];
    for (run, more) in [("matching", vec![]), ("control", vec!["--matching", "matching"])] {
        let settings = ["batch=2", "sample_every=0"];
        command(&control).args(more).args(["-o", run]).settings(&settings).reported();
    }

    let head = |i: usize| {
        let path = fixtures().join(format!("faces/head-{i}.png"));
        image::open(path).expect("a fixture").to_rgb8()
    };
    let mut crowd = RgbImage::from_pixel(600, 400, image::Rgb([90, 110, 130]));
    for (i, side, x) in [(1, 160, 40), (0, 180, 330)] {
        let filter = imageops::FilterType::CatmullRom;
        imageops::replace(&mut crowd, &imageops::resize(&head(i), side, side, filter), x, 120);
    }
    crowd.save(at("crowd.png")).expect("written");
    head(2).save(at("profile.png")).expect("written");
    let make = |more: &[&str]| {
        let asked = ["generate", "portrait", "-m", "control", "--base", "base", "--photos"];
        command(&asked).args(["--seed", "1", "--steps", "2"]).args(more)
    };
    let whole = ["--profile", "profile.png", "--reference", "crowd.png"];
    for (face, [left, right]) in [("1", [330, 510]), ("2", [40, 200])] {
        let told = make(&whole).args(["--face", face, "-o", "made.png"]);
        let told = told.args(["--report", "--json"]).succeeded();
        reported(&told, face == "1");
        let made = image::open(at("made.png")).expect("a picture").to_rgb8();
        assert_eq!(made.dimensions(), crowd.dimensions());
        let changed = |x: u32, y: u32| made.get_pixel(x, y) != crowd.get_pixel(x, y);
        let places = (0..600).flat_map(|x| (0..400).map(move |y| (x, y)));
        let changed: Vec<_> = places.filter(|&(x, y)| changed(x, y)).collect();
        let inside = |&(x, y): &(u32, u32)| (left..right).contains(&x) && (120..300).contains(&y);
        assert!(changed.len() > 1000 && changed.iter().all(inside), "{}", changed.len());
    }
    let failed = |more: &[&str]| make(more).args(["-o", "x.png"]).failed();
    let error = failed(&[&whole[..], &["--face", "3"]].concat());
    assert!(error.contains("crowd.png: face 3 asked for, of 2"), "{error}");
    let plain = RgbImage::from_fn(300, 200, |x, y| image::Rgb([x as u8, y as u8, 90]));
    plain.save(at("landscape.png")).expect("written");
    let error = failed(&["--profile", "landscape.png", "--reference", "crowd.png"]);
    assert!(error.contains("landscape.png: no face found in 300x200 pixels"), "{error}");
    fs::write(at("broken.png"), &fs::read(at("crowd.png")).expect("bytes")[..500])
        .expect("written");
    let error = failed(&["--profile", "profile.png", "--reference", "broken.png"]);
    assert!(error.contains("broken.png"), "{error}");
    let misused = ["--profile", "a", "--reference", "b", "-m", "c", "--base", "d", "--face", "2"];
    let misused = command(&["generate", "portrait"]).args(misused).misused();
    assert!(misused.contains("--photos"), "{misused}");
    assert!(!at("x.png").exists());
}
