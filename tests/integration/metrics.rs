//! Distances between sets of images, and the resizing of patch kernels, against the reference
//! implementations.

use burn::tensor::{Device, Tensor, TensorData};
use pyrograph::eval::FeatureNet;
use pyrograph_engine::layers::Init;
use pyrograph_engine::layers::dense::DenseConfig;
use pyrograph_engine::layers::resize::resize_embedding;
use pyrograph_engine::metrics::{Features, coverage, frechet, kernel};
use pyrograph_engine::nets::Inception;
use pyrograph_weights::{Checkpoint, write_safetensors};

use crate::command::TestCommand;
use crate::util::{Case, assert_close, assets, cases, device, json, root, tolerance};

/// The shipped feature network.
const FEATURES: &str = "models/efficientnet-lite0/efficientnet_lite0.safetensors";

fn features(case: &Case, name: &str) -> Features {
    let rows: Tensor<2> = case.tensor(name, &Device::flex());
    let width = rows.dims()[1];
    let values: Vec<f32> = rows.into_data().try_into_vec().expect("f32");
    let rows: Vec<Vec<f32>> = values.chunks(width).map(<[f32]>::to_vec).collect();
    Features::new(&rows).expect("finite rows")
}

#[test]
fn distances_of_feature_sets() {
    for folder in cases("metrics") {
        let (case, expected) = (Case::open(&folder), json(&folder.join("case.json")));
        let (real, generated) = (features(&case, "features_a"), features(&case, "features_b"));
        let value = |start: &str| {
            let object = expected.as_object().expect("named values");
            let (_, value) = object.iter().find(|(key, _)| key.starts_with(start)).expect(start);
            value.as_f64().expect("a number")
        };
        let near = |name: &str, found: f64, expected: f64| {
            println!("{name}: {found}, expected {expected}");
            assert!((found - expected).abs() <= 1e-5 * expected.abs(), "{name}");
        };
        near("fid", frechet(&real, &generated, 0, 0).expect("a distance").value, value("fid"));
        near("kid", kernel(&real, &generated, 0, 0).value, value("kid"));
        let found = coverage(&real, &generated, 3);
        near("precision", found.precision, value("precision_k3"));
        near("recall", found.recall, value("recall_k3"));
    }
}

#[test]
fn patch_kernels_are_resized_by_the_pseudo_inverse() {
    for folder in cases("pi-resize") {
        let (case, device) = (Case::open(&folder), device());
        let sizes: Vec<&str> =
            case.names().filter_map(|name| name.strip_suffix(".weight")).collect();
        assert!(!sizes.is_empty());
        for name in sizes {
            let (from, to) = name.split_once("to").expect("AtoB");
            let (from, to): (usize, usize) =
                (from.parse().expect("a size"), to.parse().expect("a size"));
            let weight: Tensor<4> = case.tensor(&format!("{name}.weight"), &device);
            let [hidden, channels, ..] = weight.dims();
            // From `[hidden, channels, rows, columns]` to rows of position, channel.
            let ours = |x: Tensor<4>, side: usize| {
                x.permute([2, 3, 1, 0]).reshape([side * side * channels, hidden])
            };
            let mut dense = DenseConfig::new(from * from * channels, hidden, false)
                .init(&Init::new(0, &device));
            dense.weight = dense.weight.map(|_| ours(weight, from));
            let expected = ours(case.tensor(&format!("{name}.resized"), &device), to);
            let found = resize_embedding(&dense, from, to).weight.val();
            assert_close(name, found, expected, 1e-5);
        }
    }
}

/// A smooth picture of which PyTorch has computed features.
fn waves(width: u32, height: u32) -> image::RgbImage {
    image::RgbImage::from_fn(width, height, |x, y| {
        let value = |c: f64| {
            let phase = 0.11 * (c + 1.0) * f64::from(y) + 0.07 * f64::from(x) + c;
            (127.5 + 120.0 * phase.sin()).round_ties_even() as u8
        };
        image::Rgb([value(0.0), value(1.0), value(2.0)])
    })
}

fn assert_features(net: &FeatureNet, picture: image::RgbImage, fixture: &str) {
    let found = Tensor::<1>::from_floats(
        net.rows(&[picture]).expect("features")[0].as_slice(),
        &Device::flex(),
    );
    let file = root().join("tests/fixtures/features").join(fixture);
    let (expected, _) =
        Checkpoint::open(&file).expect("a fixture").read_f32("features").expect("f32");
    let expected = Tensor::<1>::from_floats(expected.as_slice(), &Device::flex());
    assert_close("features", found, expected, tolerance(1e-4));
}

/// The features of one picture, computed in PyTorch from the same weights.
#[test]
fn features_of_the_reference_implementation() {
    let net = FeatureNet::open(&assets().join(FEATURES), &device()).expect("the shipped features");
    assert_features(&net, waves(128, 128), "efficientnet_lite0.safetensors");
}

