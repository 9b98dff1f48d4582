//! Magnitude preservation: operations that map unit variance to unit variance
//! (Karras et al. 2024, "EDM2"; Bill et al. 2025, "MP-DiT").

use burn::tensor::{DType, FloatDType, Tensor, activation};

/// Added to a norm before dividing by it.
pub(super) const EPSILON: f64 = 1e-4;

/// RMS of `silu(z)` for `z ~ N(0, 1)`, as rounded in EDM2 (Eq. 81).
pub const SILU_RMS: f64 = 0.596;

/// `a + b`, or [`mp_sum`] when a balance is given.
pub(crate) fn sum<const D: usize>(a: Tensor<D>, b: Tensor<D>, balance: Option<f64>) -> Tensor<D> {
    match balance {
        Some(balance) => mp_sum(a, b, balance),
        None => a + b,
    }
}

/// Computes in f32 and goes back to the type of `x`: for sums of squares, which half precision cannot
/// hold.
pub(crate) fn in_f32<const D: usize>(
    x: Tensor<D>,
    compute: impl FnOnce(Tensor<D>) -> Tensor<D>,
) -> Tensor<D> {
    let dtype = x.dtype();
    match dtype {
        DType::F32 => compute(x),
        _ => compute(x.cast(FloatDType::F32)).cast(FloatDType::from(dtype)),
    }
}

/// `x · √n / (‖x‖ + ε)` over dimension `dim` of length `n`: the RMS along it becomes 1.
///
/// Zeros stay zeros.
pub fn normalize<const D: usize>(x: Tensor<D>, dim: usize) -> Tensor<D> {
    let n = x.dims()[dim] as f64;
    in_f32(x, |x| {
        // The small constant keeps the gradient of the root finite at zero.
        let norm = (x.clone().square().sum_dim(dim) + 1e-24).sqrt();
        x * (norm + EPSILON).recip().mul_scalar(n.sqrt())
    })
}

/// `((1 − balance) a + balance b) / √((1 − balance)² + balance²)` (EDM2 Eq. 88).
///
/// Unit variance in, unit variance out, for independent `a` and `b`.
pub fn mp_sum<const D: usize>(a: Tensor<D>, b: Tensor<D>, balance: f64) -> Tensor<D> {
    let [for_a, for_b] = mp_sum_factors(balance);
    a * for_a + b * for_b
}

/// The factors of [`mp_sum`].
pub(super) fn mp_sum_factors(balance: f64) -> [f64; 2] {
    let norm = ((1.0 - balance).powi(2) + balance.powi(2)).sqrt();
    [(1.0 - balance) / norm, balance / norm]
}

/// `silu(x) / 0.596` (EDM2 Eq. 81).
pub fn mp_silu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    activation::silu(x) * (1.0 / SILU_RMS)
}

/// Root mean square over the last dimension, averaged over all others: the magnitude `M[x]` of a
/// token tensor.
pub fn magnitude<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    x.square().mean_dim(D - 1).sqrt().mean()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Generator;
    use burn::tensor::{Device, TensorData};

    fn normal(n: usize, seed: u64) -> Tensor<2> {
        let values = Generator::new(seed).normal(n);
        Tensor::from_data(TensorData::new(values, [n / 64, 64]), &Device::flex())
    }

    fn rms(x: Tensor<2>) -> f32 {
        x.square().mean().sqrt().into_scalar()
    }

    #[test]
    fn normalize_matches_the_published_example() {
        let device = Device::flex();
        let y = normalize(Tensor::<1>::from_floats([3.0, 4.0], &device), 0);
        let expected = Tensor::from_floats([0.848511, 1.131348], &device);
        assert!(y.all_close(expected, None, Some(1e-6)));
        let zeros = normalize(Tensor::<1>::zeros([4], &device), 0);
        assert_eq!(zeros.abs().sum().into_scalar::<f32>(), 0.0);
    }

    #[test]
    fn silu_and_sum_keep_unit_variance() {
        let (a, b) = (normal(1 << 20, 1), normal(1 << 20, 2));
        assert!((rms(mp_silu(a.clone())) - 1.0006).abs() < 0.003);
        for balance in [0.1, 0.3, 0.5, 0.9] {
            let sum = rms(mp_sum(a.clone(), b.clone(), balance));
            assert!((sum - 1.0).abs() < 0.005, "{balance}: {sum}");
        }
    }

    #[test]
    fn constants_match_the_published_numbers() {
        let device = Device::flex();
        let one = || Tensor::<1>::from_floats([1.0], &device);
        assert!((mp_silu(one()).into_scalar::<f32>() - 1.226608).abs() < 1e-6);
        assert!((mp_silu(-one()).into_scalar::<f32>() + 0.451244).abs() < 1e-6);
        let a: f32 = mp_sum(one(), one() * 0.0, 0.3).into_scalar();
        let b: f32 = mp_sum(one() * 0.0, one(), 0.3).into_scalar();
        assert!((a - 0.919145).abs() < 1e-6 && (b - 0.393919).abs() < 1e-6);
    }
}
