//! Linear layers, and weights that are laid out for them.

use std::cell::Cell;

use burn::tensor::{DType, Device, FloatDType, Tensor};

use super::activation::{Activation, activated, split};
use super::available;
use super::cpu::bridge::{Operand, device, host, run};
use super::cpu::mixed::in_tiles;
use super::cpu::{self, Method, packed};
use crate::device::{Kernels, is_host};

thread_local! {
    /// Whether linear layers and attention that are recorded on this thread multiply in bf16.
    static MIXED: Cell<bool> = const { Cell::new(false) };
}

/// Whether [`mixed()`] changes anything on this device.
pub fn mixes(device: &Device) -> bool {
    Kernels::Portable.on() && is_host(device) && cpu::mixed::available()
}

/// `f`, in which the products of linear layers whose gradients are recorded take bf16 in place of f32, those of
/// the gradients too, and where there are tile units those of attention; the sums stay f32 (mixed precision,
/// Micikevicius et al. 2018).
pub fn mixed<R>(f: impl FnOnce() -> R) -> R {
    with_mixed(cpu::mixed::available(), f)
}

fn with_mixed<R>(on: bool, f: impl FnOnce() -> R) -> R {
    /// Sets the switch back, also when `f` panics.
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            MIXED.set(self.0);
        }
    }
    let _restore = Restore(MIXED.replace(on));
    f()
}

/// Whether operations that are recorded on this thread multiply in bf16.
pub(super) fn is_mixed() -> bool {
    MIXED.get()
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
        return plain(x, weight, bias, activation);
    }
    let recorded = x.is_autodiff() || weight.is_autodiff();
    let (fused, after) = split(activation, recorded);
    let mixed = recorded && MIXED.get();
    let mut inputs = vec![x.into(), weight.into()];
    inputs.extend(bias.map(Operand::from));
    activated(run(cpu::linear::Linear { activation: fused, mixed }, inputs), after)
}

fn plain<const D: usize>(
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
        Some(activation) => super::activation::plain(y, activation),
        None => y,
    }
}

