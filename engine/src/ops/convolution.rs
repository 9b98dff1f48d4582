//! Convolutions and norms of images.

use burn::nn::GroupNorm;
use burn::nn::conv::Conv2d;
use burn::tensor::ops::{ConvOptions, InterpolateMode, InterpolateOptions};
use burn::tensor::{Tensor, activation, module};

use super::activation::{Activation, activated, split};
use super::available;
use super::cpu::bridge::{device, host, run};
use super::cpu::conv;
use super::cpu::depthwise::Depthwise;

/// A convolution of 3 x 3 with a border of zeros, of an image that may be doubled in size first; with `rounds` of numbers
/// rounded to bf16, where the CPU has tile units for them.
///
/// # Shapes
/// `[batch, in, height, width]` to `[batch, out, height (· 2), width (· 2)]`
pub fn conv3x3(layer: &Conv2d, x: Tensor<4>, double: bool, rounds: bool) -> Tensor<4> {
    let weight = layer.weight.val();
    if !available(&x) || !available(&weight) || x.is_autodiff() || weight.is_autodiff() {
        return plain_conv3x3(layer, x, double);
    }
    let bias = layer.bias.as_ref().map(|bias| host(bias.val()));
    device(conv::conv3x3(&host(x), &host(weight), bias.as_ref(), double, rounds))
}

fn plain_conv3x3(layer: &Conv2d, x: Tensor<4>, double: bool) -> Tensor<4> {
    let [_, _, height, width] = x.dims();
    let options =
        InterpolateOptions::new(InterpolateMode::Nearest).with_output_size([2 * height, 2 * width]);
    layer.forward(if double { module::interpolate(x, options) } else { x })
}

/// A convolution with one filter per channel, a bias and an activation, with the border that TensorFlow calls `same`.
///
/// # Shapes
/// `x`: `[batch, height, width, channels]`, `weight`: `[kernel · kernel, channels]`, `bias`: `[channels]`,
/// output: `[batch, height / stride, width / stride, channels]`, rounded up
pub fn depthwise(
    x: Tensor<4>,
    weight: Tensor<2>,
    bias: Tensor<1>,
    stride: usize,
    activation: Option<Activation>,
) -> Tensor<4> {
    if !available(&x) || !available(&weight) {
        return plain_depthwise(x, weight, bias, stride, activation);
    }
    let (fused, after) = split(activation, x.is_autodiff() || weight.is_autodiff());
    let inputs = vec![x.into(), weight.into(), bias.into()];
    activated(run(Depthwise { stride, activation: fused }, inputs), after)
}

fn plain_depthwise(
    x: Tensor<4>,
    weight: Tensor<2>,
    bias: Tensor<1>,
    stride: usize,
    activation: Option<Activation>,
) -> Tensor<4> {
    let ([_, height, width, _], [taps, channels]) = (x.dims(), weight.dims());
    let kernel = taps.isqrt();
    let borders = [height, width].map(|side| Side::new(side, kernel, stride).border);
    let [rows, columns] = borders.map(|[before, after]| (before, after));
    let x = x.permute([0, 3, 1, 2]).pad([rows, columns], 0.0);
    let weight = weight.transpose().reshape([channels, 1, kernel, kernel]);
    let options = ConvOptions::new([stride; 2], [0; 2], [1; 2], channels);
    activated(module::conv2d(x, weight, Some(bias), options).permute([0, 2, 3, 1]), activation)
}

/// Group norm, then SiLU.
///
/// # Shapes
/// `[batch, channels, height, width]` to the same
pub fn norm_silu(layer: &GroupNorm, x: Tensor<4>) -> Tensor<4> {
    let (Some(gamma), Some(beta)) = (&layer.gamma, &layer.beta) else {
        return plain_norm_silu(layer, x);
    };
    let (gamma, beta) = (gamma.val(), beta.val());
    if !available(&x) || !available(&gamma) || x.is_autodiff() || gamma.is_autodiff() {
        return plain_norm_silu(layer, x);
    }
    let affine = [&host(gamma), &host(beta)];
    device(conv::norm_silu(&host(x), layer.num_groups, layer.epsilon as f32, affine))
}

fn plain_norm_silu(layer: &GroupNorm, x: Tensor<4>) -> Tensor<4> {
    activation::silu(layer.forward(x))
}

/// One side of an image and what a convolution makes of it.
#[derive(Clone, Copy)]
pub(super) struct Side {
    side: usize,
    kernel: usize,
    /// Length after the convolution.
    pub(super) out: usize,
    /// Zeros before and after.
    pub(super) border: [usize; 2],
}

