//! Networks with adapters on against the same networks with the products added to their weights.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Device, FloatDType, Tensor};

use super::*;
use crate::layers::Init;
use crate::layers::dense::DenseConfig;
use crate::layers::mappers::Quantize;
use crate::nets::{
    Conditioning, DitConfig, Flexible, History, Points, Sharing, StudentConfig, Text,
    TextAttention, TextConfig,
};
use crate::ops;
use crate::testing::Draws;

const RANK: usize = 3;

fn dit(preserved: bool) -> DitConfig {
    let base = match preserved {
        true => DitConfig::mp_dit(48, 2, 4),
        false => DitConfig::dit(48, 2, 4),
    };
    DitConfig { size: [8, 8], classes: 3, ..base }
}

fn flexible(sharing: Sharing) -> DitConfig {
    let flexible = Flexible { patches: vec![4], sharing, corners: false };
    DitConfig { flexible: Some(flexible), ..dit(false) }
}

fn text(attention: TextAttention) -> DitConfig {
    let text = TextConfig { pooled: Some(12), ..TextConfig::new(20, attention) };
    DitConfig { text: Some(text), ..dit(false) }
}

/// Every kind of layer that a network can have.
fn configs() -> [DitConfig; 8] {
    [
        text(TextAttention::Cross),
        text(TextAttention::Joint),
        dit(false),
        dit(true),
        DitConfig { embedder_per_block: true, ..dit(false) },
        DitConfig::ladder('E', 48, 2, 4).map(|c| DitConfig { size: [8, 8], ..c }).expect("a step"),
        flexible(Sharing::Adapters { rank: 2 }),
        flexible(Sharing::Kernels { underlying: 4 }),
    ]
}

fn net(config: &DitConfig) -> Dit {
    config.init(0, &Device::flex()).map(&mut Draws::new(3, 0.2))
}

fn student() -> Student {
    let student = StudentConfig {
        times: StudentConfig::even_times(2, 999.0),
        patches: vec![2; 2],
        history: History::All,
        history_layers: 2,
        own_heads: true,
        points: Points::Estimates,
    };
    Student::new(net(&dit(false)), student).expect("a student")
}

fn forward(net: &Dit, patch: usize) -> Tensor<4> {
    let mut draws = Draws::new(11, 1.0);
    let text = net.config().text.is_some().then(|| Text {
        tokens: draws.tensor([2, 5, 20]),
        lengths: None,
        pooled: Some(draws.tensor([2, 12])),
    });
    let told = Conditioning { text, ..Conditioning::classes(&[0, 2], &Device::flex()) };
    let time = Tensor::from_floats([20.0, 400.0], &Device::flex());
    net.forward(draws.tensor([2, 4, 8, 8]), time, &told, patch)
}

/// Terms on all outputs of every layer, and others on the second third.
fn adapter(net: &mut impl Adaptable, seed: u64) -> Adapter {
    let mut draws = Draws::new(seed, 0.2);
    let terms = net.linear_layers().into_iter().map(|(name, layer)| {
        let [inputs, outputs] = layer.widths();
        let mut term = |start, width| LowRank {
            down: draws.tensor([inputs, RANK]),
            up: draws.tensor([RANK, width]),
            start,
        };
        let terms = vec![term(0, outputs), term(outputs / 3, outputs / 3)];
        (name, terms)
    });
    Adapter { terms: terms.collect(), token: None }
}

/// The product of a term's matrices in its place, `[in, out]`.
fn product(term: &LowRank, widths: [usize; 2]) -> Tensor<2> {
    let product = term.down.clone().matmul(term.up.clone());
    let [rows, width] = product.dims();
    let all = [0..rows, term.start..term.start + width];
    Tensor::zeros(widths, &product.device()).slice_assign(all, product)
}

/// A free layer of the effective weight and these terms.
fn merged(layer: &Dense, terms: &[(&LowRank, f64)]) -> Dense {
    let (widths, weight) = (layer.widths(), layer.effective_weight());
    let mut config = DenseConfig::new(widths[0], widths[1], false);
    let ones = weight.dims()[0] - widths[0];
    (config.ones, config.bias) = (ones > 0, layer.bias.is_some());
    let mut merged = config.init(&Init::new(0, &Device::flex()));
    let dtype = layer.dtype();
    let delta = terms.iter().fold(Tensor::zeros(widths, &Device::flex()), |sum, (term, factor)| {
        sum + product(term, widths) * *factor
    });
    let own = weight.clone().narrow(0, 0, widths[0]).cast(FloatDType::F32) + delta;
    let rest = (ones > 0).then(|| weight.narrow(0, widths[0], ones));
    let weight = std::iter::once(own.cast(dtype)).chain(rest).collect();
    merged.weight = Param::from_tensor(Tensor::cat(weight, 0));
    merged.bias = layer.bias.clone();
    merged
}

