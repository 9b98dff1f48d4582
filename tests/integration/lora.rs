//! LoRA files on opened networks.

use std::path::{Path, PathBuf};

use burn::tensor::{Tensor, TensorData};
use pyrograph::adapter::{Adapter, Adapters};
use pyrograph::model::{self, Model};
use pyrograph_engine::nets::{Conditioning, Net};
use pyrograph_engine::random::Generator;
use pyrograph_weights::{Checkpoint, write_safetensors};

use crate::command::TestCommand;
use crate::util::{
    Case, assert_close, assets, device, identical, relative_difference, root, text, tolerance,
    write_pictures,
};

/// See `make_lora.py` there.
fn fixtures() -> PathBuf {
    root().join("tests/fixtures")
}

fn model() -> Model {
    model::open(&fixtures().join("goldens/dit-pipeline"), &device()).expect("a model")
}

fn adapter(file: &str, net: &Net) -> Adapter {
    let path = fixtures().join("lora").join(file);
    let notify = &mut |notice| panic!("{notice}");
    Adapter::open(&path, net, None, &device(), notify).unwrap_or_else(|error| panic!("{error}"))
}

fn output(net: &Net) -> Tensor<4> {
    let (case, device) = (Case::open(&fixtures().join("goldens/dit-pipeline")), device());
    let told = Conditioning::classes(&case.ids("forward_class"), &device);
    let [x, time] = ["forward_latents", "forward_timestep"];
    let (x, time, net) = (case.tensor(x, &device), case.tensor(time, &device), net.trunk());
    net.forward(x, time, &told, net.config().patch)
}

fn expected(weight: &str) -> Tensor<4> {
    let outputs = Checkpoint::open(fixtures().join("lora/outputs.safetensors")).expect("outputs");
    let (values, shape) = outputs.read_f32(&format!("output_{weight}")).expect("an output");
    Tensor::from_data(TensorData::new(values, shape), &device())
}

/// Those that the settings of a case list.
pub fn scales(settings: &serde_json::Value) -> Vec<f64> {
    let scales = settings["scales"].as_array().expect("scales").iter();
    scales.map(|scale| scale.as_f64().expect("a number")).collect()
}

/// LoRAs in these files are put on a network by each of these scales, by which a case knows the output, and taken off again.
pub fn assert_spellings(
    paths: impl IntoIterator<Item = PathBuf>,
    net: &mut Net,
    case: &Case,
    scales: &[f64],
    most: f64,
    output: impl Fn(&Net) -> Tensor<4>,
) -> usize {
    assert!(scales.len() >= 3, "{scales:?}");
    let mut seen = 0;
    for path in paths {
        let name = path.display();
        let lora = Adapter::open(&path, net, None, &device(), &mut |_| ());
        let lora = lora.unwrap_or_else(|error| panic!("{name}: {error}"));
        for &scale in scales {
            let mut adapters = Adapters::default();
            let id = adapters.put_on(net, lora.clone(), scale).expect("put on");
            let expected = case.tensor(&format!("output_scale_{scale}"), &device());
            assert_close(&format!("{name} by {scale}"), output(net), expected, tolerance(most));
            adapters.take_off(net, id).expect("on");
        }
        seen += 1;
    }
    seen
}

/// A LoRA of rank 2, drawn for the layers of a file to which `named` gives names in it: the network of the file with it gives what
/// that of weights gives which hold its product.
pub fn assert_product<const D: usize>(
    file: &Path,
    named: impl Fn(&str) -> Option<String>,
    open: impl Fn(&Path) -> Net,
    output: impl Fn(&Net) -> Tensor<D>,
) {
    let (work, plain) =
        (tempfile::tempdir().expect("a folder"), Checkpoint::open(file).expect("weights"));
    let mut draws = Generator::new(3);
    let (mut weights, mut lora) = (Vec::new(), Vec::new());
    for name in plain.tensors().keys() {
        let (mut values, shape) = plain.read_f32(name).expect("floats");
        let layer = name.strip_suffix(".weight").and_then(&named);
        if let (Some(layer), &[out, inputs]) = (layer, shape.as_slice()) {
            let [a, b] = [[2, inputs], [out, 2]].map(|shape: [usize; 2]| {
                let drawn = draws.normal(shape[0] * shape[1]);
                (drawn.into_iter().map(|x| x * 0.1).collect::<Vec<f32>>(), shape)
            });
            for (row, value) in values.iter_mut().enumerate() {
                let (o, i) = (row / inputs, row % inputs);
                *value += b.0[2 * o] * a.0[i] + b.0[2 * o + 1] * a.0[inputs + i];
            }
            for (matrix, (values, shape)) in [("A", a), ("B", b)] {
                let name = format!("diffusion_model.{layer}.lora_{matrix}.weight");
                lora.push((name, TensorData::new(values, shape)));
            }
        }
        weights.push((name.clone(), TensorData::new(values, shape)));
    }
    assert!(lora.len() >= 10, "{} matrices", lora.len());
    let written = |name: &str, tensors: &[(String, TensorData)]| {
        let path = work.path().join(name);
        write_safetensors(&path, tensors, &Default::default()).expect("written");
        path
    };
    let (merged, lora) =
        (written("merged.safetensors", &weights), written("lora.safetensors", &lora));
    let mut net = open(file);
    let (before, expected) = (output(&net), output(&open(&merged)));
    assert!(!before.all_close(expected.clone(), None, Some(1e-3)));
    let lora = Adapter::open(&lora, &net, Some(2.0), &device(), &mut |_| ()).expect("a LoRA");
    Adapters::default().put_on(&mut net, lora, 1.0).expect("put on");
    assert_close("adapted", output(&net), expected, tolerance(1e-5));
}

