//! Models in less memory than they would take.

use std::ops::ControlFlow;
use std::path::Path;

use burn::tensor::Tensor;
use pyrograph::device::{Notice, Opened};
use pyrograph::model::{self, Limits, Model};
use pyrograph::{Error, OpenOptions, Request, TextPipeline, WeightType};
use pyrograph_weights::FloatDtype;
use tempfile::TempDir;

use crate::command::TestCommand;
use crate::util::{device, device_name, goldens, identical, text};

/// A model of texts in half precision.
fn half() -> TempDir {
    let work = tempfile::tempdir().expect("a folder");
    let klein = goldens().join("flux2-klein");
    let convert = ["convert", text(&klein), "-o", "half", "--dtype", "f16"];
    TestCommand::new(&work, convert).on_cpu().succeeded();
    work
}

/// The model with its weights as they are stored, and how many bytes of them are read again and again.
fn open(path: &Path, memory: Option<u64>) -> Result<(Model, u64), Error> {
    let (limits, mut read) = (Limits { memory, ..Limits::default() }, 0);
    let recognised = model::recognise(path).expect("a model");
    let model = recognised.load_within(limits, WeightType::Stored, &device(), &mut |notice| {
        if let Notice::Memory { streamed, .. } = notice {
            read = streamed;
        }
    });
    Ok((model?, read))
}

fn request() -> Request<String> {
    Request { steps: Some(2), seed: 3, ..Request::new(vec!["a lighthouse".to_owned()]) }
}

fn latents(model: Model, request: &Request<String>) -> Result<Tensor<4>, Error> {
    let pipeline = TextPipeline::new(model, &device()).expect("a model of texts");
    pipeline.latents(request, &mut |_| ControlFlow::Continue(()))
}

/// What a model takes at least.
fn least(path: &Path) -> u64 {
    match open(path, Some(1)).map(drop) {
        Err(Error::NoRoom { held: WeightType::Stored, need, available: 1, .. }) => need,
        other => panic!("{other:?}"),
    }
}

#[test]
fn weights_without_room_are_read_when_they_are_needed() {
    let work = half();
    let path = work.path().join("half");
    let (all, read) = open(&path, None).expect("room for all");
    assert_eq!(read, 0);
    let expected = latents(all, &request()).expect("latents");
    let need = least(&path);
    assert!(open(&path, Some(need - 1)).is_err());
    let (mut memory, mut before) = (need, u64::MAX);
    while before > 0 {
        let (model, read) = open(&path, Some(memory)).expect("room for some");
        assert!(read < before, "{read} after {before} of {memory}");
        assert!(identical(latents(model, &request()).expect("latents"), expected.clone()));
        // As much more as is still read leaves room for all of it, half of that not.
        (memory, before) = (memory + read.div_ceil(2).max(20_000), read);
    }
}

#[test]
fn several_threads_share_what_is_read() {
    let work = half();
    let path = work.path().join("half");
    let expected = latents(open(&path, None).expect("it").0, &request()).expect("latents");
    let (model, read) = open(&path, Some(least(&path))).expect("room for some");
    assert!(read > 0);
    let pipeline = TextPipeline::new(model, &device()).expect("a model of texts");
    std::thread::scope(|scope| {
        let run = || pipeline.latents(&request(), &mut |_| ControlFlow::Continue(()));
        let runs: Vec<_> = (0..3).map(|_| scope.spawn(run)).collect();
        for run in runs {
            let found = run.join().expect("no panic").expect("latents");
            assert!(identical(found, expected.clone()));
        }
    });
}

/// What a model leaves of the machine's memory is what its guide may take, beside a GPU, too.
#[test]
fn a_guide_gets_what_the_model_leaves() {
    let work = half();
    let path = work.path().join("half");
    let need = least(&path);
    let (_, read) = open(&path, Some(need)).expect("room for some");
    let on = Opened { device: device(), adapter: None };
    let guided = |memory| {
        let limits = Limits { memory: Some(memory), card: Some(1 << 40), size: None };
        let (dtype, guide) = (Some(WeightType::Stored), Some(path.clone()));
        TextPipeline::open_on(
            &path,
            &on,
            &OpenOptions { dtype, guide, limits, ..Default::default() },
        )
    };
    match guided(need).map(drop) {
        Err(Error::NoRoom { limit: "what the model may take", available, .. }) => {
            assert!(available < need, "{available} of {need}");
        }
        other => panic!("{other:?}"),
    }
    guided(3 * (need + read)).expect("room for both");
}

