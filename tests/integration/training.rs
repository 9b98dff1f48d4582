//! Training runs: resuming, interruption, and the weights they keep.

use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use burn::module::Module;
use burn::tensor::Device;
use image::{Rgba, RgbaImage};
use pyrograph::data::{Background, Dataset};
use pyrograph::merge::merge;
use pyrograph::model::open;
use pyrograph::train::{Event, Run, Source, TrainConfig, reconstruct};
use pyrograph_engine::ops;
use pyrograph_engine::train::{Precision, params};
use pyrograph_weights::Checkpoint;

use crate::util::{first_and_last_loss, goldens, program};

/// Two classes of tiny pictures.
fn data(folder: &Path) -> Dataset {
    for (class, colour) in [("red", [200, 30, 30, 255]), ("blue", [30, 30, 200, 128])] {
        let folder = folder.join(class);
        std::fs::create_dir_all(&folder).expect("created");
        for i in 0..5u8 {
            let picture = RgbaImage::from_fn(8, 8, |x, y| match (x + y) % 4 == u32::from(i) % 4 {
                true => Rgba([255, 255, 255, 255]),
                false => Rgba(colour),
            });
            picture.save(folder.join(format!("{i}.png"))).expect("written");
        }
    }
    Dataset::open(folder, [8, 8], Default::default()).expect("ten pictures")
}

fn config(steps: u64) -> TrainConfig {
    let text = "batch = 6\nmicro_batches = 2\nlog_every = 2\nsample_every = 0\ncheckpoint_every = 4\n\
                flip = true\nlearning_rate = { peak = 0.03, warmup = 5 }\n[model]\nsize = [8, 8]\npatch = 4\nhidden = 16\ndepth = 2\nheads = 2\n";
    TrainConfig::parse(text, &[format!("steps={steps}")]).expect("valid")
}

fn run(data: &Dataset, folder: &Path, steps: u64, resume: bool, stop: Option<u64>) -> Run {
    let mut run =
        Run::new(folder, config(steps), Source::Images(data.clone()), resume, &Device::flex())
            .expect("a run");
    let flow = run
        .train(&mut |event| match event {
            Event::Step { step, .. } if Some(step) == stop => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        })
        .expect("trains");
    assert_eq!(flow.is_break(), stop.is_some());
    run
}

#[test]
fn a_resumed_run_equals_one_without_a_break_bit_for_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = data(&folder.path().join("data"));
    let whole = run(&data, &folder.path().join("whole"), 11, false, None);
    for stop in [3, 4, 9] {
        let parts = folder.path().join(format!("parts-{stop}"));
        run(&data, &parts, 11, false, Some(stop));
        let resumed = run(&data, &parts, 11, true, None);
        for (a, b) in params::values(whole.net()).into_iter().zip(params::values(resumed.net())) {
            assert!(a.equal(b).all().into_scalar::<bool>(), "stopped at {stop}");
        }
        let log = |folder: &Path| {
            let text = std::fs::read_to_string(folder.join("log.csv")).expect("a log");
            let loss = |line: &str| line.rsplit_once(',').map(|(start, _)| start.to_owned());
            text.lines().filter_map(loss).collect::<Vec<_>>()
        };
        let (a, b) = (log(&folder.path().join("whole")), log(&parts));
        assert_eq!(a.len(), b.len(), "stopped at {stop}");
    }
}

#[test]
fn rows_stay_normalised_and_the_export_opens() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = data(&folder.path().join("data"));
    let path = folder.path().join("run");
    let run = run(&data, &path, 12, false, None);
    for block in &run.net().trunk().blocks {
        let weight = block.mlp.up.weight.val().inner();
        let rms = weight.square().mean_dim(0).sqrt();
        let worst: f32 = (rms - 1.0).abs().max().into_scalar();
        assert!(worst < 1e-3, "{worst}");
    }
    let model = pyrograph::model::open(&path.join("model"), &Device::flex()).expect("a bundle");
    assert_eq!(model.config.labels.0, ["blue", "red"]);
    let newest = path.join("checkpoints/0000012.safetensors");
    let checkpoint = Checkpoint::open(newest).expect("a checkpoint");
    assert!(checkpoint.tensors().contains_key("average.1/blocks.1.mlp.down.weight"));
}

