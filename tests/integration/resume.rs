//! Runs that go on: what must have stayed as it was, who else is there.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use pyrograph::data::Dataset;
use pyrograph::engine::nets::Points;
use pyrograph::train::{Run, RunFolder, TrainConfig};
use pyrograph::trajectories::{Recorder, Trajectories, TrajectorySpec};
use pyrograph::{Error, Result};
use serde_json::Value;

use crate::command::TestCommand;
use crate::trajectories::{record, spec, teacher};
use crate::util::{train_until, write_pictures};

/// What is done to a folder of images.
type Change<'a> = &'a dyn Fn(&Path);

/// Settings that may change when a run goes on.
const FREE: [&str; 6] =
    ["steps", "checkpoint_every", "sample_every", "sample_prompts", "snapshot_every", "log_every"];

const TINY: &str = "batch = 4\nmicro_batches = 2\nlog_every = 2\nsample_every = 0\ncheckpoint_every = 2\n\
                    learning_rate = { peak = 0.03, warmup = 5 }\n\
                    [model]\nsize = [8, 8]\npatch = 4\nhidden = 16\ndepth = 2\nheads = 2\n";

pub fn pictures(folder: &Path, classes: &[&str]) {
    write_pictures(folder, classes, |class, i, [x, y]| {
        let at = |x: u32, y: u32| (x * 31 + y * 17 + i * 40) as u8;
        [at(x, y), at(y, x), 60 * class as u8, 255]
    });
}

pub fn dataset(folder: &Path) -> Dataset {
    Dataset::open(folder, [8, 8], Default::default()).expect("pictures")
}

pub fn config(changes: &[&str]) -> TrainConfig {
    let changes: Vec<String> = changes.iter().map(|&change| change.to_owned()).collect();
    TrainConfig::parse(TINY, &changes).expect("valid")
}

pub fn on_images(run: &Path, config: TrainConfig, data: &Path, resume: bool) -> Result<Run> {
    Run::on_images(run, config, dataset(data), resume, &Device::flex())
}

/// Trains to the end.
pub fn train(run: &Path, config: TrainConfig, data: &Path, resume: bool) -> Run {
    let mut run = on_images(run, config, data, resume).expect("a run");
    let _ = train_until(&mut run, None);
    run
}

/// Every leaf of some settings, changed to another value of its kind, with its dotted name.
fn changes(config: &TrainConfig) -> Vec<(String, Value)> {
    fn leaves(name: &str, value: &Value, found: &mut Vec<(String, Value)>) {
        let inner = |key: &str| if name.is_empty() { key.into() } else { format!("{name}.{key}") };
        match value {
            Value::Object(map) => map.iter().for_each(|(key, v)| leaves(&inner(key), v, found)),
            Value::Array(list) => {
                list.iter().enumerate().for_each(|(i, v)| leaves(&inner(&i.to_string()), v, found));
            }
            leaf => found.push((name.to_owned(), leaf.clone())),
        }
    }
    let mut found = Vec::new();
    leaves("", &serde_json::to_value(config).expect("settings serialise"), &mut found);
    found
}

/// Other values that a leaf could have.
fn others(leaf: &Value) -> Vec<Value> {
    let words = [
        "dit",
        "mp-dit",
        "noise",
        "clean",
        "log_sigma",
        "timestep",
        "bf16",
        "all",
        "noise",
        "previous",
        "red_green",
        "euler",
        "ddim",
    ];
    match leaf {
        Value::Bool(value) => vec![(!value).into()],
        Value::Number(number) => match number.as_u64() {
            Some(whole) => vec![(whole + 1).into(), (2 * whole).into(), (whole / 2).into()],
            None => {
                let value = number.as_f64().expect("a number");
                vec![(value * 0.5).into(), (value * 1.01).into()]
            }
        },
        Value::String(_) => words.iter().map(|&word| word.into()).collect(),
        _ => Vec::new(),
    }
}

/// The settings with one leaf replaced, if there can be such.
fn changed(config: &TrainConfig, name: &str, value: Value) -> Option<TrainConfig> {
    let mut all = serde_json::to_value(config).expect("settings serialise");
    let pointer = format!("/{}", name.replace('.', "/"));
    *all.pointer_mut(&pointer)? = value;
    let found: TrainConfig = serde_json::from_value(all).ok()?;
    // Numbers out of range are refused anyway.
    (found != *config && found.with("", &[]).is_ok()).then_some(found)
}

