//! Runs that start from a picture.

use std::ops::ControlFlow;

use burn::tensor::Tensor;
use pyrograph::model::{Model, ModelConfig};
use pyrograph::pipeline::ClassPipeline;
use pyrograph::settings::Settings;
use pyrograph_engine::denoisers::DitDenoiser;
use pyrograph_engine::diffusion::{Denoiser, Grid, NoiseSource};
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

/// States after each step, and the end.
fn states(pipeline: &ClassPipeline, settings: &Settings, noise: &Tensor<4>) -> Vec<Tensor<4>> {
    let mut states = Vec::new();
    let run = pipeline.latents(&[0, 1], settings, Some(noise), &mut |progress| {
        states.push(progress.x.clone());
        ControlFlow::Continue(())
    });
    states.push(run.expect("latents"));
    states
}

#[test]
fn the_last_steps_alone_are_taken_from_a_noised_picture() {
    let Model { net, config, vae } = open("mp-dit-rotation", |_| ());
    let copy = Model { net: net.clone(), config: config.clone(), vae };
    let plain = ClassPipeline::new(copy, &device());
    let mut settings = config.defaults.settings(0);
    (settings.steps, settings.guidance.scale) = (6, 1.0);
    let (picture, noise) = (random(&plain, 5, 1), random(&plain, 6, 2));
    for (strength, steps) in [(None, 5), (Some(1.0), 6), (Some(0.5), 3), (Some(0.01), 1)] {
        let model = Model { net: net.clone(), config: config.clone(), vae: None };
        let pipeline = ClassPipeline::new(model, &device());
        let pipeline = pipeline.with_picture(picture.clone(), strength).expect("a strength");
        let found = states(&pipeline, &settings, &noise);
        assert_eq!(found.len(), steps + 1);
        let share = pipeline.compute(&settings).expect("a size").gmacs
            / plain.compute(&settings).expect("a size").gmacs;
        assert!((share - steps as f64 / 6.0).abs() < 1e-9, "{share}");
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
        let pipeline = ClassPipeline::new(model, &device());
        let settings = pipeline.config().defaults.settings(0);
        let (picture, noise) = (random(&pipeline, 5, 1), random(&pipeline, 6, 2));
        let without = states(&pipeline, &settings, &noise);
        let pipeline = pipeline.with_picture(picture.clone(), None).expect("four steps");
        let found = states(&pipeline, &settings, &noise);
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
        let pipeline = ClassPipeline::new(model, &device());
        let [_, channels, ..] = pipeline.latent_shape(1, None).expect("its own size");
        let picture = Tensor::zeros([1, channels, side, side], &device());
        let settings = pipeline.config().defaults.settings(0);
        let error = pipeline.with_picture(picture, strength).map(|pipeline| {
            pipeline.latents(&[0], &settings, None, &mut |_| ControlFlow::Continue(()))
        });
        let error = match error {
            Ok(run) => run.map(drop).expect_err(part),
            Err(error) => error,
        };
        assert!(error.to_string().contains(part), "{error}");
    };
    for strength in [0.0, -1.0, 1.1, f64::NAN] {
        refuse(open("mp-dit-rotation", |_| ()), 8, Some(strength), "expected above 0");
    }
    refuse(open("mp-dit-rotation", |_| ()), 4, None, "4, 4");
    refuse(open("ard", |_| ()), 8, Some(0.5), "a student has none");
}
