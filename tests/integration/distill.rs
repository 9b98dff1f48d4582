//! Students trained on trajectories.

use std::ops::ControlFlow;
use std::path::Path;

use burn::tensor::Tensor;
use pyrograph::train::{Run, TrainConfig};
use pyrograph::trajectories::{Trajectories, TrajectorySpec};
use pyrograph::{Noise, Request, model};
use pyrograph_engine::diffusion::NoiseSource;
use pyrograph_engine::metrics::Estimate;
use pyrograph_engine::nets::{Conditioning, Points};
use pyrograph_engine::train::params;

use crate::command::TestCommand;
use crate::trajectories::{pipeline, record, spec, teacher};
use crate::util::{
    assert_close, assert_same_parameters, device, first_and_last_loss, identical, tolerance,
    train_until, write_pictures,
};

/// Trains a student until `stop`, or to the end.
fn distill(
    folder: &Path,
    changes: &[&str],
    [name, set]: [&str; 2],
    (resume, stop): (bool, u64),
) -> Run {
    let base = TrainConfig::distilling(folder.join("teacher")).expect("settings");
    let text = "batch = 6\nmicro_batches = 2\nlog_every = 2\nsample_every = 0\ncheckpoint_every = 4\n\
                steps = 11\nlearning_rate = { peak = 1e-3, warmup = 2 }";
    let changes: Vec<String> = changes.iter().map(|&change| change.to_owned()).collect();
    let config = base.with(text, &changes).expect("settings");
    let set = Trajectories::open(&folder.join(set)).expect("a set");
    let mut run =
        Run::on_trajectories(&folder.join(name), config, set, resume, &device()).expect("a run");
    let _ = train_until(&mut run, Some(stop));
    run
}

#[test]
fn a_resumed_student_equals_one_without_a_break_bit_for_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    let teacher = teacher(&folder.path().join("teacher"), 1, true);
    record(&folder.path().join("set"), &teacher, spec(&teacher, 10));
    let whole = distill(folder.path(), &[], ["whole", "set"], (false, 0));
    distill(folder.path(), &[], ["parts", "set"], (false, 6));
    let resumed = distill(folder.path(), &[], ["parts", "set"], (true, 0));
    assert_same_parameters("resumed", &whole.net(), &resumed.net());
}

#[test]
fn students_learn_and_open_like_any_model() {
    let folder = tempfile::tempdir().expect("a folder");
    for (kind, points) in
        [(true, Points::Estimates), (false, Points::Estimates), (true, Points::States)]
    {
        let name = format!("{kind} {points:?}");
        let teacher = teacher(&folder.path().join("teacher"), 3, kind);
        let set = format!("set of {name}");
        let spec = TrajectorySpec { points, ..spec(&teacher, 12) };
        record(&folder.path().join(&set), &teacher, spec);
        let changes = ["steps=150", "learning_rate.peak=0.01", "log_every=1"];
        distill(folder.path(), &changes, [&name, &set], (false, 0));
        let [start, end] = first_and_last_loss(&folder.path().join(&name));
        assert!(end < 0.5 * start, "{name}: {start} to {end}");

        // From the noise of a trajectory it comes to what the teacher came to, nearer than one that was
        // not trained.
        let set = Trajectories::open(&folder.path().join(&set)).expect("a set");
        let all: Vec<usize> = (0..12).collect();
        let batch = set.batch(&all, &[3], &device()).expect("all of them");
        let (student, _) = pipeline(&folder.path().join(&name).join("model"));
        assert_eq!(student.config().defaults.steps, 4);
        let noise = Some(Noise::Values(batch.noise.clone()));
        let classes = all.iter().map(|index| index % 3);
        let request = Request { noise, ..Request::new(classes) };
        let run = student.latents(&request, &mut |_| ControlFlow::Continue(()));
        let images: Tensor<4> = batch.points[0].clone();
        let far: f32 = (run.expect("images") - images.clone()).square().mean().into_scalar();
        let size: f32 = images.var(0).mean().into_scalar();
        println!("{name}: {start:.4} to {end:.4}, {far:.4} from the teacher of {size:.4}");
        assert!(far < 0.5 * size, "{name}: {far} from the teacher, whose images vary by {size}");

        // The same, measured step by step. The first step has no past; to the others the teacher's points are
        // a help.
        let net = model::open(&folder.path().join(&name).join("model"), &device()).expect("it").net;
        let deviation = set
            .deviation(&net, 5, &device(), &mut |_| ControlFlow::Continue(()))
            .expect("a student of these");
        let [forced, own] = [&deviation.forced, &deviation.own];
        assert_eq!((deviation.trajectories, forced.len(), forced[0]), (12, 4, own[0]));
        assert!((own[3].value / f64::from(far) - 1.0).abs() < 1e-3, "{:?}, {far}", own[3]);
        let sum = |errors: &[Estimate]| errors.iter().map(|error| error.value).sum::<f64>();
        // Processors round differently, and so do the students of so short a training: without AVX-512 one of them
        // is 0.3 % nearer on its own.
        assert!(sum(own) > 0.99 * sum(forced), "{name}: {own:?} and {forced:?}");
    }
}

