//! What a run learns from: images, or the trajectories of a teacher.

use std::path::Path;

use burn::tensor::{Device, Tensor};
use pyrograph_engine::nets::{Conditioning, Net, Vae};
use pyrograph_engine::random::Generator;
use pyrograph_engine::train::{Batch, Denoising, StudentBatch, Target, regression};

use super::TrainConfig;
use super::critic::{Fake, Session};
use super::latents::Latents;
use crate::data::Dataset;
use crate::error::Result;
use crate::model::ModelConfig;
use crate::trajectories::Trajectories;

/// Range of the numbers that choose a background.
const COLOUR_DRAWS: f64 = 65536.0;

/// What the caller gives a run to learn from.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one per run")]
pub enum Source {
    /// Pictures.
    Images(Dataset),
    /// Trajectories of the model that the run starts from.
    Trajectories(Trajectories),
}

/// What a run learns from, ready for its configuration.
pub(super) enum Material {
    Images(Pictures),
    Trajectories {
        set: Trajectories,
        /// Numbers of the recorded points that the student's steps predict.
        picks: Vec<usize>,
    },
}

/// Images, and their latents if the model works on those.
pub(super) struct Pictures {
    data: Dataset,
    latents: Option<Latents>,
    flip: bool,
}

impl Pictures {
    /// Encodes the images where there is an autoencoder, whose latents are kept in `folder`.
    pub(super) fn new(
        folder: &Path,
        data: Dataset,
        flip: bool,
        vae: Option<(&Vae, &str)>,
        device: &Device,
    ) -> Result<Self> {
        let latents = vae.map(|vae| Latents::open(folder, &data, vae, flip, device));
        Ok(Self { latents: latents.transpose()?, data, flip })
    }

    pub(super) fn len(&self) -> usize {
        self.data.len()
    }

    /// Some of the images, all randomness being that of `random`.
    pub(super) fn batch(
        &self,
        indices: &[usize],
        vae: Option<&Vae>,
        random: &mut Generator,
        device: &Device,
    ) -> Batch {
        let flips: Vec<bool> =
            indices.iter().map(|_| self.flip && random.uniform() < 0.5).collect();
        let colours: Vec<usize> =
            indices.iter().map(|_| (random.uniform() * COLOUR_DRAWS) as usize).collect();
        let clean = match vae.zip(self.latents.as_ref()) {
            Some((vae, latents)) => vae.scale(latents.batch(indices, &flips, random, device)),
            None => self.data.batch(indices, &flips, &colours, device),
        };
        let classes: Vec<usize> = indices.iter().map(|&index| self.data.label(index)).collect();
        let null = vec![self.data.classes().len(); indices.len()];
        let [told, null] = [classes, null].map(|ids| Conditioning::classes(&ids, device));
        Batch { clean, told, null }
    }
}

/// What one step learns from.
pub(super) enum Prepared<'a> {
    Images {
        pictures: &'a Pictures,
        vae: Option<&'a Vae>,
        objective: Denoising,
        /// Numbers of the images of each part.
        parts: Vec<&'a [usize]>,
        device: &'a Device,
    },
    Trajectories(Vec<StudentBatch>),
}

impl Material {
    /// Number of images or trajectories.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Images(pictures) => pictures.len(),
            Self::Trajectories { set, .. } => set.spec().count,
        }
    }

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
            Self::Images(pictures) => Prepared::Images {
                pictures,
                vae,
                objective: Denoising {
                    process: model.process.clone(),
                    condition_dropout: config.label_dropout,
                    target: match model.net.dit.adapter_rank() {
                        Some(_) => Target::Native,
                        None => Target::Data,
                    },
                },
                parts: parts.collect(),
                device,
            },
            Self::Trajectories { set, picks } => {
                let read = |part: &[usize]| Ok(set.batch(part, picks, device)?.autodiff());
                Prepared::Trajectories(parts.map(read).collect::<Result<_>>()?)
            }
        })
    }
}

impl Prepared<'_> {
    /// Loss of one part, `[1]`; of images at a patch size, all randomness being that of `random`. Of a
    /// student with a critic, also the images it came to.
    pub(super) fn loss(
        &self,
        net: &Net,
        part: usize,
        patch: usize,
        random: &mut Generator,
        critic: Option<&Session<'_>>,
    ) -> (Tensor<1>, Option<Fake>) {
        match (self, net) {
            (Self::Images { pictures, vae, objective, parts, device }, Net::Dit(net)) => {
                let batch = pictures.batch(parts[part], *vae, random, device);
                let batch = Batch { clean: batch.clean.autodiff(), ..batch };
                (objective.loss(net, &batch, patch, random), None)
            }
            (Self::Trajectories(parts), Net::Student(net)) => match critic {
                Some(critic) => critic.loss(net, &parts[part]),
                None => (regression(net, &parts[part]), None),
            },
            _ => unreachable!("students learn from trajectories, all others from images"),
        }
    }
}
