//! Training runs: resuming, interruption, and the weights they keep.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::Device;
use pyrograph::Error;
use pyrograph::data::{Background, Dataset};
use pyrograph::merge::merge;
use pyrograph::model::open;
use pyrograph::train::{Run, TrainConfig, reconstruct};
use pyrograph_engine::nets::Net;
use pyrograph_engine::ops;
use pyrograph_engine::train::{Precision, params};
use pyrograph_weights::Checkpoint;

use crate::command::TestCommand;
use crate::util::{
    assert_same_parameters, cases, files, first_and_last_loss, goldens, identical, is_unfinished,
    train_until, write_pictures,
};

/// Two classes of tiny pictures.
fn data(folder: &Path) -> Dataset {
    let colours = [[200, 30, 30, 255], [30, 30, 200, 128]];
    write_pictures(folder, &["red", "blue"], |class, i, [x, y]| match (x + y) % 4 == i % 4 {
        true => [255; 4],
        false => colours[class],
    });
    Dataset::open(folder, [8, 8], Default::default()).expect("ten pictures")
}

fn config(steps: u64) -> TrainConfig {
    let text = "batch = 6\nmicro_batches = 2\nlog_every = 2\nsample_every = 0\ncheckpoint_every = 4\n\
                flip = true\nlearning_rate = { peak = 0.03, warmup = 5 }\n[model]\nsize = [8, 8]\npatch = 4\nhidden = 16\ndepth = 2\nheads = 2\n";
    TrainConfig::parse(text, &[format!("steps={steps}")]).expect("valid")
}

fn run(data: &Dataset, folder: &Path, steps: u64, resume: bool, stop: Option<u64>) -> Run {
    let mut run = Run::on_images(folder, config(steps), data.clone(), resume, &Device::flex())
        .expect("a run");
    let flow = train_until(&mut run, stop);
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
        assert_same_parameters(&format!("stopped at {stop}"), &whole.net(), &resumed.net());
        let log = |folder: &Path| {
            let text = std::fs::read_to_string(folder.join("log.csv")).expect("a log");
            let loss = |line: &str| line.rsplit_once(',').map(|(start, _)| start.to_owned());
            text.lines().filter_map(loss).collect::<Vec<_>>()
        };
        let (a, b) = (log(&folder.path().join("whole")), log(&parts));
        assert_eq!(a.len(), b.len(), "stopped at {stop}");
    }
}

type Change = dyn Fn(&mut TrainConfig);

/// Images in other places and sizes, and squares that overlap: both change what is learnt, in the same way after a break.
#[test]
fn images_vary_and_squares_overlap_in_the_same_way_after_a_break() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = data(&folder.path().join("data"));
    let train = |name: &str, change: &Change, stop: Option<u64>, resume| {
        let mut config = config(6);
        change(&mut config);
        let path = folder.path().join(name);
        let mut run = Run::on_images(&path, config, data.clone(), resume, &Device::flex())?;
        let _ = train_until(&mut run, stop);
        Ok::<_, Error>(run)
    };
    let varied = |config: &mut TrainConfig| {
        (config.augment.scale, config.augment.shift) = ([0.7, 1.3], 2.0);
        config.model.overlap = true;
    };
    let whole = train("whole", &varied, None, false).expect("a run");
    train("parts", &varied, Some(4), false).map(drop).expect("a run");
    let parts = train("parts", &varied, None, true).expect("the rest of it");
    assert_same_parameters("resumed", &whole.net(), &parts.net());

    let losses = |name: &str| -> Vec<String> {
        let log = std::fs::read_to_string(folder.path().join(name).join("log.csv")).expect("a log");
        log.lines().map(|line| line.split(',').nth(1).expect("a loss").to_owned()).collect()
    };
    let changes: [(&str, &Change); 4] = [
        ("plain", &|_| ()),
        ("scaled", &|config| config.augment.scale = [0.7, 1.3]),
        ("moved", &|config| config.augment.shift = 2.0),
        ("overlapping", &|config| config.model.overlap = true),
    ];
    let losses = changes.map(|(name, change)| {
        train(name, change, None, false).map(drop).expect("a run");
        losses(name)
    });
    for (i, loss) in losses.iter().enumerate() {
        assert!(losses[..i].iter().all(|other| other != loss), "{losses:?}");
    }

    let refused: [(&Change, &str); 3] = [
        (&|config| config.augment.scale = [1.2, 0.9], "augment.scale is from large to small"),
        (&|config| config.augment.scale = [0.0, 1.0], "augment.scale is 0"),
        (
            &|config| {
                config.vae = Some(goldens().join("dit-pipeline"));
                config.augment.shift = 1.0;
            },
            "augment is set, training on latents does not read it",
        ),
    ];
    for (change, reason) in refused {
        let error = train("never", change, None, false).map(drop).expect_err(reason).to_string();
        assert!(error.contains(reason), "{error}");
    }
    assert!(!folder.path().join("never").exists());
}

