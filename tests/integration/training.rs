//! Training runs: resuming, interruption, and the weights they keep.

use std::ops::ControlFlow;
use std::path::Path;

use burn::tensor::Device;
use image::{Rgba, RgbaImage};
use pyrograph::data::Dataset;
use pyrograph::train::{Event, Run, TrainConfig};
use pyrograph_engine::train::params;
use pyrograph_weights::Checkpoint;

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
        Run::new(folder, config(steps), data.clone(), resume, &Device::flex()).expect("a run");
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
    for block in &run.net().blocks {
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
        Run::new(&path, config, data.clone(), resume, &Device::flex()).map(|_| ())
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
    let text = std::fs::read_to_string(path.join("log.csv")).expect("a log");
    let losses: Vec<f64> = text
        .lines()
        .skip(1)
        .map(|line| line.split(',').nth(1).expect("a loss").parse().expect("a number"))
        .collect();
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    let (start, end) = (mean(&losses[..5]), mean(&losses[losses.len() - 5..]));
    assert!(end < 0.8 * start, "{start} to {end}");
}
