//! The denoising loss.

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::perceptual::Perceptual;
use crate::diffusion::{Level, Process};
use crate::nets::{Conditioning, Dit};
use crate::random::Generator;

/// A batch of clean images or latents with their conditions.
#[derive(Debug, Clone)]
pub struct Batch {
    /// `[batch, channels, height, width]`, pixels in [-1, 1] or scaled latents.
    pub clean: Tensor<4>,
    /// What the network is told of each image.
    pub told: Conditioning,
    /// What it is told instead where that is left out.
    pub null: Conditioning,
}

/// What the network's output is brought to.
#[derive(Debug, Clone)]
pub enum Target {
    /// The data.
    ///
    /// For a noise-predicting network this is the loss of Ho et al. 2020 (Eq. 14), for the preconditioning
    /// of EDM it is Karras et al. 2022 (Eq. 8) with its weighting.
    Data,
    /// The network's own output at its native patch size, that of a learned variance included (FlexiDiT
    /// section 3.3).
    Native,
    /// The output of another network of the same kind at its native patch size.
    Teacher(Box<Dit>),
}

/// How much errors count at each noise level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Weighting {
    /// As they are in the network's output.
    #[default]
    Output,
    /// As they are in the velocity between data and noise that follows from the estimate of the data: the error of that
    /// over `s = σ / (α + σ)`, squared. A network that predicts the data so learns its details, which show at low noise
    /// only (JiT, Li & He 2025).
    Velocity,
}

/// Least `s` of [`Weighting::Velocity`]: below, weights would be without bounds.
const LEAST_NOISE: f64 = 0.05;

impl Weighting {
    /// Factor on the error of the output, before it is squared.
    fn factor(self, process: &Process, level: &Level) -> f64 {
        match self {
            Self::Output => 1.0,
            Self::Velocity => {
                process.prediction.coefficients(level).c_out / level.noise_share().max(LEAST_NOISE)
            }
        }
    }
}

/// `mean (w ‖F − F*‖)²`: the network's output against its target, at random levels.
#[derive(Debug, Clone)]
pub struct Denoising {
    /// Process that the network learns.
    pub process: Process,
    /// Share of conditions that are left out, in [0, 1]: makes classifier-free guidance possible.
    pub condition_dropout: f64,
    /// What `F*` is.
    pub target: Target,
    /// What `w` is.
    pub weighting: Weighting,
    /// What is added for pictures that differ to the eye.
    pub perceptual: Option<Perceptual>,
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
        let told_or_null = |image: usize| match random.uniform() < self.condition_dropout {
            true => count + image,
            false => image,
        };
        let chosen: Vec<usize> = (0..count).map(told_or_null).collect();
        let told = match self.condition_dropout > 0.0 {
            true => batch.told.clone().followed_by(batch.null.clone()).select(&chosen),
            false => batch.told.clone(),
        };
        let z = random.normal(count * channels * height * width);
        let z =
            Tensor::<4>::from_data(TensorData::new(z, [count, channels, height, width]), &device);

        let scale = |value: &dyn Fn(&Level) -> f64| per_image(&levels, value, &device);
        let c = |level: &Level| self.process.prediction.coefficients(level);
        let clean = batch.clean.clone(); // [batch, channels, height, width]
        let x_t = clean.clone() * scale(&|l| l.alpha) + z * scale(&|l| l.sigma);
        let time: Tensor<1> = scale(&|l| self.process.time_input(l)).reshape([count]);
        let input = x_t.clone() * scale(&|l| c(l).c_in);
        let output = net.forward(input.clone(), time.clone(), &told, patch);
        // Without gradients.
        let native = |net: &Dit| {
            let (input, time) = (input.clone().without_autodiff(), time.clone().without_autodiff());
            let told = told.without_autodiff();
            net.forward(input, time, &told, net.config().patch).autodiff()
        };
        let target = match &self.target {
            Target::Data => {
                (clean.clone() - x_t.clone() * scale(&|l| c(l).c_skip))
                    * scale(&|l| 1.0 / c(l).c_out)
            }
            Target::Native => native(&net.valid()),
            Target::Teacher(teacher) => native(teacher),
        };
        let compared = target.dims()[1];
        let output = output.narrow(1, 0, compared);
        let error = output.clone() - target;
        let loss = (error * scale(&|l| self.weighting.factor(&self.process, l))).square().mean();
        let Some(perceptual) = &self.perceptual else { return loss };
        let estimate = x_t * scale(&|l| c(l).c_skip) + output * scale(&|l| c(l).c_out);
        match perceptual.term(estimate, clean, &levels) {
            Some(term) => loss + term,
            None => loss,
        }
    }
}

/// One number per image, `[batch, 1, 1, 1]`.
fn per_image(levels: &[Level], value: &dyn Fn(&Level) -> f64, device: &Device) -> Tensor<4> {
    let values: Vec<f32> = levels.iter().map(|level| value(level) as f32).collect();
    Tensor::from_data(TensorData::new(values, [levels.len(), 1, 1, 1]), device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::{NoiseSchedule, Prediction, TimeInput};
    use crate::nets::DitConfig;
    use crate::testing::Draws;

    /// At one noise level the weight is a factor, which has a bound.
    #[test]
    fn errors_count_as_those_of_the_velocity() {
        let device = Device::flex();
        let config = DitConfig { size: [8, 8], classes: 3, ..DitConfig::dit(32, 2, 4) };
        let net = config.init(0, &device).map(&mut Draws::new(3, 0.2));
        let told = Conditioning::classes(&[0, 1], &device);
        let clean = Draws::new(4, 0.5).tensor([2, 4, 8, 8]);
        let batch = Batch { clean, null: told.clone(), told };
        for sigma in [0.01, 0.5, 3.0_f64] {
            let schedule = NoiseSchedule::Edm {
                sigma_min: 0.002,
                sigma_max: 80.0,
                rho: 7.0,
                log_mean: sigma.ln(),
                log_std: 1e-9,
            };
            let loss = |weighting: Weighting| -> f32 {
                let process =
                    Process::new(schedule.clone(), Prediction::Clean, TimeInput::LogSigma);
                let objective = Denoising {
                    process,
                    condition_dropout: 0.0,
                    target: Target::Data,
                    weighting,
                    perceptual: None,
                };
                objective.loss(&net, &batch, 2, &mut Generator::new(5)).into_scalar()
            };
            let found = loss(Weighting::Velocity) / loss(Weighting::Output);
            let expected = (1.0 / (sigma / (1.0 + sigma)).max(LEAST_NOISE)).powi(2) as f32;
            assert!((found / expected - 1.0).abs() < 1e-4, "{sigma}: {found}, {expected}");
        }
    }
}
