//! The optimiser's step and averages of parameters, each in one pass over memory.

use burn::tensor::Tensor;

use super::available;
use super::cpu::bridge::{device, host};
use super::cpu::{buffers, optimizer};

/// The numbers of an AdamW step (Loshchilov & Hutter 2019) that are the same for all parameters.
#[derive(Debug, Clone, Copy)]
pub struct AdamStep {
    /// Decay of the two moments.
    pub betas: [f64; 2],
    /// Learning rate over the correction of the first moment.
    pub rate: f64,
    /// One over the root of the correction of the second moment.
    pub root: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Factor on the value: one minus learning rate times weight decay.
    pub keep: f64,
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
        return plain_adam(step, value, gradient * factor.clone(), [first, second]);
    }
    let factor = buffers::values(&host(factor.clone()))[0];
    let moments = [host(first), host(second)];
    optimizer::adam(step, &host(value), &host(gradient), factor, moments).map(device)
}

fn plain_adam(
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

/// `average · keep + value · (1 − keep)`.
///
/// # Shapes
/// `[elements]`
pub fn blend(average: Tensor<1>, value: Tensor<1>, keep: f64) -> Tensor<1> {
    match available(&average) {
        true => device(optimizer::blend(host(average), &host(value), keep)),
        false => average * keep + value * (1.0 - keep),
    }
}

/// `Σ x²`, `[1]`.
///
/// # Shapes
/// `[elements]`
pub fn sum_of_squares(x: Tensor<1>) -> Tensor<1> {
    match available(&x) {
        true => device(buffers::tensor(vec![optimizer::sum_of_squares(&host(x))], &[1])),
        false => x.square().sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::difference;
    use crate::testing::random;

    #[test]
    fn fused_equals_plain() {
        let values = |n: usize| random([n]);
        let step =
            AdamStep { betas: [0.9, 0.99], rate: 0.01, root: 3.0, epsilon: 1e-8, keep: 0.999 };
        let (value, gradient, factor) = (values(40_001), values(40_001), values(1).abs());
        let moments = [values(40_001), values(40_001).square()];
        let found = adam(step, value.clone(), gradient.clone(), &factor, moments.clone());
        let scaled = gradient.clone() * factor;
        let expected = plain_adam(step, value.clone(), scaled, moments.clone());
        for (found, expected) in found.into_iter().zip(expected) {
            assert!(difference(found, expected) < 1e-6);
        }
        // The moments given were held here too, and so are as they were.
        assert!(difference(moments[0].clone() * 1.0, moments[0].clone()) == 0.0);
        let blended = blend(value.clone(), gradient.clone(), 0.9);
        assert!(difference(blended, value.clone() * 0.9 + gradient * 0.1) < 1e-6);
        assert!(difference(sum_of_squares(value.clone()), value.square().sum()) < 1e-5);
    }
}
