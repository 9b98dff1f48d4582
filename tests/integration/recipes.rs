//! Training as people start it: settings, models to start from, progress.

use std::fs;
use std::path::Path;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use pyrograph::Error;
use pyrograph::data::Dataset;
use pyrograph::model::{Model, open};
use pyrograph::task::ClassTask;
use pyrograph::train::{OwnPictures, OwnProgress, Run, SETTINGS, TrainConfig};
use pyrograph_engine::diffusion::NoiseSchedule;
use pyrograph_engine::nets::{DitConfig, Flexible, Sharing, flexify};
use pyrograph_weights::FloatDtype;

use crate::command::TestCommand;
use crate::util::{
    goldens, identical, opened, relative_difference, root, train_until, write_pictures,
};

/// Settings of a tiny network on tiny pictures.
const TINY: [&str; 6] = [
    "model.size=[8,8]",
    "model.patch=4",
    "model.hidden=16",
    "model.depth=1",
    "model.heads=2",
    "sample_every=0",
];

/// A folder with pictures of these classes in `data`.
fn data(folder: &Path, classes: &[&str]) {
    write_pictures(&folder.join("data"), classes, |class, i, [x, y]| match (x + y) % 4 == i % 4 {
        true => [255; 4],
        false => [[200, 30, 30, 255], [30, 30, 200, 255], [30, 200, 30, 255]][class % 3],
    });
}

fn train(folder: &Path, run: &str, args: &[&str]) -> TestCommand {
    TestCommand::new(folder, ["train", "class", "-d", "data", "-o", run])
        .settings(&["batch=4"])
        .args(args)
        .on_cpu()
}

#[test]
fn the_guide_and_the_help_explain_every_setting() {
    let mut table = "| setting | values | default | meaning |\n|---|---|---|---|\n".to_owned();
    for setting in SETTINGS {
        let default = setting.default().map(|value| format!("`{value}`")).unwrap_or_default();
        let (key, values, meaning) = (setting.key, setting.values(), setting.meaning);
        table.push_str(&format!("| `{key}` | {values} | {default} | {meaning} |\n"));
    }
    let guide = fs::read_to_string(root().join("docs/guide.md")).expect("the guide");
    assert!(guide.contains(&table), "docs/guide.md should hold\n{table}");
    let folder = tempfile::tempdir().expect("a folder");
    let help = TestCommand::new(&folder, ["train", "class", "--help-settings"]).succeeded();
    for setting in SETTINGS {
        assert!(help.contains(&format!("\n{}  ", setting.key)), "{}", setting.key);
        assert!(help.contains(setting.meaning), "{}", setting.key);
    }
}

#[test]
fn settings_that_cannot_be_are_refused_by_name_before_anything_is_done() {
    let folder = tempfile::tempdir().expect("a folder");
    data(folder.path(), &["red", "blue"]);
    let vae = format!("vae={}", goldens().join("dit-pipeline").display());
    let mistakes: [(&[&str], &str); 20] = [
        (&["--set", "steps=0"], "steps is 0, expected 1 or more"),
        (&["--set", "batch=0"], "batch is 0"),
        (&["--lr=-1"], "learning_rate.peak is -1"),
        (&["--lr", "nan"], "learning_rate.peak is NaN"),
        (&["--lr", "inf"], "learning_rate.peak is inf"),
        (&["--set", "seed=18446744073709551615"], "expected at most 9223372036854775807"),
        (&["--set", "model.hiden=8"], "unknown setting `model.hiden`; similar: model.hidden"),
        (&["--set", "learning_rate=0.1"], "learning_rate"),
        (&["--set", "learningrate.peak=0.1"], "learning_rate.peak"),
        (&["--set", "steps"], "key=value"),
        (&["--set", "steps=many"], "steps"),
        (&["--set", "label_dropout=1.5"], "label_dropout is 1.5, expected 0 to 1"),
        (&["--set", "betas=[0.9, 1.0]"], "betas is 1, expected from 0 to below 1"),
        (&["--set", "averages=[{power=0.3}]"], "width 0.3, expected above 0 to below 0.28"),
        (&["--set", "averages=[{decay=1.0}]"], "decay 1, expected 0 to below 1"),
        (&["--set", "model.size=[8,0]"], "model.size is 0"),
        (&["--set", "model.hidden=30"], "hidden is 30"),
        (&["--set", "micro_batches=3"], "micro_batches must divide batch"),
        (&["--set", "process.schedule.kind=edmm"], "edmm"),
        (
            &["--set", &vae, "--set", "model.size=[17,17]"],
            "multiples of 8, the factor of the autoencoder",
        ),
    ];
    for (args, part) in mistakes {
        let said = train(folder.path(), "run", &[]).settings(&TINY).args(args).failed();
        assert!(said.contains(part), "{args:?}: {said}");
    }
}