/// Those of the inception distance, from weights that a formula gives on both sides.
#[test]
fn inception_features_of_the_reference_implementation() {
    let noise = |count: usize, seed: usize| {
        (0..count as u32).map(move |i| {
            let x = i.wrapping_mul(2654435761).wrapping_add((seed as u32).wrapping_mul(40503));
            let x = (x ^ (x >> 15)).wrapping_mul(2246822519);
            f64::from(x ^ (x >> 13)) / 2f64.powi(32) - 0.5
        })
    };
    let net = Inception::new(&Device::flex());
    let mut order: Vec<(String, usize)> = Inception::names().into_iter().zip(0..).collect();
    order.sort();
    let mut tensors = Vec::new();
    for (seed, (name, unit)) in order.into_iter().enumerate() {
        let shape = net.units[unit].conv.dims();
        let (count, inputs) = (shape.iter().product(), shape[1..].iter().product::<usize>());
        let scale = (24.0 / inputs as f64).sqrt();
        let conv: Vec<f32> = noise(count, seed).map(|x| (x * scale) as f32).collect();
        tensors.push((format!("{name}.conv.weight"), TensorData::new(conv, shape)));
        let parts = [("weight", 1.0, 0.5), ("bias", 0.1, 0.5)];
        let parts =
            parts.into_iter().chain([("running_mean", 0.0, 0.5), ("running_var", 1.0, 0.5)]);
        for (i, (part, mean, width)) in parts.enumerate() {
            let values = noise(shape[0], 1000 * (i + 1) + seed);
            let values: Vec<f32> = values.map(|x| (mean + width * x) as f32).collect();
            tensors.push((format!("{name}.bn.{part}"), TensorData::new(values, [shape[0]])));
        }
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("inception.safetensors");
    write_safetensors(&path, &tensors, &Default::default()).expect("room for it");
    let net = FeatureNet::open(&path, &device()).expect("an inception network");
    assert_eq!(net.distances(), ["fid", "kid"]);
    assert_features(&net, waves(64, 80), "inception.safetensors");
}

#[test]
fn blurred_and_noisy_images_are_farther_from_real_ones() {
    let root = assets();
    let net = FeatureNet::open(&root.join(FEATURES), &device()).expect("the shipped features");
    let images = |class: &str| -> Vec<image::RgbImage> {
        let size = [64, 64];
        let data = pyrograph::data::Dataset::open(
            &root.join("data/emoji"),
            size,
            pyrograph::data::Background::default(),
        );
        let data = data.expect("the shipped images");
        let number = data.classes().iter().position(|name| name == class).expect(class);
        let of: Vec<usize> =
            (0..data.len()).filter(|&i| data.label(i) == number).take(32).collect();
        pyrograph::eval::pictures(&data, &of, &Device::flex()).expect("pictures")
    };
    let cats = images("cat");
    let rows = |images: &[image::RgbImage]| {
        Features::new(&net.rows(images).expect("features")).expect("finite")
    };
    let blurred: Vec<_> = cats.iter().map(|cat| image::imageops::blur(cat, 1.5)).collect();
    let all = rows(&cats);
    let distance = |images: &[image::RgbImage]| kernel(&all, &rows(images), 0, 0).value;
    let (blur, other) = (distance(&blurred), distance(&images("clock")));
    println!("blurred {blur:.1}, clocks {other:.1}");
    assert!(distance(&cats).abs() < 0.3 * blur && blur > 0.0 && other > blur);
}

#[test]
fn eval_from_the_command_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let eval = ["eval", "-q", "-m", "emoji-class", "-n", "16", "--steps", "2", "--resamples", "2"];
    let line = TestCommand::new(root(), eval)
        .args(["--reference", "assets/data/emoji", "--cache", &path("cache")])
        .args(["--pairs", &path("pairs.png")])
        .on_cpu()
        .succeeded();
    let line: serde_json::Value = serde_json::from_str(&line).expect("one JSON line");
    assert_eq!((line["images"].as_u64(), line["reference"].as_u64()), (Some(16), Some(1248)));
    assert!(line["fd_efflite0"]["value"].as_f64().expect("a number") > 0.0, "{line}");
    assert!(folder.path().join("pairs.png").is_file());
    assert_eq!(std::fs::read_dir(folder.path().join("cache")).expect("a cache").count(), 1);
}

#[test]
fn a_sweep_goes_on_where_it_stopped() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (table, cache) = (path("sweep.csv"), path("cache"));
    let run = |options: &[&str]| {
        TestCommand::new(root(), ["sweep", "-m", "emoji-class", "-n", "8", "--steps", "2"])
            .args(["--reference", "assets/data/emoji", "--cache", &cache])
            .args(options)
            .on_cpu()
            .reported()
    };
    let sweep = |schedules: &str| {
        run(&["--schedules", schedules, "--resamples", "2", "--cfg-scale", "1,2", "-o", &table])
    };
    sweep("100%");
    let said = sweep("100%;16:1,8:1;16:1,8:1/16");
    assert_eq!(said.matches("in the table already").count(), 2, "{said}");
    let rows = std::fs::read_to_string(&table).expect("a table");
    assert_eq!(rows.lines().count(), 7, "{rows}");
    let place = |name: &str| rows.split(['\n', ',']).position(|cell| cell == name).expect(name);
    let cell = |row: &str, name: &str| row.split(',').nth(place(name)).expect(name).to_owned();
    let weak: Vec<_> = rows.lines().filter(|row| cell(row, "schedule") == "16:1 8:1").collect();
    assert_eq!(weak.len(), 2, "{rows}");
    for row in weak {
        let compute: f64 = cell(row, "compute").parse().expect("a share");
        assert!(compute > 0.5 && compute < 0.7, "{row}");
        assert_eq!(cell(row, "model"), "emoji-class");
    }
    assert!(folder.path().join("sweep.png").is_file());
    // Weights of another type are other points, also in a table that has them in f32.
    std::fs::copy(&table, path("other.csv")).expect("copied");
    let other = ["--cfg-scale", "1", "--schedules", "100%", "--dtype", "bf16"];
    let said = run(&[&other[..], &["--against", "seconds", "-o", &path("other.csv")]].concat());
    assert!(said.contains("1 of 1") && !said.contains("in the table already"), "{said}");
    assert!(folder.path().join("other.png").is_file());
}
