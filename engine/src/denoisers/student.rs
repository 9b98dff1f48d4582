//! A few-step student on its own grid.

use burn::tensor::Tensor;

use crate::diffusion::{Denoised, Denoiser, Grid, Level, Process};
use crate::nets::{Conditioning, Memory, Points, Student};

/// A few-step student bound to the condition of its images, for one pass of a deterministic DDIM over its own
/// grid.
///
/// The student goes by what it predicted itself, not by the sampler's state, which follows: each answer is
/// the clean image that takes the sampler where the student went.
#[derive(Debug)]
pub struct StudentDenoiser<'a> {
    net: &'a Student,
    process: &'a Process,
    told: Conditioning,
    grid: &'a Grid,
    memory: Memory,
    step: usize,
    point: Option<Tensor<4>>,
}

impl<'a> StudentDenoiser<'a> {
    /// Binds a student to the condition of its images and to the grid that is going to be sampled.
    ///
    /// # Panics
    /// If the grid has another number of steps.
    pub fn new(net: &'a Student, process: &'a Process, told: Conditioning, grid: &'a Grid) -> Self {
        assert_eq!(grid.steps.len(), net.config().steps(), "steps of the grid and of the student");
        Self { net, process, told, grid, memory: Memory::default(), step: 0, point: None }
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
    fn denoise(&mut self, x_t: Tensor<4>, level: &Level, step: usize) -> Denoised {
        let [from, to] = self.grid.steps[self.step];
        assert_eq!((*level, step), (from, self.step), "a student goes along its own grid");
        let channels = x_t.dims()[1];
        let input = match (&self.point, self.step) {
            (_, 0) => x_t.clone() * (1.0 / self.grid.initial_scale),
            (point, _) => point.clone().expect("what the step before predicted"),
        };
        let output = self.net.step(input.clone(), &self.told, self.step, &mut self.memory);
        let predicted = output.narrow(1, 0, channels);
        let student = self.net.config();
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
        Denoised { clean, unclipped: None, variance: None }
    }
}
