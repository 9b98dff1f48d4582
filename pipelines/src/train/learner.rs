//! Networks in training, each with what it learns from.

use std::path::Path;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use pyrograph_engine::nets::{Control, Dit, Net, Steered, Tuned};
use pyrograph_engine::train::{Gradients, StepReport};

use super::checkpoint::Whole;
use super::config::TrainConfig;
use super::control::PortraitLearner;
use super::critic::Critic;
use super::denoising::DenoisingLearner;
use super::distillation::StudentLearner;
use super::outline::Outline;
use super::streams::Streams;
use crate::branches::Branches;
use crate::control::ControlConfig;
use crate::data::{Dataset, Notice};
use crate::error::Result;
use crate::portrait::PortraitConfig;

/// A network in training, its data and its loss.
pub(super) enum Learner {
    /// On images.
    Denoising(DenoisingLearner<Dit>),
    /// Of which only a LoRA learns, on images.
    Lora(DenoisingLearner<Tuned>),
    /// Of which only a branch learns that steers it by pictures beside the images.
    Control(DenoisingLearner<Steered<Control>>),
    /// Of which only branches learn that make portraits, on pairs of images.
    Portrait(PortraitLearner),
    /// On the trajectories of its teacher.
    Student(StudentLearner),
}

/// An expression of what a learner is, whichever it is.
macro_rules! each {
    ($learner:expr, $own:ident => $value:expr) => {
        match $learner {
            $crate::train::learner::Learner::Denoising($own) => $value,
            $crate::train::learner::Learner::Lora($own) => $value,
            $crate::train::learner::Learner::Control($own) => $value,
            $crate::train::learner::Learner::Portrait($own) => $value,
            $crate::train::learner::Learner::Student($own) => $value,
        }
    };
}
pub(super) use each;

/// What learns on images, all of a network or a LoRA of it.
///
/// # Errors
/// Those of [`DenoisingLearner::new`].
pub(super) fn on_images(
    folder: &Path,
    config: &TrainConfig,
    data: Dataset,
    resumed: Option<&Whole>,
    device: &Device,
) -> Result<(Learner, Outline)> {
    let (learner, outline) = match &config.lora {
        None if let Some(control) = &config.control => match control.kind {
            None => {
                let (own, outline) = PortraitLearner::new(folder, config, data, resumed, device)?;
                (Learner::Portrait(own), outline)
            }
            Some(_) => {
                let steered = |net: Dit| {
                    let branch = match control.fresh {
                        true => Control::fresh(net.config(), control.depth, device),
                        false => Control::new(&net, control.depth, device),
                    };
                    let autodiff = device.clone().autodiff();
                    Ok(Steered::new(net, branch.fork(&autodiff)))
                };
                let (own, outline) =
                    DenoisingLearner::new(folder, config, data, resumed, device, steered)?;
                (Learner::Control(own), outline)
            }
        },
        None => {
            let (own, outline) = DenoisingLearner::new(folder, config, data, resumed, device, Ok)?;
            (Learner::Denoising(own), outline)
        }
        Some(lora) => {
            let tuned = |net| lora.tuned(net, config.seed, device);
            let (own, outline) =
                DenoisingLearner::new(folder, config, data, resumed, device, tuned)?;
            (Learner::Lora(own), outline)
        }
    };
    Ok((learner, outline))
}

/// Branches as a run makes them.
pub(super) enum Made {
    /// That see a picture.
    Control(Branches<ControlConfig>),
    /// That make portraits.
    Portrait(Branches<PortraitConfig>),
}

impl Made {
    /// Writes their folder.
    ///
    /// # Errors
    /// A disk that refuses.
    pub(super) fn save(&self, path: &Path) -> Result<()> {
        match self {
            Self::Control(branches) => branches.save(path),
            Self::Portrait(branches) => branches.save(path),
        }
    }
}

/// A step that was computed and not taken.
pub(super) struct Computed {
    pub(super) own: Gradients,
    /// Of the heads that judge a student.
    pub(super) critic: Option<Gradients>,
}

impl Learner {
    /// Computes the next step, on examples of these numbers.
    ///
    /// # Errors
    /// Trajectories that can no longer be read.
    pub(super) fn compute(
        &self,
        indices: &[usize],
        config: &TrainConfig,
        device: &Device,
    ) -> Result<Computed> {
        let streams = Streams { seed: config.seed, step: self.step() };
        let own = match self {
            Self::Denoising(learner) => learner.gradients(indices, streams, config, device),
            Self::Lora(learner) => learner.gradients(indices, streams, config, device),
            Self::Control(learner) => learner.gradients(indices, streams, config, device),
            Self::Portrait(learner) => learner.gradients(indices, streams, config, device),
            Self::Student(learner) => return learner.compute(indices, streams, config, device),
        };
        Ok(Computed { own, critic: None })
    }

