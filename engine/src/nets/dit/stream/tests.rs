//! Laws of image and text that come together.

use super::*;
use crate::layers::modulation::{GateForm, ModulationConfig};
use crate::layers::{Position, Rope};
use crate::nets::{Branches, Norm, Panel, Text, TextAttention, TextConfig};
use crate::ops::Pairs;
use crate::testing::Draws;

/// A network in the manner of FLUX.2 of one block for text and image each and one for both, where these add attention
/// and MLP.
pub(in crate::nets::dit) fn parallel(hidden: usize) -> DitConfig {
    let joined = joined(hidden, 1);
    let text = TextConfig {
        entry: TextEntry::Linear,
        parallel: true,
        refiners: 0,
        multiple: None,
        ..joined.text.expect("a text")
    };
    DitConfig {
        bias: false,
        homogeneous: true,
        modulation: ModulationConfig { common: true, ..ModulationConfig::ADALN_ZERO },
        condition: None,
        text: Some(text),
        ..joined
    }
}

/// A network in the manner of SD3.5-medium, of one block with a second attention and one that closes.
pub(in crate::nets::dit) fn dual(hidden: usize) -> DitConfig {
    let text = TextConfig {
        entry: TextEntry::Linear,
        dual: 1,
        closing: true,
        ..TextConfig::new(24, TextAttention::Joint)
    };
    DitConfig {
        size: [8, 8],
        classes: 0,
        position: Position::Absent,
        table: Some(9),
        branches: Branches { head_norm: Some(1e-6), ..Branches::default() },
        text: Some(text),
        ..DitConfig::dit(hidden, 2, 4)
    }
}

/// A network in the manner of MiniT2I: no condition acts on it, a text is filled up before its entry, and patches come through
/// a narrow layer.
pub(in crate::nets::dit) fn unconditioned(hidden: usize) -> DitConfig {
    let joined = joined(hidden, 1);
    let text = TextConfig {
        entry: TextEntry::Unbiased,
        alone: 1,
        length: Some(9),
        ..TextConfig::new(24, TextAttention::Joint)
    };
    let rope = Rope { axes: vec![hidden / 8; 2], theta: 100.0, pairs: Pairs::Halves };
    DitConfig {
        bottleneck: Some(6),
        position: Position::Plain,
        norm: Norm::Rms { epsilon: 1e-6 },
        modulation: ModulationConfig::NONE,
        branches: Branches {
            key_heads: None,
            unbiased: false,
            unbiased_mlp: true,
            ..joined.branches
        },
        placing: Some(Placing { rope, rows: 0, text: 0, first: 0, behind: false, own: true }),
        text: Some(text),
        ..joined
    }
}

/// A network of two blocks, the last of which take text and image as one, in the manner of Z-Image if all do.
pub(in crate::nets::dit) fn joined(hidden: usize, shared: usize) -> DitConfig {
    let norm = match shared {
        2 => Norm::Sandwich { epsilon: 1e-5, head_epsilon: 1e-6 },
        _ => Norm::Layer { epsilon: 1e-6, mlp_epsilon: 1e-6 },
    };
    let gated = ModulationConfig {
        gate_form: GateForm::Tanh,
        unactivated: true,
        ..ModulationConfig::ADALN_ZERO
    };
    let text = TextConfig {
        entry: TextEntry::Normed(1e-5),
        shared,
        refiners: 1,
        multiple: Some(5),
        ..TextConfig::new(24, TextAttention::Joint)
    };
    let axes = vec![hidden / 8, hidden / 16, hidden / 16];
    DitConfig {
        size: [8, 8],
        position: Position::Absent,
        classes: 0,
        norm,
        modulation: gated,
        activation: Activation::Silu,
        branches: Branches {
            key_heads: Some(2),
            head_norm: Some(1e-6),
            gated: true,
            unbiased: true,
            unbiased_mlp: false,
        },
        placing: Some(Placing {
            rope: Rope { axes, theta: 100.0, pairs: Pairs::Interleaved },
            rows: 1,
            text: 0,
            first: 1,
            behind: true,
            own: false,
        }),
        condition: Some([24, 20]),
        text: Some(text),
        ..DitConfig::dit(hidden, 2, 4)
    }
}

