//! What depends on the settings alone is refused before any picture is read, and what fails leaves nothing behind.

use std::path::Path;

use crate::command::TestCommand;
use crate::resume::pictures;
use crate::trajectories::teacher;
use crate::util::{cases, copy_folder, files, json, text};

/// Settings with which no model can be trained, and what is said of them.
const TRAINING: [(&[&str], &str); 16] = [
    (&["defaults.cfg_interval=[5,1]"], "defaults: cfg interval from 5 to 1"),
    (&["defaults.cfg_interval=[5]"], "`defaults.cfg_interval` is [5], expected a list of 2"),
    (&["defaults.cfg_channels={first=9}"], "defaults: guided channels 9, expected 1 to 3"),
    (&["defaults.steps=20000"], "defaults: 20000 steps, expected 1 to 10000"),
    (&["defaults.spacing=trailing"], "defaults: trailing needs a schedule of timesteps"),
    // Keys beside those of a variant.
    (&["defaults.sampler={ddim={eta=0.5,seed=1}}"], "unknown key `seed`"),
    (&["defaults.spacing={karras={rho=7,sigma=1}}"], "unknown key `sigma`"),
    (&["learning_rate.decay={kind=\"cosine\",start=3}"], "unknown key `start`"),
    (&["learning_rate.decay={kind=\"inverse_sqrt\",start=3,end=9}"], "`learning_rate.decay.end`"),
    (&["defaults.sampler=plms"], "defaults.sampler: unknown sampler `plms`"),
    (&["student.steps=4"], "student is set"),
    (&["patches=[{ until = 5, shares = [[16, 1.0]] }]"], "patch size 16"),
    (&["patches=[{ until = 5, shares = [[8, -1.0]] }]"], "shares of patch sizes"),
    (&["precision=bf16"], "precision is bf16"),
    (&["batch=100000000", "micro_batches=1"], " GB of memory, "),
    (&["model.size=[60,60]", "model.patch=7"], "patch"),
];

#[test]
fn settings_are_compared_before_a_picture_is_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    teacher(&path.join("teacher"), 1, true);
    // Whoever looks into it says that there are no images.
    std::fs::create_dir(path.join("empty")).expect("made");
    let train = |options: &[&str]| {
        TestCommand::new(path, ["train", "class", "-d", "empty", "-o", "run"])
            .args(options)
            .kernels("off")
            .on_cpu()
    };
    assert!(train(&[]).failed().contains("no images"));
    let refused = |command: TestCommand, expected: &str| {
        let said = command.failed();
        assert!(said.contains(expected) && !said.contains("no images"), "{expected}: {said}");
        assert!(!path.join("run").exists(), "{expected}");
    };
    for (settings, expected) in TRAINING {
        refused(train(&[]).settings(settings), expected);
    }
    let from = ["--init", "teacher"];
    refused(train(&from).settings(&["model.hidden=128"]), "model.hidden is 128");
    refused(train(&from).settings(&["process.time=timestep"]), "process is ");
    let distill = |settings: &[&str]| {
        TestCommand::new(path, ["distill", "-m", "teacher", "-o", "run", "-n", "4"])
            .settings(settings)
            .kernels("off")
            .on_cpu()
    };
    refused(distill(&["precision=bf16"]), "precision is bf16");
    refused(distill(&["batch=100000000", "micro_batches=1"]), " GB of memory, ");
    refused(distill(&["data=empty"]), "data is set");
}

#[test]
fn a_run_that_never_starts_leaves_no_folder() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    pictures(&path.join("data"), &["a", "b"]);
    // Described as it could be, with weights that are those of another.
    copy_folder(&cases("dit-pipeline")[0].join("vae"), &path.join("vae"));
    let described = path.join("vae/config.json");
    let mut config = json(&described);
    config["layers_per_block"] = (config["layers_per_block"].as_u64().expect("one") + 1).into();
    std::fs::write(&described, config.to_string()).expect("written");
    let train = |run: &Path| {
        TestCommand::new(path, ["train", "class", "-d", "data", "--set", "vae=vae"])
            .settings(&["model.size=[16,16]", "model.patch=2"])
            .args(["-o", text(run)])
            .on_cpu()
            .failed()
    };
    let said = train(Path::new("runs/new"));
    assert!(said.contains("missing"), "{said}");
    assert!(!path.join("runs").exists(), "{said}");
    // One that was there before stays, as empty as it was.
    std::fs::create_dir(path.join("own")).expect("made");
    train(Path::new("own"));
    assert_eq!(files(&path.join("own")).count(), 0);
}
