//! Pictures of models of texts on rectified flows, against diffusers' pipelines.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::tensor::{Tensor, TensorData};
use pyrograph::{Noise, Request, TextPipeline, WeightType};
use pyrograph_weights::{Checkpoint, FloatDtype, write_safetensors};
use serde_json::Value;

use crate::command::TestCommand;
use crate::util::{
    Case, assert_close, copy_folder, device, device_name, files, json, relative_difference, text,
    tolerance, write_pictures,
};

/// The runs of a case: their names and requests.
fn runs(folder: &Path, case: &Case, cfg_scale: fn(f64) -> f64) -> Vec<(String, Request<String>)> {
    let settings = json(&folder.join("case.json"));
    let number = |value: &Value| value.as_u64().map(|number| number as usize);
    // One run alone has no name.
    let runs = match settings["runs"].as_object() {
        Some(runs) => runs.iter().map(|(name, run)| (name.clone(), run.clone())).collect(),
        None => vec![("pipe".to_owned(), settings.clone())],
    };
    let request = |(name, run): (String, Value)| {
        let mut request = Request::new([settings["prompt"].as_str().expect("a prompt").to_owned()]);
        request.negative = run["negative_prompt"].as_str().map(str::to_owned);
        request.tokens = number(&settings["max_sequence_length"]);
        request.steps = number(&run["steps"]);
        request.guidance.scale = run["guidance_scale"].as_f64().map(cfg_scale);
        request.guidance.normalized = run["cfg_normalization"].as_bool();
        request.size =
            number(&settings["height"]).zip(number(&settings["width"])).map(<[usize; 2]>::from);
        request.noise = Some(Noise::Values(case.tensor("pipe_noise", &device())));
        (name, request)
    };
    runs.into_iter().map(request).collect()
}

/// The latents behind each step, `[steps, 1, channels, height, width]`; some cases have them as tokens.
fn latents(case: &Case, name: &str, request: &Request<String>) -> Tensor<5> {
    let name = format!("{name}_latents_per_step");
    let Some(Noise::Values(noise)) = &request.noise else { panic!("noise") };
    let [images, channels, height, width] = noise.dims();
    match case.rank(&name) {
        5 => case.tensor(&name, &device()),
        _ => {
            let tokens: Tensor<4> = case.tensor(&name, &device());
            let steps = tokens.dims()[0];
            let cells: Tensor<5> = tokens.reshape([steps, images, height, width, channels]);
            cells.permute([0, 1, 4, 2, 3])
        }
    }
}

/// The model of a case. Which states of its encoder it was made with, the case may tell and no file.
fn open(folder: &Path) -> TextPipeline {
    let mut recognised = pyrograph::model::recognise(folder).expect("a model");
    let layers = json(&folder.join("case.json"))["layers"].clone();
    if let (Some(text), Ok(layers)) =
        (&mut recognised.text, serde_json::from_value::<Vec<usize>>(layers))
    {
        let config = &mut text.encoder.config;
        config.depth = *layers.last().expect("a layer");
        config.behind = layers;
    }
    let model = recognised.load(FloatDtype::F32, &device(), &mut |_| ()).expect("its weights");
    TextPipeline::new(model, &device()).expect("a model of texts")
}

/// Latents and pictures of every run; `cfg_scale` makes our guidance of theirs.
pub fn assert_pictures(folder: &Path, cfg_scale: fn(f64) -> f64) {
    let (case, pipeline) = (Case::open(folder), open(folder));
    for (name, request) in runs(folder, &case, cfg_scale) {
        let mut states = Vec::new();
        let generated = pipeline.generate(&request, &mut |progress| {
            states.push(progress.x.clone());
            ControlFlow::Continue(())
        });
        let generated = generated.unwrap_or_else(|error| panic!("{name}: {error}"));
        let expected = latents(&case, &name, &request);
        assert_close(&name, Tensor::stack(states, 0), expected, tolerance(1e-4));
        let settings = pipeline.resolve(&request).expect("possible");
        let pixels = pipeline.pixels(generated.latents, &settings);
        let image = (pixels * 0.5 + 0.5).clamp(0.0, 1.0).permute([0, 2, 3, 1]);
        let expected: Tensor<4> = case.tensor(&format!("{name}_image"), &device());
        let worst: f32 = (image - expected).abs().max().into_scalar();
        println!("{name}: image {worst:.1e}");
        assert!(f64::from(worst) <= tolerance(2e-4), "{name}: image differs by {worst}");
    }
}

