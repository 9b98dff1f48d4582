//! Images of texts, against diffusers' pipelines for PixArt.

use std::ops::ControlFlow;
use std::path::Path;

use burn::tensor::Tensor;
use pyrograph::{Noise, Request, TextPipeline, prompt};
use pyrograph_weights::{Bundle, Checkpoint, write_safetensors};
use serde_json::Value;

use crate::command::TestCommand;
use crate::pixart;
use crate::util::{
    Case, assert_close, assert_same_pixels, cases, copy_folder, device, json, open_changed,
    relative_difference, tolerance,
};

const PIPELINES: [&str; 3] = ["pixart-pipeline", "pixart-sigma", "pixart-alpha"];

fn pipelines() -> impl Iterator<Item = std::path::PathBuf> {
    PIPELINES.iter().flat_map(|name| cases(name))
}

pub fn open(folder: &Path) -> TextPipeline {
    TextPipeline::new(open_changed(folder, |_| ()), &device()).expect("a model of texts")
}

/// What a case was made with.
pub fn request(folder: &Path) -> Request<String> {
    let case = json(&folder.join("case.json"));
    let number = |name: &str| case[name].as_u64().map(|number| number as usize);
    let text = |name: &str| case[name].as_str().expect(name).to_owned();
    let flag = |name: &str, default| case[name].as_bool().unwrap_or(default);
    let mut request = Request::new([text("prompt")]);
    request.negative = Some(text("negative_prompt"));
    request.raw_prompt = !flag("clean_caption", true);
    request.tokens = number("max_sequence_length");
    request.steps = number("steps");
    request.guidance.scale = case["guidance_scale"].as_f64();
    request.size = number("height").zip(number("width")).map(<[usize; 2]>::from);
    request.exact_size = !flag("resolution_binning", true);
    request
}

#[test]
fn images_of_texts_are_those_of_diffusers() {
    for folder in pipelines() {
        let (case, device, pipeline) = (Case::open(&folder), device(), open(&folder));
        let noise = Some(Noise::Values(case.tensor("pipe_noise", &device)));
        let request = Request { noise, ..request(&folder) };
        let mut states = Vec::new();
        let generated = pipeline.generate(&request, &mut |progress| {
            states.push(progress.x.clone());
            ControlFlow::Continue(())
        });
        let generated = generated.unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let expected: Tensor<5> = case.tensor("pipe_latents_per_step", &device);
        assert_close("latents", Tensor::stack(states, 0), expected, tolerance(1e-4));

        let settings = pipeline.resolve(&request).expect("possible");
        let pixels = pipeline.pixels(generated.latents, &settings);
        let image = (pixels * 0.5 + 0.5).clamp(0.0, 1.0).permute([0, 2, 3, 1]);
        let expected: Tensor<4> = case.tensor("pipe_image", &device);
        let [_, height, width, _] = expected.dims();
        let worst: f32 = (image - expected).abs().max().into_scalar();
        println!("{}: image {worst:.1e}", folder.display());
        assert!(f64::from(worst) <= tolerance(2e-4), "image differs by {worst}");
        assert_eq!(generated.images[0].dimensions(), (width as u32, height as u32));
    }
}

