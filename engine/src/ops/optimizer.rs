//! The optimiser's step and averages of parameters, each in one pass over memory.

use burn::tensor::Tensor;

use super::available;
use super::cpu::bridge::{device, host, run};
use super::cpu::linear::Linear;
use super::cpu::{buffers, mixed, optimizer};

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

/// Steps of Newton and Schulz, and the coefficients of `x`, `x³` and `x⁵` in each, which bring singular values from 0.01 to 1
/// into about [0.7, 1.2] (Jordan et al. 2024).
const NEWTON_SCHULZ: (usize, [f64; 3]) = (5, [3.4445, -4.7750, 2.0315]);
/// Added to the norm of a matrix, so that one of zeros stays as it is.
const LEAST_NORM: f64 = 1e-7;

/// About the nearest matrix whose rows or columns, whichever are fewer, are of unit length and at right angles: `U Vᵀ` where
/// the matrix is `U S Vᵀ` (the update of Muon, Jordan et al. 2024). On CPUs that [mix](super::mixes) its products take bf16.
///
/// # Shapes
/// `[rows, columns]`, as is the output
pub fn orthogonalized(matrix: Tensor<2>) -> Tensor<2> {
    let [rows, columns] = matrix.dims();
    if rows > columns {
        return orthogonalized(matrix.transpose()).transpose();
    }
    let product = |a: Tensor<2>, b: Tensor<2>| -> Tensor<2> {
        match available(&a) {
            true => {
                let product = Linear { activation: None, mixed: mixed::available() };
                run(product, vec![a.into(), b.into()])
            }
            false => a.matmul(b),
        }
    };
    let norm = matrix.clone().square().sum().sqrt() + LEAST_NORM;
    let mut x = matrix / norm.unsqueeze();
    let (steps, [a, b, c]) = NEWTON_SCHULZ;
    for _ in 0..steps {
        let squares = product(x.clone(), x.clone().transpose()); // [rows, rows]
        let fourth = product(squares.clone(), squares.clone());
        x = x.clone() * a + product(squares * b + fourth * c, x);
    }
    x
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

    /// What Jordan et al. ask of the coefficients, for any form, size and scale, and to the rounding of bf16.
    #[test]
    fn singular_values_are_brought_near_one() {
        for (rows, columns, scale) in [(48, 48, 1.0), (32, 160, 1e4), (160, 32, 1e-3)] {
            let x = random::<2>([rows, columns]) * scale;
            let found = orthogonalized(x.clone());
            assert_eq!(found.dims(), [rows, columns]);
            let turned = orthogonalized(x.clone().transpose()).transpose();
            assert!(difference(turned, found.clone()) < 0.05);
            let short = if rows > columns { found.transpose() } else { found };
            let squares = short.clone().matmul(short.clone().transpose()); // [fewer, fewer]
            let fewer = rows.min(columns);
            // The means of the singular values to the second and to the fourth power.
            let second = short.square().sum().into_scalar::<f32>() / fewer as f32;
            let fourth = squares.square().sum().into_scalar::<f32>() / fewer as f32;
            assert!((0.6..1.3).contains(&second), "{second}");
            assert!(fourth - second * second < 0.1, "{fourth} and {second}");
        }
        let zeros = Tensor::<2>::zeros([8, 8], &burn::tensor::Device::flex());
        assert_eq!(orthogonalized(zeros).abs().max().into_scalar::<f32>(), 0.0);
    }

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
