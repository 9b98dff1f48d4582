//! Models of texts, from images with captions.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::tensor::{Tensor, TensorData};
use pyrograph::data::{Annotation, Dataset, Reading};
use pyrograph::model::{open, recognise};
use pyrograph::train::{Run, TrainConfig};
use pyrograph::{Error, OpenOptions, Request, Result, TextPipeline};
use pyrograph_weights::Checkpoint;

use crate::command::TestCommand;
use crate::resume::dataset;
use crate::util::{
    assert_close, assert_same_parameters, device, first_and_last_loss, goldens,
    relative_difference, text, train_until, write_pictures,
};

/// A tiny T5 with its tokenizer, in the folder of a pipeline.
fn encoder() -> PathBuf {
    goldens().join("pixart-sigma")
}

const COLOURS: [(&str, [u8; 4]); 2] = [("red", [220, 20, 20, 255]), ("blue", [20, 20, 220, 255])];

/// Squares of one colour, five each.
fn squares(folder: &Path) {
    write_pictures(folder, &COLOURS.map(|(name, _)| name), |class, _, _| COLOURS[class].1);
}

/// The pictures of [`squares`] with two captions each, in text files beside them.
fn captioned(folder: &Path) {
    squares(folder);
    for (colour, _) in COLOURS {
        for i in 0..5 {
            let captions = format!("a {colour} square\n\n  {colour} paper \n");
            fs::write(folder.join(colour).join(format!("{i}.txt")), captions).expect("written");
        }
    }
}

fn read(folder: &Path) -> Result<Dataset> {
    let annotation = Annotation::Captions;
    Dataset::read(folder, Reading { size: [8, 8], annotation, ..Reading::default() })
}

fn config(changes: &[&str]) -> TrainConfig {
    let text = "batch = 6\nmicro_batches = 2\nlog_every = 2\nsample_every = 0\ncheckpoint_every = 4\n\
                label_dropout = 0.2\nlearning_rate = { peak = 0.03, warmup = 5 }\n\
                [model]\nsize = [8, 8]\npatch = 4\nhidden = 16\ndepth = 2\nheads = 2\n";
    let mut changes: Vec<String> = changes.iter().map(|&change| change.to_owned()).collect();
    changes.push(format!("text_encoder={}", serde_json::json!(encoder())));
    TrainConfig::parse(text, &changes).expect("valid")
}

fn start(folder: &Path, config: TrainConfig, data: Dataset, resume: bool) -> Result<Run> {
    Run::on_images(folder, config, data, resume, &device())
}

/// Means of the red, green and blue of an image, `[1, 3, height, width]`.
fn means(image: Tensor<4>) -> Vec<f32> {
    let means: Tensor<4> = image.mean_dim(2).mean_dim(3);
    means.into_data().iter::<f32>().collect()
}

/// Trains a model of the two colours in `run`.
fn learned(folder: &Path) {
    captioned(&folder.join("data"));
    let data = read(&folder.join("data")).expect("ten pictures");
    assert_eq!(data.captions().len(), 4, "{:?}", data.captions());
    assert!(data.classes().is_empty() && data.notices().is_empty(), "{:?}", data.notices());
    let config = config(&["steps=160"]);
    let mut run = start(&folder.join("run"), config, data, false).expect("a run");
    assert!(train_until(&mut run, None).is_continue());
}

/// Mean red, green and blue of what a model makes of a prompt, which may be all of one colour.
fn colour(pipeline: &TextPipeline, prompt: &str) -> Vec<f32> {
    let request = Request { seed: 5, ..Request::new([prompt.to_owned()]) };
    let made = pipeline.sketch(&request, &mut |_| ControlFlow::Continue(()));
    means(made.expect("a picture").latents)
}

