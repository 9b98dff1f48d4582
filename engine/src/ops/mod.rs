//! Fused operations on the CPU, forward and backward, in place of chains of burn's own.
//!
//! Each function here is the one way its operation is called: it runs the kernel where there is one
//! (f32 on the CPU backend) and the plain tensor operations everywhere else. The two are tested against
//! each other, values and gradients. The environment variable `PYROGRAPH_KERNELS=off` leaves the plain
//! ones everywhere.

mod cpu;
mod plain;
#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) use cpu::matrix::counted;
pub use cpu::update::AdamStep;

use std::cell::Cell;
use std::sync::LazyLock;

use burn::backend::{DispatchAutodiffContext, GradientCheckpointingStrategy};
use burn::nn::GroupNorm;
use burn::nn::conv::Conv2d;
use burn::tensor::{Bool, DType, Device, FloatDType, Tensor};

use crate::device::is_host;
use crate::layers::Activation;
use cpu::bridge::{Operand, device, host, run};
use cpu::{
    attention, conv, depthwise, linear, memory, mixed, modulate, packed, pointwise, update, weight,
};

/// Whether kernels are used at all.
static ON: LazyLock<bool> =
    LazyLock::new(|| std::env::var_os("PYROGRAPH_KERNELS").is_none_or(|value| value != "off"));

/// Whether the kernels take this tensor. Those of gradient checkpointing are left to burn.
fn available<const D: usize>(x: &Tensor<D>) -> bool {
    let checkpointed = DispatchAutodiffContext::Enabled(GradientCheckpointingStrategy::Balanced);
    *ON && x.dtype() == DType::F32
        && is_host(&x.device())
        && !(x.is_autodiff() && x.clone().into_dispatch().autodiff == checkpointed)
}

thread_local! {
    /// Whether the linear layers that are recorded on this thread multiply in bf16.
    static MIXED: Cell<bool> = const { Cell::new(false) };
}

/// Whether [`mixed()`] changes anything on this device.
pub fn mixes(device: &Device) -> bool {
    *ON && is_host(device) && mixed::available()
}

/// `f`, in which the products of linear layers whose gradients are recorded take bf16 in place of f32, those of
/// the gradients too; the sums stay f32 (mixed precision, Micikevicius et al. 2018).
pub fn mixed<R>(f: impl FnOnce() -> R) -> R {
    let before = MIXED.replace(mixed::available());
    let result = f();
    MIXED.set(before);
    result
}

/// `activation(x · weight + bias)`.
///
/// # Shapes
/// `x`: `[.., in]`, `weight`: `[in, out]`, `bias`: `[out]`, output: `[.., out]`
pub fn linear<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    activation: Option<Activation>,
) -> Tensor<D> {
    if !(available(&x) && available(&weight)) {
        return plain::linear(x, weight, bias, activation);
    }
    // The backward pass needs the activation's input, which a fused one does not keep.
    let recorded = x.is_autodiff() || weight.is_autodiff();
    let (fused, after) = match recorded {
        true => (None, activation),
        false => (activation, None),
    };
    let mixed = recorded && MIXED.get();
    let mut inputs = vec![x.into(), weight.into()];
    inputs.extend(bias.map(Operand::from));
    let y = run(linear::Linear { activation: fused, mixed }, inputs);
    match after {
        Some(activation) => pointwise(y, activation),
        None => y,
    }
}

/// Whether [`pack`] gains anything for this weight.
pub fn packs(weight: &Tensor<2>) -> bool {
    *ON && is_host(&weight.device()) && !weight.is_autodiff() && packed::packs(weight.dtype())
}

/// A weight that [`packs`], rearranged for [`packed_linear`].
///
/// # Shapes
/// `[in, out]`
pub fn pack(weight: Tensor<2>) -> Tensor<2> {
    device(packed::pack(host(weight)))
}

/// Whether [`quantize`] takes what [`pack`] made.
pub fn quantizes(packed: &Tensor<2>) -> bool {
    packed.dtype() == DType::F16 && packs(packed)
}

/// An f16 weight from [`pack`] in 8 bits, with a scale for every 32 inputs of each output: a half of the memory.
pub fn quantize(packed: Tensor<2>) -> Tensor<2> {
    device(packed::quantize(&host(packed)))
}

