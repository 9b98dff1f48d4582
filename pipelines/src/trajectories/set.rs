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
use crate::error::{Error, Result, TrajectoryError};

/// Most shards that are kept open.
const OPEN_SHARDS: usize = 64;

/// A recorded set, read as it is needed.
#[derive(Debug)]
pub struct Trajectories {
    pub(super) folder: PathBuf,
    spec: TrajectorySpec,
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
            None => Ok(Self { folder: folder.to_owned(), spec, opened: Mutex::default() }),
        }
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
        let classes: Vec<usize> = indices.iter().map(|index| index % self.spec.classes).collect();
        Ok(StudentBatch {
            noise: Tensor::cat(noise, 0),
            points: points.into_iter().map(tensor).collect(),
            told: Conditioning::classes(&classes, device),
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
