//! The seam between models and samplers.

use burn::tensor::Tensor;

use super::Level;

/// One trajectory's estimate of the clean image.
///
/// Conditioning, guidance and history are bound before sampling.
pub trait Denoiser {
    /// `E[x_0 given x_t]`; `step` is the number of the grid's step at which the level, or one that was raised
    /// from it, stands.
    ///
    /// # Shapes
    /// `[batch, channels, height, width]` to the same
    fn denoise(&mut self, x_t: Tensor<4>, level: &Level, step: usize) -> Denoised;
}

/// What a denoiser says about a noisy image.
#[derive(Debug, Clone)]
pub struct Denoised {
    /// Estimate of the clean image, `[batch, channels, height, width]`.
    pub clean: Tensor<4>,
    /// The same before it was cut off, where that was done; it gives the direction of DDIM and Euler.
    pub unclipped: Option<Tensor<4>>,
    /// Of a learned variance, nominally in [-1, 1]: 1 is the upper bound β, -1 the lower β̃ (Nichol &
    /// Dhariwal 2021, Eq. 15).
    pub variance: Option<Tensor<4>>,
}

/// Different denoisers at different steps.
#[derive(Debug, Clone)]
pub struct Phased<D> {
    /// In order, a denoiser and the first step after its own. The last acts on all that are left.
    pub phases: Vec<(D, usize)>,
}

impl<D: Denoiser> Denoiser for Phased<D> {
    fn denoise(&mut self, x_t: Tensor<4>, level: &Level, step: usize) -> Denoised {
        let last = self.phases.len() - 1;
        let phase = self.phases.iter().position(|(_, end)| step < *end).unwrap_or(last);
        self.phases[phase].0.denoise(x_t, level, step)
    }
}

impl<D: Denoiser + ?Sized> Denoiser for &mut D {
    fn denoise(&mut self, x_t: Tensor<4>, level: &Level, step: usize) -> Denoised {
        (**self).denoise(x_t, level, step)
    }
}

impl<D: Denoiser + ?Sized> Denoiser for Box<D> {
    fn denoise(&mut self, x_t: Tensor<4>, level: &Level, step: usize) -> Denoised {
        (**self).denoise(x_t, level, step)
    }
}
