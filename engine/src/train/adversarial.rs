//! The adversarial stage of a few-step student (appendix of ARD, Kim et al. 2025): its last prediction is
//! judged by heads on the features of the frozen teacher.

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use super::objective::{Past, StudentBatch};
use crate::diffusion::Level;
use crate::nets::{Discriminator, Dit};
use crate::process::{Process, ids};

/// Keeps the ratio of two gradients finite.
const LEAST_GRADIENT: f64 = 1e-4;
/// Largest ratio of two gradients.
const LARGEST_RATIO: f64 = 1e4;

/// A frozen teacher that looks at images as if they were at one level of noise.
#[derive(Debug, Clone)]
pub struct Features {
    net: Dit,
    time: f64,
    scale: f64,
}

/// What the heads see of some images.
#[derive(Debug, Clone)]
pub struct Seen {
    /// After each block, `[batch, tokens, hidden]`.
    pub tokens: Vec<Tensor<3>>,
    /// The activated condition, `[batch, 1, hidden]`.
    pub condition: Tensor<3>,
}

impl Seen {
    /// The same for heads in training.
    pub fn autodiff(self) -> Self {
        let tokens = self.tokens.into_iter().map(Tensor::autodiff).collect();
        Self { tokens, condition: self.condition.autodiff() }
    }
}

impl Features {
    /// `level` is what the teacher is told of the images; they get no noise.
    pub fn new(teacher: Dit, process: &Process, level: &Level) -> Self {
        Self {
            net: teacher.no_grad(),
            time: process.time_input(level),
            scale: process.prediction.coefficients(level).c_in,
        }
    }

    /// Fresh heads for these features.
    pub fn discriminator(&self, seed: u64, device: &Device) -> Discriminator {
        let config = self.net.config();
        Discriminator::new(config.depth, config.hidden, seed, device)
    }

    /// The features of images, `[batch, channels, height, width]`; gradients flow to the images.
    pub fn of(&self, images: Tensor<4>, labels: &[usize]) -> Seen {
        let device = images.device();
        let net = match images.is_autodiff() {
            true => self.net.clone().train(),
            false => self.net.clone(),
        };
        let ids = ids(labels, &device);
        let time = Tensor::full([labels.len()], self.time, &device);
        let mut tokens = Vec::new();
        let condition = net.condition(&net.embedder, time.clone(), ids.clone());
        let patch = net.config().patch;
        net.forward_observed(images * self.scale, time, ids, patch, &mut |_, after| {
            tokens.push(after.clone());
        });
        Seen { tokens, condition }
    }
}

/// Hinge loss of the heads, `[1]`: real images above 1, generated ones below -1.
pub fn discriminator_loss(judge: &Discriminator, real: &Seen, fake: &Seen) -> Tensor<1> {
    let hinge = |seen: &Seen, sign: f64| {
        let logits = judge.forward(&seen.tokens, &seen.condition);
        mean(logits.into_iter().map(|logit| (logit * sign + 1.0).clamp_min(0.0).mean()).collect())
    };
    hinge(real, -1.0) + hinge(fake, 1.0)
}

/// How far from real the heads find images, `[1]`.
pub fn generator_loss(judge: &Discriminator, fake: &Seen) -> Tensor<1> {
    let logits = judge.forward(&fake.tokens, &fake.condition);
    -mean(logits.into_iter().map(Tensor::mean).collect())
}

fn mean(values: Vec<Tensor<1>>) -> Tensor<1> {
    Tensor::cat(values, 0).mean()
}