/// A LoRA learns what the model does not know, from a few pictures; the model stays as it was, bit for bit, and without the
/// LoRA makes what it made.
#[test]
fn a_lora_learns_a_new_concept_beside_the_model() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    learned(folder.path());
    let model = || TextPipeline::open(at("run"), &OpenOptions::default()).expect("a model");
    let weights = || fs::read(at("run/model/dit.safetensors")).expect("weights");
    let (mut pipeline, before) = (model(), weights());
    let known = colour(&pipeline, "a red square");
    let bare = colour(&pipeline, "a zed");

    // Green ones.
    write_pictures(&at("new"), &["zed"], |_, _, _| [20, 220, 20, 255]);
    for i in 0..5 {
        fs::write(at("new/zed").join(format!("{i}.txt")), "a zed").expect("written");
    }
    let command = |args: &[&str]| TestCommand::new(folder.path(), args).on_cpu();
    let train = ["train", "lora", "-m", "run", "--data", "new", "-o", "lora", "--rank", "4"];
    let train = command(&train).args(["--steps", "150", "--batch", "4", "--lr", "0.02"]);
    let said = train.settings(&["sample_every=75"]).reported();
    assert!(said.contains("trains ") && said.contains("finished: lora/lora.safetensors"), "{said}");
    assert!(at("lora/samples/0000150.png").exists());
    assert!(!at("lora/model").exists());
    assert_eq!(weights(), before);

    let lora = pipeline.adapter(at("lora"), None, &mut |_| ()).expect("a LoRA");
    assert_eq!(lora.ranks(), [4, 4]);
    let id = pipeline.put_on(lora, 1.0).expect("put on");
    let found = colour(&pipeline, "a zed");
    let greener = |colour: &[f32]| colour[1] - colour[0].max(colour[2]);
    assert!(greener(&found) > 0.5 && greener(&bare) < 0.3, "{bare:?} without, {found:?} with it");
    pipeline.take_off(id).expect("it is on");
    assert_eq!(colour(&pipeline, "a zed"), bare);
    assert_eq!(colour(&pipeline, "a red square"), known);

    // Goes on to the same as one without a break.
    let parts = ["train", "lora", "-m", "run", "--data", "new", "-o", "parts", "--rank", "4"];
    let options = ["--batch", "4", "--lr", "0.02"];
    command(&parts).args(options).args(["--steps", "70"]).settings(&["sample_every=75"]).reported();
    let resume = ["train", "lora", "--resume", "parts", "--steps", "150"];
    let other = command(&["train", "lora", "--resume", "run"]).failed();
    assert!(other.contains("the run makes a model, no LoRA"), "{other}");
    let warned = command(&resume).reported();
    assert!(warned.contains("resumed at step 70"), "{warned}");

    for (settings, part) in [
        ("lora.rank=99", "lora.rank is 99, expected 1 to 16"),
        ("lora.layers=[\"head\"]", "lora.layers has `head`, expected some of attention, mlp"),
        ("snapshot_every=5", "a LoRA has no snapshots"),
    ] {
        let train = ["train", "lora", "-m", "run", "--data", "new", "-o", "x"];
        let error = command(&train).settings(&[settings]).failed();
        assert!(error.contains(part), "{error}");
    }
    assert!(!at("x").exists());
    let class = ["train", "text", "--init", "run", "--data", "new", "-o", "x"];
    let error = command(&class).settings(&["lora.rank=4"]).failed();
    assert!(error.contains("pyrograph train lora"), "{error}");
}

/// What is learned shows in pictures, by the words that the captions have; what the run keeps is a model that works alone.
#[test]
fn a_model_learns_what_captions_say() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    learned(folder.path());
    let [first, last] = first_and_last_loss(&at("run"));
    assert!(last < 0.3 * first, "loss {first} to {last}");

    // Its own text encoder is in it.
    let model = open(&at("run").join("model"), &device()).expect("a model");
    let pipeline = TextPipeline::new(model, &device()).expect("of texts");
    for prompt in ["a red square", "Red paper", "a blue square", "blue paper"] {
        let found = colour(&pipeline, prompt);
        let red = prompt.to_lowercase().contains("red");
        assert_eq!(found[0] > found[2] + 0.5, red, "{prompt}: {found:?}");
        assert_eq!(found[2] > found[0] + 0.5, !red, "{prompt}: {found:?}");
    }
    probes_read_it_off(folder.path());
}

