//! Laws of what a network is told.

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use super::{
    Conditioning, Dit, DitConfig, Flexible, Panel, Sharing, Text, TextAttention, TextConfig,
    flexify, refine,
};
use crate::testing::Draws;

const PATCH: usize = 2;

/// A network of random weights throughout, adaLN or magnitude-preserving.
fn net(preserved: bool, change: impl FnOnce(&mut DitConfig)) -> Dit {
    let base = match preserved {
        true => DitConfig::mp_dit(32, 3, 4),
        false => DitConfig::dit(32, 3, 4),
    };
    let mut config = DitConfig { size: [8, 8], classes: 3, ..base };
    change(&mut config);
    config.init(0, &Device::flex()).map(&mut Draws::new(3, 0.2))
}

fn reads(attention: TextAttention, pooled: bool) -> impl Fn(&mut DitConfig) {
    let text = TextConfig { pooled: pooled.then_some(6), ..TextConfig::new(12, attention) };
    move |config| config.text = Some(text.clone())
}

fn call(net: &Dit, x: &Tensor<4>, told: &Conditioning) -> Tensor<4> {
    let time = Tensor::from_floats([30.0, 700.0], &Device::flex());
    net.forward(x.clone(), time, told, PATCH)
}

fn images(seed: u64, width: usize) -> Tensor<4> {
    Draws::new(seed, 1.0).tensor([2, 4, 8, width])
}

fn classes() -> Conditioning {
    Conditioning::classes(&[0, 2], &Device::flex())
}

fn told(text: Text) -> Conditioning {
    Conditioning { text: Some(text), ..classes() }
}

fn text(seed: u64, tokens: usize, pooled: bool) -> Text {
    let mut draws = Draws::new(seed, 1.0);
    Text {
        tokens: draws.tensor([2, tokens, 12]),
        lengths: None,
        pooled: pooled.then(|| draws.tensor([2, 6])),
    }
}

/// Largest difference as a share of the largest value.
fn difference(a: &Tensor<4>, b: &Tensor<4>) -> f32 {
    let scale: f32 = b.clone().abs().max().into_scalar();
    (a.clone() - b.clone()).abs().max().into_scalar::<f32>() / scale
}

const KINDS: [TextAttention; 2] = [TextAttention::Cross, TextAttention::Joint];

#[test]
fn every_token_of_a_text_matters_and_padding_does_not() {
    for (attention, preserved) in KINDS.into_iter().flat_map(|kind| [(kind, false), (kind, true)]) {
        let net = net(preserved, reads(attention, false));
        let (x, short) = (images(1, 8), text(5, 3, false));
        let expected = call(&net, &x, &told(short.clone()));
        assert!(difference(&call(&net, &x, &told(text(6, 3, false))), &expected) > 1e-2);

        let junk = text(7, 4, false).tokens;
        let long = Tensor::cat(vec![short.tokens, junk], 1);
        let padded = Text { tokens: long, lengths: Some(vec![3; 2]), pooled: None };
        let unpadded = Text { lengths: None, ..padded.clone() };
        let found = call(&net, &x, &told(padded.clone()));
        assert!(difference(&found, &expected) < 1e-5, "{attention:?}");
        assert!(difference(&call(&net, &x, &told(unpadded)), &expected) > 1e-3, "{attention:?}");
        // Folded, too.
        let folded = call(&net.folded(), &x, &told(padded));
        assert!(difference(&folded, &expected) < 1e-4, "{attention:?}");
    }
}

#[test]
fn a_pooled_text_acts_and_is_needed() {
    let net = net(false, reads(TextAttention::Cross, true));
    let (x, one) = (images(1, 8), text(5, 3, true));
    let other = Text { pooled: text(6, 3, true).pooled, ..one.clone() };
    let [one, other] = [one, other].map(|text| call(&net, &x, &told(text)));
    assert!(difference(&one, &other) > 1e-2);
}

#[test]
#[should_panic(expected = "a network that reads text is told none")]
fn a_text_that_is_missing_is_named() {
    call(&net(false, reads(TextAttention::Cross, false)), &images(1, 8), &classes());
}

#[test]
#[should_panic(expected = "a network that reads no text is told one")]
fn a_text_too_many_is_named() {
    call(&net(false, |_| ()), &images(1, 8), &told(text(1, 3, false)));
}

#[test]
#[should_panic(expected = "a network without classes is told one")]
fn a_class_too_many_is_named() {
    call(&net(false, |config| config.classes = 0), &images(1, 8), &classes());
}

#[test]
fn a_network_may_have_no_classes() {
    let net = net(true, |config| config.classes = 0);
    let y = call(&net, &images(1, 8), &Conditioning::default());
    assert!(y.clone().abs().max().into_scalar::<f32>() > 1e-3);
    assert_eq!(net.config().parameters(), net.parameters());
}

#[test]
fn a_panel_on_the_right_is_the_right_half_of_a_wide_image() {
    for preserved in [false, true] {
        let (net, wide) = (net(preserved, |_| ()), images(1, 16));
        let half = |first: usize| wide.clone().narrow(3, first, 8);
        let time = Tensor::full([2], 700.0, &Device::flex());
        let expected = net.forward(wide.clone(), time.clone(), &classes(), PATCH).narrow(3, 0, 8);
        let with = |origin: [f64; 2], panel_time: f64| {
            let panel = Panel { image: half(8), origin, time: panel_time };
            let told = Conditioning { panels: vec![panel], ..classes() };
            net.forward(half(0), time.clone(), &told, PATCH)
        };
        assert!(difference(&with([0.0, 8.0], 700.0), &expected) < 1e-5);
        // Its place and its noise level count, and it is seen at all.
        assert!(difference(&with([0.0, -8.0], 700.0), &expected) > 1e-3);
        assert!(difference(&with([0.0, 8.0], 0.0), &expected) > 1e-3);
        let alone = net.forward(half(0), time.clone(), &classes(), PATCH);
        assert!(difference(&alone, &expected) > 1e-3);
    }
}

