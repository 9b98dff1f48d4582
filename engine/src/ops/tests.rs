//! Every kernel against the plain operations: values and gradients.

use burn::tensor::{Device, FloatDType, Tensor};

use super::{AdamStep, plain};
use crate::layers::Activation;
use crate::testing::random;

/// Largest difference relative to the largest value.
fn difference<const D: usize>(found: Tensor<D>, expected: Tensor<D>) -> f32 {
    assert_eq!(found.dims(), expected.dims());
    let scale: f32 = expected.clone().abs().max().into_scalar();
    let worst: f32 = (found - expected).abs().max().into_scalar();
    worst / scale.max(1e-20)
}

/// Values without gradients, values with them, and the gradient of every input, must agree.
///
/// All inputs are `[batch, tokens, width]`; the functions reshape what is not.
fn compare(
    inputs: &[Tensor<3>],
    fused: impl Fn(&[Tensor<3>]) -> Tensor<3>,
    plain: impl Fn(&[Tensor<3>]) -> Tensor<3>,
) {
    let expected = plain(inputs);
    let worst = difference(fused(inputs), expected.clone());
    assert!(worst < 2e-6, "values differ by {worst:e}");

    let direction = random(expected.dims()).autodiff();
    let gradients = |f: &dyn Fn(&[Tensor<3>]) -> Tensor<3>| {
        let leaves: Vec<Tensor<3>> =
            inputs.iter().map(|x| x.clone().autodiff().require_grad()).collect();
        let y = f(&leaves);
        let recorded = y.clone().inner();
        let found = (y * direction.clone()).sum().backward();
        let of = |x: &Tensor<3>| x.grad(&found).expect("every input has a gradient");
        (recorded, leaves.iter().map(of).collect::<Vec<_>>())
    };
    let ((value, found), (_, wanted)) = (gradients(&fused), gradients(&plain));
    assert!(difference(value, expected) < 2e-6);
    for (i, (found, wanted)) in found.into_iter().zip(wanted).enumerate() {
        let worst = difference(found, wanted);
        assert!(worst < 1e-5, "gradient {i} differs by {worst:e}");
    }
}

const ACTIVATIONS: [Activation; 3] = [Activation::GeluTanh, Activation::Silu, Activation::MpSilu];

#[test]
fn pointwise() {
    for activation in ACTIVATIONS {
        let x = random([3, 7, 1001]) * 3.0;
        compare(
            &[x],
            |x| super::pointwise(x[0].clone(), activation),
            |x| plain::pointwise(x[0].clone(), activation),
        );
    }
    let far = Tensor::<1>::from_floats([-1e4, -100.0, 0.0, 100.0, 1e4], &Device::flex());
    for activation in ACTIVATIONS {
        let values: Vec<f32> =
            super::pointwise(far.clone(), activation).into_data().try_to_vec().expect("f32");
        assert!(values.iter().all(|value| value.is_finite()), "{activation:?}: {values:?}");
        assert!(values[0].abs() < 1e-30 && values[2] == 0.0, "{activation:?}: {values:?}");
    }
}

#[test]
fn linear() {
    let flat = |x: &Tensor<3>| x.clone().reshape([-1]);
    let weight = |x: &Tensor<3>| x.clone().squeeze_dim::<2>(0);
    let inputs = [random([2, 33, 48]), random([1, 48, 80]) * 0.1, random([1, 1, 80])];
    for activation in ACTIVATIONS.map(Some).into_iter().chain([None]) {
        compare(
            &inputs,
            |x| super::linear(x[0].clone(), weight(&x[1]), Some(flat(&x[2])), activation),
            |x| plain::linear(x[0].clone(), weight(&x[1]), Some(flat(&x[2])), activation),
        );
    }
    // A transposed weight, a narrowed input, no bias.
    let inputs = [random([2, 40, 48]), random([1, 80, 48]) * 0.1];
    let call = |x: &[Tensor<3>]| (x[0].clone().narrow(1, 3, 30), weight(&x[1]).transpose());
    compare(
        &inputs,
        |x| super::linear(call(x).0, call(x).1, None, None),
        |x| plain::linear(call(x).0, call(x).1, None, None),
    );
}