/// The same through the command, from a file of prompts.
#[test]
fn the_command_makes_the_images_of_diffusers() {
    for folder in pipelines() {
        let (case, settings) = (Case::open(&folder), json(&folder.join("case.json")));
        let (work, device) = (tempfile::tempdir().expect("a folder"), device());
        let path = |name: &str| work.path().join(name);
        let noise = case.tensor::<4>("pipe_noise", &device).into_data();
        let written = write_safetensors(
            &path("noise.safetensors"),
            &[("noise".into(), noise)],
            &Default::default(),
        );
        written.expect("written");
        let prompt = settings["prompt"].as_str().expect("a prompt");
        std::fs::write(path("prompts"), format!("\n{prompt}\n \n")).expect("written");
        let mut run =
            TestCommand::new(&work, ["generate", "text", "--prompt-file", "prompts", "-m"])
                .args([&folder])
                .args([
                    "--noise",
                    "noise.safetensors",
                    "--save-latents",
                    "latents.safetensors",
                    "--seed",
                    "0",
                ]);
        for (option, key) in [
            ("--negative-prompt", "negative_prompt"),
            ("--steps", "steps"),
            ("--cfg-scale", "guidance_scale"),
            ("--max-tokens", "max_sequence_length"),
            ("-H", "height"),
            ("-W", "width"),
        ] {
            match &settings[key] {
                Value::Null => (),
                Value::String(text) => run = run.args([option, text]),
                number => run = run.args([option.to_owned(), number.to_string()]),
            }
        }
        if settings["clean_caption"] == false {
            run = run.args(["--raw-prompt"]);
        }
        if settings["resolution_binning"] == false {
            run = run.args(["--exact-size"]);
        }
        run.succeeded();
        let latents = Checkpoint::open(path("latents.safetensors")).expect("latents");
        let latents = latents.read_f32("latents").expect("latents").0;
        let expected: Tensor<5> = case.tensor("pipe_latents_per_step", &device);
        let last = expected.dims()[0] - 1;
        let expected: Vec<f32> =
            expected.narrow(0, last, 1).into_data().try_to_vec().expect("floats");
        let largest = expected.iter().fold(0.0, |most: f32, value| most.max(value.abs()));
        let worst = latents.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert_eq!(latents.len(), expected.len());
        assert!(f64::from(worst / largest) <= tolerance(1e-4), "latents differ by {worst}");
        assert!(path("output.png").is_file());
    }
}

#[test]
fn prompts_are_cleaned_as_by_diffusers() {
    for folder in cases("prompt-cleaning") {
        let case = json(&folder.join("case.json"));
        let rows = case["rows"].as_array().expect("rows");
        assert!(!rows.is_empty());
        for row in rows {
            let field = |name: &str| row[name].as_str().expect("a text");
            assert_eq!(prompt::plain(field("text")), field("lower_strip"), "{}", field("text"));
            assert_eq!(prompt::clean(field("text")), field("cleaned"), "{}", field("text"));
        }
    }
}

/// Other prompts beside one change nothing for it, whatever their lengths.
#[test]
fn a_batch_of_prompts_is_what_each_is_alone() {
    let pipeline = open(&cases("pixart-sigma")[0]);
    let prompts = ["a cat", "a lighthouse in the fog, at night", "a cat", ""].map(str::to_owned);
    let latents = |prompts: &[String], seed: u64| {
        let request = Request { seed, steps: Some(3), ..Request::new(prompts.to_vec()) };
        pipeline.latents(&request, &mut |_| ControlFlow::Continue(())).expect("latents")
    };
    let together = latents(&prompts, 5);
    for (i, prompt) in prompts.iter().enumerate() {
        let alone = latents(std::slice::from_ref(prompt), 5 + i as u64);
        assert_close(prompt, together.clone().narrow(0, i, 1), alone, tolerance(2e-5));
    }
}

/// In smaller types it is nearly the same picture.
#[test]
fn weights_of_smaller_types_make_nearly_the_same_image() {
    for folder in cases("pixart-sigma").into_iter().chain(cases("pixart-alpha")) {
        let work = tempfile::tempdir().expect("a folder");
        let picture = |dtype: &str| {
            let options = ["a cat", "--steps", "4", "-s", "3", "--exact-size", "-W", "96"];
            let command = TestCommand::new(&work, ["generate", "text", "-H", "64", "-m"]);
            let output = ["--dtype", dtype, "-o", "a.png"];
            command.args([&folder]).args(options).args(output).on_cpu().succeeded();
            image::open(work.path().join("a.png")).expect("a picture").into_rgb8()
        };
        let exact = picture("f32");
        for dtype in ["f16", "bf16", "int8"] {
            let found = picture(dtype);
            let apart = found.as_raw().iter().zip(exact.as_raw()).map(|(a, b)| a.abs_diff(*b));
            let mean = apart.map(f64::from).sum::<f64>() / exact.as_raw().len() as f64;
            println!("{} {dtype}: {mean:.3} of 255", folder.display());
            assert!(mean < 4.0, "{dtype}: {mean}");
        }
    }
}