/// Probes that learn from real squares read the colour off those that the model in `run` makes of their captions.
fn probes_read_it_off(folder: &Path) {
    squares(&folder.join("listed"));
    let images = || COLOURS.iter().flat_map(|(colour, _)| (0..5).map(move |i| (*colour, i)));
    let write = |prompt: &dyn Fn(&str) -> String| {
        let line = |(colour, i): (&str, i32)| {
            let (file, prompt) = (format!("{colour}/{i}.png"), prompt(colour));
            serde_json::json!({"file_name": file, "text": "paper", "colour": colour, "asked": prompt})
                .to_string()
        };
        let lines: Vec<String> = images().map(line).collect();
        fs::write(folder.join("listed/metadata.jsonl"), lines.join("\n")).expect("written");
    };
    let eval = ["eval", "text", "--reference", "listed", "--columns", "colour", "-n", "8"];
    let command = |args: &[&str]| TestCommand::new(folder, eval).args(args).on_cpu();
    let judged = |args: &[&str]| -> [f64; 2] {
        let asked = ["-m", "run", "--prompts", "asked", "--held-out", "listed"];
        let said = command(&asked).args(args).succeeded();
        let found: serde_json::Value = serde_json::from_str(&said).expect("one line");
        assert!(found["held_out"]["kid_efflite0"]["value"].is_number(), "{found}");
        ["real", "made"].map(|part| {
            let first = &found["held_out"][part][0];
            assert_eq!((&first["column"], &first["images"]), (&"colour".into(), &8.into()));
            first["first"]["value"].as_f64().expect("a share")
        })
    };
    write(&|colour| format!("a {colour} square"));
    assert_eq!(judged(&[]), [1.0, 1.0]);
    // With features that are kept, and then with the same, read.
    for _ in 0..2 {
        assert_eq!(judged(&["--cache", "kept"]), [1.0, 1.0]);
        assert_eq!(fs::read_dir(folder.join("kept")).expect("a folder").count(), 1);
    }
    write(&|colour| format!("a {} square", if colour == "red" { "blue" } else { "red" }));
    assert_eq!(judged(&[]), [1.0, 0.0]);

    // What the model cannot do is said before anything is measured.
    for (option, part) in [("--steps", "11111"), ("--sampler", "none")] {
        let said = command(&["-m", "run", option, part]).ended();
        assert!(said.code != Some(0) && said.error.contains(part), "{}", said.error);
    }
    let said = TestCommand::new(folder, eval).args(["--columns", "shape"]).on_cpu().failed();
    assert!(said.contains("metadata.jsonl: no `shape`"), "{said}");
    let eval = ["eval", "text", "--reference", "data", "--columns", "colour"];
    let said = TestCommand::new(folder, eval).on_cpu().failed();
    assert!(said.contains("no list that could have a column `colour`"), "{said}");
}

