//! What a student's predictions are measured by: the trajectory of its teacher (ARD, Kim et al. 2025).

use burn::tensor::Tensor;

use crate::nets::{Conditioning, Encoded, Memory, Student};

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
    /// What the network is told of each.
    pub told: Conditioning,
}

impl StudentBatch {
    /// The same for a network in training.
    pub fn autodiff(self) -> Self {
        let points = self.points.into_iter().map(Tensor::autodiff).collect();
        Self { noise: self.noise.autodiff(), points, told: self.told }
    }

    /// What each step predicts, and the last head's input.
    ///
    /// # Panics
    /// If the student has another number of steps.
    pub(super) fn outputs(&self, net: &Student, past: Past) -> (Vec<Tensor<4>>, Encoded) {
        let [_, channels, height, width] = self.noise.dims();
        assert_eq!(net.config().steps(), self.points.len(), "steps of the student, and points");
        let (mut memory, mut outputs, mut last) = (Memory::default(), Vec::new(), None);
        let mut x = self.noise.clone();
        for (step, point) in self.points.iter().enumerate() {
            let encoded = net.encode(x, &self.told, step, &mut memory);
            let output = net.decode(encoded.clone(), step, [height, width]);
            let output = output.narrow(1, 0, channels); // [batch, channels, height, width]
            x = match past {
                Past::Teacher => point.clone(),
                Past::Own => output.clone(),
            };
            outputs.push(output);
            last = Some(encoded);
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
/// If the student has another number of steps.
pub fn regression(net: &Student, batch: &StudentBatch) -> Tensor<1> {
    batch.errors(batch.outputs(net, Past::Teacher).0)
}

/// The squared error of every step of a student against the next point of the teacher's trajectory, mean over
/// channels and pixels: for each step one number per image, `[batch]`.
///
/// # Panics
/// If the student has another number of steps.
pub fn step_errors(net: &Student, batch: &StudentBatch, past: Past) -> Vec<Tensor<1>> {
    let pairs = batch.outputs(net, past).0.into_iter().zip(&batch.points);
    let error = |(output, point): (Tensor<4>, &Tensor<4>)| {
        let squares: Tensor<2> = (output - point.clone()).square().flatten(1, 3);
        squares.mean_dim(1).squeeze_dim(1)
    };
    pairs.map(error).collect()
}