fn net(shared: usize) -> Dit {
    drawn(&joined(32, shared))
}

fn drawn(config: &DitConfig) -> Dit {
    config.init(0, &Device::flex()).map(&mut Draws::new(3, 0.2))
}

fn images() -> Tensor<4> {
    Draws::new(5, 1.0).tensor([2, 4, 8, 8])
}

/// Texts of 3 and 7 tokens, with something behind the end of the first.
fn told() -> Conditioning {
    let tokens = Draws::new(7, 1.0).tensor([2, 7, 24]);
    let text = Text { tokens, lengths: Some(vec![3, 7]), pooled: None };
    Conditioning { text: Some(text), ..Conditioning::default() }
}

fn call(net: &Dit, x: Tensor<4>, told: &Conditioning) -> Tensor<4> {
    let time = Tensor::full([x.dims()[0]], 300.0, &Device::flex());
    net.forward(x, time, told, 2)
}

fn apart(a: Tensor<4>, b: Tensor<4>) -> f32 {
    let scale: f32 = b.clone().abs().max().into_scalar();
    (a - b).abs().max().into_scalar::<f32>() / scale
}

#[test]
fn texts_of_a_batch_are_what_each_is_alone() {
    for config in [joined(32, 1), joined(32, 2), parallel(32), dual(32)] {
        let net = drawn(&config);
        let together = call(&net, images(), &told());
        for (image, length) in [(0, 3), (1, 7)] {
            let mut alone = told().select(&[image]);
            let text = alone.text.as_mut().expect("a text");
            text.tokens = text.tokens.clone().narrow(1, 0, length);
            text.lengths = None;
            let found = call(&net, images().narrow(0, image, 1), &alone);
            assert!(apart(together.clone().narrow(0, image, 1), found) < 1e-5, "{config:?}");
        }
        assert!(apart(call(&net.folded(), images(), &told()), together) < 1e-4);
    }
}

#[test]
fn what_fills_up_is_seen_and_refined_and_panels_are_too() {
    for shared in [1, 2] {
        let net = net(shared);
        let expected = call(&net, images(), &told());
        let refiners = || net.refiners.clone().expect("refiners");
        let draws = || Draws::new(9, 0.2);
        let fill = refiners().fill.expect("tokens");
        let changed = [
            Refiners {
                fill: Some(Fill {
                    image: fill.image.clone().map(|image| image.map(|x| -x)),
                    ..fill.clone()
                }),
                ..refiners()
            },
            Refiners {
                fill: Some(Fill { text: fill.text.clone().map(|x| -x), ..fill }),
                ..refiners()
            },
            Refiners { image: refiners().image.map(&mut draws()), ..refiners() },
            Refiners { text: refiners().text.map(&mut draws()), ..refiners() },
        ];
        for refiners in changed {
            let mut other = net.clone();
            other.refiners = Some(refiners);
            assert!(apart(call(&other, images(), &told()), expected.clone()) > 1e-3);
        }
        let panel = Panel { image: images().flip([0]), origin: [0.0, 8.0], time: 0.0 };
        let told = Conditioning { panels: vec![panel], ..told() };
        assert!(apart(call(&net, images(), &told), expected) > 1e-3);
    }
}

/// Places on an axis say how far apart tokens are, not where: with the image behind the text, a text that begins later
/// moves all.
#[test]
fn only_differences_of_places_matter() {
    let net = net(2);
    let moved = |change: &dyn Fn(&mut Placing)| {
        let mut config = net.config().clone();
        config.text.as_mut().expect("a text").multiple = None;
        config.placing.iter_mut().for_each(change);
        let mut net = net.clone();
        net.refiners = net.refiners.map(|refiners| Refiners { fill: None, ..refiners });
        net.config = config;
        call(&net, images(), &told())
    };
    let expected = moved(&|_| ());
    let [same, other]: [f32; 2] = [
        apart(moved(&|placing| placing.first = 9), expected.clone()),
        apart(moved(&|placing| (placing.behind, placing.first) = (false, 9)), expected),
    ];
    assert!(same < 2e-6 && other > 1e-5, "{same} and {other}");
}
