//! What a run learns from: images, or the trajectories of a teacher.

use std::path::Path;

use burn::tensor::{Device, Tensor};
use pyrograph_engine::diffusion::noise::Generator;
use pyrograph_engine::nets::{Dit, Vae};
use pyrograph_engine::train::{Batch, Denoising, Target, regression};

use super::TrainConfig;
use super::latents::Latents;
use crate::data::Dataset;
use crate::error::Result;
use crate::model::ModelConfig;
use crate::trajectories::{Trajectories, TrajectoryBatch};

/// Range of the numbers that choose a background.
const COLOUR_DRAWS: f64 = 65536.0;

/// What the caller gives a run to learn from.
#[derive(Debug)]
pub enum Source {
    /// Pictures.
    Images(Dataset),
    /// Trajectories of the model that the run starts from.
    Trajectories(Trajectories),
}

/// What a run learns from, ready for its configuration.
pub(super) enum Material {
    Images {
        data: Dataset,
        /// Of all images, if the model works on latents.
        latents: Option<Latents>,
    },
    Trajectories {
        set: Trajectories,
        /// Numbers of the recorded points that the student's steps predict.
        picks: Vec<usize>,
    },
}

impl Material {
    /// Encodes the images where there is an autoencoder.
    pub(super) fn images(
        folder: &Path,
        config: &TrainConfig,
        data: Dataset,
        vae: Option<&(Vae, String)>,
        device: &Device,
    ) -> Result<Self> {
        let latents = vae.map(|(vae, fingerprint)| {
            Latents::open(folder, &data, (vae, fingerprint), config.flip, device)
        });
        Ok(Self::Images { latents: latents.transpose()?, data })
    }

    /// Number of images or trajectories.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Images { data, .. } => data.len(),
            Self::Trajectories { set, .. } => set.spec().count,
        }
    }
}

/// What one step learns from.
pub(super) enum Prepared<'a> {
    Images {
        data: &'a Dataset,
        vae: Option<(&'a Vae, &'a Latents)>,
        objective: Denoising,
        flip: bool,
        /// Numbers of the images of each part.
        parts: Vec<&'a [usize]>,
        device: &'a Device,
    },
    Trajectories(Vec<TrajectoryBatch>),
}

impl Material {
    /// The images or trajectories of one step, in parts that are computed side by side.
    ///
    /// # Errors
    /// Trajectories that can no longer be read.
    pub(super) fn prepared<'a>(
        &'a self,
        indices: &'a [usize],
        config: &TrainConfig,
        model: &ModelConfig,
        vae: Option<&'a Vae>,
        device: &'a Device,
    ) -> Result<Prepared<'a>> {
        let parts = indices.chunks(config.batch / config.micro_batches);
        Ok(match self {
            Self::Images { data, latents } => Prepared::Images {
                data,
                vae: vae.zip(latents.as_ref()),
                objective: Denoising {
                    process: model.process.clone(),
                    label_dropout: config.label_dropout,
                    target: match model.net.adapter_rank() {
                        Some(_) => Target::Native,
                        None => Target::Data,
                    },
                },
                flip: config.flip,
                parts: parts.collect(),
                device,
            },
            Self::Trajectories { set, picks } => {
                let read = |part: &[usize]| set.batch(part, picks, device);
                Prepared::Trajectories(parts.map(read).collect::<Result<_>>()?)
            }
        })
    }
}

impl Prepared<'_> {
    /// Loss of one part, `[1]`; of images at a patch size, all randomness being that of `random`.
    pub(super) fn loss(
        &self,
        net: &Dit,
        part: usize,
        patch: usize,
        random: &mut Generator,
    ) -> Tensor<1> {
        match self {
            Self::Images { data, vae, objective, flip, parts, device } => {
                let indices = parts[part];
                let flips: Vec<bool> =
                    indices.iter().map(|_| *flip && random.uniform() < 0.5).collect();
                let colours: Vec<usize> =
                    indices.iter().map(|_| (random.uniform() * COLOUR_DRAWS) as usize).collect();
                let clean = match vae {
                    Some((vae, latents)) => {
                        vae.scale(latents.batch(indices, &flips, random, device))
                    }
                    None => data.batch(indices, &flips, &colours, device),
                };
                let labels = indices.iter().map(|&index| data.label(index)).collect();
                objective.loss(net, &Batch { clean: clean.autodiff(), labels }, patch, random)
            }
            Self::Trajectories(parts) => {
                let TrajectoryBatch { noise, points, labels } = &parts[part];
                let points = points.iter().map(|point| point.clone().autodiff()).collect();
                regression(net, noise.clone().autodiff(), points, labels)
            }
        }
    }
}