/// Before anything of the size is taken.
#[test]
fn trainings_that_take_more_memory_than_there_is_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    data(folder.path(), &["red", "blue"]);
    for large in [
        &["batch=100000000000"][..],
        &["model.size=[16384,16384]", "model.hidden=1024"],
        &["model.hidden=65536", "model.depth=512"],
    ] {
        let said = train(folder.path(), "run", &[]).settings(&TINY).settings(large).failed();
        assert!(said.contains("GB of memory"), "{large:?}: {said}");
        assert!(!folder.path().join("run/checkpoints").exists());
    }
}

#[test]
fn files_of_settings_may_begin_with_a_mark() {
    let folder = tempfile::tempdir().expect("a folder");
    data(folder.path(), &["red", "blue"]);
    fs::write(folder.path().join("run.toml"), b"\xEF\xBB\xBFsteps = 2\r\nlog_every = 1\r\n")
        .expect("written");
    train(folder.path(), "run", &["--config", "run.toml"]).settings(&TINY).succeeded();
    let log = fs::read_to_string(folder.path().join("run/log.csv")).expect("a log");
    assert_eq!(log.lines().count(), 3, "{log}");
}

#[test]
fn the_log_tells_rate_norm_and_time_and_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    data(folder.path(), &["red", "blue"]);
    let settings = ["log_every=1", "learning_rate.warmup=4", "learning_rate.peak=0.02"];
    let run = |steps: &str, resume: &[&str]| {
        train(folder.path(), "run", &["--steps", steps])
            .args(resume)
            .settings(&TINY)
            .settings(&settings)
            .reported()
    };
    let said = run("3", &[]);
    // Without a terminal there are lines in place of the bar.
    assert!(said.contains("step 1/3") && said.contains("step 3/3"), "{said}");
    let path = folder.path().join("run/log.csv");
    let rows = || -> Vec<Vec<f64>> {
        let text = fs::read_to_string(&path).expect("a log");
        let mut lines = text.lines();
        let header = "step,loss,images_per_second,learning_rate,gradient_norm,seconds";
        assert_eq!(lines.next(), Some(header));
        let number = |field: &str| field.parse().unwrap_or(f64::NAN);
        lines.map(|line| line.split(',').map(number).collect()).collect()
    };
    let first = rows();
    run("5", &["--resume"]);
    let all = rows();
    assert_eq!(all.len(), 5);
    assert_eq!(all[..3], first[..]);
    for (i, row) in all.iter().enumerate() {
        let rate = 0.02 * ((i + 1) as f64 / 4.0).min(1.0);
        assert!((row[3] - rate).abs() < 1e-9, "{row:?}");
        assert!(row[4] > 0.0 && row[5] >= if i > 0 { all[i - 1][5] } else { 0.0 }, "{row:?}");
    }
    // A log of an earlier version gets the new columns.
    let old = "step,loss,images_per_second\n1,0.5,10.00\n4,0.4,10.00\n";
    fs::write(&path, old).expect("written");
    run("6", &["--resume"]);
    let all = rows();
    assert!(all[0].len() == 6 && all[0][1] == 0.5 && all[0][5].is_nan(), "{all:?}");
    assert_eq!(all.last().expect("lines")[0], 6.0);
}

