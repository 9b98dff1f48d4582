//! Comparison of a fused form with the plain definition.

use burn::tensor::Tensor;

use super::Activation;
use crate::testing::random;

pub(super) const ACTIVATIONS: [Activation; 7] = [
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::GeluQuick,
    Activation::Relu,
    Activation::Relu6,
    Activation::Silu,
    Activation::MpSilu,
];

/// Largest difference relative to the largest value.
pub(super) fn difference<const D: usize>(found: Tensor<D>, expected: Tensor<D>) -> f32 {
    assert_eq!(found.dims(), expected.dims());
    let scale: f32 = expected.clone().abs().max().into_scalar();
    let worst: f32 = (found - expected).abs().max().into_scalar();
    worst / scale.max(1e-20)
}

/// Values without gradients, values with them, and the gradient of every input, must agree.
///
/// All inputs are `[batch, tokens, width]`; the functions reshape what is not.
pub(super) fn compare(
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
