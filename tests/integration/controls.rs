//! Branches that see a picture and steer a model by it, from their training to pictures.

use std::fs;
use std::path::Path;

use pyrograph::ClassPipeline;
use pyrograph::Controlled;
use pyrograph::OpenOptions;
use pyrograph::Picture;
use pyrograph::Request;
use pyrograph::control::ControlBranch;

use crate::command::TestCommand;
use crate::portraits::{UNSEEN, base, halves};
use crate::util::{text, write_pictures};

/// How much lighter the left half of a picture is than the right one.
fn left(path: &Path) -> f64 {
    let [left, right] = halves(path).map(|colour| colour.iter().sum::<f64>());
    left - right
}

/// A model of people who stand left or right, and a branch of this kind for it in `branch`.
fn trained(folder: &Path, steps: &str, more: &[&str]) -> String {
    base(folder, &["--steps", steps]);
    let train = ["train", "control", "-m", "base", "--data", "people", "--batch", "16"];
    let options = ["-o", "branch", "--steps", steps, "--lr", "0.003"];
    let command = TestCommand::new(folder, train).on_cpu().args(options).args(more);
    command.settings(&["control.depth=2", &format!("sample_every={steps}")]).reported()
}

/// People whom the branch has not seen decide where those of the model's classes stand.
#[test]
fn a_branch_follows_a_picture_and_is_kept_in_pictures() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let said = trained(folder.path(), "300", &["--kind", "luminance"]);
    assert!(said.contains("170 images in 34 classes") && said.contains("trains "), "{said}");
    let sheet = image::open(at("branch/samples/0000300.png")).expect("a sheet").to_rgb8();
    // What the branch sees and three images, for eight pictures in two columns.
    assert_eq!(sheet.dimensions(), (8 * 8 + 9 * 2, 4 * 8 + 5 * 2));

    let generate = |file: &str, args: &[&str]| {
        let asked = ["generate", "class", "-m", "base", "-o", file];
        TestCommand::new(folder.path(), asked).on_cpu().args(args).reported()
    };
    let asked = ["--class", "3", "--steps", "8", "--seed"];
    let [standing_left, standing_right] = [0, 1].map(|pose| format!("{}-{pose}.png", UNSEEN[0]));
    let by = |branch: &str, picture: &str, file: &str, more: &[&str]| {
        let control = ["--control", branch, "--control-image", picture];
        generate(file, &[&asked[..], &["5"], &control, more].concat());
    };
    for (picture, side) in [(&standing_left, 1.0), (&standing_right, -1.0)] {
        by("branch", picture, "%d.png", &["-n", "3"]);
        for image in 0..3 {
            let found = side * left(&at(&format!("{image}.png")));
            assert!(found > 50.0, "{picture}, {image}: {found}");
        }
    }
    let pixels = |name: &str| image::open(at(name)).expect("a picture").to_rgb8();
    generate("bare.png", &[&asked[..], &["5"]].concat());
    by("branch:0", &standing_left, "zero.png", &[]);
    assert_eq!(pixels("zero.png"), pixels("bare.png"));
    by("branch", &standing_left, "whole.png", &[]);
    by("branch", &standing_left, "begun.png", &["--control-steps", "0,0.5"]);
    by("branch:0.5", &standing_left, "half.png", &[]);
    let twice = ["--control", "branch:0.5", "--control-image", &standing_left];
    by("branch:0.5", &standing_left, "sum.png", &twice);
    for other in ["bare.png", "begun.png", "half.png"] {
        assert_ne!(pixels("whole.png"), pixels(other), "{other}");
    }
    // To rounding.
    let (whole, sum) = (pixels("whole.png"), pixels("sum.png"));
    assert!(whole.iter().zip(sum.iter()).all(|(a, b)| a.abs_diff(*b) <= 1));

    fs::create_dir(at("moved")).expect("created");
    fs::rename(at("begun.png"), at("moved/begun.png")).expect("moved");
    generate("again.png", &["--from-metadata", "moved/begun.png"]);
    assert_eq!(pixels("again.png"), pixels("moved/begun.png"));
    let other = ["--from-metadata", "again.png", "--control-steps", "0,1"];
    generate("other.png", &other);
    assert_eq!(pixels("other.png"), whole);
    ready(folder.path(), &standing_left);
    opened(folder.path(), &at(&standing_left));
}