/// In fewer bits, the pictures are nearly those of f32.
pub fn assert_types(folder: &Path) {
    let (case, mut of_f32) = (Case::open(folder), None);
    let (_, request) = runs(folder, &case, |scale| scale).remove(0);
    // 8 bits and packed weights are the CPU's alone.
    let types: &[&str] = match device_name().as_str() {
        "cpu" => &["f32", "f16", "bf16", "int8", "stored"],
        _ => &["f32"],
    };
    for kind in types {
        let recognised = pyrograph::model::recognise(folder).expect("a model");
        let dtype: WeightType = kind.parse().expect("a type");
        let model = recognised.load(dtype, &device(), &mut |_| ()).expect("its weights");
        let pipeline = TextPipeline::new(model, &device()).expect("a model of texts");
        let made = pipeline.generate(&request, &mut |_| ControlFlow::Continue(()));
        let latents = made.unwrap_or_else(|error| panic!("{kind}: {error}")).latents;
        let expected = of_f32.get_or_insert(latents.clone());
        assert_close(kind, latents, expected.clone(), 0.05);
    }
}

/// A LoRA learns from states that are those of generation, is written as diffusers names it, and is the same in the weights as
/// beside them.
pub fn assert_lora(folder: &Path, layers: &[&str]) {
    let (work, path) = (tempfile::tempdir().expect("a folder"), text(folder));
    let command = |args: &[&str]| TestCommand::new(&work, args).on_cpu();
    write_pictures(&work.path().join("data"), &["red"], |_, _, _| [200, 30, 30, 255]);
    let caption = json(&folder.join("case.json"))["prompt"].as_str().expect("a prompt").to_owned();
    for picture in files(&work.path().join("data/red")) {
        std::fs::write(picture.with_extension("txt"), &caption).expect("written");
    }
    let train = ["train", "lora", "-m", path, "--data", "data/red", "-o", "run", "--steps", "3"];
    let sizes = ["--batch", "2", "--rank", "2", "--lr", "0.05"];
    command(&train).args(sizes).settings(&["sample_every=0"]).succeeded();
    let file = Checkpoint::open(work.path().join("run/lora.safetensors")).expect("a LoRA");
    for layer in layers {
        let name = format!("transformer.{layer}.lora_B.weight");
        assert!(file.tensors().contains_key(&name), "{layer}: {:?}", file.tensors().keys());
    }
    let states = Checkpoint::open(work.path().join("run/captions.safetensors")).expect("states");
    let (states, shape) = states.read_f32("states").expect("states");
    let states: Tensor<2> = Tensor::<1>::from_floats(states.as_slice(), &device())
        .reshape([shape[0] as i32, shape[1] as i32]);
    let case = Case::open(folder);
    let expected: Tensor<2> = match case.has("text_states") {
        true => case.tensor::<3>("text_states", &device()).narrow(0, 0, 1).squeeze_dim(0),
        false => case.tensor("forward_text_0", &device()),
    };
    // What fills a text up is more here.
    let tokens = expected.dims()[0].min(16);
    let [found, expected] = [states, expected].map(|states| states.narrow(0, 0, tokens));
    assert_close("states", found, expected, 1e-3);

    command(&["merge", path, "--lora", "run:30", "-o", "merged", "--dtype", "f32"]).succeeded();
    let latents = |output: &str, args: &[&str]| -> Tensor<4> {
        let generate = ["generate", "text", "a lighthouse", "--steps", "2", "--seed", "4", "-o"];
        let latents = format!("{output}.safetensors");
        let size = ["-W", "96", "-H", "64", "--max-tokens", "24"];
        let asked = command(&generate).args([&format!("{output}.png"), "--save-latents", &latents]);
        // A network of random weights may make a picture of one colour.
        asked.args(size).args(args).ended();
        saved(&work.path().join(latents))
    };
    let (bare, put_on) =
        (latents("bare", &["-m", path]), latents("with", &["-m", path, "--lora", "run:30"]));
    assert!(relative_difference(put_on.clone(), bare) > 1e-3);
    assert_close("merged", latents("merged", &["-m", "merged"]), put_on, 2e-5);
}