#[test]
fn only_a_student_is_compared_with_trajectories_and_only_with_its_own_kind() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let teacher = teacher(&path("teacher"), 1, true);
    let spec = spec(&teacher, 3);
    record(&path("set"), &teacher, spec.clone());
    record(&path("states"), &teacher, TrajectorySpec { points: Points::States, ..spec.clone() });
    record(&path("three"), &teacher, TrajectorySpec { after: vec![2, 4, 8], ..spec });
    distill(folder.path(), &["steps=1"], ["run", "set"], (false, 0));
    let compare = |model: &str, set: &str| {
        let net = model::open(&path(model), &device()).expect("a model").net;
        let set = Trajectories::open(&path(set)).expect("a set");
        let result = set.deviation(&net, 2, &device(), &mut |_| ControlFlow::Continue(()));
        result.map(|deviation| deviation.trajectories).map_err(|error| error.to_string())
    };
    assert_eq!(compare("run/model", "set"), Ok(3));
    for (model, set, reason) in [
        ("teacher", "set", "the model is none"),
        (
            "run/model",
            "states",
            r#"the trajectories are of {"classes":3,"points":"states","shape":[3,8,8]}"#,
        ),
        ("run/model", "three", "a student of 4 steps on trajectories of 3 points"),
    ] {
        let error = compare(model, set).expect_err("it does not fit");
        assert!(error.contains(reason), "{error}");
    }
}

fn pictures(folder: &Path, classes: &[&str]) {
    write_pictures(folder, classes, |class, i, [x, y]| {
        let at = |x: u32, y: u32| (x * 31 + y * 17 + i * 40) as u8;
        [at(x, y), at(y, x), 60 * class as u8, 255]
    });
}

#[test]
fn an_adversarial_stage_goes_on_from_a_student_and_resumes_bit_for_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    let teacher = teacher(&path.join("teacher"), 1, true);
    record(&path.join("set"), &teacher, spec(&teacher, 10));
    distill(path, &[], ["regression", "set"], (false, 0));
    pictures(&path.join("data"), &["a", "b", "c"]);
    let set = |key: &str, value: &str| format!("{key}={}", path.join(value).display());
    let (init, data) = (set("student.init", "regression/model"), set("adversarial.data", "data"));
    let changes = [init.as_str(), data.as_str(), "adversarial.warmup=3", "flip=true"];

    let whole = distill(path, &changes, ["whole", "set"], (false, 0));
    distill(path, &changes, ["parts", "set"], (false, 6));
    let resumed = distill(path, &changes, ["parts", "set"], (true, 0));
    let plain = distill(path, &[&init], ["plain", "set"], (false, 0));
    assert_same_parameters("resumed", &whole.net(), &resumed.net());
    let [whole, plain] = [whole, plain].map(|run| params::values(&run.net()));
    let same = whole.into_iter().zip(plain).all(|(a, b)| identical(a, b));
    assert!(!same, "the heads pulled at nothing");

    let refuse = |changes: &[&str], part: &str| {
        let base = TrainConfig::distilling(path.join("teacher")).expect("settings");
        let changes: Vec<String> = changes.iter().map(|&change| change.to_owned()).collect();
        let config = base.with("", &changes).expect("settings");
        let set = Trajectories::open(&path.join("set")).expect("a set");
        let run = Run::on_trajectories(&path.join("none"), config, set, false, &device());
        let error = run.map(drop).expect_err(part).to_string();
        assert!(error.contains(part), "{error}");
    };
    refuse(&[&init, "student.history_layers=2"], "student.history_layers was 1, is 2");
    refuse(&[&set("student.init", "teacher")], "student was not given");
    pictures(&path.join("other"), &["a", "b"]);
    refuse(&[&set("adversarial.data", "other")], "has 2 classes, the teacher 3");
}

