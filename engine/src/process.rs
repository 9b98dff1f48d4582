//! A network with the diffusion process it was trained on, as a [`Denoiser`].

use burn::tensor::{Device, Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::diffusion::{Denoised, Denoiser, Level, NoiseSchedule, Prediction};
use crate::nets::Dit;

/// What the network is told about the noise level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeInput {
    /// The number of the timestep, 0 to 999.
    Timestep,
    /// `ln(σ) / 4` of the variance-exploding form (EDM2): smooth, so that any sampler with fractional
    /// times works.
    LogSigma,
}

/// The diffusion process of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// How noise is mixed in over time.
    pub schedule: NoiseSchedule,
    /// What the network predicts.
    pub prediction: Prediction,
    /// What the network is told about the noise level.
    pub time: TimeInput,
}

impl Process {
    /// The number that the network is told for a level.
    pub fn time_input(&self, level: &Level) -> f64 {
        match self.time {
            TimeInput::Timestep => level.timestep,
            TimeInput::LogSigma => level.ve_sigma().ln() / 4.0,
        }
    }
}

/// A [`Dit`] bound to a process and to labels: one trajectory's view of the model.
#[derive(Debug, Clone)]
pub struct DitDenoiser<'a> {
    net: &'a Dit,
    process: &'a Process,
    labels: Tensor<1, Int>,
    patch: usize,
}

impl<'a> DitDenoiser<'a> {
    /// Binds a network, at its native patch size, to one label per image; a call with fewer images uses the first ones.
    pub fn new(net: &'a Dit, process: &'a Process, labels: &[usize], device: &Device) -> Self {
        let ids: Vec<i64> = labels.iter().map(|&label| label as i64).collect();
        let labels = Tensor::from_data(TensorData::new(ids, [labels.len()]), device);
        Self { net, process, labels, patch: net.config().patch }
    }

    /// The same with another patch size of the network.
    pub fn at(self, patch: usize) -> Self {
        Self { patch, ..self }
    }
}

impl Denoiser for DitDenoiser<'_> {
    fn denoise(&mut self, x_t: Tensor<4>, level: &Level) -> Denoised {
        let [batch, channels, ..] = x_t.dims();
        let c = self.process.prediction.coefficients(level);
        let time = Tensor::full([batch], self.process.time_input(level), &x_t.device());
        let labels = self.labels.clone().narrow(0, 0, batch);
        let output = self.net.forward(x_t.clone() * c.c_in, time, labels, self.patch);
        let variance = (output.dims()[1] == 2 * channels)
            .then(|| output.clone().narrow(1, channels, channels));
        let output = output.narrow(1, 0, channels);
        Denoised { clean: x_t * c.c_skip + output * c.c_out, variance }
    }
}
