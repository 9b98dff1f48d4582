//! LoRA files on opened networks.

use std::path::{Path, PathBuf};

use burn::tensor::{Tensor, TensorData};
use pyrograph::adapter::{Adapter, Adapters};
use pyrograph::model::{self, Model};
use pyrograph_engine::nets::{Conditioning, Net};
use pyrograph_weights::Checkpoint;

use crate::util::{Case, assert_close, device, relative_difference, tolerance};

/// See `make_lora.py` there.
fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

fn model() -> Model {
    model::open(&fixtures().join("goldens/dit-pipeline"), &device()).expect("a model")
}

fn adapter(file: &str, net: &Net) -> Adapter {
    let path = fixtures().join("lora").join(file);
    let warn = &mut |notice| panic!("{notice}");
    Adapter::open(&path, net, None, &device(), warn).unwrap_or_else(|error| panic!("{error}"))
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
        assert!(output(&net).equal(bare.clone()).all().into_scalar::<bool>(), "{file}");
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
