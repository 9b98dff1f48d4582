//! Nonlinearities.

use burn::tensor::{Tensor, activation};
use serde::{Deserialize, Serialize};

use super::available;
use super::cpu::activation::{Gated, Pointwise};
use super::cpu::bridge::run;
use super::magnitude::mp_silu;

/// Nonlinearity of an MLP or an embedder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Activation {
    /// GELU, `x · Φ(x)`.
    Gelu,
    /// GELU with the tanh approximation.
    GeluTanh,
    /// `x · sigmoid(1.702 x)`, of CLIP.
    GeluQuick,
    /// `max(x, 0)`.
    Relu,
    /// `min(max(x, 0), 6)`.
    Relu6,
    /// `x · sigmoid(x)`.
    Silu,
    /// [`mp_silu`].
    MpSilu,
}

/// `2 √(2 / π)`, so that tanh-GELU is `x · sigmoid(GELU_SLOPE · (x + GELU_CUBIC · x³))`.
pub(super) const GELU_SLOPE: f64 = 1.595_769_121_605_731;
/// Slope of the sigmoid in [`Activation::GeluQuick`].
pub(super) const QUICK_SLOPE: f64 = 1.702;
/// Coefficient of the cubic term of tanh-GELU.
pub(super) const GELU_CUBIC: f64 = 0.044715;

impl Activation {
    /// Applies it to each element.
    pub fn forward<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        match available(&x) {
            true => run(Pointwise(self), vec![x.into()]),
            false => plain(x, self),
        }
    }
}

/// Of each row the first half, activated, times the second (GLU, Shazeer 2020).
///
/// # Shapes
/// `[.., 2 · width]` to `[.., width]`
///
/// # Panics
/// For rows of an odd number of elements.
pub fn gated<const D: usize>(x: Tensor<D>, activation: Activation) -> Tensor<D> {
    assert!(
        x.dims()[D - 1].is_multiple_of(2),
        "rows of {} elements have no halves",
        x.dims()[D - 1]
    );
    match available(&x) {
        true => run(Gated(activation), vec![x.into()]),
        false => plain_gated(x, activation),
    }
}

fn plain_gated<const D: usize>(x: Tensor<D>, activation: Activation) -> Tensor<D> {
    let half = x.dims()[D - 1] / 2;
    let [first, second] = [0, half].map(|start| x.clone().narrow(D - 1, start, half));
    plain(first, activation) * second
}

/// With an activation, if there is one.
pub(crate) fn activated<const D: usize>(y: Tensor<D>, activation: Option<Activation>) -> Tensor<D> {
    match activation {
        Some(activation) => activation.forward(y),
        None => y,
    }
}

/// What of an activation is part of the operation before it, and what follows: where that is recorded, its backward
/// pass needs the activation's input, which a fused one does not keep.
pub(super) fn split(
    activation: Option<Activation>,
    recorded: bool,
) -> (Option<Activation>, Option<Activation>) {
    match recorded {
        true => (None, activation),
        false => (activation, None),
    }
}

pub(super) fn plain<const D: usize>(x: Tensor<D>, activation: Activation) -> Tensor<D> {
    match activation {
        Activation::Gelu => activation::gelu(x),
        Activation::GeluQuick => x.clone() * activation::sigmoid(x * QUICK_SLOPE),
        Activation::Relu => activation::relu(x),
        Activation::Relu6 => x.clamp(0.0, 6.0),
        Activation::GeluTanh => {
            let u = (x.clone().square() * (GELU_SLOPE * GELU_CUBIC) + GELU_SLOPE) * x.clone();
            x * activation::sigmoid(u)
        }
        Activation::Silu => activation::silu(x),
        Activation::MpSilu => mp_silu(x),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{ACTIVATIONS, compare};
    use crate::testing::random;
    use burn::tensor::Device;

    #[test]
    fn fused_equals_plain() {
        for activation in ACTIVATIONS {
            let x = random([3, 7, 1001]) * 3.0;
            compare(
                &[x],
                |x| activation.forward(x[0].clone()),
                |x| plain(x[0].clone(), activation),
            );
        }
        for activation in ACTIVATIONS {
            compare(
                &[random([3, 7, 102]) * 3.0],
                |x| gated(x[0].clone(), activation),
                |x| plain_gated(x[0].clone(), activation),
            );
        }
        let far = Tensor::<1>::from_floats([-1e4, -100.0, 0.0, 100.0, 1e4], &Device::flex());
        for activation in ACTIVATIONS {
            let values: Vec<f32> =
                activation.forward(far.clone()).into_data().try_to_vec().expect("f32");
            assert!(values.iter().all(|value| value.is_finite()), "{activation:?}: {values:?}");
            assert!(values[0].abs() < 1e-30 && values[2] == 0.0, "{activation:?}: {values:?}");
        }
    }

    #[test]
    fn gelu_equals_the_tanh_form() {
        let x = Tensor::<1>::from_floats([-3.0, -0.5, 0.0, 0.7, 4.0], &Device::flex());
        let expected = activation::gelu_approximate(x.clone());
        assert!(Activation::GeluTanh.forward(x).all_close(expected, None, Some(1e-6)));
    }
}