fn merged_net(mut net: Dit, adapters: &[(&Adapter, f64)]) -> Dit {
    for (name, layer) in net.linear_layers() {
        let terms = adapters.iter().flat_map(|(adapter, factor)| {
            adapter.terms[&name].iter().map(move |term| (term, *factor))
        });
        *layer = merged(layer, &terms.collect::<Vec<_>>());
    }
    net
}

/// Largest difference as a share of the largest value.
fn difference<const D: usize>(a: &Tensor<D>, b: &Tensor<D>) -> f32 {
    let scale: f32 = b.clone().abs().max().into_scalar();
    (a.clone() - b.clone()).abs().max().into_scalar::<f32>() / scale
}

fn same<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> bool {
    a.equal(b).all().into_scalar()
}

struct Cast(FloatDType);

impl ModuleMapper for Cast {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|value| value.cast(self.0))
    }
}

/// Names of the weights of linear layers.
#[derive(Default)]
struct Weights {
    path: Vec<String>,
    containers: Vec<String>,
    found: Vec<String>,
}

impl ModuleVisitor for Weights {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.push(name.to_owned());
        self.containers.push(container.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
        self.containers.pop();
    }

    fn visit_float<const D: usize>(&mut self, _: &Param<Tensor<D>>) {
        let of_dense = self.containers.last().is_some_and(|container| container == "Struct:Dense");
        match self.path.split_last() {
            Some((name, path)) if of_dense && name == "weight" => self.found.push(path.join(".")),
            _ => (),
        }
    }
}

#[test]
fn every_linear_layer_is_found_under_the_name_of_its_weight() {
    let configs = configs();
    let nets = configs.iter().map(|config| Net::Dit(net(config)));
    let nets = nets.chain([Net::Student(student())]);
    for mut net in nets.flat_map(|net| [net.clone(), net.folded()]) {
        let mut weights = Weights::default();
        net.visit(&mut weights);
        let mut found: Vec<String> =
            net.linear_layers().into_iter().map(|(name, _)| name).collect();
        weights.found.sort();
        found.sort();
        assert_eq!(found, weights.found);
    }
}

#[test]
fn a_network_with_adapters_equals_one_whose_weights_hold_them() {
    for config in configs() {
        let mut net = net(&config);
        let [a, b] = [1, 2].map(|seed| adapter(&mut net, seed));
        let on = [(&a, 0.7), (&b, -1.3)];
        let expected = merged_net(net.clone(), &on);
        let bare = net.clone();
        net.put_on(&on).expect("fits");
        for patch in config.patches() {
            let expected = forward(&expected, patch);
            let found = [forward(&net, patch), forward(&net.clone().folded(), patch)];
            for found in found {
                let error = difference(&found, &expected);
                assert!(error < 4e-5, "{config:?} at patch {patch}: {error}");
            }
            let change = difference(&forward(&bare, patch), &expected);
            assert!(change > 0.05, "{config:?} at patch {patch}: {change}");
        }
    }
}

#[test]
fn weights_of_every_type_take_adapters_and_give_back_the_same_bits() {
    let quantized = |net: Dit| net.quantized().expect("on the CPU");
    type Open = fn(Dit) -> Dit;
    let types: [(FloatDType, Open); 4] = [
        (FloatDType::F32, Dit::folded),
        (FloatDType::F16, Dit::folded),
        (FloatDType::BF16, Dit::folded),
        (FloatDType::F16, quantized),
    ];
    for (dtype, open) in types {
        let mut net = net(&dit(false));
        let adapter = adapter(&mut net, 1);
        let net = net.map(&mut Cast(dtype));
        let merged = |net: &Dit| merged_net(net.clone(), &[(&adapter, 1.0)]);
        let exact = forward(&merged(&net.clone().map(&mut Cast(FloatDType::F32))), 2);
        // How far rounding is from it depends on the products that the processor is best at.
        let rounded = difference(&forward(&open(merged(&net)), 2), &exact);
        let mut net = open(net);
        let before = forward(&net, 2);
        net.put_on(&[(&adapter, 1.0)]).expect("fits");
        let error = difference(&forward(&net, 2), &exact);
        assert!(error < 1.5 * rounded + 2e-5, "{dtype:?}: {error}, in the weights {rounded}");
        assert!(difference(&before, &exact) > 4.0 * error, "{dtype:?}");

        net.put_on(&[(&adapter, 0.0)]).expect("fits");
        assert!(same(forward(&net, 2), before.clone()), "{dtype:?}: a factor of 0");
        net.put_on(&[(&adapter, 1.0)]).expect("fits");
        net.put_on(&[]).expect("fits");
        assert!(same(forward(&net, 2), before), "{dtype:?}: taken off");
    }
}