#[test]
fn products_in_mixed_precision() {
    if !super::mixes(&Device::flex()) {
        return;
    }
    let weight = |x: &Tensor<3>| x.clone().squeeze_dim::<2>(0);
    // Sizes with parts of tiles, of panels and of pairs.
    for (tokens, inner, outer) in [(33, 47, 81), (64, 96, 48), (150, 1100, 20)] {
        let inputs = [random([2, tokens, inner]), random([1, inner, outer])];
        let rounded = inputs.clone().map(|x| x.cast(FloatDType::BF16).cast(FloatDType::F32));
        let direction = random([2, tokens, outer]).cast(FloatDType::BF16).cast(FloatDType::F32);
        let gradients = |inputs: [Tensor<3>; 2], mixed: bool| {
            let leaves = inputs.map(|x| x.autodiff().require_grad());
            let call = || super::linear(leaves[0].clone(), weight(&leaves[1]), None, None);
            let y = if mixed { super::mixed(call) } else { call() };
            let found = (y.clone() * direction.clone().autodiff()).sum().backward();
            let of = |x: &Tensor<3>| x.grad(&found).expect("every input has a gradient");
            [y.inner(), of(&leaves[0]), of(&leaves[1])]
        };
        let found = gradients(inputs, true);
        let expected = gradients(rounded, false);
        for (i, (found, expected)) in found.into_iter().zip(expected).enumerate() {
            let worst = difference(found, expected);
            assert!(worst < 1e-5, "{i} of {tokens} {inner} {outer} differs by {worst:e}");
        }
    }
    // Of a transposed weight, as that of the gradient's gradient; without gradients nothing changes.
    let (x, w) = (random([1, 9, 21]), random::<3>([1, 33, 21]));
    let call = |x: Tensor<3>| super::linear(x, weight(&w).transpose(), None, None);
    let plain = call(x.clone());
    assert!(difference(super::mixed(|| call(x.clone())), plain.clone()) == 0.0);
    let mixed = super::mixed(|| call(x.autodiff().require_grad())).inner();
    let worst = difference(mixed, plain);
    assert!((1e-5..1e-2).contains(&worst), "{worst:e}");
}

#[test]
fn normalized_columns() {
    let weight = |x: &Tensor<3>| x.clone().squeeze_dim::<2>(0);
    let gain = |x: &Tensor<3>| x.clone().reshape([1]);
    compare(
        &[random([1, 65, 40]), random([1, 1, 1])],
        |x| super::normalized_columns(weight(&x[0]), Some(gain(&x[1])), 1.5).unsqueeze(),
        |x| plain::normalized_columns(weight(&x[0]), Some(gain(&x[1])), 1.5).unsqueeze(),
    );
    compare(
        &[random([1, 65, 40]) * 0.01],
        |x| super::normalized_columns(weight(&x[0]), None, 1.0).unsqueeze(),
        |x| plain::normalized_columns(weight(&x[0]), None, 1.0).unsqueeze(),
    );
}

#[test]
fn modulate() {
    let (batch, tokens, width) = (3, 13, 50);
    for case in 0..32 {
        let on = |bit: usize| case >> bit & 1 == 1;
        // Factors of one row per image, as parts of one tensor, or one row per token.
        let rows = if on(4) { tokens } else { 1 };
        let norm = on(0).then_some(1e-6);
        let inputs = [random([batch, tokens, width]), random([batch, rows, 3 * width])];
        let factors = |x: &Tensor<3>| {
            let part = |bit: usize, width: usize| {
                on(bit).then(|| x.clone().narrow(2, (bit - 1) * 50, width))
            };
            [part(1, width), part(2, width), part(3, width / 2)]
        };
        // Adding all factors gives each a gradient when none is on.
        let extra = |x: &Tensor<3>| x.clone().sum_dim(2).sum_dim(1) * 0.1;
        compare(
            &inputs,
            |x| super::modulate(x[0].clone(), norm, factors(&x[1])) + extra(&x[1]),
            |x| plain::modulate(x[0].clone(), norm, factors(&x[1])) + extra(&x[1]),
        );
    }
}