/// Muon changes what is learnt, in the same way after a break, and is refused where there is nothing that it is for.
#[test]
fn muon_goes_another_way_than_adamw_and_the_same_after_a_break() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = data(&folder.path().join("data"));
    let train = |name: &str, settings: &[&str], stop: Option<u64>, resume| {
        let settings: Vec<String> = settings.iter().map(|&setting| setting.to_owned()).collect();
        let config = config(6).with("", &settings)?;
        let path = folder.path().join(name);
        let mut run = Run::on_images(&path, config, data.clone(), resume, &Device::flex())?;
        let _ = train_until(&mut run, stop);
        Ok::<_, Error>(run.net())
    };
    let (adamw, muon) = (["optimizer=adamw"], ["optimizer=muon"]);
    for kind in ["model.kind=mp-dit", "model.kind=dit"] {
        let whole = train(&format!("{kind} whole"), &[muon[0], kind], None, false).expect("a run");
        let name = format!("{kind} parts");
        train(&name, &[muon[0], kind], Some(4), false).map(drop).expect("a run");
        let parts = train(&name, &[muon[0], kind], None, true).expect("the rest of it");
        assert_same_parameters("resumed", &whole, &parts);
        let other = train(&format!("{kind} adamw"), &[adamw[0], kind], None, false).expect("a run");
        let weight = |net: &Net| net.trunk().blocks[1].mlp.up.weight.val().inner();
        assert!(!identical(weight(&whole), weight(&other)), "{kind}");
    }
    let error = train("model.kind=dit parts", &[adamw[0], "model.kind=dit"], None, true);
    let error = error.expect_err("another optimizer").to_string();
    assert!(error.contains("optimizer"), "{error}");
    let error = train("never", &[muon[0], "lora.rank=2"], None, false).expect_err("a LoRA");
    assert!(error.to_string().contains("optimizer is muon"), "{error}");
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
        Run::on_images(&path, config, data.clone(), resume, &Device::flex()).map(|_| ())
    };
    let error = new(config(4), false).expect_err("the folder is taken");
    assert!(matches!(error, Error::RunExists { .. }), "{error}");
    let command = ["train", "class", "-d", "data", "-o", "run"];
    let said = TestCommand::new(&folder, command).on_cpu().failed();
    assert!(said.contains("--resume"), "{said}");
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
        let mut run = Run::on_images(&path, config, data.clone(), false, &device)?;
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
    let none = Run::on_images(&path, config.clone(), data.clone(), false, &device).map(drop);
    none.expect("a run");
    let error = reconstruct(&path, 0.1, None, &device).expect_err("no snapshots yet");
    assert!(error.to_string().contains("snapshot_every"), "{error}");

    config.snapshot_every = 2;
    let mut run = Run::on_images(&path, config, data, false, &device).expect("a run");
    let _ = train_until(&mut run, None);
    // Both widths were tracked, so that the truth is known.
    for (i, width) in [0.10, 0.05].into_iter().enumerate() {
        let found = reconstruct(&path, width, None, &device).expect("an average");
        let tracked = params::values(&run.averaged(i).net.train());
        let found = params::values(&found.model.net.train());
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
        let source = data.clone();
        let mut run = Run::on_images(&path, config, source, false, &Device::flex()).expect("a run");
        let _ = train_until(&mut run, None);
        path.join("model")
    };
    let (a, b) = (train("a", "betas=[0.9, 0.99]"), train("b", "betas=[0.5, 0.9]"));
    let device = Device::flex();
    let values = |net: Net| params::values(&net.train());
    let merged =
        merge(&[(a.clone(), 3.0), (b.clone(), 1.0)], &device).expect("models of one start");
    let [from, to] = [&a, &b].map(|path| values(open(path, &device).expect("a model").net));
    let mut moved = false;
    for ((found, from), to) in values(merged.net).into_iter().zip(from).zip(to) {
        moved |= !identical(from.clone(), to.clone());
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
    let train_with = |config: &TrainConfig, path: &Path, background, resume, stop| {
        let mut run =
            Run::on_images(path, config.clone(), open(background), resume, &Device::flex())
                .expect("a run");
        let _ = train_until(&mut run, Some(stop));
        run
    };
    let train = |path: &Path, background: [u8; 3], resume: bool, stop: u64| {
        train_with(&config, path, background, resume, stop)
    };
    let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
    let written = |path: &Path| std::fs::read(path.join("latents.safetensors")).expect("latents");
    let a = train(&whole, [255; 3], false, 6);
    train(&parts, [255; 3], false, 2);
    let first = written(&parts);
    let b = train(&parts, [255; 3], true, 6);
    assert!(first == written(&parts) && first == written(&whole));
    assert_same_parameters("resumed", &a.net(), &b.net());
    drop(b);
    // Other pictures are not mistaken for these, whose latents stay; a broken file is made again.
    let other = Run::on_images(&parts, config.clone(), open([0; 3]), true, &Device::flex());
    let error = other.map(drop).expect_err("other pictures").to_string();
    assert!(error.contains("data.content was") && first == written(&parts), "{error}");
    std::fs::write(parts.join("latents.safetensors"), [1, 2, 3]).expect("written");
    train(&parts, [255; 3], true, 6);
    assert!(first == written(&parts));
    std::fs::remove_dir_all(parts.join("checkpoints")).expect("removed");
    train(&parts, [0; 3], false, 6);
    assert!(first != written(&parts));
    let model = pyrograph::model::open(&whole.join("model"), &Device::flex()).expect("a bundle");
    assert!(model.vae.is_some());
    // One without a variance, and of a factor of 4.
    let other = TrainConfig { vae: Some(cases("autoencoder-tiny").remove(0)), ..config.clone() };
    let tiny = folder.path().join("tiny");
    train_with(&other, &tiny, [255; 3], false, 2);
    let latents = Checkpoint::open(tiny.join("latents.safetensors")).expect("latents");
    let [mean, deviation] =
        ["mean", "deviation"].map(|name| latents.read_f32(name).expect("latents"));
    assert_eq!(mean.1[2..], [4, 4]);
    assert!(mean.0.iter().any(|value| value.abs() > 1e-2) && deviation.0.iter().all(|d| *d == 0.0));
}