/// What a branch sees can be given as it is.
fn ready(folder: &Path, picture: &str) {
    let at = |name: &str| folder.join(name);
    let mut gray = image::open(at(picture)).expect("a picture").to_rgb8();
    for pixel in gray.pixels_mut() {
        let [r, g, b] = pixel.0.map(f64::from);
        pixel.0 = [(0.299 * r + 0.587 * g + 0.114 * b).round() as u8; 3];
    }
    gray.save(at("gray.png")).expect("written");
    let made = ["gray.png", picture].map(|picture| {
        let asked = ["generate", "class", "-m", "base", "--class", "3", "--seed", "5"];
        let control = ["--steps", "4", "--control", "branch", "--control-image", picture];
        let ready: &[&str] = if picture == "gray.png" { &["--control-ready"] } else { &[] };
        let command = TestCommand::new(folder, asked).on_cpu().args(control).args(ready);
        command.args(["-o", "ready.png"]).reported();
        image::open(at("ready.png")).expect("a picture").to_rgb8()
    });
    assert!(made[0].iter().zip(made[1].iter()).all(|(a, b)| a.abs_diff(*b) <= 6), "{made:?}");
}

/// A branch that is open already does the same, and goes with its model alone.
fn opened(folder: &Path, picture: &Path) {
    let pipeline = ClassPipeline::open(folder.join("base"), &OpenOptions::default());
    let pipeline = pipeline.expect("a model");
    let made = |branch: ControlBranch| {
        let picture = Picture::File(picture.to_owned());
        let control = Controlled { branch, picture, ready: false, scale: 1.0, steps: [0.0, 1.0] };
        let request = Request { steps: Some(4), controls: vec![control], ..Request::new([3]) };
        pipeline.generate(&request, &mut |_| std::ops::ControlFlow::Continue(()))
    };
    let open = pipeline.control(folder.join("branch")).expect("a branch");
    let found = [open.clone(), ControlBranch::Folder(folder.join("branch"))].map(|branch| {
        let made = made(branch).expect("a picture");
        made.images[0].clone()
    });
    assert_eq!(found[0], found[1]);
    let ControlBranch::Open(mut other) = open else { panic!("an open branch") };
    other.config.base = "another".into();
    let error = made(ControlBranch::Open(other)).expect_err("of another model").to_string();
    assert!(error.contains("the model of a branch another"), "{error}");
}

/// Pictures that were drawn for it, of which one is missing at first; a run in two parts is as one without a break.
#[test]
fn a_branch_learns_from_pictures_that_were_drawn() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let command = |args: &[&str]| TestCommand::new(folder.path(), args).on_cpu();
    base(folder.path(), &["--steps", "5"]);
    let first = fs::read_dir(at("people")).expect("people").next().expect("one").expect("read");
    let person = first.file_name();
    for entry in fs::read_dir(at("people")).expect("people") {
        let name = entry.expect("read").file_name();
        fs::create_dir_all(at("drawn").join(&name)).expect("created");
        for picture in fs::read_dir(at("people").join(&name)).expect("pictures") {
            let picture = picture.expect("read").path();
            let drawn = image::open(&picture).expect("a picture").fliph().to_rgb8();
            let name = at("drawn").join(&name).join(picture.file_name().expect("a name"));
            // Another ending, and no alpha.
            drawn.save(name.with_extension("webp")).expect("written");
        }
    }
    let train = ["train", "control", "-m", "base", "--data", "people", "--pictures", "drawn"];
    let run = |name: &str, steps: &str| {
        let command = command(&train).args(["-o", name, "--steps", steps, "--batch", "4"]);
        command.settings(&["learning_rate.decay.kind=\"constant\"", "sample_every=0"])
    };
    let missing = at("drawn").join(&person).join("0.webp");
    let kept = fs::read(&missing).expect("a picture");
    fs::remove_file(&missing).expect("removed");
    let error = run("x", "2").failed();
    assert!(
        error.contains("no picture for the image") && error.contains(text(person.as_ref())),
        "{error}"
    );
    fs::write(&missing, &kept).expect("written");
    run("whole", "6").reported();
    run("parts", "4").reported();
    let weights =
        |run: &str| fs::read(at(run).join("model/branches.safetensors")).expect("weights");
    assert_ne!(weights("whole"), weights("parts"));
    let said = command(&["train", "control", "--resume", "parts", "--steps", "6"]).reported();
    assert!(said.contains("resumed at step 4"), "{said}");
    assert_eq!(weights("whole"), weights("parts"));
    let mut other = image::open(&missing).expect("a picture").to_rgb8();
    other.put_pixel(0, 0, image::Rgb([1, 2, 3]));
    other.save(&missing).expect("written");
    let error = command(&["train", "control", "--resume", "parts", "--steps", "8"]).failed();
    assert!(error.contains("control.pictures"), "{error}");
}