#[test]
fn a_model_is_trained_on_for_other_classes() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    data(path, &["red", "blue"]);
    train(path, "first", &["--steps", "20"]).settings(&TINY).succeeded();
    fs::remove_dir_all(path.join("data/red")).expect("removed");
    data(path, &["Blue", "green"]);
    fs::remove_dir_all(path.join("data/blue")).expect("removed");
    let start = ["--init", "first/model", "--steps", "1", "--lr", "1e-9"];
    let said = train(path, "second", &start).settings(&["sample_every=0"]).reported();
    assert!(said.contains("1 of the model's 2 classes are kept: blue"), "{said}");
    assert!(said.contains("1 are new, drawn at random like the model's: green"), "{said}");
    let [old, new] = ["first/model", "second/model"]
        .map(|name| open(&path.join(name), &Device::flex()).expect("a model"));
    assert_eq!(new.config.labels.0, ["blue", "green"]);
    assert_eq!(new.config.net.dit.classes, 2);
    let rows = |model: &Model| -> Tensor<2> {
        let label = model.net.trunk().embedder.label.as_ref();
        label.expect("classes").weight.val()
    };
    let (old, new) = (rows(&old), rows(&new));
    let row = |table: &Tensor<2>, row: usize| table.clone().narrow(0, row, 1);
    // Both tables were rounded to half precision; rows of unit size are stored.
    let unit = |row: Tensor<2>| row.clone() / row.square().sum().sqrt().unsqueeze();
    let same = |a: Tensor<2>, b: Tensor<2>| relative_difference(unit(a), unit(b)) < 2e-3;
    assert!(same(row(&new, 0), row(&old, 0)));
    assert!((0..3).all(|class| !same(row(&new, 1), row(&old, class))));
    assert!(same(row(&new, 2), row(&old, 2)));
    let ask = ["generate", "class", "-m", "second/model", "--class", "green", "--steps", "2"];
    TestCommand::new(path, ask).args(["-o", "green.png"]).on_cpu().succeeded();

    // What the model decides is not to be set otherwise.
    for (setting, part) in [
        ("model.hidden=32", "model.hidden is 32, the model that the run starts from has 16"),
        ("model.size=[16,16]", "model.size is [16, 16]"),
        ("model.kind=dit", "model.kind is \"dit\""),
        ("process.prediction=noise", "process is"),
    ] {
        let said = train(path, "third", &start).settings(&[setting]).failed();
        assert!(said.contains(part), "{setting}: {said}");
    }
    // What it does not decide is.
    let settings = ["sample_every=0", "defaults.cfg_scale=3.0", "process.schedule.log_mean=-0.5"];
    train(path, "fourth", &start).settings(&settings).succeeded();
    let model = open(&path.join("fourth/model"), &Device::flex()).expect("a model");
    assert_eq!(model.config.defaults.cfg_scale, 3.0);
    let schedule = model.config.process.schedule;
    assert!(matches!(schedule, NoiseSchedule::Edm { log_mean: -0.5, .. }), "{schedule:?}");
}

#[test]
fn a_run_of_the_same_classes_says_nothing_of_them() {
    let folder = tempfile::tempdir().expect("a folder");
    data(folder.path(), &["red", "blue"]);
    train(folder.path(), "first", &["--steps", "1"]).settings(&TINY).succeeded();
    let start = ["--init", "first/model", "--steps", "1"];
    let said = train(folder.path(), "second", &start).settings(&["sample_every=0"]).reported();
    assert!(!said.contains("kept"), "{said}");
}

/// A trained model with patches of 2.
fn small(folder: &Path) -> Model {
    data(folder, &["red", "blue"]);
    let text = "batch = 8\nsteps = 40\nsample_every = 0\n[model]\nsize = [8, 8]\npatch = 2\nhidden = 32\n\
                depth = 2\nheads = 2\n";
    let config = TrainConfig::parse(text, &[]).expect("valid");
    let data = Dataset::open(&folder.join("data"), [8, 8], Default::default()).expect("pictures");
    let device = Device::flex();
    let mut run = Run::on_images(&folder.join("run"), config, data, false, &device).expect("a run");
    let _ = train_until(&mut run, None);
    run.averaged(0)
}

fn shared(patches: &[usize]) -> Flexible {
    let sharing = Sharing::Kernels { underlying: 4 };
    Flexible { patches: patches.to_vec(), sharing, corners: false }
}

fn adapted(patches: &[usize]) -> Flexible {
    let sharing = Sharing::Adapters { rank: 4 };
    Flexible { patches: patches.to_vec(), sharing, corners: false }
}

/// What a model says of fixed noise with patches of a size.
fn call(model: &Model, patch: usize) -> Tensor<4> {
    use pyrograph_engine::nets::Conditioning;
    use pyrograph_engine::random::Generator;
    let noise = Generator::new(3).normal(2 * 3 * 64);
    let noise = burn::tensor::TensorData::new(noise, [2, 3, 8, 8]);
    let x = Tensor::from_data(noise, &Device::flex());
    let time = Tensor::full([2], 0.1, &Device::flex());
    let told = Conditioning::classes(&[0, 1], &Device::flex());
    model.net.trunk().forward(x, time, &told, patch)
}

