//! A network with the diffusion process it was trained on, as a [`Denoiser`].

use burn::tensor::{Device, Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::diffusion::{Denoised, Denoiser, Grid, Level, NoiseSchedule, Prediction};
use crate::layers::TimeCode;
use crate::nets::{Dit, DitConfig, Memory, Points};

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

    /// Says why a network cannot be told the noise levels of this process, if it cannot: a table has a row per
    /// timestep.
    pub fn check(&self, net: &DitConfig) -> Result<(), String> {
        let numbered =
            self.time == TimeInput::Timestep && !matches!(self.schedule, NoiseSchedule::Edm { .. });
        match net.time {
            TimeCode::Table { steps } if !numbered => Err(format!(
                "a table of {steps} timesteps is told {:?} of the schedule {:?}, expected timesteps",
                self.time, self.schedule
            )),
            _ => Ok(()),
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
        Self { net, process, labels: ids(labels, device), patch: net.config().patch }
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

/// Labels as a tensor, `[labels]`.
pub(crate) fn ids(labels: &[usize], device: &Device) -> Tensor<1, Int> {
    let ids: Vec<i64> = labels.iter().map(|&label| label as i64).collect();
    Tensor::from_data(TensorData::new(ids, [labels.len()]), device)
}

/// A few-step student ([`Student`](crate::nets::Student)) bound to labels, for one pass of a deterministic
/// DDIM over its own grid.
///
/// The student goes by what it predicted itself, not by the sampler's state, which follows: each answer is
/// the clean image that takes the sampler where the student went.
#[derive(Debug)]
pub struct StudentDenoiser<'a> {
    net: &'a Dit,
    process: &'a Process,
    labels: Tensor<1, Int>,
    grid: &'a Grid,
    memory: Memory,
    step: usize,
    point: Option<Tensor<4>>,
}

impl<'a> StudentDenoiser<'a> {
    /// Binds a student to one label per image and to the grid that is going to be sampled.
    ///
    /// # Panics
    /// If the network is no student, or the grid has another number of steps.
    pub fn new(
        net: &'a Dit,
        process: &'a Process,
        labels: &[usize],
        grid: &'a Grid,
        device: &Device,
    ) -> Self {
        let steps = net.config().student.as_ref().expect("a student").steps();
        assert_eq!(grid.steps.len(), steps, "steps of the grid and of the student");
        let labels = ids(labels, device);
        Self { net, process, labels, grid, memory: Memory::default(), step: 0, point: None }
    }

    /// Continues from an image in place of the student's first prediction: the history is the noise and
    /// this image (appendix C.2 of the paper).
    ///
    /// # Shapes
    /// `[batch, channels, height, width]`
    pub fn from_image(self, image: Tensor<4>) -> Self {
        Self { point: Some(image), ..self }
    }
}

impl Denoiser for StudentDenoiser<'_> {
    /// # Panics
    /// Off the grid: if the level is not that of the next step.
    fn denoise(&mut self, x_t: Tensor<4>, level: &Level) -> Denoised {
        let [from, to] = self.grid.steps[self.step];
        assert_eq!(*level, from, "a student goes along its own grid");
        let channels = x_t.dims()[1];
        let input = match (&self.point, self.step) {
            (_, 0) => x_t.clone() * (1.0 / self.grid.initial_scale),
            (point, _) => point.clone().expect("what the step before predicted"),
        };
        let output = self.net.step(input.clone(), self.labels.clone(), self.step, &mut self.memory);
        let predicted = output.narrow(1, 0, channels);
        let student = self.net.config().student.as_ref().expect("a student");
        let scale = self.process.prediction.coefficients(&to).c_in;
        let point = match (self.step, self.point.take()) {
            (0, Some(image)) if student.points == Points::States => {
                (image * to.alpha + input * to.sigma) * scale
            }
            (0, Some(image)) => image,
            _ => predicted,
        };
        self.step += 1;
        self.point = Some(point.clone());
        let last = self.step == student.steps();
        let clean = match student.points {
            Points::States if !last => {
                // DDIM goes to α' x̂ + σ' (x - α x̂) / σ; solved for x̂.
                let next = point * (1.0 / scale);
                let ratio = to.sigma / from.sigma;
                (next - x_t * ratio) * (1.0 / (to.alpha - ratio * from.alpha))
            }
            _ => point,
        };
        Denoised { clean, variance: None }
    }
}
