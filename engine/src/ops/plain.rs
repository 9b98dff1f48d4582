//! The operations of this module as chains of burn's: what other devices run, and what the kernels are
//! tested against.

use burn::nn::GroupNorm;
use burn::nn::conv::Conv2d;
use burn::tensor::module;
use burn::tensor::ops::{AttentionModuleOptions, ConvOptions, InterpolateMode, InterpolateOptions};
use burn::tensor::{Bool, Tensor, activation};

use super::AdamStep;
use super::cpu::depthwise::Side;
use crate::layers::Activation;
use crate::layers::magnitude::{self, SILU_RMS, in_f32, mp_sum};
use crate::layers::mlp::{GELU_CUBIC, GELU_SLOPE};
use crate::layers::modulation::rotate;

pub(super) fn pointwise<const D: usize>(x: Tensor<D>, activation: Activation) -> Tensor<D> {
    match activation {
        Activation::GeluTanh => {
            let u = (x.clone().square() * (GELU_SLOPE * GELU_CUBIC) + GELU_SLOPE) * x.clone();
            x * activation::sigmoid(u)
        }
        Activation::Silu => activation::silu(x),
        Activation::MpSilu => activation::silu(x) * (1.0 / SILU_RMS),
    }
}

pub(super) fn linear<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    activation: Option<Activation>,
) -> Tensor<D> {
    // In this order, and without burn's own `linear`, its fusion can join what follows to the product.
    let (weight, bias) = (weight.unsqueeze(), bias.map(|bias| bias.unsqueeze()));
    let y = x.matmul(weight);
    let y = match bias {
        Some(bias) => y + bias,
        None => y,
    };
    match activation {
        Some(activation) => pointwise(y, activation),
        None => y,
    }
}

pub(super) fn normalized_columns(
    weight: Tensor<2>,
    gain: Option<Tensor<1>>,
    length: f64,
) -> Tensor<2> {
    let inputs = weight.dims()[0] as f64;
    let weight = magnitude::normalize(weight, 0) * (length / inputs.sqrt());
    match gain {
        Some(gain) => weight * gain.unsqueeze(),
        None => weight,
    }
}

pub(super) fn modulate(
    mut x: Tensor<3>,
    norm: Option<f64>,
    [scale, shift, angles]: [Option<Tensor<3>>; 3],
) -> Tensor<3> {
    if let Some(epsilon) = norm {
        x = in_f32(x, |x| {
            let centred = x.clone() - x.mean_dim(2);
            let variance = centred.clone().square().mean_dim(2);
            centred * (variance + epsilon).sqrt().recip()
        });
    }
    if let Some(scale) = scale {
        x = x * scale;
    }
    if let Some(shift) = shift {
        x = x + shift;
    }
    match angles {
        Some(angles) => rotate(x, angles),
        None => x,
    }
}

pub(super) fn join(
    x: Tensor<3>,
    branch: Tensor<3>,
    gate: Option<Tensor<3>>,
    balance: Option<f64>,
) -> Tensor<3> {
    let branch = match gate {
        Some(gate) => branch * gate,
        None => branch,
    };
    match balance {
        Some(balance) => mp_sum(x, branch, balance),
        None => x + branch,
    }
}

/// The parts of packed rows, each `[batch, heads, tokens, head]`.
fn unpack<const N: usize>(packed: Tensor<3>, heads: usize) -> [Tensor<4>; N] {
    let [batch, tokens, width] = packed.dims();
    let head = width / (N * heads);
    // One copy of all, by the first reshape.
    let parts: Tensor<5> = packed.reshape([batch, tokens, N, heads, head]).permute([2, 0, 3, 1, 4]);
    let parts = parts.reshape([N * batch, heads, tokens, head]);
    std::array::from_fn(|i| parts.clone().narrow(0, i * batch, batch))
}

/// See [`super::attention()`] and [`super::masked_attention`].
pub(super) fn attention(
    packed: Tensor<3>,
    mut past: Vec<Tensor<3>>,
    heads: usize,
    cosine: bool,
    hidden: Option<Tensor<4, Bool>>,
) -> Tensor<3> {
    let unit = |x| if cosine { magnitude::normalize(x, 3) } else { x };
    let [query, key, value] = match past.is_empty() {
        true => unpack(packed, heads),
        false => {
            let width = packed.dims()[2] / 3;
            past.insert(0, packed.clone().narrow(2, width, 2 * width));
            let [query] = unpack(packed.narrow(2, 0, width), heads);
            let [key, value] = unpack(Tensor::cat(past, 1), heads);
            [query, key, value]
        }
    };
    mix([unit(query), unit(key), value], hidden)
}

/// Attention and the way back to `[batch, tokens, heads · head]`.
fn mix([query, key, value]: [Tensor<4>; 3], hidden: Option<Tensor<4, Bool>>) -> Tensor<3> {
    let [batch, heads, tokens, head] = query.dims();
    let options = AttentionModuleOptions::default();
    let mixed = module::attention(query, key, value, hidden, None, options);
    mixed.swap_dims(1, 2).reshape([batch, tokens, heads * head])
}

pub(super) fn adam(
    step: AdamStep,
    value: Tensor<1>,
    gradient: Tensor<1>,
    [first, second]: [Tensor<1>; 2],
) -> [Tensor<1>; 3] {
    let [beta1, beta2] = step.betas;
    let first = first * beta1 + gradient.clone() * (1.0 - beta1);
    let second = second * beta2 + gradient.square() * (1.0 - beta2);
    let update = first.clone() / (second.clone().sqrt() * step.root + step.epsilon);
    [value * step.keep - update * step.rate, first, second]
}

pub(super) fn conv3x3(layer: &Conv2d, x: Tensor<4>, double: bool) -> Tensor<4> {
    let [_, _, height, width] = x.dims();
    let options =
        InterpolateOptions::new(InterpolateMode::Nearest).with_output_size([2 * height, 2 * width]);
    layer.forward(if double { module::interpolate(x, options) } else { x })
}

pub(super) fn depthwise(
    x: Tensor<4>,
    weight: Tensor<2>,
    bias: Tensor<1>,
    stride: usize,
) -> Tensor<4> {
    let ([_, height, width, _], [taps, channels]) = (x.dims(), weight.dims());
    let kernel = taps.isqrt();
    let borders = [height, width].map(|side| Side::new(side, kernel, stride).border);
    let [rows, columns] = borders.map(|[before, after]| (before, after));
    let x = x.permute([0, 3, 1, 2]).pad([rows, columns], 0.0);
    let weight = weight.transpose().reshape([channels, 1, kernel, kernel]);
    let options = ConvOptions::new([stride; 2], [0; 2], [1; 2], channels);
    module::conv2d(x, weight, Some(bias), options).clamp(0.0, 6.0).permute([0, 2, 3, 1])
}

pub(super) fn norm_silu(layer: &GroupNorm, x: Tensor<4>) -> Tensor<4> {
    activation::silu(layer.forward(x))
}