#[test]
fn a_model_teaches_itself_a_patch_size_without_data() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = small(folder.path());
    let native = call(&model, 2);
    let device = Device::flex();
    for flexible in [shared(&[4]), adapted(&[4])] {
        let pyrograph_engine::nets::Net::Dit(net) = model.net.clone() else {
            panic!("a denoiser");
        };
        let mut fresh = model.clone();
        fresh.net = flexify(net, flexible.clone(), 0).expect("sizes that fit").into();
        let own = OwnPictures { steps: 200, pictures: 32, seed: 0 };
        let mut losses = Vec::new();
        let mut observe = |progress| {
            if let OwnProgress::Step(_, Some(loss)) = progress {
                losses.push(loss);
            }
            std::ops::ControlFlow::Continue(())
        };
        let taught = own
            .teach::<ClassTask>(model.clone(), &[0, 1], flexible.clone(), &device, &mut observe)
            .expect("it learns");
        assert!(losses.last() < losses.first(), "{losses:?}");
        let far = |model: &Model, patch| relative_difference(call(model, patch), native.clone());
        assert!(far(&taught, 4) < 0.9 * far(&fresh, 4), "{} {}", far(&taught, 4), far(&fresh, 4));
        match flexible.sharing {
            Sharing::Adapters { .. } => assert!(identical(call(&taught, 2), native.clone())),
            Sharing::Kernels { .. } => assert!(far(&taught, 2) < 0.3, "{}", far(&taught, 2)),
        }
        // It is a model like any other.
        let path = folder.path().join("taught");
        taught
            .save(&path, taught.manifest().expect("a manifest"), FloatDtype::F16, true)
            .expect("saved");
        assert_eq!(open(&path, &device).expect("a model").config.net.dit.patches(), [2, 4]);
    }
    let own = OwnPictures { steps: 2, pictures: 2, seed: 0 };
    let stop = &mut |_| std::ops::ControlFlow::Break(());
    let stopped = own.teach::<ClassTask>(model, &[0, 1], shared(&[4]), &device, stop).map(drop);
    assert!(matches!(stopped, Err(Error::Cancelled)));
}

#[test]
fn a_flexible_network_gets_a_further_size_and_keeps_its_own() {
    let config = DitConfig {
        size: [16, 16],
        channels: 3,
        classes: 2,
        learned_variance: false,
        ..DitConfig::dit(32, 2, 2)
    };
    let plain = opened(config.init(1, &Device::flex()));
    for (first, both) in [(shared(&[4]), shared(&[4, 8])), (adapted(&[8]), adapted(&[4, 8]))] {
        let once = opened(flexify(plain.clone(), first.clone(), 1).expect("sizes that fit"));
        let twice = flexify(once.clone(), both.clone(), 2).expect("a further size");
        assert_eq!(twice.config().patches(), [2, 4, 8]);
        assert!(twice.num_params() > once.num_params());
        let call = |net: &pyrograph_engine::nets::Dit, patch| {
            use pyrograph_engine::nets::Conditioning;
            let x = Tensor::ones([1, 3, 16, 16], &Device::flex()) * 0.3;
            let told = Conditioning::classes(&[1], &Device::flex());
            net.forward(x, Tensor::full([1], 5.0, &Device::flex()), &told, patch)
        };
        for patch in [2, first.patches[0]] {
            assert!(identical(call(&once, patch), call(&twice, patch)), "{patch}");
        }
        let new = if first.patches == [4] { 8 } else { 4 };
        let y = call(&twice, new);
        assert_eq!(y.dims(), [1, 3, 16, 16]);
        assert!(y.abs().max().into_scalar::<f32>().is_finite());
        // Others than it has, or shared otherwise.
        assert!(flexify(once.clone(), Flexible { patches: vec![16], ..first }, 2).is_err());
        let sharing = Sharing::Adapters { rank: 1 };
        assert!(flexify(once, Flexible { sharing, ..both }, 2).is_err());
    }
}

#[test]
fn flexify_adds_sizes_from_the_command_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    data(path, &["red", "blue"]);
    train(path, "run", &["--steps", "2"])
        .settings(&["model.size=[16,16]"])
        .settings(&TINY[1..])
        .succeeded();
    let flexify = |args: &[&str]| TestCommand::new(path, ["flexify"]).args(args).on_cpu();
    let own = ["run/model", "-o", "own", "--distill", "3", "--pictures", "4"];
    flexify(&own).succeeded();
    assert!(flexify(&own).failed().contains("exists"));
    flexify(&["own", "-o", "more"]).succeeded();
    let model = open(&path.join("more"), &Device::flex()).expect("a model");
    assert_eq!(model.config.net.dit.patches(), [4, 8, 16]);
    assert!(flexify(&["own", "-o", "x", "--patches", "8"]).failed().contains("already"));
    flexify(&["own", "-o", "fine", "--native", "2"]).succeeded();
    let model = open(&path.join("fine"), &Device::flex()).expect("a model");
    assert_eq!((model.config.net.dit.patch, model.config.net.dit.patches()), (2, vec![2, 4, 8]));
    let said = flexify(&["own", "-o", "x", "--native", "4"]).failed();
    assert!(said.contains("patch size is 4, expected below the native one, 4"), "{said}");
    assert!(flexify(&["own", "-o", "x", "--adapters", "2"]).failed().contains("share"));
    let ask = ["generate", "class", "-m", "own", "--class", "red", "--steps", "2"];
    TestCommand::new(path, ask).args(["--weak-steps", "1", "-o", "red.png"]).on_cpu().succeeded();
}
