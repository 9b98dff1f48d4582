//! Pictures that texts change: `pixart-img2img` and `pixart-inpaint`.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use image::{Rgb, RgbImage};
use pyrograph::{Noise, Picture, Request, StartPicture};
use pyrograph_engine::diffusion::{Sampler, Spacing};
use pyrograph_weights::write_safetensors;
use serde_json::Value;

use crate::command::TestCommand;
use crate::text;
use crate::util::{Case, assert_close, cases, device, json, tolerance};

/// A run of a case: its name, settings and request.
struct Run {
    name: String,
    settings: Value,
    request: Request<String>,
}

/// The model of a case, the case, and its runs.
fn open(folder: &Path) -> (PathBuf, Case, Vec<Run>) {
    let (case, settings) = (Case::open(folder), json(&folder.join("case.json")));
    let model = folder.join(settings["model"].as_str().expect("a model"));
    let mut base = text::request(&model);
    base.guidance.scale = settings["guidance_scale"].as_f64();
    let side = |name: &str| settings[name].as_u64().expect("a side") as usize;
    (base.size, base.exact_size) = (Some([side("height"), side("width")]), true);
    // The texts are those of the model's own case.
    let [own, found] = [&Case::open(&model), &case].map(|case| {
        let states: Tensor<3> = case.tensor("text_states", &device());
        states
    });
    assert_close("texts", found.flip([0]), own, 0.0);
    base.noise = Some(Noise::Values(case.tensor("noise", &device())));
    let picture = Picture::Pixels(pixels(&case, "image"));
    let mask: Option<Tensor<3>> = case.has("mask").then(|| case.tensor("mask", &device()));
    base.mask = mask.map(|mask| Picture::Pixels(rgb(mask.unsqueeze_dim::<4>(3).repeat_dim(3, 3))));
    let run = |(name, run): (&String, &Value)| {
        let strength = run["strength"].as_f64();
        let mut request = Request {
            picture: Some(StartPicture { picture: picture.clone(), strength }),
            steps: run["steps"].as_u64().map(|steps| steps as usize),
            ..base.clone()
        };
        // Each by the defaults of its class in diffusers.
        (request.sampler, request.spacing) = match run["sampler"].as_str() {
            Some("dpmpp-2m") => (Some(Sampler::DpmPp2m), Some(Spacing::Linspace)),
            Some("ddim") => {
                (Some(Sampler::Ddim { eta: 0.0 }), Some(Spacing::Leading { offset: 0 }))
            }
            Some("euler") => (Some(Sampler::Euler), Some(Spacing::Linspace)),
            other => panic!("{other:?}"),
        };
        Run { name: name.clone(), settings: run.clone(), request }
    };
    let runs = settings["runs"].as_object().expect("runs").iter().map(run).collect();
    (model, case, runs)
}

/// `[1, height, width, 3]` in [0, 1].
fn rgb(image: Tensor<4>) -> RgbImage {
    let [_, height, width, _] = image.dims();
    let levels: Vec<f32> = (image * 255.0).round().into_data().try_to_vec().expect("floats");
    let levels = levels.into_iter().map(|level| level as u8).collect();
    RgbImage::from_raw(width as u32, height as u32, levels).expect("as many as pixels")
}

fn pixels(case: &Case, name: &str) -> RgbImage {
    rgb(case.tensor(name, &device()))
}

/// Asserts that a picture is the case's: to the bit where it is kept, nearly where it is made.
fn assert_picture(case: &Case, run: &Run, found: &RgbImage) {
    let start = pixels(case, "image");
    let expected = match run.settings["calls"].as_u64() {
        Some(0) => start.clone(),
        _ => pixels(case, &format!("{}.image", run.name)),
    };
    assert_eq!(found.dimensions(), expected.dimensions(), "{}", run.name);
    let apart = |a: &Rgb<u8>, b: &Rgb<u8>| a.0.iter().zip(b.0).map(|(a, b)| a.abs_diff(b)).max();
    for (at, pixel) in found.enumerate_pixels().map(|(x, y, pixel)| ((x, y), pixel)) {
        let is_kept = match &run.request.mask {
            Some(Picture::Pixels(mask)) => mask[at].0[0] == 0,
            _ => run.settings["calls"] == 0,
        };
        let (most, of) = if is_kept { (0, &start) } else { (1, &expected) };
        assert!(apart(pixel, &of[at]) <= Some(most), "{}: {at:?}", run.name);
    }
}