/// `activation(x · weight + bias)` with a weight of `outputs` columns from [`pack`] or [`quantize`], in f32:
/// of a weight of half precision only the products are in its type, and their sums are f32.
///
/// # Shapes
/// `x`: `[.., in]`, `bias`: `[outputs]`, output: `[.., outputs]`
pub fn packed_linear<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    outputs: usize,
    bias: Option<Tensor<1>>,
    activation: Option<Activation>,
) -> Tensor<D> {
    let bias = bias.map(|bias| host(bias.cast(FloatDType::F32)));
    let x = host(x.cast(FloatDType::F32));
    device(linear::packed(&x, &host(weight), outputs, bias, activation))
}

/// The activation of each element.
pub fn pointwise<const D: usize>(x: Tensor<D>, activation: Activation) -> Tensor<D> {
    match available(&x) {
        true => run(pointwise::Pointwise(activation), vec![x.into()]),
        false => plain::pointwise(x, activation),
    }
}

/// The weight of a preserved layer, whose columns have a length of 1, times its gain (EDM2 Eq. 47).
///
/// # Shapes
/// `weight`: `[in, out]`, `gain`: `[1]`
pub fn normalized_weight(weight: Tensor<2>, gain: Option<Tensor<1>>) -> Tensor<2> {
    normalized_columns(weight, gain, 1.0)
}

/// The weight of a preserved layer with columns of unit RMS (EDM2 Eq. 66).
///
/// # Shapes
/// `[in, out]`
pub fn unit_weight(weight: Tensor<2>) -> Tensor<2> {
    let length = (weight.dims()[0] as f64).sqrt();
    normalized_columns(weight, None, length)
}

fn normalized_columns(weight: Tensor<2>, gain: Option<Tensor<1>>, length: f64) -> Tensor<2> {
    if !available(&weight) {
        return plain::normalized_columns(weight, gain, length);
    }
    let inputs = std::iter::once(weight.into()).chain(gain.map(Operand::from));
    run(weight::NormalizedColumns { length: length as f32 }, inputs.collect())
}

/// Layer norm with the constant `norm`, if there is one; then scale, shift and rotation by angles, in
/// radians, of the channel pairs `(i, i + hidden / 2)`.
///
/// # Shapes
/// `x`: `[batch, tokens, hidden]`; `scale`, `shift`: `[batch, 1 | tokens, hidden]`, `angles`:
/// `[batch, 1 | tokens, hidden / 2]`
pub fn modulate(
    x: Tensor<3>,
    norm: Option<f64>,
    [scale, shift, angles]: [Option<Tensor<3>>; 3],
) -> Tensor<3> {
    if !available(&x) {
        return plain::modulate(x, norm, [scale, shift, angles]);
    }
    let kernel = modulate::Modulate {
        norm: norm.map(|epsilon| epsilon as f32),
        scale: scale.is_some(),
        shift: shift.is_some(),
        rotation: angles.is_some(),
    };
    let factors = [scale, shift, angles].into_iter().flatten().map(Operand::from);
    run(kernel, std::iter::once(x.into()).chain(factors).collect())
}

/// The stream `x` joined by a gated branch: `x + gate · branch`, or their
/// [`mp_sum`](crate::layers::magnitude::mp_sum) when a balance is given.
///
/// # Shapes
/// `x`, `branch`: `[batch, tokens, hidden]`, `gate`: `[batch, 1 | tokens, hidden]`
pub fn join(
    x: Tensor<3>,
    branch: Tensor<3>,
    gate: Option<Tensor<3>>,
    balance: Option<f64>,
) -> Tensor<3> {
    if !available(&x) {
        return plain::join(x, branch, gate, balance);
    }
    let (keep, share) = balance.map_or((1.0, 1.0), |balance| {
        let norm = ((1.0 - balance).powi(2) + balance.powi(2)).sqrt();
        ((1.0 - balance) / norm, balance / norm)
    });
    let kernel = modulate::Join { keep: keep as f32, share: share as f32 };
    let mut inputs = vec![x.into(), branch.into()];
    inputs.extend(gate.map(Operand::from));
    run(kernel, inputs)
}

