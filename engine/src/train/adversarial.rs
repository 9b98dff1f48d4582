//! The adversarial stage of a few-step student (appendix of ARD, Kim et al. 2025): its last prediction is
//! judged by heads on the features of the frozen teacher.

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use super::trajectory::{Past, StudentBatch};
use crate::diffusion::{Level, Process};
use crate::nets::{Conditioning, Discriminator, Dit, Encoded, Student};

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
    pub fn of(&self, images: Tensor<4>, told: &Conditioning) -> Seen {
        let net = match images.is_autodiff() {
            true => self.net.clone().train(),
            false => self.net.clone(),
        };
        let time = Tensor::full([images.dims()[0]], self.time, &images.device());
        let condition = net.embedder.forward(time.clone(), told);
        let (mut tokens, patch) = (Vec::new(), net.config().patch);
        net.forward_with(images * self.scale, time, told, patch, &mut |_, after| {
            tokens.push(after.clone());
            after
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

/// The frozen networks that judge a student's images.
#[derive(Debug, Clone, Copy)]
pub struct Judge<'a> {
    /// What the heads look at.
    pub features: &'a Features,
    /// The heads.
    pub heads: &'a Discriminator,
    /// How much their judgement weighs; see [`adversarial_regression`].
    pub weight: f64,
}

/// [`regression`](super::regression) with the heads' judgement of the last prediction, `[1]`, and that prediction,
/// `[batch, channels, height, width]`.
///
/// The judgement weighs `weight · ‖∂L_R/∂W‖ / ‖∂L_G/∂W‖`, `W` being the weight of the last head. The value of
/// the loss is that of the regression.
///
/// # Panics
/// If the student has another number of steps.
pub fn adversarial_regression(
    net: &Student,
    batch: &StudentBatch,
    judge: Judge<'_>,
) -> (Tensor<1>, Tensor<4>) {
    let (outputs, encoded) = batch.outputs(net, Past::Teacher);
    let last = outputs[batch.points.len() - 1].clone();
    let loss = batch.errors(outputs);
    if judge.weight == 0.0 {
        return (loss, last.without_autodiff());
    }

    // The judgement's gradient at the prediction, through the frozen networks alone.
    let heads = judge.heads.valid().no_grad().train();
    let leaf = last.clone().without_autodiff().autodiff().require_grad();
    let judged = generator_loss(&heads, &judge.features.of(leaf.clone(), &batch.told));
    let pull =
        leaf.grad(&judged.backward()).expect("the judgement depends on the image").autodiff();

    let ratio = balance(net, batch, encoded, pull.clone()) * judge.weight;
    let term = (last.clone() * pull).sum() * ratio.autodiff();
    let term = term.clone() - term.detach();
    (loss + term, last.without_autodiff())
}

/// `‖∂L_R/∂W‖ / ‖∂L_G/∂W‖` at the weight of the last head, through that head alone, `[1]`; `pull` is the gradient
/// of the judgement at its output.
fn balance(net: &Student, batch: &StudentBatch, encoded: Encoded, pull: Tensor<4>) -> Tensor<1> {
    let [_, channels, height, width] = batch.noise.dims();
    let step = batch.points.len() - 1;
    let again = || {
        let Encoded { tokens, condition } = encoded.clone();
        let encoded = Encoded { tokens: tokens.detach(), condition: condition.detach() };
        net.decode(encoded, step, [height, width]).narrow(1, 0, channels)
    };
    let norm = |value: Tensor<1>| {
        let gradient = net.head_weight(step).grad(&value.backward());
        gradient.expect("a head that is trained").square().sum().sqrt()
    };
    let fit = (again() - batch.points[step].clone()).square().mean();
    let ours = norm(fit * (1.0 / batch.points.len() as f64));
    let theirs = norm((again() * pull).sum());
    (ours / (theirs + LEAST_GRADIENT)).clamp(0.0, LARGEST_RATIO)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::TimeInput;
    use crate::diffusion::{NoiseSchedule, Prediction};
    use crate::nets::{DitConfig, History, Points, StudentConfig};
    use crate::testing::Draws;
    use crate::train::{params, regression};

    fn process() -> Process {
        let schedule =
            NoiseSchedule::Linear { steps: 1000, first: 1e-4, last: 0.02, zero_snr: false };
        Process::new(schedule, Prediction::Noise, TimeInput::Timestep)
    }

    fn teacher() -> Dit {
        let base = DitConfig::dit(32, 3, 4);
        let config = DitConfig { size: [8, 8], classes: 3, learned_variance: false, ..base };
        config.init(0, &Device::flex()).map(&mut Draws::new(4, 0.3))
    }

    fn student(teacher: Dit) -> Student {
        let config = StudentConfig {
            times: StudentConfig::even_times(2, 999.0),
            patches: vec![2; 2],
            history: History::All,
            history_layers: 1,
            own_heads: true,
            points: Points::Estimates,
        };
        Student::new(teacher, config).expect("steps that fit").train()
    }

    fn batch() -> StudentBatch {
        let mut draws = Draws::new(5, 1.0);
        let mut random = || draws.tensor([2, 4, 8, 8]);
        let told = Conditioning::classes(&[0, 2], &Device::flex());
        StudentBatch { noise: random(), points: vec![random(), random()], told }.autodiff()
    }

    fn features(teacher: Dit) -> Features {
        let process = process();
        let level = process.schedule.level(0.0).expect("the least noise");
        Features::new(teacher, &process, &level)
    }

    /// Gradients of the student's parameters under their names.
    fn gradients(net: &Student, loss: Tensor<1>) -> Vec<(String, Tensor<1>)> {
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
        let heads = features.discriminator(1, &Device::flex()).train();
        let plain = regression(&net, &batch);
        let value: f32 = plain.clone().into_scalar();
        let plain = gradients(&net, plain);
        for weight in [0.0, 3.0, 10.0] {
            let judge = Judge { features: &features, heads: &heads, weight };
            let (loss, fake) = adversarial_regression(&net, &batch, judge);
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
        let [once, more] = [judge, louder].map(|heads| {
            let judge = Judge { features: &features, heads: &heads, weight: 10.0 };
            let (loss, _) = adversarial_regression(&net, &batch, judge);
            gradients(&net, loss)
        });
        for ((name, once), (_, more)) in once.iter().zip(&more) {
            let far = norm(&(more.clone() - once.clone()));
            assert!(far <= 5e-3 * norm(once) + 1e-6, "{name}: {far} of {}", norm(once));
        }
    }

    #[test]
    fn heads_learn_to_tell_two_kinds_of_images() {
        use crate::train::{LearningRate, Rule, Trainer, TrainerConfig};
        let features = features(teacher());
        let mut draws = Draws::new(6, 0.3);
        let mut images = |mean: f64| draws.tensor([4, 4, 8, 8]) + mean;
        let told = Conditioning::classes(&[0, 1, 2, 0], &Device::flex());
        let [real, fake] = [0.5, -0.5].map(|mean| features.of(images(mean), &told).autodiff());
        let config = TrainerConfig {
            steps: 40,
            learning_rate: LearningRate { peak: 1e-2, warmup: 0, decay: Default::default() },
            optimizer: Rule::AdamW,
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
                let loss = |judge: &Discriminator, _| (discriminator_loss(judge, &real, &fake), ());
                trainer.step(1, loss).0.loss.into_scalar()
            })
            .collect();
        assert!(losses[0] > 1.0 && losses[39] < 0.5 * losses[0], "{losses:?}");
        let judge = trainer.model.valid();
        let unseen = features.of(images(0.5), &told);
        assert!(generator_loss(&judge, &unseen).into_scalar::<f32>() < 0.0);
    }
}