#[test]
fn a_student_that_predicts_states_passes_through_them() {
    let folder = tempfile::tempdir().expect("a folder");
    for preserved in [true, false] {
        let bundle = teacher(&folder.path().join("teacher"), 3, preserved);
        let name = format!("{preserved}");
        let set = format!("set of {name}");
        let spec = TrajectorySpec { points: Points::States, ..spec(&bundle, 6) };
        record(&folder.path().join(&set), &bundle, spec);
        distill(folder.path(), &["steps=1"], [&name, &set], (false, 0));

        let path = folder.path().join(&name).join("model");
        let (student, _) = pipeline(&path);
        let settings = student.config().defaults.settings(0);
        let process = &student.config().process;
        let grid = settings.sampler.grid(&process.schedule, settings.spacing.as_ref(), 4);
        let grid = grid.expect("a grid");
        let noise = NoiseSource::new(1, 2).draw([3, 8, 8], &device());
        let mut states = vec![noise.clone()];
        let given = Some(Noise::Values(noise.clone()));
        let request = Request { noise: given, ..Request::new([0, 2]) };
        let run = student.latents(&request, &mut |progress| {
            let [_, to] = grid.steps[progress.step];
            // The last is the image itself.
            let scale = match progress.step {
                3 => 1.0,
                _ => process.prediction.coefficients(&to).c_in,
            };
            states.push(progress.x.clone() * scale);
            ControlFlow::Continue(())
        });
        run.expect("images");
        let told = Conditioning::classes(&[0, 2], &device());
        let net = model::open(&path, &device()).expect("a student").net;
        let outputs = net.student().expect("it").steps(states[..4].to_vec(), &told);
        for (found, expected) in states[1..].iter().zip(outputs) {
            assert_close("a state", found.clone(), expected, tolerance(1e-4));
        }
    }
}

#[test]
fn one_command_makes_a_student_that_generates() {
    let folder = tempfile::tempdir().expect("a folder");
    teacher(&folder.path().join("teacher"), 1, true);
    let run = folder.path().join("run");
    let distill = |options: &[&str]| {
        TestCommand::new(&folder, ["distill", "-n", "6", "--teacher-steps", "4"])
            .args(["--history", "noise", "--batch", "4", "-m", "teacher", "-o", "run"])
            .settings(&["micro_batches=1", "sample_every=0"])
            .args(options)
            .on_cpu()
    };
    // Told before anything is recorded.
    for (steps, reason) in [("3", "of 4 points"), ("4", "after 1 of 4")] {
        let said = distill(&["--student-steps", steps]).failed();
        assert!(said.contains(reason) && !run.exists(), "{said}");
    }
    for (setting, key) in
        [("process.schedule.log_mean=-0.5", "process"), ("label_dropout=0.2", "label_dropout")]
    {
        let said = distill(&["--student-steps", "2"]).settings(&[setting]).failed();
        let reason = format!("{key} is set, a student of trajectories does not read it");
        assert!(said.contains(&reason) && !run.exists(), "{said}");
    }
    let said = distill(&["--student-steps", "2", "--steps", "2"]).reported();
    assert!(said.contains("6 of 6 trajectories to record") && said.contains("9.00 KiB"), "{said}");
    let said = distill(&["--student-steps", "2", "--steps", "3", "--resume"]).reported();
    assert!(said.contains("0 of 6 trajectories") && said.contains("resumed at step 2"), "{said}");

    let found = TestCommand::new(&folder, ["distill", "compare", "--json", "-m", "run/model"])
        .args(["--trajectories", "run/trajectories"])
        .on_cpu()
        .succeeded();
    let found: serde_json::Value = serde_json::from_str(&found).expect("JSON");
    assert_eq!(found["trajectories"], 6);
    assert!(found["own"][1]["value"].as_f64().is_some_and(|error| error > 0.0), "{found}");

    let said = TestCommand::new(&folder, ["generate", "class", "-c", "1", "-s", "3"])
        .args(["-m", "run/model", "-o", "picture.png"])
        .on_cpu()
        .reported();
    assert!(said.contains("2 steps of ddim, cfg 1"), "{said}");
    assert!(folder.path().join("picture.png").is_file());
}