/// Resumes a run that has taken `done` steps with every setting changed, one at a time; returns how many changes were
/// tried, and how many of them were named as such.
fn refuse_every_change(
    config: &TrainConfig,
    done: u64,
    resume: impl Fn(TrainConfig) -> Result<Run>,
) -> [usize; 2] {
    let (mut tried, mut named) = (0, 0);
    for (name, leaf) in changes(config) {
        for other in others(&leaf) {
            let Some(config) = changed(config, &name, other) else { continue };
            let is_free = FREE.contains(&name.as_str()) && config.steps >= done;
            let result = resume(config).map(drop);
            tried += 1;
            match (is_free, result) {
                (true, Ok(())) => (),
                (true, Err(error)) => panic!("{name}: {error}"),
                (false, Ok(())) => panic!("{name} was changed, and nobody noticed"),
                (false, Err(Error::Resume { reason, .. })) => {
                    let known = name.rsplit_once('.').map_or(name.as_str(), |(parent, _)| parent);
                    assert!(reason.contains(known), "{name}: {reason}");
                    named += 1;
                }
                // There is no such network, device or teacher.
                (false, Err(_)) => (),
            }
        }
    }
    println!("{tried} changes, {named} of them named");
    [tried, named]
}

#[test]
fn a_run_goes_on_only_with_every_setting_as_it_was() {
    let folder = tempfile::tempdir().expect("a folder");
    let (data, run) = (folder.path().join("data"), folder.path().join("run"));
    pictures(&data, &["a", "b"]);
    let config = config(&["steps=4", "averages=[{power=0.1}, {decay=0.9}]"]);
    train(&run, config.clone(), &data, false);
    let [tried, named] =
        refuse_every_change(&config, 4, |config| on_images(&run, config, &data, true));
    assert!(tried > 50 && 2 * named > tried, "{tried}, {named}");
    // Unchanged, it goes on.
    on_images(&run, config, &data, true).expect("the same");
}

#[test]
fn a_student_goes_on_only_with_every_setting_as_it_was() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let teacher = teacher(&path("teacher"), 1, true);
    record(&path("set"), &teacher, spec(&teacher, 6));
    pictures(&path("data"), &["a", "b", "c"]);
    let text = "batch = 4\nsteps = 2\nsample_every = 0\n[adversarial]\nwarmup = 1";
    let data = format!("adversarial.data={:?}", path("data"));
    let base = TrainConfig::distilling(path("teacher")).expect("settings");
    let config = base.with(text, &[data]).expect("settings");
    let open = |config: TrainConfig, set: &str, resume: bool| {
        let set = Trajectories::open(&path(set)).expect("a set");
        Run::on_trajectories(&path("run"), config, set, resume, &Device::flex())
    };
    let _ = train_until(&mut open(config.clone(), "set", false).expect("a run"), None);
    let [_, named] = refuse_every_change(&config, 2, |config| open(config, "set", true));
    assert!(named > 12, "{named}");
    let refuse = |set: &str, part: &str| {
        let error = open(config.clone(), set, true).map(drop).expect_err(part).to_string();
        assert!(error.contains(part), "{error}");
    };
    // Every aspect of the trajectories, and of the images that they are compared with.
    let first = spec(&teacher, 6);
    let mut seed = first.clone();
    seed.settings.seed += 1;
    let mut scale = first.clone();
    scale.settings.guidance.scale = 2.0;
    for (name, spec, part) in [
        ("seed", seed, "trajectories.settings.seed was 5, is 6"),
        ("scale", scale, "trajectories.settings.guidance.scale was 1.5, is 2"),
        ("count", TrajectorySpec { count: 7, ..first.clone() }, "trajectories.count was 6, is 7"),
        ("shard", TrajectorySpec { shard: 3, ..first.clone() }, "trajectories.shard was 4, is 3"),
        ("states", TrajectorySpec { points: Points::States, ..first }, "trajectories.points was"),
    ] {
        record(&path(name), &teacher, spec);
        refuse(name, part);
    }
    std::fs::rename(path("data/a"), path("data/0")).expect("renamed");
    refuse("set", r#"adversarial.data.classes.0 was "a", is "0""#);
}