/// A student is told what its teacher was told: with the prompts exchanged it is far off. Further patch sizes are learned from
/// pictures of prompts.
#[test]
fn students_and_further_patch_sizes_come_from_a_file_of_prompts() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    learned(folder.path());
    fs::write(at("prompts.txt"), "a red square\n\na blue square\n").expect("written");
    let command = |args: &[&str]| TestCommand::new(folder.path(), args).on_cpu();

    let distill = ["distill", "-m", "run", "-o", "student", "-n", "16", "--batch-size", "8"];
    let distill = command(&distill).args(["--teacher-steps", "8", "--steps", "40", "--batch", "8"]);
    let without = command(&["distill", "-m", "run", "-o", "student"]).failed();
    assert!(without.contains("name a file of prompts with --prompt-file"), "{without}");
    // The pictures by which heads judge it have captions, too.
    let judged = ["--prompt-file", "prompts.txt", "--adversarial", "data"];
    let settings = ["sample_every=0", "adversarial.warmup=5", "adversarial.weight=0.1"];
    distill.args(judged).settings(&settings).succeeded();
    let wrong = ["distill", "-m", "emoji-class", "-o", "x", "--prompt-file", "prompts.txt"];
    assert!(command(&wrong).failed().contains("the teacher is told classes"));

    let set = at("student/trajectories/trajectories.json");
    let last = || -> f64 {
        let compare = ["distill", "compare", "-m", "student", "--json", "--trajectories"];
        let said = command(&compare).args(["student/trajectories"]).succeeded();
        let found: serde_json::Value = serde_json::from_str(&said).expect("one line");
        found["own"][3]["value"].as_f64().expect("a number")
    };
    let told = last();
    let spec = fs::read_to_string(&set).expect("a description");
    let exchanged = spec.replace("red", "RED").replace("blue", "red").replace("RED", "blue");
    assert_ne!(exchanged, spec);
    fs::write(&set, exchanged).expect("written");
    let otherwise = last();
    assert!(otherwise > 5.0 * told, "{told} with its own prompts, {otherwise} with others");
    let picture = ["generate", "text", "a red square", "-m", "student", "--seed", "3"];
    command(&picture).args(["-o", "student.png"]).ended();

    let flexify = ["flexify", "run", "-o", "flexible", "--patches", "8", "--distill", "4"];
    let without = command(&flexify).failed();
    assert!(without.contains("name a file of prompts"), "{without}");
    let pictures = ["--pictures", "4", "--prompt-file", "prompts.txt"];
    let said = command(&flexify).args(pictures).reported();
    assert!(said.contains("patch sizes [4, 8]"), "{said}");
}

#[test]
fn a_run_that_goes_on_equals_one_without_a_break() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    captioned(&at("data"));
    let data = || read(&at("data")).expect("ten pictures");
    let train = |name: &str, stop: Option<u64>, resume| {
        let mut run = start(&at(name), config(&["steps=7"]), data(), resume).expect("a run");
        let _ = train_until(&mut run, stop);
        run
    };
    let whole = train("whole", None, false);
    drop(train("parts", Some(3), false));
    // What the encoder made of the captions is there; where it is damaged it is made again.
    let kept = at("parts").join("captions.safetensors");
    let mut bytes = fs::read(&kept).expect("a file");
    *bytes.last_mut().expect("not empty") ^= 1;
    fs::write(&kept, bytes).expect("written");
    let parts = train("parts", None, true);
    assert_same_parameters("resumed", &whole.net(), &parts.net());
    drop(parts);

    // Other captions are another run.
    fs::write(at("data").join("red/0.txt"), "a scarlet square").expect("written");
    let error = start(&at("parts"), config(&["steps=9"]), data(), true).err().expect("refused");
    assert!(error.to_string().contains("data"), "{error}");
}

/// Lists and text files that say the same are the same data.
#[test]
fn captions_come_from_text_files_and_from_lists() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    captioned(&at("files"));
    squares(&at("lines"));
    squares(&at("table"));
    let images = || COLOURS.iter().flat_map(|(colour, _)| (0..5).map(move |i| (*colour, i)));
    let line = |(colour, i): (&str, i32)| {
        let texts = [format!("a {colour} square"), format!("{colour} paper")];
        serde_json::json!({"file_name": format!("{colour}/{i}.png"), "text": texts}).to_string()
    };
    let lines: Vec<String> = images().map(line).collect();
    fs::write(at("lines/metadata.jsonl"), lines.join("\n")).expect("written");
    let row = |(colour, i): (&str, i32)| format!("{colour}/{i}.png,\"a {colour} square, plain\"\n");
    let table: String = images().map(row).collect();
    fs::write(at("table/metadata.csv"), format!("file_name,caption\n{table}")).expect("written");

    let identity = |name: &str| read(&at(name)).expect(name).identity();
    assert_eq!(identity("files"), identity("lines"));
    let table = read(&at("table")).expect("a list");
    assert_eq!(table.captions(), ["a blue square, plain", "a red square, plain"]);
    // The same list is none of classes.
    let error = Dataset::open(&at("table"), [8, 8], Default::default()).expect_err("no labels");
    assert!(error.to_string().contains("no `label`, there is `file_name`, `caption`"), "{error}");
}