#[test]
fn a_run_refuses_to_start_over_or_to_change() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = data(&folder.path().join("data"));
    let path = folder.path().join("run");
    run(&data, &path, 4, false, None);
    let new = |config: TrainConfig, resume: bool| {
        Run::new(&path, config, Source::Images(data.clone()), resume, &Device::flex()).map(|_| ())
    };
    let error = new(config(4), false).expect_err("the folder is taken");
    assert!(error.to_string().contains("--resume"), "{error}");
    let mut other = config(8);
    other.model.hidden = 32;
    let error = new(other, true).expect_err("another model");
    assert!(error.to_string().contains("hidden"), "{error}");
}

#[test]
fn losses_fall() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = data(&folder.path().join("data"));
    let path = folder.path().join("run");
    run(&data, &path, 60, false, None);
    let [start, end] = first_and_last_loss(&path);
    assert!(end < 0.8 * start, "{start} to {end}");
}

#[test]
fn mixed_precision_goes_nearly_the_same_way_or_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = data(&folder.path().join("data"));
    let device = Device::flex();
    let train = |precision: Precision| {
        let path = folder.path().join(format!("{precision:?}"));
        let config = TrainConfig { precision, ..config(60) };
        let mut run = Run::new(&path, config, Source::Images(data.clone()), false, &device)?;
        let _ = run.train(&mut |_| ControlFlow::Continue(()))?;
        Ok::<_, pyrograph::Error>(first_and_last_loss(&path))
    };
    let [start, end] = train(Precision::F32).expect("trains");
    match train(Precision::Bf16) {
        Ok(mixed) => {
            assert!(ops::mixes(&device));
            assert!(mixed != [start, end], "nothing was rounded");
            assert!((mixed[0] - start).abs() < 0.01 * start, "{} and {start}", mixed[0]);
            assert!((mixed[1] - end).abs() < 0.1 * end, "{} and {end}", mixed[1]);
        }
        Err(error) => {
            assert!(!ops::mixes(&device), "{error}");
            assert!(error.to_string().contains("bf16"), "{error}");
        }
    }
}

#[test]
fn averages_of_any_width_come_from_the_snapshots() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = data(&folder.path().join("data"));
    let path = folder.path().join("run");
    let mut config = config(12);
    let device = Device::flex();
    let none =
        Run::new(&path, config.clone(), Source::Images(data.clone()), false, &device).map(drop);
    none.expect("a run");
    let error = reconstruct(&path, 0.1, None, &device).expect_err("no snapshots yet");
    assert!(error.to_string().contains("snapshot_every"), "{error}");

    config.snapshot_every = 2;
    let mut run = Run::new(&path, config, Source::Images(data), false, &device).expect("a run");
    let _ = run.train(&mut |_| ControlFlow::Continue(())).expect("trains");
    // Both widths were tracked, so that the truth is known.
    for (i, width) in [0.10, 0.05].into_iter().enumerate() {
        let found = reconstruct(&path, width, None, &device).expect("an average");
        let tracked = params::values(&run.averaged(i).net.train());
        let found = params::values(&found.net.train());
        assert!(found.len() == tracked.len() && found.len() > 10, "{} values", found.len());
        for (found, tracked) in found.into_iter().zip(tracked) {
            let far: f32 = (found - tracked.clone()).abs().max().into_scalar();
            let size: f32 = tracked.abs().max().into_scalar();
            assert!(far <= 2e-3 * size.max(1e-3), "{far} of {size}");
        }
    }
    for (width, step) in [(0.0, None), (0.3, None), (0.1, Some(13)), (0.1, Some(0))] {
        assert!(reconstruct(&path, width, step, &device).is_err(), "{width} {step:?}");
    }
}

#[test]
fn models_from_one_start_merge_into_the_mean_of_their_weights() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = data(&folder.path().join("data"));
    let train = |name: &str, setting: &str| {
        let path = folder.path().join(name);
        let config = config(4).with("", &[setting.to_owned()]).expect("valid");
        let source = Source::Images(data.clone());
        let mut run = Run::new(&path, config, source, false, &Device::flex()).expect("a run");
        let _ = run.train(&mut |_| ControlFlow::Continue(())).expect("trains");
        path.join("model")
    };
    let (a, b) = (train("a", "betas=[0.9, 0.99]"), train("b", "betas=[0.5, 0.9]"));
    let device = Device::flex();
    let values = |net: pyrograph_engine::nets::Net| params::values(&net.train());
    let merged =
        merge(&[(a.clone(), 3.0), (b.clone(), 1.0)], &device).expect("models of one start");
    let [from, to] = [&a, &b].map(|path| values(open(path, &device).expect("a model").net));
    let mut moved = false;
    for ((found, from), to) in values(merged.net).into_iter().zip(from).zip(to) {
        moved |= !from.clone().equal(to.clone()).all().into_scalar::<bool>();
        assert!(found.all_close(from * 0.75 + to * 0.25, Some(1e-5), Some(1e-6)));
    }
    assert!(moved, "two runs that came to the same");

    let (seed, width) = (train("c", "seed=1"), train("d", "model.hidden=8"));
    for (other, part) in [(&seed, "constants"), (&width, "another kind")] {
        let error = merge(&[(a.clone(), 1.0), (other.clone(), 1.0)], &device).expect_err(part);
        assert!(error.to_string().contains(part), "{error}");
    }
    let error = merge(&[(a, 1.0), (b, -1.0)], &device).expect_err("nothing in all");
    assert!(error.to_string().contains("add up to 0"), "{error}");
}