#[test]
fn a_run_goes_on_only_with_the_data_as_it_was() {
    let folder = tempfile::tempdir().expect("a folder");
    let (run, first) = (folder.path().join("run"), folder.path().join("first"));
    pictures(&first, &["a", "b"]);
    train(&run, config(&["steps=2"]), &first, false);
    let other = |name: &str, change: &dyn Fn(&Path)| -> PathBuf {
        let data = folder.path().join(name);
        pictures(&data, &["a", "b"]);
        change(&data);
        data
    };
    let moved = |from: &'static str, to: &'static str| {
        move |data: &Path| std::fs::rename(data.join(from), data.join(to)).expect("renamed")
    };
    let repaint = |data: &Path| {
        let path = data.join("b/4.png");
        let mut picture = image::open(&path).expect("a picture").into_rgba8();
        picture.put_pixel(7, 7, image::Rgba([1, 2, 3, 255]));
        picture.save(path).expect("written");
    };
    let swapped = |data: &Path| {
        moved("a/0.png", "a/x.png")(data);
        moved("a/4.png", "a/0.png")(data);
        moved("a/x.png", "a/4.png")(data);
    };
    let copied = |data: &Path| {
        std::fs::copy(data.join("a/0.png"), data.join("a/9.png")).expect("copied");
    };
    let removed = |data: &Path| std::fs::remove_file(data.join("b/4.png")).expect("removed");
    let cases: [(&str, Change<'_>, &str); 6] = [
        ("a pixel", &repaint, "data.content was"),
        ("the name of a class", &moved("b", "c"), r#"data.classes.1 was "b", is "c""#),
        ("the class of an image", &moved("b/0.png", "a/9.png"), "data.labels was"),
        ("the order", &swapped, "data.content was"),
        ("one more", &copied, "data.images was 10, is 11"),
        ("one less", &removed, "data.images was 10, is 9"),
    ];
    for (name, change, part) in cases {
        let data = other(name, change);
        let error = on_images(&run, config(&["steps=2"]), &data, true).map(drop).expect_err(name);
        assert!(error.to_string().contains(part), "{name}: {error}");
    }
    // The same elsewhere is the same.
    let same = other("same", &|_| ());
    train(&run, config(&["steps=4"]), &same, true);
    let error = on_images(&run, config(&["steps=3"]), &same, true).map(drop).expect_err("fewer");
    assert!(error.to_string().contains("4 steps, asked for 3"), "{error}");
}

#[test]
fn a_run_goes_on_without_its_settings_being_given_again() {
    let folder = tempfile::tempdir().expect("a folder");
    pictures(&folder.path().join("data"), &["a", "b"]);
    std::fs::write(folder.path().join("tiny.toml"), TINY).expect("written");
    let run = |args: &[&str]| TestCommand::new(&folder, ["train", "class"]).args(args).on_cpu();
    let start = ["--data", "data", "--config", "tiny.toml", "--seed", "3"];
    run(&start).args(["-o", "whole", "--steps", "6"]).succeeded();
    run(&start).args(["-o", "parts", "--steps", "2"]).succeeded();
    let settings = std::fs::read_to_string(folder.path().join("parts/config.toml")).expect("there");
    assert!(settings.contains("seed = 3\n") && settings.contains("hidden = 16\n"), "{settings}");
    let elsewhere = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("parts").display().to_string();
    TestCommand::new(&elsewhere, ["train", "class", "--resume", &path, "--steps", "6"])
        .on_cpu()
        .succeeded();
    let newest = |run: &str| {
        std::fs::read(folder.path().join(run).join("checkpoints/0000006.safetensors")).expect("it")
    };
    assert!(newest("whole") == newest("parts"));
    // What it says is checked, too, and it is itself written anew.
    let said = run(&["--resume", "parts", "--seed", "4"]).failed();
    assert!(said.contains("seed was 3, is 4"), "{said}");
    let said = run(&["--resume", "parts", "--steps", "5"]).failed();
    assert!(said.contains("6 steps, asked for 5"), "{said}");
    let said = run(&["--resume", "data"]).failed();
    assert!(said.contains("no run"), "{said}");
    let said = run(&["--resume", "parts", "-o", "whole"]).failed();
    assert!(said.contains("one folder"), "{said}");
    let read = RunFolder::settings(&folder.path().join("parts")).expect("read").expect("settings");
    assert_eq!((read.steps, read.seed), (6, 3));
    // The folder of a run stands for its model.
    let inspect = |model: &str| TestCommand::new(&folder, ["inspect", model]).succeeded();
    assert_eq!(inspect("parts").lines().count(), inspect("parts/model").lines().count());
}

#[test]
fn a_folder_has_one_run_at_a_time() {
    let folder = tempfile::tempdir().expect("a folder");
    let (data, run) = (folder.path().join("data"), folder.path().join("run"));
    pictures(&data, &["a", "b"]);
    let first = train(&run, config(&["steps=2"]), &data, false);
    let second = on_images(&run, config(&["steps=2"]), &data, true).map(drop);
    assert!(matches!(second, Err(Error::InUse { .. })));
    let said = TestCommand::new(&folder, ["train", "class", "--resume", "run", "-d", "data"]);
    let said = said.on_cpu().failed();
    assert!(said.contains("another process"), "{said}");
    drop(first);
    on_images(&run, config(&["steps=2"]), &data, true).expect("free again");

    let teacher = teacher(&folder.path().join("teacher"), 1, true);
    let set = folder.path().join("set");
    let open = |worker| Recorder::new(&set, &teacher.0, spec(&teacher, 9), worker);
    let all = open([0, 1]).expect("free");
    for worker in [[0, 1], [1, 2]] {
        assert!(matches!(open(worker), Err(Error::InUse { .. })));
    }
    drop(all);
    let _one = open([0, 2]).expect("free");
    assert!(open([1, 2]).is_ok() && open([0, 2]).is_err() && open([0, 1]).is_err());
}