#[test]
fn what_is_missing_or_wrong_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    captioned(&at("data"));
    let said = |result: Result<Dataset>| result.expect_err("refused").to_string();
    let list = at("data").join("metadata.jsonl");
    for (line, part) in [
        (r#"{"file_name": "red/0.png", "label": "x"}"#, "no `text`, there is `file_name`, `label`"),
        (
            r#"{"file_name": "red/0.png", "text": " "}"#,
            "line 1: the caption of `red/0.png` is empty",
        ),
        (r#"{"file_name": "red/0.png", "text": []}"#, "is empty"),
        (r#"{"file_name": "red/0.png", "text": 7}"#, "line 1: a caption is 7, expected a text"),
        (r#"{"file_name": "../0.png", "text": "x"}"#, "leaves the folder"),
    ] {
        fs::write(&list, line).expect("written");
        let said = said(read(&at("data")));
        assert!(said.contains(part), "{line}: {said}");
    }
    fs::remove_file(&list).expect("removed");

    fs::remove_file(at("data/red/3.txt")).expect("removed");
    fs::write(at("data/blue/1.txt"), " \n\n").expect("written");
    let error = said(read(&at("data")));
    assert!(
        error.contains("2 images without a caption, such as") && error.contains("blue/1.png"),
        "{error}"
    );
    let annotation = Annotation::Captions;
    let skip = Reading { size: [8, 8], annotation, skip_damaged: true, ..Reading::default() };
    let data = Dataset::read(&at("data"), skip).expect("the others");
    let notices: Vec<String> = data.notices().iter().map(ToString::to_string).collect();
    assert_eq!(data.len(), 8);
    assert!(notices.iter().any(|text| text.contains("2 pictures without captions")), "{notices:?}");

    // Classes for a model of texts, and the reverse.
    squares(&at("classes"));
    let fault = |config: TrainConfig, data: Dataset| {
        let error: Error = start(&at("run"), config, data, false).err().expect("refused");
        error.to_string()
    };
    let error = fault(config(&[]), dataset(&at("classes")));
    assert!(error.contains("text_encoder is set, the images have classes"), "{error}");
    let plain = TrainConfig { text_encoder: None, ..config(&[]) };
    let error = fault(plain.clone(), data);
    assert!(error.contains("the images have captions"), "{error}");
    let mut long = plain;
    long.captions.tokens = 7;
    let error = fault(long.clone(), dataset(&at("classes")));
    assert!(error.contains("captions is set, a run without text_encoder"), "{error}");
    long.captions = Default::default();
    long.model.pooled = true;
    let error = fault(long, dataset(&at("classes")));
    assert!(error.contains("model.pooled is set, a run without text_encoder"), "{error}");
    assert!(!at("run").exists());
}

#[test]
fn the_command_trains_goes_on_and_starts_from_a_model() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    captioned(&at("data"));
    let settings = at("settings.toml");
    fs::write(&settings, "batch = 4\nsample_every = 3\n[model]\nsize = [8, 8]\npatch = 4\nhidden = 16\ndepth = 1\nheads = 2\n")
        .expect("written");
    let encoder = encoder();
    let train =
        |extra: &[&str]| TestCommand::new(folder.path(), ["train", "text"]).args(extra).on_cpu();
    let new = ["--data", "data", "--config", text(&settings), "-o", "run", "--steps", "3"];
    let without = train(&new).failed();
    assert!(without.contains("no text encoder: name one with --text-encoder"), "{without}");
    assert!(!at("run").exists());

    let said = train(&new).args(["--text-encoder", text(&encoder)]).settings(&[
        "captions.tokens=2",
        "model.pooled=true",
        "weighting=\"velocity\"",
        "perceptual.weight=0.5",
    ]);
    let said = said.reported();
    assert!(said.contains("10 images with 4 captions"), "{said}");
    assert!(said.contains("4 captions cut off after 2 tokens, such as `a blue square`"), "{said}");
    assert!(at("run/samples/0000003.png").exists());
    let said = train(&["--resume", "run", "--steps", "5"]).reported();
    assert!(said.contains("resumed at step 3"), "{said}");
    let model = recognise(&at("run/model")).expect("a model");
    assert_eq!(model.config.text.expect("of texts").tokens, 2);
    assert!(model.config.net.dit.pools());

    // From there on, with its own encoder and way of reading.
    let next = ["--data", "data", "--init", "run", "--steps", "2", "--batch", "4"];
    train(&next).args(["-o", "next"]).succeeded();
    let error = train(&next).args(["-o", "other"]).settings(&["captions.tokens=9"]).failed();
    let told = "the model that the run starts from";
    assert!(error.contains("captions is") && error.contains(told), "{error}");

    let prompt = ["generate", "text", "a red square", "-m", "next", "-o", "picture.png"];
    TestCommand::new(folder.path(), prompt).args(["--steps", "2", "--seed", "1"]).on_cpu().ended();
    let of_classes = ["--data", "data", "--init", "emoji-class", "--text-encoder", text(&encoder)];
    let error = train(&of_classes).args(["-o", "other"]).failed();
    assert!(
        error.contains("told classes, expected one that is told texts: leave --init out"),
        "{error}"
    );
    // A model of texts is none of classes.
    let class = ["train", "class", "--data", "data", "--init", "run"];
    let error = TestCommand::new(folder.path(), class).on_cpu().failed();
    assert!(error.contains("pyrograph train text"), "{error}");
}

/// A LoRA of PixArt has the names that diffusers has for its layers, and is the same in the weights as beside them.
#[test]
fn a_lora_of_pixart_is_written_as_diffusers_names_it() {
    let folder = tempfile::tempdir().expect("a folder");
    captioned(&folder.path().join("data"));
    let model = encoder();
    let command = |args: &[&str]| TestCommand::new(folder.path(), args).on_cpu();
    let train = ["train", "lora", "-m", text(&model), "--data", "data", "-o", "run"];
    let sizes = ["--steps", "3", "--batch", "2", "--rank", "2", "--lr", "0.05"];
    command(&train).args(sizes).settings(&["sample_every=0"]).succeeded();
    let file = Checkpoint::open(folder.path().join("run/lora.safetensors")).expect("a LoRA");
    let name = |layer: &str| format!("transformer.transformer_blocks.0.{layer}.lora_B.weight");
    for layer in ["attn1.to_q", "attn1.to_out.0", "attn2.to_v", "ff.net.0.proj", "ff.net.2"] {
        assert!(file.tensors().contains_key(&name(layer)), "{layer}: {:?}", file.tensors().keys());
    }
    let merge = ["merge", text(&model), "--lora", "run", "-o", "merged", "--dtype", "f32"];
    command(&merge).succeeded();
    let latents = |output: &str, args: &[&str]| -> Tensor<4> {
        let generate = ["generate", "text", "a lighthouse", "--steps", "2", "--seed", "4", "-o"];
        let latents = format!("{output}.safetensors");
        let asked = command(&generate).args([&format!("{output}.png"), "--save-latents", &latents]);
        // A network of random weights may make a picture of one colour.
        asked.args(args).ended();
        let file = Checkpoint::open(folder.path().join(latents)).expect("latents");
        let (values, shape) = file.read_f32("latents").expect("latents");
        Tensor::from_data(TensorData::new(values, shape), &device())
    };
    let bare = latents("bare", &["-m", text(&model)]);
    let put_on = latents("with", &["-m", text(&model), "--lora", "run"]);
    let merged = latents("merged", &["-m", "merged"]);
    assert!(relative_difference(put_on.clone(), bare) > 1e-3);
    assert_close("merged", merged, put_on, 1e-5);
}