    /// Takes a step.
    pub(super) fn take(&mut self, Computed { own, critic }: Computed) -> StepReport {
        if let (Some(heads), Some(gradients)) = (self.critic_mut(), critic) {
            heads.trainer.apply(gradients);
        }
        each!(self, learner => learner.trainer.apply(own))
    }

    /// Number of images or trajectories.
    pub(super) fn examples(&self) -> usize {
        match self {
            Self::Denoising(learner) => learner.data.len(),
            Self::Lora(learner) => learner.data.len(),
            Self::Control(learner) => learner.data.len(),
            Self::Portrait(learner) => learner.data.len(),
            Self::Student(learner) => learner.trajectories.spec().count,
        }
    }

    /// Steps taken.
    pub(super) fn step(&self) -> u64 {
        each!(self, learner => learner.trainer.step)
    }

    /// The network, on an autodiff device.
    pub(super) fn net(&self) -> Net {
        match self {
            Self::Denoising(learner) => learner.trainer.model.clone().into(),
            Self::Lora(learner) => learner.trainer.model.bound().into(),
            Self::Control(learner) => learner.trainer.model.net.clone().into(),
            Self::Portrait(learner) => learner.trainer.model.net.clone().into(),
            Self::Student(learner) => learner.trainer.model.clone().into(),
        }
    }

    /// See [`Net::trunk`].
    pub(super) fn trunk(&self) -> &Dit {
        match self {
            Self::Denoising(learner) => &learner.trainer.model,
            Self::Lora(learner) => &learner.trainer.model.net,
            Self::Control(learner) => &learner.trainer.model.net,
            Self::Portrait(learner) => &learner.trainer.model.net,
            Self::Student(learner) => learner.trainer.model.trunk(),
        }
    }

    /// See [`Net::trunk`].
    pub(super) fn trunk_mut(&mut self) -> &mut Dit {
        match self {
            Self::Denoising(learner) => &mut learner.trainer.model,
            Self::Lora(learner) => &mut learner.trainer.model.net,
            Self::Control(learner) => &mut learner.trainer.model.net,
            Self::Portrait(learner) => &mut learner.trainer.model.net,
            Self::Student(learner) => learner.trainer.model.trunk_mut(),
        }
    }

    /// What judges a student, if anything.
    pub(super) fn critic(&self) -> Option<&Critic> {
        match self {
            Self::Student(learner) => learner.critic.as_ref(),
            _ => None,
        }
    }

    /// See [`Learner::critic`].
    pub(super) fn critic_mut(&mut self) -> Option<&mut Critic> {
        match self {
            Self::Student(learner) => learner.critic.as_mut(),
            _ => None,
        }
    }

    /// Branches with the weights of average number `index`, off the autodiff device, if those are what learns.
    pub(super) fn branches(&self, index: usize) -> Option<Made> {
        match self {
            Self::Control(learner) => {
                let config = &learner.beside.as_ref().expect("pictures beside the images").config;
                let net = learner.trainer.averaged(index).branches;
                Some(Made::Control(Branches::new(net, config.clone())))
            }
            Self::Portrait(learner) => Some(Made::Portrait(learner.averaged(index))),
            Self::Denoising(_) | Self::Lora(_) | Self::Student(_) => None,
        }
    }

    /// What should be known of what it learns from, found since that was read.
    pub(super) fn notices(&self) -> &[Notice] {
        match self {
            Self::Denoising(learner) => &learner.notices,
            Self::Lora(learner) => &learner.notices,
            Self::Control(learner) => &learner.notices,
            Self::Portrait(_) => &[],
            Self::Student(learner) => {
                learner.critic.as_ref().map_or(&[], |critic| critic.notices())
            }
        }
    }

    /// Averages of the weights, each in the order of the parameters.
    pub(super) fn averages(&self) -> &[Vec<Tensor<1>>] {
        each!(self, learner => &learner.trainer.averages)
    }

    /// The network with the weights of average number `index`, off the autodiff device.
    pub(super) fn averaged(&self, index: usize) -> Net {
        match self {
            Self::Denoising(learner) => learner.trainer.averaged(index).into(),
            Self::Lora(learner) => learner.trainer.averaged(index).bound().into(),
            Self::Control(learner) => learner.trainer.averaged(index).net.into(),
            Self::Portrait(learner) => learner.trainer.averaged(index).net.into(),
            Self::Student(learner) => learner.trainer.averaged(index).into(),
        }
    }
}