/// Latents that the command has saved.
pub fn saved(path: &Path) -> Tensor<4> {
    let file = Checkpoint::open(path).expect("latents");
    let (values, shape) = file.read_f32("latents").expect("latents");
    Tensor::from_data(TensorData::new(values, shape), &device())
}

/// The file of the original code in a case.
pub fn single(folder: &Path) -> PathBuf {
    let file = files(folder).find(|file| {
        let name = file.to_string_lossy();
        name.ends_with(".safetensors") && !name.ends_with("case.safetensors")
    });
    file.expect("weights")
}

/// With this value of a key of a part, a folder like `golden` is refused with a word.
pub fn assert_refused(golden: &Path, faults: &[(&str, &str, Value, &str)]) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model");
    copy_folder(golden, &path);
    for (part, key, value, word) in faults {
        let name = if *part == "scheduler" { "scheduler_config.json" } else { "config.json" };
        let (file, own) = (path.join(part).join(name), json(&golden.join(part).join(name)));
        let mut config = own.clone();
        config[key] = value.clone();
        std::fs::write(&file, config.to_string()).expect("written");
        let error = pyrograph::model::recognise(&path).map(drop).expect_err(key).to_string();
        assert!(error.contains(word), "{key}: {error}");
        std::fs::write(&file, own.to_string()).expect("written");
    }
}

/// The same through the command, from the folder and from what `convert` makes of it.
pub fn assert_command(folder: &Path, cfg_scale: fn(f64) -> f64) {
    let (case, work) = (Case::open(folder), tempfile::tempdir().expect("a folder"));
    let path = |name: &str| work.path().join(name);
    let noise = ("noise".into(), case.tensor::<4>("pipe_noise", &device()).into_data());
    let written = write_safetensors(&path("noise.safetensors"), &[noise], &Default::default());
    written.expect("written");
    let convert = TestCommand::new(&work, ["convert", "-o", "own", "--dtype", "f32"]);
    convert.args([folder]).succeeded();
    for (name, request) in runs(folder, &case, cfg_scale) {
        let all = latents(&case, &name, &request);
        let expected: Tensor<4> = all.clone().narrow(0, all.dims()[0] - 1, 1).squeeze_dim(0);
        for model in [folder, Path::new("own")] {
            let run = TestCommand::new(&work, ["generate", "text", "-m"]).args([model]).args([
                "--noise",
                "noise.safetensors",
                "--save-latents",
                "made.safetensors",
                "--seed",
                "0",
            ]);
            run.args(arguments(&request)).succeeded();
            assert_close(
                &name,
                saved(&path("made.safetensors")),
                expected.clone(),
                tolerance(1e-4),
            );
            std::fs::remove_file(path("made.safetensors")).expect("removed");
        }
    }
}

/// A request as arguments.
fn arguments(request: &Request<String>) -> Vec<String> {
    let [height, width] = request.size.expect("a size");
    let mut arguments = vec![request.prompts[0].clone()];
    for (option, value) in [
        ("--negative-prompt", request.negative.clone()),
        ("--steps", request.steps.map(|steps| steps.to_string())),
        ("--cfg-scale", request.guidance.scale.map(|scale| scale.to_string())),
        ("--cfg-normalize", request.guidance.normalized.map(|is| is.to_string())),
        ("--max-tokens", request.tokens.map(|tokens| tokens.to_string())),
        ("-H", Some(height.to_string())),
        ("-W", Some(width.to_string())),
    ] {
        arguments.extend(value.map(|value| [option.to_owned(), value]).into_iter().flatten());
    }
    arguments
}