/// What is said of a prompt changes the image; what has no effect does not.
#[test]
fn options_of_texts_have_their_effect() {
    let pipeline = open(&cases("pixart-alpha")[0]);
    let plain = Request { steps: Some(2), ..Request::new(["<b>A Cat</b>".to_owned()]) };
    let latents = |request: &Request<String>| {
        pipeline.latents(request, &mut |_| ControlFlow::Continue(())).expect("latents")
    };
    let expected = latents(&plain);
    let same = |request: Request<String>| {
        let found = latents(&request);
        found.dims() == expected.dims() && relative_difference(found, expected.clone()) < 1e-6
    };
    let prompt = |text: &str| Request { prompts: vec![text.to_owned()], ..plain.clone() };
    assert!(same(prompt("a cat  ")));
    assert!(!same(prompt("a dog")));
    assert!(!same(Request { raw_prompt: true, ..plain.clone() }));
    assert!(same(Request { negative: Some(String::new()), ..plain.clone() }));
    assert!(!same(Request { negative: Some("a dog".into()), ..plain.clone() }));
    assert!(!same(Request { tokens: Some(2), ..plain.clone() }));
    // Of 1024 pixels a side; the network is told the size as well.
    let sized = |exact_size| Request { size: Some([64, 192]), exact_size, ..plain.clone() };
    assert_eq!(latents(&sized(true)).dims()[2..], [8, 24]);
    let near = pipeline.shape(1, &sized(false).settings(&pipeline.config().defaults));
    assert_eq!(near.expect("a size")[2..], [72, 216]);
}

#[test]
fn pictures_of_texts_are_made_again() {
    let (folder, model) = (tempfile::tempdir().expect("a folder"), &cases("pixart-sigma")[0]);
    let text = |args: &[&str]| TestCommand::new(&folder, ["generate", "text"]).args(args);
    let options =
        ["A <b>Cat</b>", "a dog", "--negative-prompt", "a bird", "--steps", "2", "-W", "70"];
    let output = ["-s", "3", "-o", "{prompt}-%d.png", "--json"];
    let lines = text(&options).args(output).args(["-H", "99", "-m"]).args([model]).succeeded();
    let lines: Vec<Value> =
        lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0]["prompts"][0], "A <b>Cat</b>");
    assert_eq!(lines[1]["file"], "a-dog-1.png");
    let path = |name: &str| folder.path().join(name);
    let again = text(&["--from-metadata", "a-dog-1.png", "-o", "again.png", "-m"]).args([model]);
    again.succeeded();
    let pixels = |name: &str| image::open(path(name)).expect("a picture").into_rgb8();
    assert_eq!(pixels("again.png").dimensions(), (70, 99));
    assert_same_pixels("again", &pixels("a-dog-1.png"), &pixels("again.png"));
    let texts = pyrograph::metadata::read(&path("again.png")).expect("texts");
    assert!(texts["parameters"].starts_with("a dog\nNegative prompt: a bird\nSteps: 2, "));
    let class = TestCommand::new(&folder, ["generate", "class", "--from-metadata", "again.png"]);
    let error = class.args(["-m".as_ref(), model.as_os_str()]).failed();
    assert!(error.contains("generate text"), "{error}");
}

fn set(path: &Path, key: &str, value: Value) {
    let mut config = json(path);
    config[key] = value;
    std::fs::write(path, config.to_string()).expect("written");
}

fn generate(folder: &Path, model: impl AsRef<Path>, args: &[&str]) -> TestCommand {
    let command = TestCommand::new(folder, ["generate", "text", "--steps", "1", "-m"]);
    command.args([model.as_ref()]).args(args)
}