/// On one layer nothing but the sum differs: what is added is exact for weights of any type.
#[test]
fn what_is_added_to_a_packed_layer_is_in_f32() {
    let mut draws = Draws::new(5, 1.0);
    let config = DenseConfig { bias: true, ..DenseConfig::new(50, 60, true) };
    let layer = config.init(&Init::new(0, &Device::flex()));
    let (x, mut term) = (draws.tensor([2, 7, 50]), |start, width| LowRank {
        down: draws.tensor([50, RANK]),
        up: draws.tensor([RANK, width]),
        start,
    });
    let terms = [term(0, 60), term(20, 20), term(40, 20)];
    let added: Tensor<2> =
        terms.iter().map(|term| product(term, [50, 60])).reduce(|a, b| a + b).expect("terms");
    let added = ops::linear(x.clone(), added, None, None);
    let packed = |dtype| layer.clone().map(&mut Cast(dtype)).folded();
    let layers = [FloatDType::F32, FloatDType::F16, FloatDType::BF16].map(packed);
    let in_8_bits = packed(FloatDType::F16).map(&mut Quantize::default());
    for mut layer in layers.into_iter().chain([in_8_bits]) {
        let expected = layer.forward(x.clone()) + added.clone();
        layer.put_on(&terms);
        let error = difference(&layer.forward(x.clone()), &expected);
        assert!(error < 1e-6, "{:?}: {error}", layer.weight.val().dtype());
    }
}

#[test]
fn adapters_add_in_any_order() {
    let mut net = net(&dit(true)).folded();
    let [a, b] = [1, 2].map(|seed| adapter(&mut net, seed));
    let mut with = |adapters: &[(&Adapter, f64)]| {
        net.put_on(adapters).expect("fits");
        forward(&net, 2)
    };
    let both = with(&[(&a, 0.5), (&b, 0.25)]);
    for other in [
        with(&[(&b, 0.25), (&a, 0.5)]),
        with(&[(&a, 0.25), (&b, 0.25), (&a, 0.25)]),
        with(&[(&a, 0.5), (&b, 0.5), (&b, -0.25)]),
    ] {
        let error = difference(&other, &both);
        assert!(error < 1e-5, "{error}");
    }
    assert!(difference(&with(&[(&a, 0.5)]), &both) > 0.01);
}

#[test]
fn what_does_not_fit_is_refused_by_name_and_changes_nothing() {
    let mut net = net(&dit(false));
    let adapter = adapter(&mut net, 1);
    net.put_on(&[(&adapter, 1.0)]).expect("fits");
    let before = forward(&net, 2);
    let zeros = |down, up, start| {
        let [down, up] = [down, up].map(|shape| Tensor::zeros(shape, &Device::flex()));
        vec![LowRank { down, up, start }]
    };
    let cases = [
        ("blocks.2.mlp.up", zeros([48, 2], [2, 192], 0), "no linear layer `blocks.2.mlp.up`"),
        ("head.out", zeros([47, 2], [2, 32], 0), "48 inputs and 32 outputs"),
        ("head.out", zeros([48, 2], [3, 32], 0), "[48, 2] and [3, 32]"),
        ("blocks.0.attention.qkv", zeros([48, 2], [2, 48], 97), "from output 97"),
    ];
    for (name, terms, said) in cases {
        let mut wrong = adapter.clone();
        wrong.terms.insert(name.into(), terms);
        let fault = net.put_on(&[(&adapter, 0.5), (&wrong, 1.0)]).expect_err("does not fit");
        let fault = fault.to_string();
        assert!(fault.contains(name) && fault.contains(said), "{fault}");
        assert!(same(forward(&net, 2), before.clone()), "{name}");
    }
}
