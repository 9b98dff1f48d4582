//! Keeping a part of a picture.

use burn::tensor::Tensor;

use super::{Denoised, Denoiser, Level};

/// A denoiser of which a picture is known in part: there, its answer is the picture.
///
/// From `x = α x_0 + σ z` with the picture as `x_0`, every deterministic solver then stays on the known part at
/// `α' x_0 + σ' z`, the picture with its own noise, and ends on the picture; every other solver does so with the noise
/// that it draws. This is what replacing that part after each step amounts to, also for solvers that remember earlier
/// steps.
#[derive(Debug)]
pub struct Inpaint<D> {
    /// The network.
    pub inner: D,
    /// `[1, channels, height, width]`
    pub picture: Tensor<4>,
    /// 1 where the network's answer counts, 0 where the picture does, `[1, 1, height, width]`.
    pub mask: Tensor<4>,
    /// What the network sees at this level in place of the state, `[batch, channels, height, width]`: the noise alone that
    /// a run begins with which knows nothing of the picture yet.
    pub start: Option<(Level, Tensor<4>)>,
}

impl<D: Denoiser> Denoiser for Inpaint<D> {
    fn denoise(&mut self, x_t: Tensor<4>, level: &Level, step: usize) -> Denoised {
        let seen = match &self.start {
            Some((first, noise)) if first == level => noise.clone(),
            _ => x_t,
        };
        let Denoised { clean, unclipped, variance } = self.inner.denoise(seen, level, step);
        let known: Tensor<4> = self.picture.clone() * (1.0 - self.mask.clone());
        let masked =
            |estimate: Tensor<4>| -> Tensor<4> { estimate * self.mask.clone() + known.clone() };
        Denoised { clean: masked(clean), unclipped: unclipped.map(masked), variance }
    }
}