/// Everything is said before the first step.
#[test]
fn faults_of_models_are_named() {
    let work = tempfile::tempdir().expect("a folder");
    let golden = &cases("pixart-sigma")[0];
    let refused = |expected: &str, change: &dyn Fn(&Path)| {
        let path = work.path().join("model");
        copy_folder(golden, &path);
        change(&path);
        let error = generate(work.path(), "model", &["a cat"]).failed();
        assert!(error.contains(expected), "{expected}: {error}");
        assert!(pyrograph::model::recognise(&path).is_err());
        std::fs::remove_dir_all(&path).expect("removed");
    };
    for part in ["tokenizer", "text_encoder"] {
        let remove = |path: &Path| std::fs::remove_dir_all(path.join(part)).expect("removed");
        refused(&format!("no folder {part}"), &remove);
    }
    let file = "tokenizer/spiece.model";
    refused("spiece.model", &|path| std::fs::remove_file(path.join(file)).expect("removed"));
    for (file, key, value, expected) in [
        ("text_encoder", "model_type", "llama".into(), "llama"),
        ("text_encoder", "d_model", Value::from(64), "[512, 64]"),
        ("transformer", "caption_channels", 64.into(), "width 32, the network reads 64"),
    ] {
        refused(expected, &|path| set(&path.join(file).join("config.json"), key, value.clone()));
    }
    refused("SanaPipeline", &|path| {
        set(&path.join("model_index.json"), "_class_name", "SanaPipeline".into());
    });
    // As the scheduler files of this pipeline have it, which opens.
    let scheduler = std::fs::read_to_string(golden.join("scheduler/scheduler_config.json"));
    assert!(scheduler.expect("a file").contains("-Infinity"));
}

#[test]
fn faults_of_prompts_are_named() {
    let (work, model) = (tempfile::tempdir().expect("a folder"), &cases("pixart-sigma")[0]);
    let text = |args: &[&str]| generate(work.path(), model, args);
    let negative = ["a cat", "--cfg-scale", "1", "--negative-prompt", "a dog"];
    for (args, expected) in [
        (&[][..], "no prompt"),
        (&["--prompt-file", "gone.txt"], "gone.txt"),
        (&negative, "--negative-prompt has no effect"),
        (&["a cat", "a dog", "-n", "1"], "2 prompts for 1 image: "),
        (&["a cat", "-W", "100", "--exact-size"], "16"),
        (&["a cat", "--max-tokens", "0"], "--max-tokens"),
    ] {
        let ended = text(args).ended();
        assert_ne!(ended.code, Some(0), "{args:?}");
        assert!(ended.error.contains(expected), "{args:?}: {}", ended.error);
    }
    let long = "a lighthouse in the fog ".repeat(200);
    let said = text(&[&long, "--exact-size", "-W", "96", "-H", "96"]).reported();
    assert!(said.contains("the model reads 300 tokens of a prompt, not its end: "), "{said}");
    assert!(said.contains("trained at about 256x256, 96x96 may look wrong"), "{said}");
}

fn convert(folder: &Path, model: impl AsRef<Path>, output: &str) -> TestCommand {
    TestCommand::new(folder, ["convert", "--dtype", "f32", "-o", output]).args([model.as_ref()])
}

/// A bundle holds the text encoder and its tokenizer, and makes the same images.
#[test]
fn bundles_hold_what_reads_texts() {
    let work = tempfile::tempdir().expect("a folder");
    let path = |name: &str| work.path().join(name);
    let texts = ["a lighthouse", "", "three lighthouses in the fog, and a boat"].map(str::to_owned);
    for name in PIPELINES {
        let folder = &cases(name)[0];
        let again = format!("{name}-again");
        convert(work.path(), folder, name).succeeded();
        convert(work.path(), path(name), &again).succeeded();
        let plain = Request::new(texts.clone());
        let request = Request { steps: Some(2), size: Some([64, 64]), exact_size: true, ..plain };
        let [own, bundled, again] = [folder, &path(name), &path(&again)].map(|model| {
            let made = open(model).generate(&request, &mut |_| ControlFlow::Continue(()));
            made.expect("images").images
        });
        assert!(own == bundled && own == again, "{name}");
        let model = Bundle::open(path(name)).expect("a bundle");
        assert_eq!(model.manifest().family, "text");
    }
    // Of a checkpoint that has neither.
    let alpha = &cases("pixart-alpha")[0];
    let file = pixart::original(&cases("pixart-original")[0], work.path(), ".pth");
    let whole = convert(work.path(), &file, "whole").args(["--vae".as_ref(), alpha.as_os_str()]);
    whole.args(["--text-encoder".as_ref(), alpha.as_os_str()]).succeeded();
    let small = ["a cat", "--exact-size", "-W", "64", "-H", "64"];
    generate(work.path(), "whole", &small).succeeded();
    let bare = convert(work.path(), &file, "bare").args(["--vae".as_ref(), alpha.as_os_str()]);
    let said = bare.reported();
    assert!(said.contains("no text encoder"), "{said}");
    let error = generate(work.path(), "bare", &["a cat"]).failed();
    assert!(error.contains("--text-encoder"), "{error}");
}