#[test]
fn join() {
    for (rows, balance) in [(1, None), (1, Some(0.3)), (13, None), (13, Some(0.3))] {
        let inputs = [random([3, 13, 50]), random([3, 13, 50]), random([3, rows, 50])];
        compare(
            &inputs,
            |x| super::join(x[0].clone(), x[1].clone(), Some(x[2].clone()), balance),
            |x| plain::join(x[0].clone(), x[1].clone(), Some(x[2].clone()), balance),
        );
        compare(
            &inputs[..2],
            |x| super::join(x[0].clone(), x[1].clone(), None, balance),
            |x| plain::join(x[0].clone(), x[1].clone(), None, balance),
        );
    }
}

#[test]
fn attention() {
    for (tokens, heads, head) in [(9, 2, 16), (300, 3, 24)] {
        let (width, past) = (heads * head, [[7, 0, 0], [5, 9, 140]]);
        for (cosine, past) in [false, true].into_iter().flat_map(|c| past.map(|past| (c, past))) {
            let mut inputs = vec![random([2, tokens, 3 * width])];
            for tokens in past.into_iter().filter(|tokens| *tokens > 0) {
                inputs.push(random([2, tokens, 2 * width]));
            }
            for inputs in [&inputs[..1], &inputs] {
                compare(
                    inputs,
                    |x| super::attention(x[0].clone(), x[1..].to_vec(), heads, cosine),
                    |x| plain::attention(x[0].clone(), x[1..].to_vec(), heads, cosine, None),
                );
            }
        }
    }
}

#[test]
fn updates() {
    let values = |n: usize| random([n]);
    let step = AdamStep { betas: [0.9, 0.99], rate: 0.01, root: 3.0, epsilon: 1e-8, keep: 0.999 };
    let (value, gradient, factor) = (values(40_001), values(40_001), values(1).abs());
    let moments = [values(40_001), values(40_001).square()];
    let found = super::adam(step, value.clone(), gradient.clone(), &factor, moments.clone());
    let scaled = gradient.clone() * factor;
    let expected = plain::adam(step, value.clone(), scaled, moments.clone());
    for (found, expected) in found.into_iter().zip(expected) {
        assert!(difference(found, expected) < 1e-6);
    }
    // The moments given were held here too, and so are as they were.
    assert!(difference(moments[0].clone() * 1.0, moments[0].clone()) == 0.0);
    let blended = super::blend(value.clone(), gradient.clone(), 0.9);
    assert!(difference(blended, value.clone() * 0.9 + gradient * 0.1) < 1e-6);
    assert!(difference(super::sum_of_squares(value.clone()), value.square().sum()) < 1e-5);
}

#[test]
fn packed_weights() {
    use burn::tensor::FloatDType;
    // Widths that are no multiple of a panel, odd depths, few and many rows.
    for (rows, inputs, outputs) in [(1, 33, 7), (3, 48, 96), (70, 1601, 100), (9, 4, 49)] {
        let (x, bias) = (random([rows, inputs]), random([outputs]));
        for dtype in [FloatDType::F32, FloatDType::BF16, FloatDType::F16] {
            let weight = random([inputs, outputs]).cast(dtype);
            if !super::packs(&weight) {
                assert_eq!(dtype, FloatDType::F32);
                continue;
            }
            let found = super::packed_linear(
                x.clone(),
                super::pack(weight.clone()),
                outputs,
                Some(bias.clone()),
                Some(Activation::Silu),
            );
            let weight = weight.cast(FloatDType::F32);
            // The inputs are rounded too where the machine multiplies bf16.
            let rounded = x.clone().cast(dtype).cast(FloatDType::F32);
            let plain =
                |x| plain::linear(x, weight.clone(), Some(bias.clone()), Some(Activation::Silu));
            let worst =
                difference(found.clone(), plain(rounded)).min(difference(found, plain(x.clone())));
            assert!(worst < 1e-5, "{rows} x {inputs} x {outputs} {dtype:?}: {worst:e}");
        }
        // 8 bits: a weight is off by at most half a step of the coarsest scale, and as f16 before.
        let weight = random([inputs, outputs]);
        let packed = super::pack(weight.clone().cast(FloatDType::F16));
        assert!(super::quantizes(&packed));
        let identity = Tensor::eye(inputs, &Device::flex());
        let found: Tensor<2> =
            super::packed_linear(identity, super::quantize(packed), outputs, None, None);
        let step: f32 = weight.clone().abs().max().into_scalar::<f32>() / 127.0;
        let off: f32 = (found - weight).abs().max().into_scalar::<f32>() / step;
        assert!(off < 0.6, "{inputs} x {outputs}: {off} steps");
    }
}