#[test]
fn pictures_are_changed_as_by_diffusers() {
    for folder in ["pixart-img2img", "pixart-inpaint"].into_iter().flat_map(cases) {
        let (model, case, runs) = open(&folder);
        let pipeline = text::open(&model);
        for run in &runs {
            let mut states = Vec::new();
            let generated = pipeline.generate(&run.request, &mut |progress| {
                states.push(progress.x.clone());
                ControlFlow::Continue(())
            });
            let generated = generated.unwrap_or_else(|error| panic!("{}: {error}", run.name));
            assert_eq!(states.len() as u64, run.settings["calls"].as_u64().expect("a number"));
            assert_picture(&case, run, &generated.images[0]);
            if states.is_empty() {
                continue;
            }
            let expected: Tensor<5> = case.tensor(&format!("{}.latents", run.name), &device());
            let expected = expected.narrow(0, 1, states.len());
            assert_close(&run.name, Tensor::stack(states, 0), expected, tolerance(1e-4));

            let settings = pipeline.resolve(&run.request).expect("possible");
            let decoded = pipeline.pixels(generated.latents, &settings);
            let decoded = (decoded * 0.5 + 0.5).clamp(0.0, 1.0).permute([0, 2, 3, 1]);
            let name = if case.has("mask") { "decoded" } else { "image" };
            let expected: Tensor<4> = case.tensor(&format!("{}.{name}", run.name), &device());
            let worst: f32 = (decoded - expected).abs().max().into_scalar();
            println!("{}: image {worst:.1e}", run.name);
            assert!(f64::from(worst) <= tolerance(2e-4), "{}: {worst}", run.name);
        }
    }
}

#[test]
fn the_command_changes_pictures_as_diffusers() {
    for folder in ["pixart-img2img", "pixart-inpaint"].into_iter().flat_map(cases) {
        let (model, case, runs) = open(&folder);
        let work = tempfile::tempdir().expect("a folder");
        let path = |name: &str| work.path().join(name);
        let noise = ("noise".into(), case.tensor::<4>("noise", &device()).into_data());
        let written = write_safetensors(&path("noise.safetensors"), &[noise], &Default::default());
        written.expect("written");
        for run in runs {
            let Request { prompts, negative, picture, mask, steps, size, guidance, .. } =
                &run.request;
            let save = |picture: &Picture, name: &str| match picture {
                Picture::Pixels(pixels) => pixels.save(path(name)).expect("written"),
                other => panic!("{other:?}"),
            };
            let StartPicture { picture, strength } = picture.as_ref().expect("a picture");
            save(picture, "start.png");
            let number = |number: Option<f64>| number.expect("given").to_string();
            let [height, width] = size.expect("a size").map(|side| side.to_string());
            let scheduler = if run.settings["sampler"] == "ddim" { "leading" } else { "linspace" };
            let mut command = TestCommand::new(&work, ["generate", "text"])
                .args([&prompts[0], "--negative-prompt", negative.as_ref().expect("given")])
                .args(["-i", "start.png", "--noise", "noise.safetensors", "--exact-size", "-m"])
                .args([&model])
                .args(["--strength", &number(*strength), "--scheduler", scheduler])
                .args([
                    "--sampler",
                    &run.settings["sampler"].as_str().expect("a name").replace('-', "_"),
                ])
                .args(["--steps", &steps.expect("given").to_string(), "-H", &height, "-W", &width])
                .args(["--cfg-scale", &number(guidance.scale), "--max-tokens", "20"]);
            if let Some(mask) = mask {
                save(mask, "mask.png");
                command = command.args(["--mask", "mask.png"]);
            }
            command.succeeded();
            let found = image::open(path("output.png")).expect("a picture").into_rgb8();
            assert_picture(&case, &run, &found);
            std::fs::remove_file(path("output.png")).expect("removed");
        }
    }
}
