//! Recording of trajectories.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use pyrograph::model::{self, Model, ModelConfig};
use pyrograph::train::{Run, TrainConfig};
use pyrograph::trajectories::{Recorder, Trajectories, TrajectorySpec};
use pyrograph::{ClassPipeline, Progress, Request};
use pyrograph_engine::diffusion::Sampler;
use pyrograph_engine::nets::{DitConfig, Net, Points};
use pyrograph_weights::{Checkpoint, FloatDtype};

use crate::command::TestCommand;
use crate::util::{assert_close, device, files, identical, is_unfinished, opened, tolerance};

const CLASSES: usize = 3;
const STEPS: usize = 8;

/// Writes a small teacher on pixels as a bundle, and opens it.
pub(crate) fn teacher(folder: &Path, seed: u64, preserved: bool) -> (ClassPipeline, String) {
    let (base, kind) = match preserved {
        true => (DitConfig::mp_dit(32, 3, 2), "mp-dit"),
        false => (DitConfig::dit(32, 3, 2), "dit"),
    };
    let net = DitConfig {
        size: [8, 8],
        channels: 3,
        classes: CLASSES,
        patch: 4,
        learned_variance: false,
        ..base
    };
    let TrainConfig { process, defaults, .. } =
        TrainConfig::parse(&format!("[model]\nkind = \"{kind}\""), &[]).expect("settings");
    let net = Net::from(opened(net.init(seed, &device())));
    let config = ModelConfig {
        net: net.config(),
        process,
        vae: None,
        defaults,
        labels: Default::default(),
        text: None,
    };
    let model = Model::new(net, None, config);
    let manifest = model.manifest().expect("a description");
    model.save(folder, manifest, FloatDtype::F32, true).expect("written");
    pipeline(folder)
}

pub(crate) fn pipeline(folder: &Path) -> (ClassPipeline, String) {
    let recognised = model::recognise(folder).expect("a bundle");
    let fingerprint = recognised.net.checkpoint.fingerprint();
    let model = recognised.load(FloatDtype::F32, &device(), &mut |_| ()).expect("opened");
    (ClassPipeline::new(model, &device()).expect("a class model"), fingerprint)
}

pub(crate) fn spec(
    (pipeline, fingerprint): &(ClassPipeline, String),
    count: usize,
) -> TrajectorySpec {
    let mut settings = pipeline.config().defaults.settings(5);
    (settings.sampler, settings.spacing) = (Sampler::Ddim { eta: 0.0 }, None);
    (settings.steps, settings.batch, settings.guidance.scale) = (STEPS, 3, 1.5);
    TrajectorySpec {
        teacher: fingerprint.clone(),
        settings,
        after: TrajectorySpec::even(4, STEPS),
        points: Points::Estimates,
        shape: [3, 8, 8],
        classes: CLASSES,
        prompts: Vec::new(),
        count,
        shard: 4,
    }
}

pub(crate) fn record(folder: &Path, teacher: &(ClassPipeline, String), spec: TrajectorySpec) {
    let recorder = Recorder::new(folder, &teacher.0, spec, [0, 1]).expect("a recorder");
    let flow = recorder.record(&mut |_| ControlFlow::Continue(())).expect("recorded");
    assert!(flow.is_continue());
}

fn bytes(folder: &Path, shard: usize) -> Vec<u8> {
    std::fs::read(folder.join(format!("{shard:06}.safetensors"))).expect("a shard")
}

#[test]
fn trajectories_are_those_of_the_pipeline() {
    let folder = tempfile::tempdir().expect("a folder");
    for points in [Points::Estimates, Points::States] {
        let path = folder.path().join(format!("{points:?}"));
        let bundle = path.join("teacher");
        let teacher = teacher(&bundle, 1, true);
        let spec = TrajectorySpec { points, ..spec(&teacher, 6) };
        record(&path.join("set"), &teacher, spec.clone());
        let set = Trajectories::open(&path.join("set")).expect("a set");
        let batch = set.batch(&[4, 1], &[0, 3], &device()).expect("two of them");
        let classes = batch.told.class.clone().expect("classes").into_data();
        assert_eq!(classes.iter::<i64>().collect::<Vec<_>>(), [1, 1]);

        // The same two images, and what is known of them on the way.
        for (i, index) in [4, 1].into_iter().enumerate() {
            let mut settings = spec.settings.clone();
            settings.seed += index;
            let request = Request::with([1], &settings);
            let grid = spec.settings.grid(&teacher.0.config().process).expect("a grid");
            let mut expected = Vec::new();
            let run = teacher.0.latents(&request, &mut |progress: Progress<'_>| {
                if progress.step + 1 == spec.after[0] {
                    let scale = teacher.0.config().process.prediction;
                    let level = grid.steps[progress.step][1];
                    expected.push(match points {
                        Points::Estimates => progress.denoised.clone(),
                        Points::States => progress.x.clone() * scale.coefficients(&level).c_in,
                    });
                }
                ControlFlow::Continue(())
            });
            expected.push(run.expect("an image"));
            for (found, expected) in batch.points.iter().zip(expected) {
                let found = found.clone().narrow(0, i, 1);
                assert_close("a recorded point", found, expected, tolerance(1e-3));
            }
        }
    }
}