#[test]
fn convolution_and_group_norm() {
    use burn::module::Param;
    use burn::nn::conv::Conv2dConfig;
    use burn::nn::{GroupNormConfig, PaddingConfig2d};
    let device = Device::flex();
    // One block and several, one column and many, channels of any number.
    for (inputs, outputs, height, width) in [(3, 8, 5, 1), (16, 5, 40, 33), (4, 4, 1, 700)] {
        let layer = Conv2dConfig::new([inputs, outputs], [3, 3])
            .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
            .init(&device);
        let x = random([2, inputs, height, width]);
        for double in [false, true] {
            let found = super::conv3x3(&layer, x.clone(), double);
            let worst = difference(found, plain::conv3x3(&layer, x.clone(), double));
            assert!(worst < 2e-6, "{worst:e}");
        }
    }
    let mut layer = GroupNormConfig::new(4, 12).with_epsilon(1e-6).init(&device);
    layer.gamma = Some(Param::from_tensor(random([12])));
    layer.beta = Some(Param::from_tensor(random([12])));
    let x = random([3, 12, 50, 41]) * 2.0 + 5.0;
    let worst = difference(super::norm_silu(&layer, x.clone()), plain::norm_silu(&layer, x));
    assert!(worst < 5e-6, "{worst:e}");
}

#[test]
fn filters_per_channel() {
    for (kernel, stride, height, width) in [(3, 1, 5, 7), (3, 2, 8, 8), (5, 2, 9, 6), (5, 1, 4, 4)]
    {
        let (x, weight) = (random([2, height, width, 19]), random([kernel * kernel, 19]));
        let bias = random([19]) + 1.0;
        let found = super::depthwise(x.clone(), weight.clone(), bias.clone(), stride);
        assert_eq!(found.dims(), [2, height.div_ceil(stride), width.div_ceil(stride), 19]);
        assert!(difference(found, plain::depthwise(x, weight, bias, stride)) < 2e-6);
    }
}

#[test]
fn gradient_checkpointing_is_left_to_burn() {
    let device = Device::flex().autodiff().gradient_checkpointing();
    let x = Tensor::<3>::ones([2, 3, 8], &device).require_grad();
    let y = super::pointwise(x.clone(), Activation::Silu);
    let gradient = x.grad(&y.sum().backward()).expect("recorded");
    let plain = random([2, 3, 8]).autodiff();
    assert!(!super::available(&x) && super::available(&plain));
    assert!(gradient.abs().sum().into_scalar::<f32>() > 0.0);
}

#[test]
fn products_are_the_same_for_any_number_of_threads() {
    use super::cpu::matrix::{Matrix, multiply};
    let shapes =
        [(16, 768, 3072), (256, 768, 2304), (257, 1152, 50), (1000, 3072, 97), (4, 96, 9000)];
    for (m, k, n) in shapes {
        let values =
            |count: usize| -> Vec<f32> { random([count]).into_data().try_to_vec().expect("f32") };
        let (a, b) = (values(m * k), values(k * n));
        let product = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let mut c = vec![0.0; m * n];
            pool.expect("a pool").install(|| {
                let (a, b) = (Matrix::new(&a, m, k), Matrix::new(&b, k, n));
                multiply(&mut c, n, a, b, false, true);
            });
            c
        };
        let alone = product(1);
        for threads in [2, 3, 7] {
            assert!(product(threads) == alone, "{m} x {k} x {n} on {threads} threads");
        }
    }
}