#[test]
fn faults_of_bundles_with_texts_are_named() {
    let work = tempfile::tempdir().expect("a folder");
    let path = |name: &str| work.path().join("model").join(name);
    let refuse = |part: &str| {
        let error = generate(work.path(), "model", &["a cat"]).failed();
        assert!(error.contains(part), "{error}");
    };
    convert(work.path(), &cases("pixart-sigma")[0], "model").succeeded();
    let mut bytes = std::fs::read(path("text.safetensors")).expect("a part");
    *bytes.last_mut().expect("not empty") ^= 1;
    std::fs::write(path("text.safetensors"), bytes).expect("written");
    refuse("text.safetensors");
    let mut model = json(&path("model.json"));
    write_safetensors(&path("text.safetensors"), &[], &Default::default()).expect("written");
    let length = std::fs::metadata(path("text.safetensors")).expect("a file").len();
    model["parts"]["text"]["bytes"] = length.into();
    std::fs::write(path("model.json"), model.to_string()).expect("written");
    refuse("tokenizer: none beside the weights");
    model["parts"].as_object_mut().expect("parts").remove("text");
    std::fs::write(path("model.json"), model.to_string()).expect("written");
    refuse("no part `text`");
}

#[test]
fn commands_for_classes_refuse_models_of_texts() {
    let (work, model) = (tempfile::tempdir().expect("a folder"), &cases("pixart-sigma")[0]);
    let path = model.to_str().expect("a path in Unicode");
    let other = "is told texts, expected one that is told classes";
    for (args, part) in [
        (&["generate", "class", "-m", path][..], other),
        (
            &["train", "class", "--data", "data", "-o", "out", "--init", path],
            "train a model of texts with `pyrograph train text`",
        ),
        (
            &["distill", "record", "-m", path, "-o", "out"],
            "the teacher reads texts: name a file of prompts with --prompt-file",
        ),
    ] {
        let error = TestCommand::new(&work, args).failed();
        assert!(error.contains(part), "{args:?}: {error}");
        assert!(!work.path().join("out").exists(), "{args:?}");
    }
    // These take both.
    let flexify = ["flexify", path, "--patches", "4", "-o", "flexible"];
    TestCommand::new(&work, flexify).succeeded();
    TestCommand::new(&work, ["merge", path, path, "-o", "merged"]).succeeded();
    let bench = |tokens: &str| -> Vec<serde_json::Value> {
        let bench = ["bench", "encode", "forward", "generate", "-m", path, "--runs", "1"];
        let said = TestCommand::new(&work, bench)
            .args(["--steps", "1", "--text-tokens", tokens])
            .succeeded();
        said.lines().map(|line| serde_json::from_str(line).expect("a line")).collect()
    };
    let names = |lines: &[serde_json::Value]| -> Vec<String> {
        lines.iter().map(|line| line["bench"].as_str().expect("a name").to_owned()).collect()
    };
    let [few, many] = [bench("3"), bench("60")];
    assert_eq!(names(&few), ["encode", "forward", "generate"]);
    // Operations are those of the text, too.
    let operations = |line: &serde_json::Value| {
        let number = |name: &str| line[name].as_f64().expect(name);
        number("gflops") * number("wall_median_s")
    };
    assert!(operations(&many[1]) > 1.01 * operations(&few[1]), "{few:?} {many:?}");
    TestCommand::new(&work, ["inspect", path]).succeeded();
    let text = TestCommand::new(&work, ["generate", "text", "a cat", "-m", "emoji-class"]).failed();
    assert!(text.contains("generate class"), "{text}");
}
