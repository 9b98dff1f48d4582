//! The denoising loss.

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::diffusion::Level;
use crate::random::Generator;
use crate::nets::{Dit, Memory, Student};
use crate::process::{Process, ids};

/// A batch of clean images or latents with their classes.
#[derive(Debug, Clone)]
pub struct Batch {
    /// `[batch, channels, height, width]`, pixels in [-1, 1] or scaled latents.
    pub clean: Tensor<4>,
    /// One class per image.
    pub labels: Vec<usize>,
}

/// What the network's output is brought to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The data.
    ///
    /// For a noise-predicting network this is the loss of Ho et al. 2020 (Eq. 14), for the preconditioning
    /// of EDM it is Karras et al. 2022 (Eq. 8) with its weighting.
    Data,
    /// The network's own output at its native patch size, that of a learned variance included (FlexiDiT
    /// section 3.3).
    Native,
}

/// `mean ‖F − F*‖²`: the network's output against its target, at random levels.
#[derive(Debug, Clone)]
pub struct Denoising {
    /// Process that the network learns.
    pub process: Process,
    /// Share of labels replaced by the null class, in [0, 1]: makes classifier-free guidance possible.
    pub label_dropout: f64,
    /// What `F*` is.
    pub target: Target,
}

impl Denoising {
    /// Loss of one batch at a patch size, `[1]`; all randomness comes from `random`, on the host, and does
    /// not depend on the patch size.
    pub fn loss(
        &self,
        net: &Dit,
        batch: &Batch,
        patch: usize,
        random: &mut Generator,
    ) -> Tensor<1> {
        let device = batch.clean.device();
        let [count, channels, height, width] = batch.clean.dims();
        let levels: Vec<Level> =
            (0..count).map(|_| self.process.schedule.training_level(random)).collect();
        let labels: Vec<i64> = batch
            .labels
            .iter()
            .map(|&label| match random.uniform() < self.label_dropout {
                true => net.config().classes as i64,
                false => label as i64,
            })
            .collect();
        let labels = Tensor::<1, Int>::from_data(TensorData::new(labels, [count]), &device);
        let z = random.normal(count * channels * height * width);
        let z =
            Tensor::<4>::from_data(TensorData::new(z, [count, channels, height, width]), &device);

        let scale = |value: &dyn Fn(&Level) -> f64| per_image(&levels, value, &device);
        let c = |level: &Level| self.process.prediction.coefficients(level);
        let clean = batch.clean.clone();
        let x_t = clean.clone() * scale(&|l| l.alpha) + z * scale(&|l| l.sigma);
        let time: Tensor<1> = scale(&|l| self.process.time_input(l)).reshape([count]);
        let input = x_t.clone() * scale(&|l| c(l).c_in);
        let output = net.forward(input.clone(), time.clone(), labels.clone(), patch);
        let target = match self.target {
            Target::Data => (clean - x_t * scale(&|l| c(l).c_skip)) * scale(&|l| 1.0 / c(l).c_out),
            Target::Native => {
                let (input, time) = (input.without_autodiff(), time.without_autodiff());
                let native = net.valid().forward(input, time, labels, net.config().patch);
                native.autodiff()
            }
        };
        let compared = target.dims()[1];
        (output.narrow(1, 0, compared) - target).square().mean()
    }
}

/// Whose points the steps of a student see, after the noise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Past {
    /// The teacher's, as in training.
    Teacher,
    /// Its own, as in sampling.
    Own,
}

/// Trajectories of a teacher for the steps of its student.
#[derive(Debug, Clone)]
pub struct StudentBatch {
    /// The first noise, `[batch, channels, height, width]`.
    pub noise: Tensor<4>,
    /// What each step predicts, each like `noise`.
    pub points: Vec<Tensor<4>>,
    /// One class per trajectory.
    pub labels: Vec<usize>,
}

impl StudentBatch {
    /// The same for a network in training.
    pub fn autodiff(self) -> Self {
        let points = self.points.into_iter().map(Tensor::autodiff).collect();
        Self { noise: self.noise.autodiff(), points, labels: self.labels }
    }

    /// What each step predicts, and the last head's input.
    ///
    /// # Panics
    /// If the network is no student, or has another number of steps.
    pub(super) fn outputs(&self, net: &Dit, past: Past) -> (Vec<Tensor<4>>, [Tensor<3>; 2]) {
        let [_, channels, height, width] = self.noise.dims();
        let steps = net.config().student.as_ref().map(Student::steps);
        assert_eq!(steps, Some(self.points.len()), "steps of the student, and points");
        let labels = ids(&self.labels, &self.noise.device());
        let (mut memory, mut outputs, mut last) = (Memory::default(), Vec::new(), None);
        let mut x = self.noise.clone();
        for (step, point) in self.points.iter().enumerate() {
            let tokens = net.step_tokens(x, labels.clone(), step, &mut memory);
            let output = net.step_output(tokens.clone(), step, [height, width]);
            let output = output.narrow(1, 0, channels);
            x = match past {
                Past::Teacher => point.clone(),
                Past::Own => output.clone(),
            };
            outputs.push(output);
            last = Some(tokens);
        }
        (outputs, last.expect("a student has steps"))
    }

    /// Mean over the steps of `mean ‖o − x‖²`, `[1]`.
    pub(super) fn errors(&self, outputs: Vec<Tensor<4>>) -> Tensor<1> {
        let steps = outputs.len() as f64;
        let pairs = outputs.into_iter().zip(&self.points);
        let errors = pairs.map(|(output, point)| (output - point.clone()).square().mean());
        errors.reduce(|a, b| a + b).expect("a student has steps") * (1.0 / steps)
    }
}

/// Mean over a student's steps of `mean ‖o − x‖²`: what each step predicts against the next point of the
/// teacher's trajectory, the history being the teacher's (ARD Eq. 6), `[1]`.
///
/// # Panics
/// If the network is no student, or has another number of steps.
pub fn regression(net: &Dit, batch: &StudentBatch) -> Tensor<1> {
    batch.errors(batch.outputs(net, Past::Teacher).0)
}

/// The squared error of every step of a student against the next point of the teacher's trajectory, mean over
/// channels and pixels: for each step one number per image, `[batch]`.
///
/// # Panics
/// If the network is no student, or has another number of steps.
pub fn step_errors(net: &Dit, batch: &StudentBatch, past: Past) -> Vec<Tensor<1>> {
    let pairs = batch.outputs(net, past).0.into_iter().zip(&batch.points);
    let error = |(output, point): (Tensor<4>, &Tensor<4>)| {
        let squares: Tensor<2> = (output - point.clone()).square().flatten(1, 3);
        squares.mean_dim(1).squeeze_dim(1)
    };
    pairs.map(error).collect()
}

/// One number per image, `[batch, 1, 1, 1]`.
fn per_image(levels: &[Level], value: &dyn Fn(&Level) -> f64, device: &Device) -> Tensor<4> {
    let values: Vec<f32> = levels.iter().map(|level| value(level) as f32).collect();
    Tensor::from_data(TensorData::new(values, [levels.len(), 1, 1, 1]), device)
}
