//! Runs with damaged files or numbers that are not finite, and mistakes that are found before any work.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::tensor::TensorData;
use pyrograph::Error;
use pyrograph::train::Event;
use pyrograph::trajectories::Trajectories;
use pyrograph_weights::{Checkpoint, write_safetensors};
use serde_json::Value;

use crate::command::TestCommand;
use crate::resume::{config, on_images, pictures, train};
use crate::trajectories::{record, spec, teacher};
use crate::util::{assert_same_parameters, files};

/// The bytes of a file with a bit of one of them turned.
fn flip(path: &Path, at: impl Fn(usize) -> usize) {
    let mut bytes = std::fs::read(path).expect("a file");
    let at = at(bytes.len());
    bytes[at] ^= 4;
    std::fs::write(path, bytes).expect("written");
}

/// What is done to a file.
type Change<'a> = &'a dyn Fn(&Path);

#[test]
fn a_damaged_checkpoint_is_passed_over_with_a_word() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    pictures(&data, &["a", "b"]);
    let whole = train(&folder.path().join("whole"), config(&["steps=6"]), &data, false);
    let damage: [(&str, Change<'_>); 4] = [
        ("a bit of a value", &|path| flip(path, |length| length - 3)),
        ("a bit of the header", &|path| flip(path, |_| 700)),
        ("cut off", &|path| {
            let bytes = std::fs::read(path).expect("a file");
            std::fs::write(path, &bytes[..bytes.len() / 2]).expect("written");
        }),
        ("empty", &|path| std::fs::write(path, "").expect("written")),
    ];
    for (name, damage) in damage {
        let run = folder.path().join(name);
        train(&run, config(&["steps=4"]), &data, false);
        damage(&run.join("checkpoints/0000004.safetensors"));
        let mut resumed = on_images(&run, config(&["steps=6"]), &data, true).expect(name);
        let mut told = Vec::new();
        let flow = resumed.train(&mut |event| {
            match event {
                Event::Damaged { path, .. } => told.push(path.display().to_string()),
                Event::Resumed(step) => told.push(step.to_string()),
                _ => (),
            }
            ControlFlow::Continue(())
        });
        assert!(flow.expect("trains").is_continue());
        assert!(told.len() == 2 && told[0].ends_with("0000004.safetensors"), "{name}: {told:?}");
        assert_eq!(told[1], "2", "{name}");
        assert_same_parameters(name, &whole.net(), &resumed.net());
        drop(resumed);
        files(&run.join("checkpoints")).for_each(|path| flip(&path, |length| length - 3));
        let error = on_images(&run, config(&["steps=8"]), &data, true).map(drop).expect_err(name);
        assert!(error.to_string().contains("damaged"), "{error}");
    }
}

#[test]
fn a_damaged_trajectory_is_found() {
    let folder = tempfile::tempdir().expect("a folder");
    let teacher = teacher(&folder.path().join("teacher"), 1, true);
    let set = folder.path().join("set");
    record(&set, &teacher, spec(&teacher, 9));
    let shard = set.join("000001.safetensors");
    let right = std::fs::read(&shard).expect("a shard");
    flip(&shard, |length| length - 3);
    let error = Trajectories::open(&set).expect_err("a turned bit").to_string();
    assert!(error.contains("000001.safetensors"), "{error}");
    record(&set, &teacher, spec(&teacher, 9));
    assert!(std::fs::read(&shard).expect("a shard") == right);
}

/// Lets the newest checkpoint of a run be of another step, or have other values.
fn edit(path: &Path, step: u64, change: impl Fn(&str, Vec<f32>) -> Vec<f32>) {
    let file = Checkpoint::open(path).expect("a checkpoint");
    let mut texts = file.metadata().clone();
    let state = texts.get_mut("pyrograph.training").expect("a state");
    let mut parsed: Value = serde_json::from_str(state).expect("JSON");
    parsed["step"] = step.into();
    *state = parsed.to_string();
    let tensors: Vec<(String, TensorData)> = file
        .tensors()
        .keys()
        .map(|name| {
            let (values, shape) = file.read_f32(name).expect("a tensor");
            (name.clone(), TensorData::new(change(name, values), shape))
        })
        .collect();
    let path = path.with_file_name(format!("{step:07}.safetensors"));
    write_safetensors(&path, &tensors, &texts).expect("written");
}

