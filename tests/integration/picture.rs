//! Runs that start from a picture.

use std::ops::ControlFlow;

use burn::tensor::Tensor;
use image::{Rgb, RgbImage};
use pyrograph::device::Opened;
use pyrograph::model::{Model, ModelConfig};
use pyrograph::settings::Settings;
use pyrograph::{ClassPipeline, Noise, Picture, Request, StartPicture};
use pyrograph_engine::denoisers::DitDenoiser;
use pyrograph_engine::diffusion::{Denoiser, Grid, NoiseSource, parse_sampler};
use pyrograph_engine::nets::{Conditioning, Points};

use crate::util::{assert_close, cases, device, open_changed, tolerance};

fn open(name: &str, change: impl FnOnce(&mut ModelConfig)) -> Model {
    open_changed(&cases(name)[0].join("model.safetensors"), change)
}

fn random(model: &ClassPipeline, seed: u64, count: usize) -> Tensor<4> {
    let [_, channels, height, width] = model.latent_shape(1, None).expect("its own size");
    NoiseSource::new(seed, count).draw([channels, height, width], &device())
}

fn grid(pipeline: &ClassPipeline, settings: &Settings) -> Grid {
    settings.grid(&pipeline.config().process).expect("a grid")
}

fn request(settings: &Settings, noise: &Tensor<4>) -> Request<usize> {
    Request { noise: Some(Noise::Values(noise.clone())), ..Request::with([0, 1], settings) }
}

fn from(picture: &Tensor<4>, strength: Option<f64>) -> Option<StartPicture> {
    Some(StartPicture { picture: Picture::Latent(picture.clone()), strength })
}

/// States after each step, and the end.
fn states(pipeline: &ClassPipeline, request: &Request<usize>) -> Vec<Tensor<4>> {
    let mut states = Vec::new();
    let run = pipeline.latents(request, &mut |progress| {
        states.push(progress.x.clone());
        ControlFlow::Continue(())
    });
    states.push(run.expect("latents"));
    states
}

#[test]
fn the_last_steps_alone_are_taken_from_a_noised_picture() {
    let model = open("mp-dit-rotation", |_| ());
    let (net, config) = (model.net.clone(), model.config.clone());
    let pipeline = ClassPipeline::new(model, &device()).expect("a class model");
    let mut settings = config.defaults.settings(0);
    (settings.steps, settings.guidance.scale) = (6, 1.0);
    let (picture, noise) = (random(&pipeline, 5, 1), random(&pipeline, 6, 2));
    let plain = request(&settings, &noise);
    for (strength, steps) in
        [(None, 4), (Some(1.0), 6), (Some(0.5), 3), (Some(0.3), 1), (Some(0.0), 0)]
    {
        let started = Request { picture: from(&picture, strength), ..plain.clone() };
        let found = states(&pipeline, &started);
        assert_eq!(found.len(), steps + 1);
        let share = pipeline.compute(&started).expect("a size").gmacs
            / pipeline.compute(&plain).expect("a size").gmacs;
        assert!((share - steps as f64 / 6.0).abs() < 1e-9, "{share}");
        if steps == 0 {
            let whole = picture.clone().expand(noise.dims());
            assert_close("the picture", found[0].clone(), whole, 0.0);
        }
        if steps == 1 {
            // One step is the network's estimate.
            let level = grid(&pipeline, &settings).steps[5][0];
            let x = picture.clone() * level.alpha + noise.clone() * level.sigma;
            let told = Conditioning::classes(&[0, 1], &device());
            let mut denoiser = DitDenoiser::new(net.trunk(), &config.process, told);
            let expected = denoiser.denoise(x, &level, 0).clean;
            assert_close("the estimate", found[1].clone(), expected, tolerance(1e-5));
        }
    }
}

#[test]
fn a_student_takes_a_picture_for_its_first_prediction() {
    for points in [Points::Estimates, Points::States] {
        let model = open("ard", |config| {
            config.net.student.as_mut().expect("a student").points = points;
        });
        let pipeline = ClassPipeline::new(model, &device()).expect("a class model");
        let settings = pipeline.config().defaults.settings(0);
        let (picture, noise) = (random(&pipeline, 5, 1), random(&pipeline, 6, 2));
        let plain = request(&settings, &noise);
        let without = states(&pipeline, &plain);
        let found = states(&pipeline, &Request { picture: from(&picture, None), ..plain });
        let [from, to] = grid(&pipeline, &settings).steps[0];
        let picture = picture.expand(noise.dims());
        // From an estimate DDIM takes what is left over for noise; a state is where it is.
        let left = match points {
            Points::Estimates => (noise - picture.clone() * from.alpha) * (1.0 / from.sigma),
            Points::States => noise,
        };
        let expected = picture * to.alpha + left * to.sigma;
        assert_close("the first state", found[0].clone(), expected, tolerance(1e-5));
        let far: f32 = (found[4].clone() - without[4].clone()).abs().max().into_scalar();
        assert!(far > 1e-3, "{far}");
    }
}