#[test]
fn the_hook_observes_and_injects() {
    let (net, x) = (net(false, |_| ()), images(1, 8));
    let time = || Tensor::from_floats([30.0, 700.0], &Device::flex());
    let mut seen = Vec::new();
    let observed = net.forward_with(x.clone(), time(), &classes(), PATCH, &mut |i, tokens| {
        seen.push((i, tokens.dims()));
        tokens
    });
    let plain = call(&net, &x, &classes());
    assert_eq!(difference(&observed, &plain), 0.0);
    assert_eq!(seen, [0, 1, 2].map(|i| (i, [2, 16, 32])));
    let mut residual = Draws::new(9, 0.5);
    let injected = net.forward_with(x, time(), &classes(), PATCH, &mut |i, tokens| match i {
        1 => tokens + residual.tensor::<3>([2, 16, 32]),
        _ => tokens,
    });
    assert!(difference(&injected, &plain) > 1e-2);
}

#[test]
fn conditions_of_images_are_chosen_and_joined() {
    let net = net(false, reads(TextAttention::Joint, true));
    let panel = |seed| Panel { image: images(seed, 4), origin: [0.0, 8.0], time: 0.0 };
    let full = |seed| Conditioning { panels: vec![panel(seed)], ..told(text(seed, 3, true)) };
    let (a, b) = (full(1), full(2));
    let x = images(3, 8);
    let both = a.clone().followed_by(b.clone()).select(&[2, 1]);
    let found = call(&net, &x, &both);
    for (image, one) in [(0, b.select(&[0])), (1, a.select(&[1]))] {
        let x = x.clone().narrow(0, image, 1);
        let time = Tensor::from_floats([[30.0, 700.0][image]], &Device::flex());
        let expected = net.forward(x, time, &one, PATCH);
        assert!(difference(&found.clone().narrow(0, image, 1), &expected) < 1e-5, "{image}");
    }
}

#[test]
fn a_finer_network_is_as_it_was_at_its_sizes() {
    for preserved in [false, true] {
        let plain = net(preserved, |_| ());
        let flexible = |sharing| Flexible { patches: vec![4], sharing, corners: false };
        let shared = flexible(Sharing::Kernels { underlying: 4 });
        for old in [plain.clone(), flexify(plain.clone(), shared, 0).expect("4 and 2")] {
            let sizes = old.config().patches();
            let new = refine(old.clone(), 1).expect("a half of 2");
            assert_eq!(new.config().patches(), [&[1], &sizes[..]].concat());
            let time = Tensor::from_floats([30.0, 700.0], &Device::flex());
            let at = |net: &Dit, size: usize, patch| {
                net.forward(images(1, size), time.clone(), &classes(), patch)
            };
            // At another size of the image, too, where places are worked out anew.
            for (size, patch) in sizes.iter().flat_map(|&patch| [(8, patch), (16, patch)]) {
                let (found, expected) = (at(&new, size, patch), at(&old, size, patch));
                assert!(difference(&found, &expected) < 1e-4, "{size} {patch}");
            }
            let fine = at(&new, 8, 1);
            assert!(difference(&fine, &at(&old, 8, 2)) > 1e-3);
            assert!(difference(&at(&new.clone().folded(), 8, 1), &fine) < 1e-4);
        }
        let error = refine(plain.clone(), 2).expect_err("no smaller one").to_string();
        assert_eq!(error, "patch size is 2, expected below the native one, 2");
        let adapted = flexify(plain, flexible(Sharing::Adapters { rank: 2 }), 0).expect("4 and 2");
        assert!(refine(adapted, 1).is_err());
    }
}

#[test]
fn overlapping_squares_go_with_further_patch_sizes() {
    for preserved in [false, true] {
        let net = net(preserved, |config| config.overlap = true);
        let x = images(1, 8);
        let expected = call(&net, &x, &classes());
        assert_eq!(expected.dims(), [2, net.config().out_channels(), 8, 8]);
        assert!(difference(&call(&net.clone().folded(), &x, &classes()), &expected) < 1e-4);
        for sharing in [Sharing::Kernels { underlying: 4 }, Sharing::Adapters { rank: 4 }] {
            let flexible = Flexible { patches: vec![4], sharing, corners: false };
            let net = flexify(net.clone(), flexible, 0).expect("4 and 2");
            // At the native size it is as it was, unless weights are normalised over another number of inputs.
            let found = call(&net, &x, &classes());
            let is_kept = !preserved || sharing == (Sharing::Adapters { rank: 4 });
            assert!(!is_kept || difference(&found, &expected) < 1e-4, "{sharing:?}");
            let time = Tensor::from_floats([30.0, 700.0], &Device::flex());
            let at = |net: &Dit| net.forward(x.clone(), time.clone(), &classes(), 4);
            assert!(difference(&at(&net.clone().folded()), &at(&net)) < 1e-4, "{sharing:?}");
        }
    }
    let odd = DitConfig { overlap: true, patch: 1, ..DitConfig::dit(32, 1, 4) };
    let error = odd.check().expect_err("no half of 1").to_string();
    assert!(error.contains("patch") && error.contains('1') && error.contains("even"), "{error}");
}
