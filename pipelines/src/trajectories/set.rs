//! Recorded trajectories.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{Device, Tensor, TensorData};
use pyrograph_engine::diffusion::NoiseSource;
use pyrograph_engine::nets::Conditioning;
use pyrograph_engine::train::StudentBatch;
use pyrograph_weights::Checkpoint;
use rayon::prelude::*;

use super::spec::{SPEC, TrajectorySpec, holds, name};
use crate::data::{Captions, Reads};
use crate::error::{Error, Result, TextError, TrajectoryError};
use crate::model::{Model, ModelConfig};

/// Name of the file in the folder of a run that keeps what prompts are to the network.
const PROMPTS: &str = "prompts.safetensors";
/// Most shards that are kept open.
const OPEN_SHARDS: usize = 64;

/// A recorded set, read as it is needed.
#[derive(Debug)]
pub struct Trajectories {
    pub(super) folder: PathBuf,
    spec: TrajectorySpec,
    /// What its texts are to a network.
    captions: Option<Captions>,
    /// Shards that are open, by number.
    opened: Mutex<BTreeMap<usize, Arc<Checkpoint>>>,
}

impl Trajectories {
    /// Opens a whole set.
    ///
    /// # Errors
    /// A folder without a description, shards that are missing, damaged, or hold other trajectories.
    pub fn open(folder: &Path) -> Result<Self> {
        let missing = || Error::NoTrajectories { path: folder.to_owned(), file: SPEC };
        let spec = TrajectorySpec::read(folder)?.ok_or_else(missing)?;
        let shards = spec.shards();
        let check = |shard: usize| {
            let path = spec.path(folder, shard);
            let whole = match path.is_file() {
                true => holds(&path, &spec, shard),
                false => Err(TrajectoryError::MissingShard { shard, shards }),
            };
            whole.map_err(|reason| Error::Trajectories { path, reason })
        };
        // Everything is read once: of several faults the first is named.
        match (0..shards).into_par_iter().find_map_first(|shard| check(shard).err()) {
            Some(fault) => Err(fault),
            None => {
                let (folder, captions, opened) = (folder.to_owned(), None, Mutex::default());
                Ok(Self { folder, spec, captions, opened })
            }
        }
    }

    /// The same with texts that a network can be told; what they are to it is kept in `folder`, if there is one.
    ///
    /// # Errors
    /// A text that cannot be read, more than fits in memory, or a file that cannot be written.
    pub(crate) fn for_texts(self, reads: Reads<'_>, folder: Option<&Path>) -> Result<Self> {
        let path = folder.map(|folder| folder.join(PROMPTS));
        let (captions, _) = Captions::open(path.as_deref(), &self.spec.prompts, reads)?;
        Ok(Self { captions: Some(captions), ..self })
    }

    /// The same for a model, whose text encoder reads the texts if they are of any.
    ///
    /// # Errors
    /// A model without a text encoder, texts that it cannot read.
    pub fn of_model(self, model: &Model) -> Result<Self> {
        match (&model.text, &model.config.text) {
            _ if self.spec.prompts.is_empty() => Ok(self),
            (Some(reader), Some(input)) => {
                let size = self.told_size(&model.config);
                let pooled = model.config.net.dit.pools();
                self.for_texts(Reads { reader, input, size, pooled }, None)
            }
            _ => Err(TextError::NoEncoder.into()),
        }
    }

    /// The size of the images in pixels, where the network of a model is told it.
    pub(crate) fn told_size(&self, model: &ModelConfig) -> Option<[usize; 2]> {
        let [_, height, width] = self.spec.shape;
        let factor = model.vae.as_ref().map_or(1, |vae| vae.factor());
        model.net.dit.sized.then_some([height * factor, width * factor])
    }

    /// What was recorded.
    pub fn spec(&self) -> &TrajectorySpec {
        &self.spec
    }

    /// Some of the trajectories, with the points of numbers `picks` only: each of them, and the noise,
    /// `[batch, channels, height, width]`.
    ///
    /// # Errors
    /// A shard that can no longer be read.
    ///
    /// # Panics
    /// If they are of texts, and not [of a model](Trajectories::of_model).
    pub fn batch(
        &self,
        indices: &[usize],
        picks: &[usize],
        device: &Device,
    ) -> Result<StudentBatch> {
        let [channels, height, width] = self.spec.shape;
        let size = channels * height * width;
        let mut noise = Vec::new();
        let mut points = vec![Vec::with_capacity(indices.len() * size); picks.len()];
        for &index in indices {
            let (values, _) = self.shard(index / self.spec.shard)?.read_f32(&name(index))?;
            for (points, pick) in points.iter_mut().zip(picks) {
                points.extend_from_slice(&values[pick * size..][..size]);
            }
            let seed = self.spec.settings.seed.wrapping_add(index as u64);
            noise.push(NoiseSource::new(seed, 1).draw(self.spec.shape, device));
        }
        let shape = [indices.len(), channels, height, width];
        let tensor = |values| Tensor::from_data(TensorData::new(values, shape), device);
        let asked: Vec<usize> = indices.iter().map(|index| self.spec.condition(*index)).collect();
        let told = match (&self.captions, self.spec.prompts.is_empty()) {
            (Some(captions), _) => {
                let [told, _] = captions.told(&asked, device);
                told
            }
            (None, true) => Conditioning::classes(&asked, device),
            (None, false) => panic!("texts that no network can be told"),
        };
        Ok(StudentBatch {
            noise: Tensor::cat(noise, 0),
            points: points.into_iter().map(tensor).collect(),
            told,
        })
    }

    /// A shard, which stays open for the next trajectory.
    fn shard(&self, number: usize) -> Result<Arc<Checkpoint>> {
        // A panic elsewhere cannot leave half a shard.
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shard) = opened.get(&number) {
            return Ok(shard.clone());
        }
        let shard = Arc::new(Checkpoint::open(self.spec.path(&self.folder, number))?);
        if opened.len() == OPEN_SHARDS {
            // Any will do: trajectories are drawn at random.
            opened.pop_first();
        }
        opened.insert(number, shard.clone());
        Ok(shard)
    }
}