/// Of a model with several patch sizes, a branch sees and steers at the model's own.
#[test]
fn a_branch_of_a_flexible_model_steers_at_one_patch_size() {
    let folder = tempfile::tempdir().expect("a folder");
    let command = |args: &[&str]| TestCommand::new(folder.path(), args).on_cpu();
    write_pictures(&folder.path().join("data"), &["cat"], |_, i, [x, y]| {
        [(20 * x) as u8, (30 * y) as u8, (40 * i) as u8, 255]
    });
    let train = ["train", "control", "-m", "emoji-class", "--data", "data", "--kind", "tile"];
    let options = ["--steps", "4", "--batch", "2", "-o", "branch"];
    command(&train).args(options).settings(&["sample_every=0"]).reported();
    let asked = ["generate", "class", "-c", "cat", "--steps", "4", "-o", "made.png"];
    let control = ["--control", "branch", "--control-image", "data/cat/0.png"];
    command(&asked).args(control).reported();
    let error = command(&asked).args(control).args(["--compute", "60%"]).failed();
    assert!(error.contains("a branch at patch size 8, the steps at 16"), "{error}");
}

#[test]
fn what_a_branch_does_not_go_with_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let command = |args: &[&str]| TestCommand::new(folder.path(), args).on_cpu();
    trained(folder.path(), "2", &["--kind", "edges"]);
    let train = ["train", "control", "-m", "base", "--data", "people", "-o", "x"];
    for (settings, part) in [
        (vec!["control.kind=\"edges\"", "control.hidden=0.5"], "control.hidden is set"),
        (vec!["control.kind=\"edges\"", "control.matching=\"branch\""], "control.matching is set"),
        (vec!["control.kind=\"picture\""], "there is no control.pictures"),
        (vec!["control.kind=\"tile\"", "control.pictures=\"people\""], "only branches of the kind"),
        (vec!["control.kind=\"canny\""], "canny"),
        (vec!["control.matching=\"branch\""], "family `control`, expected portrait"),
    ] {
        let error = command(&train).settings(&settings).failed();
        assert!(error.contains(part), "{settings:?}: {error}");
    }
    let portraits = ["-o", "matching", "--steps", "1", "--batch", "2"];
    command(&train[..6]).args(portraits).settings(&["sample_every=0"]).reported();
    let generate = |args: &[&str]| {
        let asked = ["generate", "class", "-o", "x.png", "--control-image"];
        command(&asked).args([&format!("{}-0.png", UNSEEN[0])]).args(args).failed()
    };
    for (args, part) in [
        (vec!["-m", "base", "--control", "matching"], "family `portrait`, expected control"),
        (vec!["-m", "base", "--control", "none"], "none"),
        (vec!["-m", "base", "--control", "people"], "a folder with neither model.json"),
        (vec!["-m", "base"], "0 --control and 1 --control-image"),
        (vec!["-m", "base", "--control", "branch:inf"], "the scale of a control inf"),
        (
            vec!["-m", "base", "--control", "branch", "--control-steps", "0.5,0.5"],
            "the steps of a control",
        ),
        (
            vec!["-m", "base", "--control", "branch", "--dtype", "bf16"],
            "f32 where a picture controls",
        ),
        (vec!["-m", "emoji-class", "--control", "branch"], "made for the network"),
        (vec!["-m", "emoji-4step", "--control", "branch"], "a student is steered by none"),
    ] {
        let error = generate(&args);
        assert!(error.contains(part), "{args:?}: {error}");
    }
    let alone = ["generate", "class", "-m", "base", "--control-ready"];
    let error = command(&alone).failed();
    assert!(error.contains("--control-ready has no effect without --control"), "{error}");
    assert!(!folder.path().join("x.png").exists());
}
