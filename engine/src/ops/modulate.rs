//! What stands before and after a branch of a block: norm, scale, shift, rotation; gate and sum.

use burn::tensor::Tensor;

use super::available;
use super::cpu::bridge::{Operand, run};
use super::cpu::modulate::{Join, Modulate};
use super::magnitude::{in_f32, mp_sum_factors, sum};

/// Normalisation of the row of a token, without learned numbers; ε is added to the mean square.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RowNorm {
    /// To mean 0 and variance 1: layer norm with this ε.
    Layer(f64),
    /// To a mean square of 1 with this ε (RMS norm, Zhang & Sennrich 2019).
    Rms(f64),
}

/// The norm, if there is one; then scale, shift and rotation by angles, in radians, of the channel pairs
/// `(i, i + hidden / 2)`.
///
/// # Shapes
/// `x`: `[batch, tokens, hidden]`; `scale`, `shift`: `[batch, 1 | tokens, hidden]`, `angles`:
/// `[batch, 1 | tokens, hidden / 2]`
pub fn modulate(
    x: Tensor<3>,
    norm: Option<RowNorm>,
    [scale, shift, angles]: [Option<Tensor<3>>; 3],
) -> Tensor<3> {
    #[cfg(feature = "gpu")]
    if super::gpu::modulates(&x, &[scale.clone(), shift.clone(), angles.clone()]) {
        return super::gpu::modulate(x, norm, [scale, shift, angles]);
    }
    if !available(&x) {
        return plain_modulate(x, norm, [scale, shift, angles]);
    }
    let kernel = Modulate {
        norm,
        scale: scale.is_some(),
        shift: shift.is_some(),
        rotation: angles.is_some(),
    };
    let factors = [scale, shift, angles].into_iter().flatten().map(Operand::from);
    run(kernel, std::iter::once(x.into()).chain(factors).collect())
}

fn plain_modulate(
    mut x: Tensor<3>,
    norm: Option<RowNorm>,
    [scale, shift, angles]: [Option<Tensor<3>>; 3],
) -> Tensor<3> {
    if let Some(norm) = norm {
        x = in_f32(x, |x| {
            let (centred, epsilon) = match norm {
                RowNorm::Layer(epsilon) => (x.clone() - x.mean_dim(2), epsilon),
                RowNorm::Rms(epsilon) => (x, epsilon),
            };
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

/// Rotates the channel pairs `(i, i + hidden / 2)` by `angles`, in radians: an isometry.
///
/// # Shapes
/// `x`: `[batch, tokens, hidden]`, `angles`: `[batch, 1 | tokens, hidden / 2]`
fn rotate(x: Tensor<3>, angles: Tensor<3>) -> Tensor<3> {
    let half = x.dims()[2] / 2;
    let (cos, sin) = (angles.clone().cos(), angles.sin());
    let u = x.clone().narrow(2, 0, half);
    let v = x.narrow(2, half, half);
    Tensor::cat(vec![u.clone() * cos.clone() - v.clone() * sin.clone(), u * sin + v * cos], 2)
}

/// The stream `x` joined by a gated branch: `x + gate · branch`, or their
/// [`mp_sum`](super::magnitude::mp_sum) when a balance is given.
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
        return plain_join(x, branch, gate, balance);
    }
    let [keep, share] = balance.map_or([1.0, 1.0], mp_sum_factors);
    let kernel = Join { keep: keep as f32, share: share as f32 };
    let mut inputs = vec![x.into(), branch.into()];
    inputs.extend(gate.map(Operand::from));
    run(kernel, inputs)
}

fn plain_join(
    x: Tensor<3>,
    branch: Tensor<3>,
    gate: Option<Tensor<3>>,
    balance: Option<f64>,
) -> Tensor<3> {
    let branch = match gate {
        Some(gate) => branch * gate,
        None => branch,
    };
    sum(x, branch, balance)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::compare;
    use crate::testing::random;
    use burn::tensor::Device;
    use std::f32::consts::PI;

    #[test]
    fn fused_modulation_equals_plain() {
        let (batch, tokens, width) = (3, 13, 50);
        for case in 0..64 {
            let on = |bit: usize| case >> bit & 1 == 1;
            // Factors of one row per image, as parts of one tensor, or one row per token.
            let rows = if on(4) { tokens } else { 1 };
            let norm = if on(5) { RowNorm::Rms } else { RowNorm::Layer };
            let norm = on(0).then_some(norm(1e-6));
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
                |x| modulate(x[0].clone(), norm, factors(&x[1])) + extra(&x[1]),
                |x| plain_modulate(x[0].clone(), norm, factors(&x[1])) + extra(&x[1]),
            );
        }
    }

    #[test]
    fn fused_sums_equal_plain() {
        for (rows, balance) in [(1, None), (1, Some(0.3)), (13, None), (13, Some(0.3))] {
            let inputs = [random([3, 13, 50]), random([3, 13, 50]), random([3, rows, 50])];
            compare(
                &inputs,
                |x| join(x[0].clone(), x[1].clone(), Some(x[2].clone()), balance),
                |x| plain_join(x[0].clone(), x[1].clone(), Some(x[2].clone()), balance),
            );
            compare(
                &inputs[..2],
                |x| join(x[0].clone(), x[1].clone(), None, balance),
                |x| plain_join(x[0].clone(), x[1].clone(), None, balance),
            );
        }
    }

    fn norms(x: Tensor<3>) -> Tensor<3> {
        x.square().sum_dim(2).sqrt()
    }

    #[test]
    fn rotation_is_the_published_half_split() {
        let device = Device::flex();
        let x = Tensor::<3>::from_floats([[[1.0, 2.0, 3.0, 4.0]]], &device);
        let y = rotate(x, Tensor::from_floats([[[PI / 2.0, PI / 6.0]]], &device));
        let expected = Tensor::from_floats([[[-3.0, -0.267949, 1.0, 4.464102]]], &device);
        assert!(y.all_close(expected, None, Some(1e-5)));
    }

    #[test]
    fn rotation_is_an_isometry_with_an_inverse_and_composes() {
        let (x, a, b) = (random([2, 5, 16]), random([2, 1, 8]), random([2, 1, 8]));
        let y = rotate(x.clone(), a.clone());
        assert!(norms(y.clone()).all_close(norms(x.clone()), Some(1e-6), None));
        assert!(rotate(y.clone(), -a.clone()).all_close(x.clone(), None, Some(1e-5)));
        let twice = rotate(y, b.clone());
        assert!(twice.all_close(rotate(x.clone(), a + b), None, Some(1e-5)));
        let still = rotate(x.clone(), Tensor::zeros([2, 1, 8], &Device::flex()));
        assert!(still.equal(x).all().into_scalar::<bool>());
    }
}
