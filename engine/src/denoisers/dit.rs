//! A transformer that estimates the clean image.

use std::ops::Range;

use burn::tensor::Tensor;

use crate::diffusion::{Denoised, Denoiser, Level, Process};
use crate::nets::{Conditioning, Dit};

/// What a branch adds at some of the steps.
#[derive(Debug, Clone)]
pub struct Steering {
    /// Numbers of the steps.
    pub steps: Range<usize>,
    /// For all images of a call, as of [`Conditioning::control`]: each `[1, tokens, hidden]`.
    pub residuals: Vec<Tensor<3>>,
}

/// A [`Dit`] bound to a process and to the condition of its images.
#[derive(Debug, Clone)]
pub struct DitDenoiser<'a> {
    net: &'a Dit,
    process: &'a Process,
    told: Conditioning,
    steered: &'a [Steering],
    patch: usize,
}

impl<'a> DitDenoiser<'a> {
    /// Binds a network at its native patch size; `told` is the condition of the images of every call.
    pub fn new(net: &'a Dit, process: &'a Process, told: Conditioning) -> Self {
        Self { net, process, told, steered: &[], patch: net.config().patch }
    }

    /// The same with another patch size of the network.
    pub fn at(self, patch: usize) -> Self {
        Self { patch, ..self }
    }

    /// The same steered by branches, which see at the patch size of the network.
    pub fn steered(self, steered: &'a [Steering]) -> Self {
        Self { steered, ..self }
    }

    /// The condition of the `batch` images at a step.
    fn told(&self, step: usize, batch: usize) -> Conditioning {
        let mut told = self.told.clone();
        for Steering { residuals, .. } in
            self.steered.iter().filter(|own| own.steps.contains(&step))
        {
            for (level, residual) in residuals.iter().enumerate() {
                let [_, tokens, hidden] = residual.dims();
                let residual = residual.clone().expand([batch, tokens, hidden]);
                match told.control.get_mut(level) {
                    Some(sum) => *sum = sum.clone() + residual,
                    None => told.control.push(residual),
                }
            }
        }
        told
    }
}

impl Denoiser for DitDenoiser<'_> {
    fn denoise(&mut self, x_t: Tensor<4>, level: &Level, step: usize) -> Denoised {
        let [batch, channels, ..] = x_t.dims();
        let c = self.process.prediction.coefficients(level);
        let time = Tensor::full([batch], self.process.time_input(level), &x_t.device());
        let told = self.told(step, batch);
        let output = self.net.forward(x_t.clone() * c.c_in, time, &told, self.patch);
        let variance = (output.dims()[1] == 2 * channels)
            .then(|| output.clone().narrow(1, channels, channels));
        let output = output.narrow(1, 0, channels); // [batch, channels, height, width]
        Denoised { clean: x_t * c.c_skip + output * c.c_out, unclipped: None, variance }
    }
}
