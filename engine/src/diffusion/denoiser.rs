//! The seam between models and samplers.

use burn::tensor::Tensor;

use super::Level;

/// One trajectory's estimate of the clean image.
///
/// Conditioning, guidance and history are bound before sampling.
pub trait Denoiser {
    /// `E[x_0 given x_t]`.
    ///
    /// # Shapes
    /// `[batch, channels, height, width]` to the same
    fn denoise(&mut self, x_t: Tensor<4>, level: &Level) -> Denoised;
}

/// What a denoiser says about a noisy image.
#[derive(Debug, Clone)]
pub struct Denoised {
    /// Estimate of the clean image, `[batch, channels, height, width]`.
    pub clean: Tensor<4>,
    /// Of a learned variance, nominally in [-1, 1]: 1 is the upper bound β, -1 the lower β̃ (Nichol &
    /// Dhariwal 2021, Eq. 15).
    pub variance: Option<Tensor<4>>,
}

/// Different denoisers at different noise levels.
#[derive(Debug, Clone)]
pub struct Phased<D> {
    /// From noise to data: a denoiser and the variance-exploding σ down to which it acts, itself excluded.
    /// The last acts below it too.
    pub phases: Vec<(D, f64)>,
}

impl<D: Denoiser> Denoiser for Phased<D> {
    fn denoise(&mut self, x_t: Tensor<4>, level: &Level) -> Denoised {
        let sigma = level.ve_sigma();
        let last = self.phases.len() - 1;
        let phase = self.phases.iter().position(|(_, down_to)| sigma > *down_to).unwrap_or(last);
        self.phases[phase].0.denoise(x_t, level)
    }
}

impl<D: Denoiser + ?Sized> Denoiser for &mut D {
    fn denoise(&mut self, x_t: Tensor<4>, level: &Level) -> Denoised {
        (**self).denoise(x_t, level)
    }
}

impl<D: Denoiser + ?Sized> Denoiser for Box<D> {
    fn denoise(&mut self, x_t: Tensor<4>, level: &Level) -> Denoised {
        (**self).denoise(x_t, level)
    }
}