/// Whether [`pack`] gains anything for this weight.
pub fn packs(weight: &Tensor<2>) -> bool {
    Kernels::Portable.on()
        && is_host(&weight.device())
        && !weight.is_autodiff()
        && packed::packs(weight.dtype())
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

/// Whether [`packed_linear`] rounds both sides of its products to bf16, for the tile units.
pub fn rounds(packed: &Tensor<2>) -> bool {
    packs(packed) && packed::rounds(&host(packed.clone()))
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
    device(cpu::linear::packed(&x, &host(weight), outputs, bias, activation))
}

/// How the CPU multiplies by weights of each type: the name of the type, then of the form.
pub fn products() -> [(&'static str, String); 4] {
    let tiles = |dtype| if in_tiles() { Some(Method::Amx) } else { Method::of(dtype) };
    let methods = [
        ("f32", Method::of(DType::F32)),
        ("bf16", Method::of(DType::BF16)),
        ("f16", Method::of(DType::F16)),
        ("int8", tiles(DType::F16)),
    ];
    methods.map(|(name, method)| {
        let form = match method {
            _ if !Kernels::Portable.on() => "burn".into(),
            None => Method::Portable.to_string(),
            Some(method) => method.to_string(),
        };
        (name, form)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{ACTIVATIONS, compare, difference};
    use crate::testing::random;
    use burn::tensor::TensorData;

    #[test]
    fn fused_equals_plain() {
        let flat = |x: &Tensor<3>| x.clone().reshape([-1]);
        let weight = |x: &Tensor<3>| x.clone().squeeze_dim::<2>(0);
        let inputs = [random([2, 33, 48]), random([1, 48, 80]) * 0.1, random([1, 1, 80])];
        for activation in ACTIVATIONS.map(Some).into_iter().chain([None]) {
            compare(
                &inputs,
                |x| linear(x[0].clone(), weight(&x[1]), Some(flat(&x[2])), activation),
                |x| plain(x[0].clone(), weight(&x[1]), Some(flat(&x[2])), activation),
            );
        }
        // A transposed weight, a narrowed input, no bias.
        let inputs = [random([2, 40, 48]), random([1, 80, 48]) * 0.1];
        let call = |x: &[Tensor<3>]| (x[0].clone().narrow(1, 3, 30), weight(&x[1]).transpose());
        compare(
            &inputs,
            |x| linear(call(x).0, call(x).1, None, None),
            |x| plain(call(x).0, call(x).1, None, None),
        );
    }

    #[test]
    fn products_in_mixed_precision() {
        if !mixes(&Device::flex()) {
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
                let call = || linear(leaves[0].clone(), weight(&leaves[1]), None, None);
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
        let call = |x: Tensor<3>| linear(x, weight(&w).transpose(), None, None);
        let plain = call(x.clone());
        assert!(difference(super::mixed(|| call(x.clone())), plain.clone()) == 0.0);
        let mixed = super::mixed(|| call(x.autodiff().require_grad())).inner();
        let worst = difference(mixed, plain);
        assert!((1e-5..1e-2).contains(&worst), "{worst:e}");
    }

    #[test]
    fn packed_weights() {
        // Widths that are no multiple of a panel, odd depths, few and many rows.
        for (rows, inputs, outputs) in [(1, 33, 7), (3, 48, 96), (70, 1601, 100), (9, 4, 49)] {
            let (x, bias) = (random([rows, inputs]), random([outputs]));
            for dtype in [FloatDType::F32, FloatDType::BF16, FloatDType::F16] {
                let weight = random([inputs, outputs]).cast(dtype);
                if !packs(&weight) {
                    assert_eq!(dtype, FloatDType::F32);
                    continue;
                }
                let found = packed_linear(
                    x.clone(),
                    pack(weight.clone()),
                    outputs,
                    Some(bias.clone()),
                    Some(Activation::Silu),
                );
                let weight = weight.cast(FloatDType::F32);
                // The inputs are rounded too where the machine multiplies bf16.
                let rounded = x.clone().cast(dtype).cast(FloatDType::F32);
                let expected =
                    |x| plain(x, weight.clone(), Some(bias.clone()), Some(Activation::Silu));
                let worst = difference(found.clone(), expected(rounded))
                    .min(difference(found, expected(x.clone())));
                assert!(worst < 1e-5, "{rows} x {inputs} x {outputs} {dtype:?}: {worst:e}");
            }
            // 8 bits: a weight is off by at most half a step of the coarsest scale, and as f16 before; in tiles it is
            // rounded to 8 bits of its own once more.
            let weight = random([inputs, outputs]);
            let packed = pack(weight.clone().cast(FloatDType::F16));
            assert!(quantizes(&packed));
            let identity = Tensor::eye(inputs, &Device::flex());
            let packed = quantize(packed);
            let found: Tensor<2> = packed_linear(identity, packed.clone(), outputs, None, None);
            let step: f32 = weight.clone().abs().max().into_scalar::<f32>() / 127.0;
            let off: f32 = (found - weight).abs().max().into_scalar::<f32>() / step;
            let most = if super::rounds(&packed) { 0.6 + 127.0 / 512.0 } else { 0.6 };
            assert!(off < most, "{inputs} x {outputs}: {off} steps");
        }
    }

    #[test]
    fn weights_that_are_not_finite_are_so_in_8_bits() {
        let (inputs, outputs, [row, column]) = (40, 50, [33, 20]);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values: Vec<f32> = (0..inputs * outputs).map(|i| (i % 7) as f32).collect();
            values[row * outputs + column] = bad;
            let weight = TensorData::new(values, [inputs, outputs]);
            let weight = Tensor::<2>::from_data(weight, &Device::flex()).cast(FloatDType::F16);
            let packed = quantize(pack(weight));
            let found = packed_linear(random([3, inputs]), packed, outputs, None, None);
            let found: Vec<f32> = found.into_data().try_to_vec().expect("f32");
            for (i, value) in found.iter().enumerate() {
                assert_eq!(value.is_finite(), i % outputs != column, "{bad}: {i}");
            }
        }
    }

    #[test]
    fn products_are_the_same_for_any_number_of_threads() {
        use crate::ops::cpu::matrix::{Matrix, multiply};
        let shapes =
            [(16, 768, 3072), (256, 768, 2304), (257, 1152, 50), (1000, 3072, 97), (4, 96, 9000)];
        for (m, k, n) in shapes {
            let values = |count: usize| -> Vec<f32> {
                random([count]).into_data().try_to_vec().expect("f32")
            };
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

    #[test]
    fn a_panic_leaves_full_precision_behind() {
        let panicked = std::panic::catch_unwind(|| {
            with_mixed(true, || {
                assert!(MIXED.get());
                panic!("inside")
            })
        });
        assert!(panicked.is_err_and(|cause| cause.is::<&str>()) && !MIXED.get());
    }
}
