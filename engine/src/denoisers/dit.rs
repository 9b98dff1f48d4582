//! A transformer that estimates the clean image.

use burn::tensor::Tensor;

use crate::diffusion::{Denoised, Denoiser, Level, Process};
use crate::nets::{Conditioning, Dit};

/// A [`Dit`] bound to a process and to the condition of its images.
#[derive(Debug, Clone)]
pub struct DitDenoiser<'a> {
    net: &'a Dit,
    process: &'a Process,
    told: Conditioning,
    patch: usize,
}

impl<'a> DitDenoiser<'a> {
    /// Binds a network at its native patch size; `told` is the condition of the images of every call.
    pub fn new(net: &'a Dit, process: &'a Process, told: Conditioning) -> Self {
        Self { net, process, told, patch: net.config().patch }
    }

    /// The same with another patch size of the network.
    pub fn at(self, patch: usize) -> Self {
        Self { patch, ..self }
    }
}

impl Denoiser for DitDenoiser<'_> {
    fn denoise(&mut self, x_t: Tensor<4>, level: &Level, _step: usize) -> Denoised {
        let [batch, channels, ..] = x_t.dims();
        let c = self.process.prediction.coefficients(level);
        let time = Tensor::full([batch], self.process.time_input(level), &x_t.device());
        let output = self.net.forward(x_t.clone() * c.c_in, time, &self.told, self.patch);
        let variance = (output.dims()[1] == 2 * channels)
            .then(|| output.clone().narrow(1, channels, channels));
        let output = output.narrow(1, 0, channels); // [batch, channels, height, width]
        Denoised { clean: x_t * c.c_skip + output * c.c_out, unclipped: None, variance }
    }
}