/// Multi-head self-attention over packed queries, keys and values; with `cosine`, of queries and keys
/// of unit RMS. The tokens also see those whose keys and values are in `past`.
///
/// # Shapes
/// `packed`: `[batch, tokens, 3 · hidden]`, each of `past`: `[batch, its tokens, 2 · hidden]`, output:
/// `[batch, tokens, hidden]`
pub fn attention(packed: Tensor<3>, past: Vec<Tensor<3>>, heads: usize, cosine: bool) -> Tensor<3> {
    if !available(&packed) {
        return plain::attention(packed, past, heads, cosine, None);
    }
    let inputs = std::iter::once(packed).chain(past).map(Operand::from);
    run(attention::Attention { heads, cosine }, inputs.collect())
}

/// [`attention()`] in which not every token sees every other.
///
/// # Shapes
/// `hidden`: `[batch, heads | 1, tokens, tokens]`, `true` = not seen
pub fn masked_attention(
    packed: Tensor<3>,
    hidden: Tensor<4, Bool>,
    heads: usize,
    cosine: bool,
) -> Tensor<3> {
    plain::attention(packed, Vec::new(), heads, cosine, Some(hidden))
}

/// A convolution of 3 x 3 with a border of zeros, of an image that may be doubled in size first.
///
/// # Shapes
/// `[batch, in, height, width]` to `[batch, out, height (· 2), width (· 2)]`
pub fn conv3x3(layer: &Conv2d, x: Tensor<4>, double: bool) -> Tensor<4> {
    let weight = layer.weight.val();
    if !available(&x) || !available(&weight) || x.is_autodiff() || weight.is_autodiff() {
        return plain::conv3x3(layer, x, double);
    }
    let bias = layer.bias.as_ref().map(|bias| host(bias.val()));
    device(conv::conv3x3(&host(x), &host(weight), bias.as_ref(), double))
}

/// A convolution with one filter per channel and a bias, clipped to [0, 6], with the border that TensorFlow
/// calls `same`.
///
/// # Shapes
/// `x`: `[batch, height, width, channels]`, `weight`: `[kernel · kernel, channels]`, `bias`: `[channels]`,
/// output: `[batch, height / stride, width / stride, channels]`, rounded up
pub fn depthwise(x: Tensor<4>, weight: Tensor<2>, bias: Tensor<1>, stride: usize) -> Tensor<4> {
    if !available(&x) || !available(&weight) || x.is_autodiff() || weight.is_autodiff() {
        return plain::depthwise(x, weight, bias, stride);
    }
    device(depthwise::depthwise(&host(x), &host(weight), &host(bias), stride))
}

/// Group norm, then SiLU.
///
/// # Shapes
/// `[batch, channels, height, width]` to the same
pub fn norm_silu(layer: &GroupNorm, x: Tensor<4>) -> Tensor<4> {
    let (Some(gamma), Some(beta)) = (&layer.gamma, &layer.beta) else {
        return plain::norm_silu(layer, x);
    };
    let (gamma, beta) = (gamma.val(), beta.val());
    if !available(&x) || !available(&gamma) || x.is_autodiff() || gamma.is_autodiff() {
        return plain::norm_silu(layer, x);
    }
    let affine = [&host(gamma), &host(beta)];
    device(conv::norm_silu(&host(x), layer.num_groups, layer.epsilon as f32, affine))
}

/// New value and moments of a parameter after one step of AdamW, the gradient being multiplied by
/// `factor`.
///
/// # Shapes
/// `[elements]`, `factor`: `[1]`
pub fn adam(
    step: AdamStep,
    value: Tensor<1>,
    gradient: Tensor<1>,
    factor: &Tensor<1>,
    [first, second]: [Tensor<1>; 2],
) -> [Tensor<1>; 3] {
    if !available(&value) {
        return plain::adam(step, value, gradient * factor.clone(), [first, second]);
    }
    let factor = memory::values(&host(factor.clone()))[0];
    let moments = [host(first), host(second)];
    update::adam(step, &host(value), &host(gradient), factor, moments).map(device)
}

/// `average · keep + value · (1 − keep)`.
///
/// # Shapes
/// `[elements]`
pub fn blend(average: Tensor<1>, value: Tensor<1>, keep: f64) -> Tensor<1> {
    match available(&average) {
        true => device(update::blend(host(average), &host(value), keep)),
        false => average * keep + value * (1.0 - keep),
    }
}

/// `Σ x²`, `[1]`.
///
/// # Shapes
/// `[elements]`
pub fn sum_of_squares(x: Tensor<1>) -> Tensor<1> {
    match available(&x) {
        true => device(memory::tensor(vec![update::sum_of_squares(&host(x))], &[1])),
        false => x.square().sum(),
    }
}