#[test]
fn latents_are_encoded_once_and_resumed_bit_for_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    data(&folder.path().join("data"));
    let open = |background: [u8; 3]| {
        let background = Background(vec![background]);
        Dataset::open(&folder.path().join("data"), [16, 16], background).expect("ten pictures")
    };
    let mut config = config(6);
    config.vae = Some(goldens().join("dit-pipeline"));
    config.model.size = [16, 16];
    config.model.patch = 1;
    let train = |path: &Path, background: [u8; 3], resume: bool, stop: u64| {
        let mut run = Run::new(
            path,
            config.clone(),
            Source::Images(open(background)),
            resume,
            &Device::flex(),
        )
        .expect("a run");
        let _ = run
            .train(&mut |event| match event {
                Event::Step { step, .. } if step == stop => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            })
            .expect("trains");
        run
    };
    let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
    let written = |path: &Path| std::fs::read(path.join("latents.safetensors")).expect("latents");
    let a = train(&whole, [255; 3], false, 6);
    train(&parts, [255; 3], false, 2);
    let first = written(&parts);
    let b = train(&parts, [255; 3], true, 6);
    assert!(first == written(&parts) && first == written(&whole));
    for (a, b) in params::values(a.net()).into_iter().zip(params::values(b.net())) {
        assert!(a.equal(b).all().into_scalar::<bool>());
    }
    // Other pictures are not mistaken for these, and a broken file is made again.
    train(&parts, [0; 3], true, 6);
    assert!(first != written(&parts));
    std::fs::write(parts.join("latents.safetensors"), [1, 2, 3]).expect("written");
    train(&parts, [255; 3], true, 6);
    assert!(first == written(&parts));
    let model = pyrograph::model::open(&whole.join("model"), &Device::flex()).expect("a bundle");
    assert!(model.vae.is_some());
}

/// Kills of a run; each leaves a folder from which the next goes on.
const KILLS: u64 = 50;

#[test]
fn a_run_survives_being_killed_at_any_moment() {
    let folder = tempfile::tempdir().expect("a folder");
    let pictures = folder.path().join("data");
    data(&pictures);
    let run = folder.path().join("run");
    let settings = [
        "batch=6",
        "micro_batches=2",
        "checkpoint_every=5",
        "sample_every=0",
        "log_every=5",
        "model.size=[8,8]",
        "model.patch=4",
        "model.hidden=16",
        "model.depth=2",
        "model.heads=2",
    ];
    let start = || {
        let mut command = Command::new(program());
        command.args(["train", "class", "--device", "cpu", "--steps", "1000000", "--resume", "-q"]);
        command.arg("--data").arg(&pictures).arg("--output").arg(&run);
        settings.iter().for_each(|setting| {
            command.args(["--set", setting]);
        });
        command.stderr(Stdio::piped()).spawn().expect("the program starts")
    };
    let mut reached = 0;
    for kill in 0..KILLS {
        let mut child = start();
        std::thread::sleep(Duration::from_millis(120 + kill * 37 % 180));
        let died = child.try_wait().expect("a child");
        child.kill().expect("killed");
        let output = child.wait_with_output().expect("a child");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(died.is_none(), "kill {kill}: it ended by itself: {error}");
        let checkpoints = std::fs::read_dir(run.join("checkpoints")).into_iter().flatten();
        for path in checkpoints.map(|entry| entry.expect("an entry").path()) {
            if path.extension().is_some_and(|extension| extension == "safetensors") {
                Checkpoint::open(&path).expect("every checkpoint is whole");
                let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
                reached = reached.max(name.parse::<u64>().expect("a step"));
            }
        }
    }
    println!("reached step {reached} in {KILLS} lives");
    assert!(reached > 5 * KILLS / 10, "only step {reached}");
}