#[test]
fn steps_are_numbers_however_long() {
    let folder = tempfile::tempdir().expect("a folder");
    let (data, run) = (folder.path().join("data"), folder.path().join("run"));
    pictures(&data, &["a", "b"]);
    train(&run, config(&["steps=2"]), &data, false);
    let first = run.join("checkpoints/0000002.safetensors");
    edit(&first, 9_999_998, |_, values| values);
    std::fs::remove_file(first).expect("removed");
    let more = ["steps=10000003", "checkpoint_every=1", "sample_every=0"];
    let ended = train(&run, config(&more), &data, true);
    assert_eq!(ended.step(), 10_000_003);
    drop(ended);
    let mut left: Vec<String> = files(&run.join("checkpoints"))
        .map(|path| path.file_name().expect("a name").to_string_lossy().into_owned())
        .collect();
    left.sort();
    assert_eq!(left, ["10000002.safetensors", "10000003.safetensors"]);
    assert_eq!(on_images(&run, config(&more), &data, true).expect("it goes on").step(), 10_000_003);
}

#[test]
fn weights_that_are_not_finite_replace_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    pictures(&data, &["a", "b"]);
    let started = folder.path().join("started");
    let wild = config(&[
        "steps=9",
        "checkpoint_every=1",
        "log_every=100",
        "model.kind=dit",
        "clip=0.0",
        "learning_rate.peak=1e30",
        "learning_rate.warmup=0",
    ]);
    let mut run = on_images(&started, wild, &data, false).expect("a run");
    let error = run.train(&mut |_| ControlFlow::Continue(())).expect_err("it diverges");
    assert!(matches!(error, Error::NotFinite { .. }), "{error}");
    let none = files(&started.join("checkpoints")).chain(files(&started.join("model"))).count();
    assert_eq!(none, 0);

    let run = folder.path().join("run");
    train(&run, config(&["steps=4"]), &data, false);
    let newest = run.join("checkpoints/0000004.safetensors");
    edit(&newest, 4, |name, values| match name.starts_with("first/") {
        true => vec![f32::NAN; values.len()],
        false => values,
    });
    let model = || std::fs::read(run.join("model/dit.safetensors")).expect("a model");
    let before = model();
    let mut resumed = on_images(&run, config(&["steps=6"]), &data, true).expect("a run");
    let error = resumed.train(&mut |_| ControlFlow::Continue(())).expect_err("not finite");
    assert!(matches!(error, Error::NotFinite { .. } | Error::Diverged { .. }), "{error}");
    assert!(!run.join("checkpoints/0000006.safetensors").exists() && before == model());
    assert!(run.join("checkpoints/0000002.safetensors").exists());
}

#[test]
fn equal_runs_are_equal_in_every_byte_and_a_lost_sample_is_made() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    pictures(&data, &["a", "b"]);
    let config = config(&["steps=4", "sample_every=2", "snapshot_every=2", "defaults.steps=2"]);
    let names = ["checkpoints/0000004", "snapshots/0000002-0", "snapshots/0000004-1"];
    let written = |run: &str| {
        train(&folder.path().join(run), config.clone(), &data, false);
        names.map(|name| {
            let path = folder.path().join(run).join(name).with_extension("safetensors");
            std::fs::read(path).expect("a file")
        })
    };
    assert!(written("one") == written("two"));
    let sheet = folder.path().join("one/samples/0000004.png");
    let first = std::fs::read(&sheet).expect("a sheet");
    std::fs::remove_file(&sheet).expect("removed");
    train(&folder.path().join("one"), config, &data, true);
    assert!(std::fs::read(&sheet).expect("made again") == first);
}

#[test]
fn averages_that_the_snapshots_do_not_express_are_refused_or_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let (data, run) = (folder.path().join("data"), folder.path().join("run"));
    pictures(&data, &["a", "b"]);
    train(&run, config(&["steps=8", "snapshot_every=2"]), &data, false);
    let average = |width: &str, step: &str| {
        TestCommand::new(&folder, ["train", "average", "run", "-o", "averaged", "--overwrite"])
            .args(["--width", width, "--step", step])
            .ended()
    };
    for (width, step) in [("0.1", "8"), ("0.05", "4")] {
        let exact = average(width, step);
        assert!(exact.code == Some(0) && !exact.error.contains("warning"), "{}", exact.error);
    }
    let near = average("0.15", "8");
    assert!(near.code == Some(0) && near.error.contains("to within 11 %"), "{}", near.error);
    for (width, step) in [("0.01", "8"), ("0.27", "8"), ("0.1", "1"), ("nan", "8"), ("0.28", "8")] {
        let far = average(width, step);
        assert!(far.code == Some(1), "{width} {step}: {}", far.error);
    }
    flip(&run.join("snapshots/0000004-0.safetensors"), |length| length - 1);
    assert!(average("0.1", "8").error.contains("0000004-0"), "a damaged snapshot");
}