/// [`regression`](super::regression) with the heads' judgement of the last prediction, and that prediction.
///
/// The judgement weighs `weight · ‖∂L_R/∂W‖ / ‖∂L_G/∂W‖`, `W` being the weight of the last head. The value of
/// the loss is that of the regression.
///
/// # Panics
/// If the network is no student, or has another number of steps.
pub fn adversarial_regression(
    net: &Dit,
    batch: &StudentBatch,
    (features, judge): (&Features, &Discriminator),
    weight: f64,
) -> (Tensor<1>, Tensor<4>) {
    let (outputs, tokens) = batch.outputs(net, Past::Teacher);
    let (channels, size) = (batch.noise.dims()[1], [batch.noise.dims()[2], batch.noise.dims()[3]]);
    let step = batch.points.len() - 1;
    let last = outputs[step].clone();
    let loss = batch.errors(outputs);
    if weight == 0.0 {
        return (loss, last.without_autodiff());
    }

    // The judgement's gradient at the prediction, through the frozen networks alone.
    let judge = judge.valid().no_grad().train();
    let leaf = last.clone().without_autodiff().autodiff().require_grad();
    let judged = generator_loss(&judge, &features.of(leaf.clone(), &batch.labels));
    let pull =
        leaf.grad(&judged.backward()).expect("the judgement depends on the image").autodiff();

    // Both gradients at the last head's weight, through that head alone.
    let again = || {
        let tokens = tokens.clone().map(Tensor::detach);
        net.step_output(tokens, step, size).narrow(1, 0, channels)
    };
    let norm = |value: Tensor<1>| {
        let gradient = net.step_weight(step).grad(&value.backward());
        gradient.expect("a head that is trained").square().sum().sqrt()
    };
    let fit = (again() - batch.points[step].clone()).square().mean();
    let ours = norm(fit * (1.0 / batch.points.len() as f64));
    let theirs = norm((again() * pull.clone()).sum());
    let ratio = (ours / (theirs + LEAST_GRADIENT)).clamp(0.0, LARGEST_RATIO) * weight;

    let term = (last.clone() * pull).sum() * ratio.autodiff();
    let term = term.clone() - term.detach();
    (loss + term, last.without_autodiff())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::{NoiseSchedule, Prediction};
    use crate::nets::{DitConfig, History, Points, Student, distillable};
    use crate::process::TimeInput;
    use crate::testing::Draws;
    use crate::train::{params, regression};

    fn process() -> Process {
        Process {
            schedule: NoiseSchedule::Linear {
                steps: 1000,
                first: 1e-4,
                last: 0.02,
                zero_snr: false,
            },
            prediction: Prediction::Noise,
            time: TimeInput::Timestep,
        }
    }

    fn teacher() -> Dit {
        let base = DitConfig::dit(32, 3, 4);
        let config = DitConfig { size: [8, 8], classes: 3, learned_variance: false, ..base };
        config.init(0, &Device::flex()).map(&mut Draws::new(4, 0.3))
    }

    fn student(teacher: Dit) -> Dit {
        let student = Student {
            times: Student::even_times(2, 999.0),
            patches: vec![2; 2],
            history: History::All,
            history_layers: 1,
            own_heads: true,
            points: Points::Estimates,
        };
        distillable(teacher, student).expect("steps that fit").train()
    }

    fn batch() -> StudentBatch {
        let mut draws = Draws::new(5, 1.0);
        let mut random = || draws.tensor([2, 4, 8, 8]);
        StudentBatch { noise: random(), points: vec![random(), random()], labels: vec![0, 2] }
            .autodiff()
    }

    fn features(teacher: Dit) -> Features {
        let process = process();
        let level = process.schedule.level(0.0).expect("the least noise");
        Features::new(teacher, &process, &level)
    }

    /// Gradients of the student's parameters under their names.
    fn gradients(net: &Dit, loss: Tensor<1>) -> Vec<(String, Tensor<1>)> {
        let gradients = params::gradients(net, &loss.backward());
        params::names(net).into_iter().zip(gradients).collect()
    }

    fn norm(x: &Tensor<1>) -> f32 {
        x.clone().square().sum().sqrt().into_scalar()
    }

    #[test]
    fn the_judgement_pulls_on_the_last_head_as_much_as_asked() {
        let (net, batch) = (student(teacher()), batch());
        let features = features(teacher());
        let judge = features.discriminator(1, &Device::flex()).train();
        let plain = regression(&net, &batch);
        let value: f32 = plain.clone().into_scalar();
        let plain = gradients(&net, plain);
        for weight in [0.0, 3.0, 10.0] {
            let (loss, fake) = adversarial_regression(&net, &batch, (&features, &judge), weight);
            assert_eq!(fake.dims(), [2, 4, 8, 8]);
            assert!((loss.clone().into_scalar::<f32>() - value).abs() < 1e-5 * value);
            let both = gradients(&net, loss);
            for ((name, plain), (_, both)) in plain.iter().zip(&both) {
                let pulled = norm(&(both.clone() - plain.clone()));
                match name.as_str() {
                    "later_heads.0.out.weight" => {
                        // Of the regression, the first step's error leaves this weight alone.
                        let expected = weight as f32 * norm(plain);
                        assert!((pulled - expected).abs() <= 1e-3 * expected, "{pulled}");
                    }
                    "head.out.weight" => assert_eq!(pulled, 0.0),
                    "blocks.0.mlp.up.weight" => assert_eq!(pulled > 0.0, weight > 0.0),
                    _ => (),
                }
            }
        }
    }

    #[test]
    fn stronger_judges_pull_no_more() {
        let (net, batch) = (student(teacher()), batch());
        let features = features(teacher());
        let judge = features.discriminator(1, &Device::flex()).train();
        // The logits are linear in the last parameters of each head: weight and bias of the condition.
        let names = params::names(&judge);
        let scaled = names.iter().zip(params::values(&judge)).map(|(name, value)| {
            match name.contains("condition") {
                true => value * 5.0,
                false => value,
            }
        });
        let louder = params::with_values(judge.clone(), scaled.collect::<Vec<_>>());
        let [once, more] = [judge, louder].map(|judge| {
            let (loss, _) = adversarial_regression(&net, &batch, (&features, &judge), 10.0);
            gradients(&net, loss)
        });
        for ((name, once), (_, more)) in once.iter().zip(&more) {
            let far = norm(&(more.clone() - once.clone()));
            assert!(far <= 5e-3 * norm(once) + 1e-6, "{name}: {far} of {}", norm(once));
        }
    }

    #[test]
    fn heads_learn_to_tell_two_kinds_of_images() {
        use crate::train::{LearningRate, Trainer, TrainerConfig};
        let features = features(teacher());
        let mut draws = Draws::new(6, 0.3);
        let mut images = |mean: f64| draws.tensor([4, 4, 8, 8]) + mean;
        let labels = [0, 1, 2, 0];
        let [real, fake] = [0.5, -0.5].map(|mean| features.of(images(mean), &labels).autodiff());
        let config = TrainerConfig {
            steps: 40,
            learning_rate: LearningRate { peak: 1e-2, warmup: 0, decay: Default::default() },
            betas: [0.9, 0.99],
            epsilon: 1e-8,
            weight_decay: 0.0,
            clip: None,
            averages: Vec::new(),
            forced_normalization: false,
            precision: Default::default(),
        };
        let judge = features.discriminator(2, &Device::flex());
        let mut trainer = Trainer::new(judge, config);
        let losses: Vec<f32> = (0..40)
            .map(|_| {
                let step = trainer.step(1, |judge, _| discriminator_loss(judge, &real, &fake));
                step.loss.into_scalar()
            })
            .collect();
        assert!(losses[0] > 1.0 && losses[39] < 0.5 * losses[0], "{losses:?}");
        let judge = trainer.model.valid();
        let unseen = features.of(images(0.5), &labels);
        assert!(generator_loss(&judge, &unseen).into_scalar::<f32>() < 0.0);
    }
}
