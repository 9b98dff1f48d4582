//! Few-step students (ARD) against the reference implementation, and in the pipeline.

use std::ops::ControlFlow;
use std::path::Path;

use burn::tensor::Tensor;
use pyrograph::model::Model;
use pyrograph::{ClassPipeline, Noise, Request};
use pyrograph_engine::diffusion::Sampler;
use pyrograph_engine::nets::{Conditioning, StudentConfig};

use crate::util::{Case, assert_close, cases, device, open_changed, tolerance};

/// Names of the points that the reference stores, from the first prediction on.
const POINTS: [&str; 4] = ["z15", "z10", "z5", "z0"];

fn open(folder: &Path, change: impl FnOnce(&mut StudentConfig)) -> Model {
    open_changed(&folder.join("model.safetensors"), |config| {
        change(config.net.student.as_mut().expect("a student"));
    })
}

#[test]
fn published_students_given_their_history() {
    for folder in cases("ard") {
        let (case, device) = (Case::open(&folder), device());
        let told = Conditioning::classes(&case.ids("label"), &device);
        let inputs: Vec<Tensor<4>> =
            ["noise", "z15", "z10", "z5"].iter().map(|name| case.tensor(name, &device)).collect();
        let with = open(&folder, |_| ());
        let without = open(&folder, |student| student.history_layers = 0);
        for (model, prefix) in [(with, "forced"), (without, "no_history")] {
            let outputs = model.net.student().expect("it").steps(inputs.clone(), &told);
            for (output, point) in outputs.into_iter().zip(POINTS) {
                let name = format!("{prefix}_{point}");
                let expected = case.tensor(&name, &device);
                assert_close(&name, output, expected, tolerance(1e-5));
            }
        }
    }
}

#[test]
fn published_students_on_their_own() {
    for folder in cases("ard") {
        let (case, device) = (Case::open(&folder), device());
        let pipeline = ClassPipeline::new(open(&folder, |_| ()), &device).expect("a class model");
        let noise = Some(Noise::Values(case.tensor("noise", &device)));
        let request = Request { noise, ..Request::new(case.ids("label")) };
        let mut points = Vec::new();
        // Latents without an autoencoder are no pictures: the run ends with the last step.
        let run = pipeline.latents(&request, &mut |progress| {
            points.push(progress.denoised.clone());
            ControlFlow::Continue(())
        });
        points.push(run.expect("latents"));
        let last = points.len() - 1;
        for (i, point) in points.into_iter().enumerate() {
            let name = format!("sampled_{}", POINTS[i.min(last - 1)]);
            assert_close(&name, point, case.tensor(&name, &device), tolerance(1e-5));
        }
    }
}

#[test]
fn settings_that_a_student_cannot_follow_are_refused() {
    let folder = &cases("ard")[0];
    let pipeline = ClassPipeline::new(open(folder, |_| ()), &device()).expect("a class model");
    let refuse = |change: &dyn Fn(&mut pyrograph::settings::Settings), part: &str| {
        let mut settings = pipeline.config().defaults.settings(0);
        change(&mut settings);
        let request = Request::with([0], &settings);
        let run = pipeline.latents(&request, &mut |_| ControlFlow::Continue(()));
        let error = run.expect_err(part).to_string();
        assert!(error.contains(part), "{error}");
    };
    refuse(&|settings| settings.steps = 20, "steps is 20, the student has 4");
    refuse(&|settings| settings.sampler = Sampler::DpmPp2m, "sampler is dpmpp_2m");
    refuse(&|settings| settings.guidance.scale = 3.0, "guidance scale is 3");
}