#[test]
fn a_file_that_ends_meanwhile_is_named() {
    let work = half();
    let path = work.path().join("half");
    let (model, _) = open(&path, Some(least(&path))).expect("room for some");
    let file = path.join("dit.safetensors");
    let cut = std::fs::OpenOptions::new().write(true).open(&file).expect("weights");
    cut.set_len(10_000).expect("cut");
    let error = latents(model, &request()).expect_err("no weights").to_string();
    assert!(error.contains("dit.safetensors") && error.contains(".weight"), "{error}");
}

#[test]
fn more_than_there_may_be_is_refused() {
    let work = half();
    let path = work.path().join("half");
    let (need, recognised) = (least(&path), || model::recognise(&path).expect("a model"));
    let limits = |memory| Limits { memory: Some(memory), ..Limits::default() };
    let f32 = |memory| {
        let load = |dtype| recognised().load_within(limits(memory), dtype, &device(), &mut |_| ());
        load(FloatDtype::F32.into()).map(drop)
    };
    if device_name() != "cpu" {
        let error = f32(1 << 40).expect_err("not the GPU's memory").to_string();
        assert!(error.contains("limit on memory") && error.contains("GPU"), "{error}");
        return on_a_card(&path);
    }
    let error = f32(need).expect_err("twice the weights").to_string();
    assert!(error.contains("with weights in f32 the model takes"), "{error}");
    assert!(f32(1 << 40).is_ok());
    for (memory, own) in [(need, WeightType::Stored), (1 << 40, WeightType::default())] {
        assert_eq!(recognised().weight_type(&device(), limits(memory)), own);
    }
    let (model, _) = open(&path, Some(need)).expect("room for some");
    let large = Request { size: Some([2048, 2048]), ..request() };
    let error = latents(model, &large).expect_err("a larger image").to_string();
    assert!(error.contains("2048x2048") && error.contains("the weights leave"), "{error}");
}

/// On a GPU whose memory is too small for the weights they stay in the machine's, and what does not fit all the same is refused.
fn on_a_card(path: &Path) {
    let recognised = || model::recognise(path).expect("a model");
    let limits = |card| Limits { card: Some(card), ..Limits::default() };
    let load = |held, card| recognised().load_within(limits(card), held, &device(), &mut |_| ());
    let f32 = WeightType::default();
    let need = |held| match load(held, 1).map(drop) {
        Err(Error::NoRoom { need, limit: "the GPU", available: 1, .. }) => need,
        other => panic!("{other:?}"),
    };
    let (most, least) = (need(f32), need(WeightType::Stored));
    assert!(least < most, "{least} of {most}");
    let own = [most, most - 1].map(|card| recognised().weight_type(&device(), limits(card)));
    assert_eq!(own, [f32, WeightType::Stored]);
    let [whole, stored] = [(f32, most), (WeightType::Stored, least)]
        .map(|(held, card)| latents(load(held, card).expect("room"), &request()).expect("latents"));
    let worst: f32 = (whole - stored).abs().max().into_scalar();
    assert!(worst < 1e-3, "{worst}");
    let large = Request { size: Some([2048, 2048]), ..request() };
    let error = latents(load(f32, most).expect("room"), &large).expect_err("larger").to_string();
    assert!(error.contains("2048x2048") && error.contains("leave of the GPU's"), "{error}");
}

/// The command says what will be taken before the work, and makes the same picture.
#[test]
fn the_command_keeps_to_a_limit() {
    if device_name() != "cpu" {
        // What the command does below is measured there.
        return;
    }
    let work = half();
    let need = least(&work.path().join("half")).to_string();
    let generate = |output: &str, args: &[&str]| {
        let fixed = ["generate", "text", "a lighthouse", "-m", "half", "--steps", "2", "-s", "1"];
        TestCommand::new(&work, fixed).args(["-o", output]).args(args).on_cpu()
    };
    generate("all.png", &["--dtype", "stored"]).succeeded();
    let said = generate("some.png", &["--max-memory", &need]).reported();
    assert!(said.contains("from its file at each call"), "{said}");
    let picture = |name: &str| image::open(work.path().join(name)).expect("a picture").into_rgb8();
    assert_eq!(picture("all.png"), picture("some.png"));
    let size = format!("{}.5KB", need.parse::<u64>().expect("bytes") / 2000);
    let refused = generate("none.png", &["--max-memory", &size]).failed();
    assert!(refused.contains("what the model may take has"), "{refused}");
    let refused = generate("none.png", &["--max-memory", "9MB", "--dtype", "f32", "-W", "4096"]);
    let refused = refused.args(["-H", "4096"]).failed();
    assert!(refused.contains("--dtype stored"), "{refused}");
    generate("none.png", &["--max-memory", "much"]).misused();
    assert!(!work.path().join("none.png").exists());
}