#[test]
fn a_network_with_a_lora_gives_what_peft_gives() {
    let mut net = model().net.folded();
    let bare = output(&net);
    for file in ["", "adapter_model.safetensors", "kohya.safetensors"] {
        let lora = adapter(file, &net);
        assert_eq!((lora.ranks(), lora.layers().count()), ([2, 3], 17), "{file}");
        let mut adapters = Adapters::default();
        let id = adapters.put_on(&mut net, lora, 1.0).expect("put on");
        assert_close(file, output(&net), expected("1.0"), tolerance(1e-5));
        assert!(relative_difference(bare.clone(), expected("1.0")) > 0.1);
        adapters.set_weight(&mut net, id, -0.5).expect("a weight");
        assert_close(file, output(&net), expected("-0.5"), tolerance(1e-5));
        adapters.take_off(&mut net, id).expect("it is on");
        assert!(identical(output(&net), bare.clone()), "{file}");
    }
}

#[test]
fn adapters_are_told_apart_by_what_they_were_given() {
    let mut net = model().net.folded();
    let lora = adapter("kohya.safetensors", &net);
    let mut adapters = Adapters::default();
    let whole = {
        let id = adapters.put_on(&mut net, lora.clone(), 1.0).expect("put on");
        let whole = output(&net);
        adapters.take_off(&mut net, id).expect("it is on");
        whole
    };
    let [first, second] =
        [0.75, 0.5].map(|weight| adapters.put_on(&mut net, lora.clone(), weight).expect("put on"));
    adapters.set_weight(&mut net, second, 0.25).expect("a weight");
    let weights: Vec<f64> = adapters.list().iter().map(|on| on.weight).collect();
    assert_eq!(weights, [0.75, 0.25]);
    assert_close("two halves", output(&net), whole, tolerance(1e-5));

    let before = output(&net);
    let fault = adapters.set_weight(&mut net, first, f64::NAN).expect_err("no weight");
    assert!(fault.to_string().contains("kohya.safetensors: weight NaN"), "{fault}");
    adapters.take_off(&mut net, first).expect("it is on");
    let fault = adapters.take_off(&mut net, first).expect_err("it is off");
    assert!(fault.to_string().contains("is not on"), "{fault}");
    adapters.put_on(&mut net, lora, 0.75).expect("put on");
    assert_close("the same two", output(&net), before, tolerance(1e-5));
}

/// A LoRA of one layer in every block of the shipped model, of rank 1.
fn write_lora(path: &Path, of: &str) {
    let weights =
        Checkpoint::open(assets().join("models/emoji-class/dit.safetensors")).expect("weights");
    let layers = weights.tensors().iter().filter_map(|(name, info)| {
        let name = name.strip_suffix(".weight").filter(|name| name.ends_with(of))?;
        Some((name, info.shape[0], info.shape[1]))
    });
    let ones =
        |rows, columns, value: f32| TensorData::new(vec![value; rows * columns], [rows, columns]);
    let tensors: Vec<(String, TensorData)> = layers
        .flat_map(|(name, inputs, outputs)| {
            [
                (format!("{name}.lora_A.weight"), ones(1, inputs, 0.05)),
                (format!("{name}.lora_B.weight"), ones(outputs, 1, 0.05)),
            ]
        })
        .collect();
    assert!(!tensors.is_empty(), "no layer {of}");
    write_safetensors(path, &tensors, &Default::default()).expect("written");
}

