//! Trajectories of a teacher, recorded for its few-step student (ARD, Kim et al. 2025, section 3).
//!
//! A folder holds `trajectories.json` and shards of a fixed number of trajectories. Trajectory `i` starts
//! from the noise of seed `settings.seed + i`, which is remade instead of stored, and its class is
//! `i mod classes`.

mod deviation;
mod error;
mod record;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{Device, Tensor, TensorData};
use pyrograph_engine::diffusion::NoiseSource;
use pyrograph_engine::nets::{Conditioning, Points};
use pyrograph_engine::train::StudentBatch;
use pyrograph_weights::Checkpoint;
use serde::{Deserialize, Serialize};

pub use deviation::Deviation;
pub use error::TrajectoryError;
pub use record::{Estimate, Recorder};

use crate::error::{Error, Result};
use crate::settings::Settings;

/// What a set of trajectories was recorded from, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrajectorySpec {
    /// Fingerprint of the teacher's weights.
    pub teacher: String,
    /// How the teacher sampled; the seed is that of the first trajectory.
    pub settings: Settings,
    /// Numbers of steps after which points were recorded, the last being all.
    pub after: Vec<usize>,
    /// What the points are.
    pub points: Points,
    /// `[channels, height, width]` of a point.
    pub shape: [usize; 3],
    /// Number of classes.
    pub classes: usize,
    /// Number of trajectories.
    pub count: usize,
    /// Trajectories per file.
    pub shard: usize,
}

/// Of a stored number, in f16.
const BYTES: usize = 2;
/// Name of the description in the folder.
const SPEC: &str = "trajectories.json";
/// Name of the classes in a shard.
const LABELS: &str = "labels";
/// Most shards that are kept open.
const OPEN_SHARDS: usize = 64;

impl TrajectorySpec {
    /// Numbers of steps after which `points` points are recorded, evenly over `steps`.
    pub fn even(points: usize, steps: usize) -> Vec<usize> {
        (1..=points).map(|i| (i * steps).div_ceil(points)).collect()
    }

    /// Number of files.
    pub fn shards(&self) -> usize {
        self.count.div_ceil(self.shard)
    }

    /// Bytes of all points.
    pub fn bytes(&self) -> u64 {
        let point: usize = self.shape.iter().product();
        (self.count * self.after.len() * point * BYTES) as u64
    }

    /// Numbers of the points that a student of `steps` steps predicts.
    ///
    /// # Errors
    /// A number of steps that does not divide that of the points, or a second step that would start from the
    /// estimate of pure noise.
    pub fn picks(&self, steps: usize) -> Result<Vec<usize>, TrajectoryError> {
        let points = self.after.len();
        if steps == 0 || !points.is_multiple_of(steps) {
            return Err(TrajectoryError::StudentSteps { steps, points });
        }
        let picks: Vec<_> = (1..=steps).map(|step| step * points / steps - 1).collect();
        if steps > 1 && self.points == Points::Estimates && self.after[picks[0]] == 1 {
            return Err(TrajectoryError::FirstStep { steps: self.settings.steps });
        }
        Ok(picks)
    }

    /// Trajectories of a shard.
    fn range(&self, shard: usize) -> Range<usize> {
        let start = shard * self.shard;
        start..(start + self.shard).min(self.count)
    }

    fn path(&self, folder: &Path, shard: usize) -> PathBuf {
        folder.join(format!("{shard:06}.safetensors"))
    }

    /// Says what is wrong with the numbers, if anything.
    fn check(&self) -> Result<(), TrajectoryError> {
        let Self { count, shard, classes, shape, .. } = *self;
        let (after, steps) = (&self.after, self.settings.steps);
        let rising = after.windows(2).all(|pair| pair[0] < pair[1]);
        let ends = after.first().is_some_and(|&first| first > 0) && after.last() == Some(&steps);
        if !(rising && ends) {
            return Err(TrajectoryError::Points { after: after.clone(), steps });
        }
        let sizes = [count, shard, classes, shape.iter().product()];
        match sizes.iter().any(|&size| size == 0 || size > 1 << 32) {
            true => Err(TrajectoryError::Sizes { count, shard, classes, shape }),
            false => Ok(()),
        }
    }
}

/// A recorded set, read as it is needed.
#[derive(Debug)]
pub struct Trajectories {
    folder: PathBuf,
    spec: TrajectorySpec,
    /// Shards that are open, by number.
    opened: Mutex<BTreeMap<usize, Arc<Checkpoint>>>,
}

impl Trajectories {
    /// Opens a whole set.
    ///
    /// # Errors
    /// A folder without a description, shards that are missing, cut off, or hold other trajectories.
    pub fn open(folder: &Path) -> Result<Self> {
        let missing = || Error::NoTrajectories { path: folder.to_owned(), file: SPEC };
        let spec = read_spec(folder)?.ok_or_else(missing)?;
        let shards = spec.shards();
        for shard in 0..shards {
            let path = spec.path(folder, shard);
            let whole = match path.is_file() {
                true => holds(&path, &spec, shard),
                false => Err(TrajectoryError::MissingShard { shard, shards }),
            };
            whole.map_err(|reason| Error::Trajectories { path, reason })?;
        }
        Ok(Self { folder: folder.to_owned(), spec, opened: Mutex::default() })
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

/// Name of a trajectory in its shard.
fn name(index: usize) -> String {
    format!("{index:09}")
}

fn read_spec(folder: &Path) -> Result<Option<TrajectorySpec>> {
    let path = folder.join(SPEC);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Error::File { path, source }),
    };
    let spec: TrajectorySpec =
        serde_json::from_str(&text).map_err(|source| Error::Json { path: path.clone(), source })?;
    match spec.check() {
        Ok(()) => Ok(Some(spec)),
        Err(reason) => Err(Error::Trajectories { path, reason }),
    }
}

/// Says why a file is not the shard that it should be, if it is not.
fn holds(path: &Path, spec: &TrajectorySpec, shard: usize) -> Result<(), TrajectoryError> {
    let file = Checkpoint::open(path)?;
    let [channels, height, width] = spec.shape;
    let expected = [spec.after.len(), channels, height, width];
    for index in spec.range(shard) {
        let info = file.tensors().get(&name(index));
        let info = info.ok_or(TrajectoryError::MissingTrajectory { index })?;
        if info.shape != expected {
            return Err(TrajectoryError::Shape { index, found: info.shape.clone(), expected });
        }
    }
    let (labels, _) = file.read_f32(LABELS)?;
    let classes = spec.range(shard).map(|index| (index % spec.classes) as f32);
    match labels.iter().copied().eq(classes) {
        true => Ok(()),
        false => Err(TrajectoryError::Classes),
    }
}
