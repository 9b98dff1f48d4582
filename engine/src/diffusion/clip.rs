//! Bounds on the estimate of the clean image.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::{Denoised, Denoiser, Level};

/// Where the estimate of the clean image is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Clip {
    /// At this absolute value, above 0.
    Fixed(f64),
    /// Dynamic thresholding (Saharia et al. 2022, section 2.3): an image is cut at the quantile of its absolute values,
    /// or at 1 if that is less, and divided by that.
    Dynamic {
        /// In [0, 1].
        quantile: f64,
        /// Most that an image is cut at and divided by, above 0.
        highest: f64,
    },
}

impl Clip {
    /// What is not finite stays so.
    ///
    /// # Shapes
    /// `[batch, channels, height, width]` to the same
    pub fn apply(self, clean: Tensor<4>) -> Tensor<4> {
        let zero_or_nan = clean.clone() - clean.clone();
        let cut = match self {
            Self::Fixed(limit) => clean.clamp(-limit, limit),
            Self::Dynamic { quantile, highest } => {
                let limit = quantiles(clean.clone(), quantile).clamp_min(1.0).clamp_max(highest);
                clean.max_pair(-limit.clone()).min_pair(limit.clone()) / limit
            }
        };
        cut + zero_or_nan
    }
}

/// The quantile of each image's absolute values, linear between two of them.
///
/// # Shapes
/// `[batch, channels, height, width]` to `[batch, 1, 1, 1]`
fn quantiles(images: Tensor<4>, quantile: f64) -> Tensor<4> {
    let [batch, channels, height, width] = images.dims();
    let count = channels * height * width;
    let sorted = images.abs().reshape([batch, count]).sort(1);
    let place = quantile * (count - 1) as f64;
    let (below, share) = (place.floor() as usize, place.fract());
    let at = |i: usize| sorted.clone().narrow(1, i.min(count - 1), 1);
    (at(below) * (1.0 - share) + at(below + 1) * share).reshape([batch, 1, 1, 1])
}

/// A denoiser whose estimates are cut off, after all guidance.
#[derive(Debug)]
pub struct Clipped<D> {
    /// The network.
    pub inner: D,
    /// Where.
    pub clip: Clip,
}

impl<D: Denoiser> Denoiser for Clipped<D> {
    fn denoise(&mut self, x_t: Tensor<4>, level: &Level, step: usize) -> Denoised {
        let Denoised { clean, variance, .. } = self.inner.denoise(x_t, level, step);
        Denoised { clean: self.clip.apply(clean.clone()), unclipped: Some(clean), variance }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn every_image_has_its_own_limit() {
        let device = Device::flex();
        let small = Tensor::<1>::from_floats([0.5, -0.25, 0.0, 0.75], &device);
        let large = small.clone() * 8.0;
        let images = Tensor::stack::<2>(vec![small.clone(), large], 0).reshape([2, 1, 2, 2]);
        let values = |clip: Clip| -> Vec<f32> {
            clip.apply(images.clone()).into_data().try_to_vec().expect("floats")
        };
        assert_eq!(values(Clip::Fixed(1.5)), [0.5, -0.25, 0.0, 0.75, 1.5, -1.5, 0.0, 1.5]);
        // |6, 4, 2, 0|: the quantile 0.75 is 4.5.
        let found = values(Clip::Dynamic { quantile: 0.75, highest: 9.0 });
        assert_eq!(found[..4], [0.5, -0.25, 0.0, 0.75]);
        for (found, expected) in found[4..].iter().zip([4.0 / 4.5, -2.0 / 4.5, 0.0, 1.0]) {
            assert!((found - expected).abs() < 1e-6, "{found} not {expected}");
        }
        for wrong in [f32::INFINITY, f32::NAN] {
            let image = images.clone() + wrong;
            for clip in [Clip::Fixed(1.0), Clip::Dynamic { quantile: 0.5, highest: 2.0 }] {
                let sum: f32 = clip.apply(image.clone()).sum().into_scalar();
                assert!(sum.is_nan(), "{wrong} is {sum}");
            }
        }
        let found = values(Clip::Dynamic { quantile: 1.0, highest: 2.0 });
        assert_eq!(found[4..], [1.0, -1.0, 0.0, 1.0]);
    }
}