#[test]
fn loras_on_the_command_line_are_kept_in_pictures() {
    let folder = tempfile::tempdir().expect("a folder");
    write_lora(&folder.path().join("a.safetensors"), "mlp.down");
    write_lora(&folder.path().join("b.safetensors"), "attention.out");
    let picture = |name: &str| image::open(folder.path().join(name)).expect("a picture").to_rgb8();
    let generate = |name: &str, args: &[&str]| {
        let options = ["generate", "class", "-o", name, "--dtype", "int8"];
        TestCommand::new(&folder, options).on_cpu().args(args).reported()
    };
    let asked = ["--class", "5", "--seed", "3", "--steps", "4"];
    let with = |loras: &[&'static str]| [&asked[..], loras].concat();
    generate("bare.png", &asked);
    let said =
        generate("on.png", &with(&["--lora", "a.safetensors", "--lora", "b.safetensors:-0.5"]));
    assert!(said.contains("warning: a.safetensors: no alpha is stored"), "{said}");
    assert_ne!(picture("on.png"), picture("bare.png"));
    generate("zero.png", &with(&["--lora", "a.safetensors:0", "--lora", "b.safetensors:0"]));
    assert_eq!(picture("zero.png"), picture("bare.png"));
    generate("one.png", &with(&["--lora", "a.safetensors"]));
    assert_ne!(picture("one.png"), picture("on.png"));

    let again = ["--from-metadata", "on.png"];
    generate("again.png", &again);
    assert_eq!(picture("again.png"), picture("on.png"));
    generate("other.png", &[&again[..], &["--lora", "a.safetensors"]].concat());
    assert_eq!(picture("other.png"), picture("one.png"));
    write_lora(&folder.path().join("b.safetensors"), "mlp.up");
    let said = generate("changed.png", &again);
    assert!(said.contains("warning: b.safetensors was "), "{said}");

    let other = fixtures().join("lora/kohya.safetensors");
    let command = ["generate", "class", "--lora", other.to_str().expect("a path in UTF-8")];
    let error = TestCommand::new(&folder, command).on_cpu().failed();
    assert!(error.contains("unused") && error.contains("lora_unet_"), "{error}");
    assert!(
        TestCommand::new(&folder, ["generate", "class", "--lora", ":1"]).misused().contains("FILE")
    );
}

/// In the weights, a LoRA does what it does beside them, at every weight; where weights are normalised it cannot be added.
#[test]
fn a_merged_lora_equals_one_that_is_put_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let (model, lora) = (fixtures().join("goldens/dit-pipeline"), fixtures().join("lora"));
    let merge = |args: &[&str]| TestCommand::new(folder.path(), ["merge"]).args(args).on_cpu();
    for weight in ["1.0", "-0.5"] {
        let with = format!("{}:{weight}", text(&lora));
        let output_path = format!("merged{weight}");
        let args = [text(&model), "--lora", &with, "-o", &output_path, "--dtype", "f32"];
        merge(&args).succeeded();
        let merged = model::open(&folder.path().join(&output_path), &device()).expect("a model");
        assert_close(weight, output(&merged.net), expected(weight), tolerance(1e-5));
    }
    write_lora(&folder.path().join("own.safetensors"), "mlp.down");
    let said = merge(&["emoji-class", "--lora", "own.safetensors", "-o", "x"]).failed();
    assert!(said.contains("mlp.down` normalises its weight"), "{said}");
    assert!(!folder.path().join("x").exists());
    let said = merge(&["emoji-class", "--lora", "none:2", "-o", "x"]).failed();
    assert!(said.contains("none: there is no such LoRA"), "{said}");
    let said = merge(&["emoji-class", "-o", "x"]).failed();
    assert!(said.contains("one model: name others, or a LoRA with --lora"), "{said}");
}

/// A LoRA of a model of classes learns from pictures of some of them, by their names.
#[test]
fn a_lora_learns_of_some_classes_of_a_model() {
    let folder = tempfile::tempdir().expect("a folder");
    write_pictures(&folder.path().join("data"), &["cat"], |_, i, [x, y]| {
        [(20 * x) as u8, (30 * y) as u8, (40 * i) as u8, 255]
    });
    let train = |output: &str| {
        let options = ["train", "lora", "-m", "emoji-class", "--data", "data", "-o", output];
        TestCommand::new(folder.path(), options)
            .args(["--steps", "2", "--batch", "2", "--rank", "2"])
            .settings(&["sample_every=0", "micro_batches=1"])
            .on_cpu()
    };
    let said = train("run").reported();
    assert!(said.contains("5 images in 1 class"), "{said}");
    let generate = ["generate", "class", "-c", "cat", "--steps", "2", "-o", "with.png"];
    let with = TestCommand::new(folder.path(), generate).args(["--lora", "run"]).reported();
    assert!(!with.contains("alpha"), "{with}");
    write_pictures(&folder.path().join("data"), &["dragon"], |_, _, _| [9; 4]);
    let said = train("other").failed();
    assert!(
        said.contains("a LoRA learns of the model's own classes") && said.contains("dragon"),
        "{said}"
    );
}