#[test]
fn starts_that_cannot_be_are_refused() {
    let refuse = |model: Model, side: usize, strength: Option<f64>, part: &str| {
        let pipeline = ClassPipeline::new(model, &device()).expect("a class model");
        let [_, channels, ..] = pipeline.latent_shape(1, None).expect("its own size");
        let picture = Tensor::zeros([1, channels, side, side], &device());
        let request = Request { picture: from(&picture, strength), ..Request::new([0]) };
        let run = pipeline.latents(&request, &mut |_| ControlFlow::Continue(()));
        let error = run.map(drop).expect_err(part);
        assert!(error.to_string().contains(part), "{error}");
    };
    for strength in [-0.1, 1.1, f64::NAN] {
        refuse(open("mp-dit-rotation", |_| ()), 8, Some(strength), "expected 0 to 1");
    }
    refuse(open("mp-dit-rotation", |_| ()), 4, None, "4, 4");
    refuse(open("ard", |_| ()), 8, Some(0.5), "a student has none");
}

/// A mask is a law on the parts of a picture: black stays, white is as without a mask.
#[test]
fn what_is_masked_stays_and_the_rest_is_made() {
    let model = open("mp-dit-rotation", |_| ());
    let pipeline = ClassPipeline::new(model, &device()).expect("a class model");
    let [_, channels, height, width] = pipeline.latent_shape(1, None).expect("its own size");
    let (picture, noise) = (random(&pipeline, 5, 1), random(&pipeline, 6, 2));
    let mut settings = pipeline.config().defaults.settings(0);
    settings.steps = 6;
    let half = |left: f64, right: f64| {
        let part = |value| Tensor::<4>::full([1, 1, height, width / 2], value, &device());
        Some(Picture::Latent(Tensor::cat(vec![part(left), part(right)], 3)))
    };
    for sampler in ["ddim", "euler_a", "heun", "dpmpp_2m", "dpmpp_2m_sde", "unipc"] {
        (settings.sampler, settings.spacing) = parse_sampler(sampler).expect("known");
        for strength in [Some(1.0), Some(0.5)] {
            let plain = request(&settings, &noise);
            let plain = Request { picture: from(&picture, strength), ..plain };
            let last = |mask: Option<Picture>| {
                states(&pipeline, &Request { mask, ..plain.clone() }).pop().expect("a state")
            };
            // All steps of a run with a mask begin with noise alone.
            let without = match strength {
                Some(1.0) => {
                    let alone = Request { picture: None, ..plain.clone() };
                    states(&pipeline, &alone).pop().expect("a state")
                }
                _ => last(None),
            };
            assert_close(sampler, last(half(1.0, 1.0)), without, tolerance(1e-5));
            let found = last(half(0.0, 1.0));
            let side = |x: &Tensor<4>, i: usize| x.clone().narrow(3, i * width / 2, width / 2);
            let expected = picture.clone().expand([2, channels, height, width]);
            assert_close(sampler, side(&found, 0), side(&expected, 0), tolerance(1e-5));
            let far = (side(&found, 1) - side(&expected, 1)).abs().max().into_scalar::<f32>();
            assert!(far > 0.1, "{sampler}: {far}");
        }
    }
}

#[test]
fn masked_pixels_stay_to_the_last_bit() {
    let on = Opened { device: device(), adapter: None };
    let pipeline = ClassPipeline::open_on("emoji-class", &on, &Default::default());
    let pipeline = pipeline.expect("the shipped model");
    let picture = RgbImage::from_fn(64, 64, |x, y| Rgb([4 * x as u8, 4 * y as u8, 90]));
    let mask = RgbImage::from_fn(64, 64, |x, _| Rgb([if x < 40 { 0 } else { 255 }; 3]));
    let request = Request {
        picture: Some(StartPicture {
            picture: Picture::Pixels(picture.clone()),
            strength: Some(1.0),
        }),
        mask: Some(Picture::Pixels(mask)),
        steps: Some(6),
        ..Request::new([6])
    };
    let images = pipeline.generate(&request, &mut |_| ControlFlow::Continue(()));
    let image = images.expect("a picture").images.remove(0);
    let apart = |x: u32| {
        let of = |y| image[(x, y)].0.iter().zip(picture[(x, y)].0).map(|(a, b)| a.abs_diff(b));
        (0..64).flat_map(of).max().expect("pixels")
    };
    assert!((0..40).all(|x| apart(x) <= if tolerance(0.0) == 0.0 { 0 } else { 1 }));
    assert!((40..64).any(|x| apart(x) > 20));
}

#[test]
fn masks_that_cannot_be_are_refused() {
    let refuse = |model: Model, request: Request<usize>, part: &str| {
        let pipeline = ClassPipeline::new(model, &device()).expect("a class model");
        let error = pipeline.latents(&request, &mut |_| ControlFlow::Continue(()));
        let error = error.map(drop).expect_err(part).to_string();
        assert!(error.contains(part), "{error}");
    };
    let mask = |side: usize| Some(Picture::Latent(Tensor::ones([1, 1, side, side], &device())));
    let alone = Request { mask: mask(8), ..Request::new([0]) };
    refuse(open("mp-dit-rotation", |_| ()), alone, "a mask of what to keep");
    let model = open("mp-dit-rotation", |_| ());
    let net = &model.config.net.dit;
    let picture = Tensor::zeros([1, net.channels, net.size[0], net.size[1]], &device());
    let small = Request { picture: from(&picture, None), mask: mask(2), ..Request::new([0]) };
    refuse(model, small.clone(), "the mask has shape [1, 1, 2, 2]");
    refuse(open("ard", |_| ()), small, "a mask is given, the student has none");
}
