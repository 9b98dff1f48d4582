//! Magnitude-preserving networks keep their magnitude: the laws of the method.

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use pyrograph_engine::layers::ModulationConfig;
use pyrograph_engine::nets::{Conditioning, Dit, DitConfig};
use pyrograph_engine::ops::magnitude::magnitude;
use pyrograph_engine::random::Generator;
use pyrograph_engine::train::params;

use crate::util::opened;

fn network(config: &DitConfig, seed: u64) -> Dit {
    let device = Device::flex();
    config.init(seed, &device)
}

fn inputs(config: &DitConfig, batch: usize) -> (Tensor<4>, Tensor<1>, Conditioning) {
    let device = Device::flex();
    let shape = [batch, config.channels, config.size[0], config.size[1]];
    let mut random = Generator::new(7);
    let values = random.normal(shape.iter().product());
    let x = Tensor::from_data(TensorData::new(values, shape), &device);
    let times: Vec<f32> = (0..batch).map(|_| (999.0 * random.uniform()) as f32).collect();
    let time = Tensor::<1>::from_floats(times.as_slice(), &device);
    (x, time, Conditioning::classes(&vec![0; batch], &device))
}

/// RMS of the residual stream after each block.
fn stream(net: &Dit) -> Vec<f32> {
    let (x, time, told) = inputs(net.config(), 4);
    let mut found = Vec::new();
    let patch = net.config().patch;
    net.forward_with(x, time, &told, patch, &mut |_, tokens| {
        found.push(magnitude(tokens.clone()).into_scalar());
        tokens
    });
    found
}

fn small(hidden: usize, depth: usize, heads: usize) -> DitConfig {
    DitConfig { size: [16, 16], classes: 10, ..DitConfig::mp_dit(hidden, depth, heads) }
}

/// Attention averages over keys and so loses some magnitude; bringing it back keeps the stream at 1.
#[test]
fn the_stream_starts_within_the_published_bands() {
    for config in [DitConfig { patch: 4, ..small(384, 12, 6) }, small(256, 6, 4)] {
        let found = stream(&network(&config, 0));
        assert!((0.91..=0.98).contains(&found[0]), "{found:?}");
        assert!(found.iter().all(|rms| (0.5..=1.2).contains(rms)), "{found:?}");

        let mut renormalized = config.clone();
        renormalized.magnitude.renormalized_attention = true;
        let found = stream(&network(&renormalized, 0));
        assert!(found.iter().all(|rms| (0.85..=1.2).contains(rms)), "{found:?}");
    }
}

/// The published block with its constant blend loses magnitude with depth; the depth rule does not.
#[test]
fn the_depth_rule_keeps_the_magnitude_of_deep_networks() {
    for depth in [12, 28] {
        let published = small(192, depth, 3);
        let ruled = published.clone().with_depth_rule();
        let (constant, rule) = (stream(&network(&published, 1)), stream(&network(&ruled, 1)));
        println!("depth {depth}, constant blend: {constant:.2?}");
        println!("depth {depth}, depth rule:     {rule:.2?}");
        let lowest = |found: &[f32]| found.iter().copied().fold(f32::INFINITY, f32::min);
        assert!(lowest(&rule) > 0.75, "{rule:?}");
        assert!(lowest(&constant) < lowest(&rule) - 0.1, "{constant:?} {rule:?}");
    }
}

#[test]
fn a_fresh_network_is_silent_and_a_head_of_gain_one_is_not() {
    let config = small(128, 4, 4);
    let net = network(&config, 2);
    let (x, time, told) = inputs(&config, 2);
    let silent = net.forward(x.clone(), time.clone(), &told, net.config().patch);
    assert_eq!(silent.abs().max().into_scalar::<f32>(), 0.0);
    let mut net = net;
    net.head.out.gain = net.head.out.gain.map(|gain| gain.map(|gain| gain.ones_like()));
    let rms: f32 =
        net.forward(x, time, &told, net.config().patch).square().mean().sqrt().into_scalar();
    assert!((0.5..=1.2).contains(&rms), "{rms}");
}

#[test]
fn rotation_alone_cannot_change_magnitudes() {
    let mut config = small(64, 3, 4);
    config.modulation =
        ModulationConfig { scale: false, gate: false, ..ModulationConfig::ROTATION_SCALE };
    let net = network(&config, 3);
    let before = stream(&network(&config, 3));
    let mut turned = net;
    for block in &mut turned.blocks {
        let gain = block.modulation.gain.take().expect("a preserved network has gains");
        block.modulation.gain = Some(gain.map(|gain| gain.ones_like() * 2.0));
    }
    let mut random = Generator::new(8);
    let mut normal = |shape: [usize; 3]| {
        let values = random.normal(shape.iter().product());
        Tensor::<3>::from_data(TensorData::new(values, shape), &Device::flex())
    };
    let (tokens, condition) = (normal([2, 8, 64]), normal([2, 1, 64]));
    for modulated in turned.blocks[0].modulation.forward(condition) {
        let (a, b) = (magnitude(tokens.clone()), magnitude(modulated.input(tokens.clone(), None)));
        assert!(a.all_close(b, Some(1e-5), None));
    }
    assert!(before.iter().all(|rms| (0.5..=1.2).contains(rms)), "{before:?}");
}

#[test]
fn every_parameter_gets_a_finite_gradient_once_the_gates_are_open() {
    for config in [
        small(32, 2, 2),
        DitConfig { size: [8, 8], classes: 4, ..DitConfig::dit(32, 2, 2) },
        DitConfig { size: [8, 8], ..DitConfig::ladder('A', 32, 2, 2).expect("a step") },
        DitConfig { size: [8, 8], ..DitConfig::ladder('E', 32, 2, 2).expect("a step") },
    ] {
        let net = opened(network(&config, 4)).train();
        let names = params::names(&net);
        let (x, time, told) = inputs(&config, 2);
        let output = net.forward(x.autodiff(), time.autodiff(), &told, net.config().patch);
        let gradients = params::gradients(&net, &output.square().mean().backward());
        for (name, gradient) in names.iter().zip(gradients) {
            let size: f32 = gradient.abs().max().into_scalar();
            assert!(size.is_finite() && size > 0.0, "{name}: {size}");
        }
    }
}