/// Options with which nothing can be recorded.
const RECORDING: [&str; 16] = [
    "-n 0",
    "-n -1",
    "-n 99999999999",
    "--points 0",
    "--points 26",
    "--at 3,2",
    "--at 9",
    "--shard 0",
    "--batch-size 0",
    "--teacher-steps 0",
    "--sampler euler_a",
    "--sampler nope",
    "--cfg-scale nan",
    "--first-seed -1",
    "--compute 60%",
    "-n 4000000000 --shard 1",
];

/// Options with which nothing can be distilled.
const DISTILLING: [&str; 21] = [
    "--history-layers 99",
    "--student-patches 3",
    "--student-patches 8,8",
    "--student-steps 0",
    "--student-steps 3",
    "--student-steps 9",
    "--adversarial nope",
    "--adversarial file",
    "--init nope",
    "--init teacher",
    "--steps 0",
    "--batch 0",
    "--batch 3",
    "--lr nan",
    "--lr -1",
    "--seed 9223372036854775808",
    "--set nope=1",
    "--set averages=[]",
    "--config nope",
    "--set precision=f8",
    "--resume nope",
];

/// Options with which nothing can be trained.
const TRAINING: [&str; 25] = [
    "--seed 9223372036854775808",
    "--seed -1",
    "--steps 0",
    "--steps -5",
    "--batch 0",
    "--lr nan",
    "--lr inf",
    "--init nope",
    "--init teacher --set vae=nope",
    "--set vae=nope",
    "--set averages=[{power=0.3}]",
    "--set averages=[{decay=1.0}]",
    "--set model.heads=3",
    "--set model.size=[0,0]",
    "--set model.patch=5",
    "--set label_dropout=2",
    "--set clip=-1",
    "--set epsilon=0",
    "--set seed=18446744073709551615",
    "--set seed=-1",
    "--set checkpoint_every=0",
    "--config nope",
    "--set nope=1",
    "--set nope",
    "--resume nope",
];

/// What depends only on what was typed fails before anything is made.
#[test]
fn nothing_fails_late() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    teacher(&path.join("teacher"), 1, true);
    pictures(&path.join("data"), &["a", "b", "c"]);
    std::fs::write(path.join("file"), "").expect("written");
    let before: Vec<PathBuf> = files(path).collect();
    let refuse = |command: &[&str], options: &str| {
        let args = command.iter().copied().chain(options.split_whitespace());
        let ended = TestCommand::new(path, args).on_cpu().ended();
        assert!(matches!(ended.code, Some(1 | 2)), "{command:?} {options}: {}", ended.error);
        let after: Vec<PathBuf> = files(path).collect();
        assert_eq!(before.len(), after.len(), "{command:?} {options}: {after:?}");
    };
    for options in RECORDING {
        refuse(&["distill", "record", "-m", "teacher", "-o", "run"], options);
        refuse(&["distill", "-m", "teacher", "-o", "run"], options);
    }
    for options in DISTILLING {
        refuse(&["distill", "-m", "teacher", "-o", "run"], options);
    }
    refuse(&["distill", "-m", "nope", "-o", "run"], "");
    refuse(&["distill", "-m", "teacher", "-o", "file/run"], "");
    refuse(&["distill", "record", "-m", "teacher", "-o", "file"], "");
    for options in TRAINING {
        refuse(&["train", "class", "-d", "data", "-o", "run"], options);
    }
    refuse(&["train", "class", "-d", "nope", "-o", "run"], "");
    refuse(&["train", "class", "-d", "data", "-o", "file"], "");
    refuse(&["train", "class", "-d", "data", "-o", "file/run"], "");
    refuse(&["train", "class", "-o", "run"], "");
}
