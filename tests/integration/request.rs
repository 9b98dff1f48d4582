//! One request, one pipeline: shared by threads, checked before the work.

use std::ops::ControlFlow;
use std::sync::Barrier;

use image::{Rgb, RgbImage};
use pyrograph::device::Opened;
use pyrograph::patches::PatchPlan;
use pyrograph::{
    ClassPipeline, Error, Guidance, OpenOptions, Picture, Request, StartPicture, model,
};
use pyrograph_engine::diffusion::parse_sampler;

use crate::util::{assert_close, assert_same_pixels, assets, cases, device, tolerance};

fn pipeline() -> ClassPipeline {
    let on = Opened { device: device(), adapter: None };
    ClassPipeline::open_on("emoji-class", &on, &OpenOptions::default()).expect("the shipped model")
}

fn short(seed: u64, class: usize) -> Request<usize> {
    Request { seed, steps: Some(5), ..Request::new([class]) }
}

fn picture(pipeline: &ClassPipeline, request: &Request<usize>) -> RgbImage {
    let made = pipeline.generate(request, &mut |_| ControlFlow::Continue(()));
    made.expect("a picture").images.remove(0)
}

#[test]
fn threads_share_a_pipeline() {
    let pipeline = &pipeline();
    let requests = [short(1, 3), short(2, 6)];
    let alone = requests.each_ref().map(|request| picture(pipeline, request));
    let (together, cancelled) = std::thread::scope(|scope| {
        let made = requests.each_ref().map(|request| scope.spawn(|| picture(pipeline, request)));
        let mut seen = 0;
        let cancelled = pipeline.generate(&short(3, 0), &mut |progress| {
            seen += 1;
            match progress.step {
                2 => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        });
        assert_eq!(seen, 3);
        (made.map(|thread| thread.join().expect("no panic")), cancelled)
    });
    assert!(matches!(cancelled, Err(Error::Cancelled)));
    for (alone, together) in alone.iter().zip(&together) {
        assert_same_pixels("alone and together", alone, together);
    }
}

/// Requests that differ in everything of which a run could leave something behind.
fn different() -> [Request<usize>; 6] {
    let picture = RgbImage::from_fn(64, 64, |x, y| Rgb([4 * x as u8, 4 * y as u8, 90]));
    let mask = RgbImage::from_fn(64, 64, |x, _| Rgb([if x < 32 { 0 } else { 255 }; 3]));
    let picture = Some(StartPicture { picture: Picture::Pixels(picture), strength: Some(0.5) });
    let mask = Some(Picture::Pixels(mask));
    let plain = Request { steps: Some(6), ..Request::new([1, 3]) };
    let (sampler, spacing) = parse_sampler("dpmpp_2m_sde").expect("known");
    let guidance = Guidance { scale: Some(1.0), ..Guidance::default() };
    [
        Request { seed: 5, sampler: Some(sampler), spacing, steps: Some(4), ..Request::new([5]) },
        Request { picture: picture.clone(), ..plain.clone() },
        Request { picture, mask, ..plain.clone() },
        Request { guidance, ..plain.clone() },
        Request { size: Some([96, 64]), batch: Some(1), ..plain.clone() },
        plain,
    ]
}

/// On the CPU every step is that of a run alone, to the last bit.
#[test]
fn runs_at_the_same_time_leave_each_other_alone() {
    let model = model::open(&cases("dit-pipeline")[0], &device()).expect("a model");
    let pipeline = ClassPipeline::new(model, &device()).expect("a class model");
    let make = |request: &Request<usize>| {
        let mut states = Vec::new();
        let generated = pipeline.generate(request, &mut |progress| {
            states.push(progress.x.clone());
            ControlFlow::Continue(())
        });
        (states, generated.expect("pictures").images)
    };
    let requests = different();
    let alone = requests.each_ref().map(make);
    for _ in 0..3 {
        let start = Barrier::new(requests.len());
        let together = std::thread::scope(|scope| {
            let runs = requests.each_ref().map(|request| {
                scope.spawn(|| {
                    start.wait();
                    make(request)
                })
            });
            runs.map(|run| run.join().expect("no panic"))
        });
        for (i, (together, alone)) in together.into_iter().zip(&alone).enumerate() {
            let name = format!("request {i}");
            assert_eq!(together.0.len(), alone.0.len(), "{name}");
            for (found, expected) in together.0.into_iter().zip(&alone.0) {
                assert_close(&name, found, expected.clone(), tolerance(0.0));
            }
            for (found, expected) in together.1.iter().zip(&alone.1) {
                assert_same_pixels(&name, found, expected);
            }
        }
    }
}

#[test]
fn previews_come_at_their_interval() {
    let pipeline = pipeline();
    let request = Request { previews: Some(2), ..short(1, 3) };
    let (mut due, mut last) = (Vec::new(), None);
    let made = pipeline.generate(&request, &mut |progress| {
        if let Some(preview) = progress.preview() {
            due.push(progress.step);
            last = Some(preview.expect("finite pixels").remove(0));
        }
        ControlFlow::Continue(())
    });
    assert_eq!(due, [0, 2, 4]);
    // The estimate of the last step is the picture itself.
    assert_eq!(last.expect("a preview"), made.expect("a picture").images[0]);
}

#[test]
fn requests_that_cannot_be_are_refused_before_the_work() {
    let pipeline = pipeline();
    let guidance = |guidance: Guidance| Request { guidance, ..short(1, 3) };
    let mask = Some(Picture::Pixels(RgbImage::new(64, 64)));
    let requests = [
        (Request::default(), "0 images"),
        (short(1, 16), "class 16, expected 0 to 15"),
        (Request { steps: Some(0), ..short(1, 3) }, "steps"),
        (Request { size: Some([64, 65]), ..short(1, 3) }, "65x64"),
        (guidance(Guidance { scale: Some(f64::NAN), ..Guidance::default() }), "cfg scale"),
        (guidance(Guidance { rescale: Some(1.5), ..Guidance::default() }), "rescale 1.5"),
        (guidance(Guidance { interval: Some([2.0, 1.0]), ..Guidance::default() }), "from 2 to 1"),
        (Request { patches: Some(PatchPlan::constant(16, 4)), ..short(1, 3) }, "for 4 steps"),
        (Request { mask, ..short(1, 3) }, "a mask of what to keep"),
    ];
    for (request, part) in requests {
        let error = pipeline.resolve(&request).expect_err(part).to_string();
        assert!(error.contains(part), "{error}");
        let run = pipeline.generate(&request, &mut |_| panic!("{part}: a step was taken"));
        assert_eq!(run.map(drop).expect_err(part).to_string(), error);
    }
}

/// Recognising a model reads no weights; what is loaded must be what was saved.
#[test]
fn damaged_weights_are_refused_when_they_are_loaded() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = assets().join("models/emoji-4step");
    for name in ["model.json", "dit.safetensors"] {
        std::fs::copy(source.join(name), folder.path().join(name)).expect("copied");
    }
    let weights = folder.path().join("dit.safetensors");
    let mut bytes = std::fs::read(&weights).expect("weights");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&weights, bytes).expect("written");
    let recognised = model::recognise(folder.path()).expect("its description is whole");
    let error = recognised.load(pyrograph::WeightType::default(), &device(), &mut |_| ());
    let error = error.map(drop).expect_err("damaged").to_string();
    assert!(error.contains("dit.safetensors"), "{error}");
}