/// Kills of a run; each leaves a folder from which the next goes on.
const KILLS: usize = 50;

#[test]
fn a_run_survives_being_killed_at_any_moment() {
    let folder = tempfile::tempdir().expect("a folder");
    data(&folder.path().join("data"));
    let start = || {
        TestCommand::new(&folder, ["train", "class", "--steps", "1000000", "--resume", "--json"])
            .args(["--data", "data", "--output", "run"])
            .settings(&["batch=6", "micro_batches=2", "checkpoint_every=5", "sample_every=0"])
            .settings(&["log_every=1", "model.size=[8,8]", "model.patch=4", "model.hidden=16"])
            .settings(&["model.depth=2", "model.heads=2"])
            .on_cpu()
            .spawn()
    };
    let checkpoints = folder.path().join("run/checkpoints");
    let unfinished = || files(&checkpoints).filter(|path| is_unfinished(path));
    let mut reached = 0;
    for kill in 0..KILLS {
        // What the last life left is gone with the next; its names are drawn at random.
        let before: Vec<PathBuf> = unfinished().collect();
        assert!(before.len() < 2, "{before:?}");
        let mut running = start();
        match kill % 5 {
            // As it opens what is there, as it writes, and at the start or after some steps.
            0 => running.wait_for_lines(1, "parameters"),
            1 => running.wait_until("a file half written", || {
                unfinished().any(|path| !before.contains(&path))
            }),
            _ => running.wait_for_lines(kill % 17, "loss"),
        }
        running.killed();
        for path in files(&checkpoints).filter(|path| !is_unfinished(path)) {
            Checkpoint::open(&path).expect("every checkpoint is whole");
            let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
            reached = reached.max(name.parse::<usize>().expect("a step"));
        }
    }
    println!("reached step {reached} in {KILLS} lives");
    assert!(reached > 5 * KILLS / 10, "only step {reached}");
}
