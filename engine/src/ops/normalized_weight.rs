//! Weights of preserved layers.

use burn::tensor::Tensor;

use super::available;
use super::cpu::bridge::{Operand, run};
use super::cpu::normalized_weight::NormalizedColumns;
use super::magnitude::normalize;

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
        return plain(weight, gain, length);
    }
    let inputs = std::iter::once(weight.into()).chain(gain.map(Operand::from));
    run(NormalizedColumns { length: length as f32 }, inputs.collect())
}

fn plain(weight: Tensor<2>, gain: Option<Tensor<1>>, length: f64) -> Tensor<2> {
    let inputs = weight.dims()[0] as f64;
    let weight = normalize(weight, 0) * (length / inputs.sqrt());
    match gain {
        Some(gain) => weight * gain.unsqueeze(),
        None => weight,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::compare;
    use crate::testing::random;

    #[test]
    fn fused_equals_plain() {
        let weight = |x: &Tensor<3>| x.clone().squeeze_dim::<2>(0);
        let gain = |x: &Tensor<3>| x.clone().reshape([1]);
        compare(
            &[random([1, 65, 40]), random([1, 1, 1])],
            |x| normalized_columns(weight(&x[0]), Some(gain(&x[1])), 1.5).unsqueeze(),
            |x| plain(weight(&x[0]), Some(gain(&x[1])), 1.5).unsqueeze(),
        );
        compare(
            &[random([1, 65, 40]) * 0.01],
            |x| normalized_columns(weight(&x[0]), None, 1.0).unsqueeze(),
            |x| plain(weight(&x[0]), None, 1.0).unsqueeze(),
        );
    }
}