#[test]
fn a_recording_goes_on_where_it_was_left_and_mends_what_is_broken() {
    let folder = tempfile::tempdir().expect("a folder");
    let bundle = folder.path().join("teacher");
    let teacher = teacher(&bundle, 1, true);
    let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
    record(&whole, &teacher, spec(&teacher, 10));

    let open =
        || Recorder::new(&parts, &teacher.0, spec(&teacher, 10), [0, 1]).expect("a recorder");
    let recorder = open();
    let estimate = recorder.estimate().expect("an estimate");
    assert_eq!((estimate.trajectories, estimate.bytes), (10, 10 * 4 * 3 * 64 * 2));
    let mut calls = 0;
    let flow = recorder.record(&mut |_| {
        calls += 1;
        // In the second shard; a shard of four takes two batches.
        match calls > 2 * STEPS + 3 {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    assert!(flow.expect("left").is_break());
    drop(recorder);
    let error = Trajectories::open(&parts).expect_err("two shards are missing").to_string();
    assert!(error.contains("shard 1 of 3 is missing"), "{error}");
    assert_eq!(open().estimate().expect("an estimate").trajectories, 6);
    record(&parts, &teacher, spec(&teacher, 10));
    for shard in 0..3 {
        assert!(bytes(&whole, shard) == bytes(&parts, shard), "shard {shard}");
    }

    // A file cut off or of others is refused, and recorded again.
    let path = parts.join("000001.safetensors");
    let right = bytes(&parts, 1);
    for wrong in [&right[..right.len() - 7], &bytes(&parts, 0)] {
        std::fs::write(&path, wrong).expect("written");
        let error = Trajectories::open(&parts).expect_err("a wrong shard").to_string();
        assert!(error.contains("000001.safetensors"), "{error}");
        assert_eq!(open().estimate().expect("an estimate").trajectories, 4);
        record(&parts, &teacher, spec(&teacher, 10));
        assert!(right == bytes(&parts, 1));
    }

    // A set can grow: what is there stays, but for a last shard that was not full.
    record(&parts, &teacher, spec(&teacher, 13));
    assert!(right == bytes(&parts, 1));
    assert_eq!(Trajectories::open(&parts).expect("a set").spec().count, 13);
}

#[test]
fn a_set_of_many_shards_is_read_in_any_order() {
    let folder = tempfile::tempdir().expect("a folder");
    let teacher = teacher(&folder.path().join("teacher"), 1, true);
    let path = folder.path().join("set");
    // More shards than are kept open.
    let count = 70;
    record(&path, &teacher, TrajectorySpec { shard: 1, ..spec(&teacher, count) });
    let open = || Trajectories::open(&path).expect("a set");
    let points = |set: &Trajectories, indices: &[usize]| {
        let batch = set.batch(indices, &[0, 3], &device()).expect("all of them");
        (batch.noise, batch.points)
    };
    let set = open();
    let forwards: Vec<usize> = (0..count).collect();
    let (noise, all) = points(&set, &forwards);
    for index in (0..count).rev() {
        let (own_noise, own) = points(&set, &[index]);
        let row = |x: &Tensor<4>| x.clone().narrow(0, index, 1);
        assert!(identical(row(&noise), own_noise), "noise of trajectory {index}");
        for (all, own) in all.iter().zip(own) {
            assert!(identical(row(all), own), "trajectory {index}");
        }
    }
    let set = open();
    std::fs::remove_file(path.join("000002.safetensors")).expect("removed");
    let error = set.batch(&[1, 2], &[0], &device()).expect_err("a shard is gone").to_string();
    assert!(error.contains("000002.safetensors"), "{error}");
}

#[test]
fn workers_share_a_folder() {
    let folder = tempfile::tempdir().expect("a folder");
    let bundle = folder.path().join("teacher");
    let teacher = teacher(&bundle, 1, false);
    let path = folder.path().join("set");
    for worker in 0..2 {
        assert!(Trajectories::open(&path).is_err(), "before worker {worker}");
        let recorder = Recorder::new(&path, &teacher.0, spec(&teacher, 9), [worker, 2]);
        let flow = recorder.expect("a recorder").record(&mut |_| ControlFlow::Continue(()));
        assert!(flow.expect("recorded").is_continue());
    }
    assert_eq!(Trajectories::open(&path).expect("a set").spec().shards(), 3);
}

#[test]
fn recordings_that_cannot_be_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let [one, two] =
        [1, 2].map(|seed| teacher(&folder.path().join(format!("teacher-{seed}")), seed, true));
    let path = folder.path().join("set");
    record(&path, &one, spec(&one, 4));
    let refuse = |teacher: &(ClassPipeline, String), spec: TrajectorySpec, part: &str| {
        let error = Recorder::new(&path, &teacher.0, spec, [0, 1]).expect_err(part).to_string();
        assert!(error.contains(part), "{error}");
    };
    refuse(&two, spec(&two, 4), "teacher was");
    refuse(&one, spec(&one, 3), "it holds 4 trajectories, asked for 3");
    let mut random = spec(&one, 4);
    random.settings.sampler = Sampler::EulerAncestral;
    refuse(&one, random, "draws noise");
    refuse(&one, TrajectorySpec { after: vec![2, 2, 8], ..spec(&one, 4) }, "[2, 2, 8]");
    refuse(&one, TrajectorySpec { after: vec![2, 4], ..spec(&one, 4) }, "[2, 4]");
    refuse(&one, TrajectorySpec { shard: 0, ..spec(&one, 4) }, "shards of 0");

    let train = |teacher: usize, change: &str, part: &str| {
        let bundle = folder.path().join(format!("teacher-{teacher}"));
        let base = TrainConfig::distilling(bundle).expect("settings");
        let config = base.with("", &[change.to_owned()]).expect("settings");
        let set = Trajectories::open(&path).expect("a set");
        let run = folder.path().join("run");
        let result = Run::on_trajectories(&run, config, set, false, &device());
        let error = result.map(drop).expect_err(part).to_string();
        assert!(error.contains(part), "{error}");
    };
    train(2, "steps=1", "fingerprint");
    train(1, "student.steps=3", "3 steps on trajectories of 4 points");
    train(1, "student.patches=[4,4]", "2 patch sizes");
    train(1, "student.patches=[8,8,4,4]", "patch");
    train(1, "student.history_layers=9", "9");
}

/// Kills of a recording; each leaves a folder from which the next goes on.
const KILLS: u64 = 12;

#[test]
fn a_recording_survives_being_killed_at_any_moment() {
    let folder = tempfile::tempdir().expect("a folder");
    teacher(&folder.path().join("teacher"), 1, true);
    let set = folder.path().join("set");
    let shards = || {
        files(&set).filter(|path| path.extension().is_some_and(|end| end == "safetensors")).count()
    };
    let unfinished = || files(&set).filter(|path| is_unfinished(path));
    let mut before = 0;
    for kill in 0..KILLS {
        // What the last life left is gone with the next; its names are drawn at random.
        let cut_off: Vec<PathBuf> = unfinished().collect();
        assert!(cut_off.len() < 2, "{cut_off:?}");
        let mut running =
            TestCommand::new(&folder, ["distill", "record", "-n", "100000", "--shard", "32"])
                .args(["-m", "teacher", "-o", "set"])
                .on_cpu()
                .spawn();
        match kill % 3 {
            0 => running.wait_for_lines(1, "to record"),
            1 => running.wait_until("a further shard", || shards() > before),
            _ => running.wait_until("a file half written", || {
                unfinished().any(|path| !cut_off.contains(&path))
            }),
        }
        running.killed();
        let after = shards();
        assert!(after >= before, "kill {kill}: {before} shards, then {after}");
        (0..after).for_each(|shard| {
            let path = set.join(format!("{shard:06}.safetensors"));
            Checkpoint::open(&path).expect("every shard is whole");
        });
        before = after;
    }
    println!("{before} shards in {KILLS} lives");
    assert!(before > 0, "no shard in {KILLS} lives");
}
