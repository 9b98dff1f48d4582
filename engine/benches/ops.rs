//! The fused operations at the sizes of DiT-B/2 on two images: `cargo bench`.
//!
//! `PYROGRAPH_KERNELS=off cargo bench` times the plain operations in their place.
#![allow(missing_docs)]

use burn::nn::conv::Conv2dConfig;
use burn::nn::{GroupNormConfig, PaddingConfig2d};
use burn::tensor::{Device, Distribution, FloatDType, Tensor};
use divan::{Bencher, black_box};
use pyrograph_engine::ops::{self, Activation, AttentionSpec, Packed};

const BATCH: usize = 2;
const TOKENS: usize = 256;
const HIDDEN: usize = 768;
const HEADS: usize = 12;

fn main() {
    divan::main();
}

fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), &Device::flex())
}

fn tokens(width: usize) -> Tensor<3> {
    random([BATCH, TOKENS, width])
}

/// A linear layer that is trained: its output, its gradients, in f32 and in bf16.
#[divan::bench(args = [false, true])]
fn trained_linear(bencher: Bencher<'_, '_>, mixed: bool) {
    if mixed && !ops::mixes(&Device::flex()) {
        return;
    }
    let x: Tensor<3> = random([64, 64, 192]);
    let weight: Tensor<2> = random([192, 768]);
    bencher.bench_local(|| {
        let (x, weight) = (x.clone().autodiff().require_grad(), weight.clone().autodiff());
        let weight = weight.require_grad();
        let call = || ops::linear(x.clone(), weight.clone(), None, None);
        let y = if mixed { ops::mixed(call) } else { call() };
        black_box(y.sum().backward())
    });
}

#[divan::bench]
fn linear_gelu(bencher: Bencher<'_, '_>) {
    let (x, weight, bias) = (tokens(HIDDEN), random([HIDDEN, 4 * HIDDEN]), random([4 * HIDDEN]));
    bencher.bench_local(|| {
        let bias = Some(bias.clone());
        black_box(ops::linear(x.clone(), weight.clone(), bias, Some(Activation::GeluTanh)))
    });
}

/// Rows, inputs and outputs.
const SIZES: [[usize; 3]; 4] = [
    [1, HIDDEN, 6 * HIDDEN],
    [TOKENS, HIDDEN, 4 * HIDDEN],
    [TOKENS, 4 * HIDDEN, HIDDEN],
    [BATCH * TOKENS, HIDDEN, 3 * HIDDEN],
];

#[divan::bench(args = SIZES, consts = [0, 1, 2, 3])]
fn packed_linear<const TYPE: usize>(bencher: Bencher<'_, '_>, [rows, inputs, outputs]: [usize; 3]) {
    let types = [FloatDType::F32, FloatDType::BF16, FloatDType::F16, FloatDType::F16];
    let (x, weight) = (random([rows, inputs]), random([inputs, outputs]).cast(types[TYPE]));
    if !ops::packs(&weight) {
        return;
    }
    let weight = ops::pack(weight);
    let weight = if TYPE == 3 { ops::quantize(weight) } else { weight };
    bencher.bench_local(|| {
        black_box(ops::packed_linear(x.clone(), weight.clone(), outputs, None, None))
    });
}

/// Without and with products of bf16.
#[divan::bench(args = [false, true])]
fn attention(bencher: Bencher<'_, '_>, rounds: bool) {
    let packed = tokens(3 * HIDDEN);
    let spec = AttentionSpec { rounds, ..AttentionSpec::new(HEADS) };
    bencher
        .bench_local(|| black_box(ops::attention(vec![Packed::qkv(packed.clone())], &spec, None)));
}

#[divan::bench]
fn modulate(bencher: Bencher<'_, '_>) {
    let (x, row) = (tokens(HIDDEN), random([BATCH, 1, HIDDEN]));
    bencher.bench_local(|| {
        let factors = [Some(row.clone()), Some(row.clone()), None];
        black_box(ops::modulate(x.clone(), Some(ops::RowNorm::Layer(1e-6)), factors))
    });
}

#[divan::bench]
fn join(bencher: Bencher<'_, '_>) {
    let (x, branch, gate) = (tokens(HIDDEN), tokens(HIDDEN), random([BATCH, 1, HIDDEN]));
    bencher
        .bench_local(|| black_box(ops::join(x.clone(), branch.clone(), Some(gate.clone()), None)));
}

#[divan::bench]
fn gelu(bencher: Bencher<'_, '_>) {
    let x = tokens(4 * HIDDEN);
    bencher.bench_local(|| black_box(Activation::GeluTanh.forward(x.clone())));
}

#[divan::bench]
fn normalized_weight(bencher: Bencher<'_, '_>) {
    let weight = random([HIDDEN, 4 * HIDDEN]);
    bencher.bench_local(|| black_box(ops::normalized_weight(weight.clone(), None)));
}

/// Without and with products of bf16.
#[divan::bench(args = [false, true])]
fn conv3x3(bencher: Bencher<'_, '_>, rounds: bool) {
    let layer = Conv2dConfig::new([256, 256], [3, 3])
        .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
        .init(&Device::flex());
    let x = random([1, 256, 64, 64]);
    bencher.bench_local(|| black_box(ops::conv3x3(&layer, x.clone(), false, rounds)));
}

#[divan::bench]
fn norm_silu(bencher: Bencher<'_, '_>) {
    let layer = GroupNormConfig::new(32, 256).init(&Device::flex());
    let x = random([1, 256, 64, 64]);
    bencher.bench_local(|| black_box(ops::norm_silu(&layer, x.clone())));
}