impl Side {
    pub(super) fn new(side: usize, kernel: usize, stride: usize) -> Self {
        let out = side.div_ceil(stride);
        let total = ((out - 1) * stride + kernel).saturating_sub(side);
        Self { side, kernel, out, border: [total / 2, total - total / 2] }
    }

    /// The places of a filter within the image, and what they lie on, for one place of the output.
    #[inline(always)]
    pub(super) fn taps(self, at: usize, stride: usize) -> impl Iterator<Item = (usize, usize)> {
        (0..self.kernel).filter_map(move |tap| Some((tap, self.under(at, tap, stride)?)))
    }

    /// What one place of a filter lies on, for one place of the output.
    #[inline(always)]
    pub(super) fn under(self, at: usize, tap: usize, stride: usize) -> Option<usize> {
        (at * stride + tap).checked_sub(self.border[0]).filter(|x| *x < self.side)
    }

    /// The places of a filter that lie on one place of the input, and the place of the output for which they do.
    #[inline(always)]
    pub(super) fn places(self, x: usize, stride: usize) -> impl Iterator<Item = (usize, usize)> {
        let of = move |tap: usize| {
            let first = (x + self.border[0]).checked_sub(tap)?;
            first.is_multiple_of(stride).then_some((tap, first / stride))
        };
        (0..self.kernel).filter_map(of).filter(move |(_, at)| *at < self.out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cpu::mixed;
    use crate::ops::testing::{compare, difference};
    use crate::testing::random;
    use burn::tensor::Device;

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
                let expected = plain_conv3x3(&layer, x.clone(), double);
                let found = conv3x3(&layer, x.clone(), double, true);
                let worst = difference(found, expected.clone());
                let off = if mixed::available() { 1e-5..2e-2 } else { 0.0..2e-6 };
                assert!(off.contains(&worst), "rounded: {worst:e}");
                let worst = difference(conv3x3(&layer, x.clone(), double, false), expected);
                assert!(worst < 2e-6, "{worst:e}");
            }
        }
        let mut layer = GroupNormConfig::new(4, 12).with_epsilon(1e-6).init(&device);
        layer.gamma = Some(Param::from_tensor(random([12])));
        layer.beta = Some(Param::from_tensor(random([12])));
        let x = random([3, 12, 50, 41]) * 2.0 + 5.0;
        let worst = difference(norm_silu(&layer, x.clone()), plain_norm_silu(&layer, x));
        assert!(worst < 5e-6, "{worst:e}");
    }

    #[test]
    fn filters_per_channel() {
        for (kernel, stride, height, width) in
            [(3, 1, 5, 7), (3, 2, 8, 8), (5, 2, 9, 6), (5, 1, 4, 4)]
        {
            let (x, weight) = (random([2, height, width, 19]), random([kernel * kernel, 19]));
            let bias = random([19]) + 1.0;
            for activation in [Some(Activation::Relu6), None] {
                let (x, weight, bias) = (x.clone(), weight.clone(), bias.clone());
                let found = depthwise(x.clone(), weight.clone(), bias.clone(), stride, activation);
                assert_eq!(found.dims(), [2, height.div_ceil(stride), width.div_ceil(stride), 19]);
                let expected =
                    plain_depthwise(x.clone(), weight.clone(), bias.clone(), stride, activation);
                assert!(difference(found, expected) < 2e-6);
            }
            let [rows, columns] = [height, width].map(|side| side.div_ceil(stride));
            let flat = |y: Tensor<4>| y.reshape([2, rows * columns, 19]);
            let inputs = [
                x.reshape([2, height * width, 19]),
                weight.reshape([1, kernel * kernel, 19]),
                bias.reshape([1, 1, 19]),
            ];
            let given = |inputs: &[Tensor<3>]| {
                let [x, weight, bias] = [0, 1, 2].map(|i| inputs[i].clone());
                let x = x.reshape([2, height, width, 19]);
                (x, weight.reshape([kernel * kernel, 19]), bias.reshape([19]))
            };
            let activation = Some(Activation::Relu6);
            compare(
                &inputs,
                |inputs| {
                    let (x, weight, bias) = given(inputs);
                    flat(depthwise(x, weight, bias, stride, activation))
                },
                |inputs| {
                    let (x, weight, bias) = given(inputs);
                    flat(plain_depthwise(x, weight, bias, stride, activation))
                },
            );
        }
    }
}
