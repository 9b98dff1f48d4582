//! Trajectories of a teacher, recorded for its few-step student (ARD, Kim et al. 2025, section 3).
//!
//! A folder holds `trajectories.json` and shards of a fixed number of trajectories. Trajectory `i` starts
//! from the noise of seed `settings.seed + i`, which is remade instead of stored, and its class is
//! `i mod classes`.

mod deviation;
mod record;

use std::ops::Range;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};
use pyrograph_engine::diffusion::NoiseSource;
use pyrograph_engine::nets::{Conditioning, Points};
use pyrograph_engine::train::StudentBatch;
use pyrograph_weights::Checkpoint;
use serde::{Deserialize, Serialize};

pub use deviation::Deviation;
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
    pub fn picks(&self, steps: usize) -> Result<Vec<usize>, String> {
        let points = self.after.len();
        if steps == 0 || !points.is_multiple_of(steps) {
            return Err(format!(
                "a student of {steps} steps on trajectories of {points} points, expected a divisor"
            ));
        }
        let picks: Vec<_> = (1..=steps).map(|step| step * points / steps - 1).collect();
        if steps > 1 && self.points == Points::Estimates && self.after[picks[0]] == 1 {
            return Err(format!(
                "the first step of the student would end after 1 of {} of the teacher's, where its estimate \
                 is that of pure noise: expected 2 or more",
                self.settings.steps
            ));
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
    fn check(&self) -> Result<(), String> {
        let rising = self.after.windows(2).all(|pair| pair[0] < pair[1]);
        let ends = self.after.first().is_some_and(|&first| first > 0)
            && self.after.last() == Some(&self.settings.steps);
        if !(rising && ends) {
            return Err(format!(
                "points after {:?} steps, expected rising numbers from 1 to {}",
                self.after, self.settings.steps
            ));
        }
        let sizes = [self.count, self.shard, self.classes, self.shape.iter().product()];
        if sizes.iter().any(|&size| size == 0 || size > 1 << 32) {
            return Err(format!(
                "{} trajectories in shards of {}, {} classes, points of {:?}",
                self.count, self.shard, self.classes, self.shape
            ));
        }
        Ok(())
    }
}

/// A recorded set, read as it is needed.
#[derive(Debug)]
pub struct Trajectories {
    folder: PathBuf,
    spec: TrajectorySpec,
}

impl Trajectories {
    /// Opens a whole set.
    ///
    /// # Errors
    /// A folder without a description, shards that are missing, cut off, or hold other trajectories.
    pub fn open(folder: &Path) -> Result<Self> {
        let missing = || Error::NoTrajectories { path: folder.to_owned(), file: SPEC };
        let spec = read_spec(folder)?.ok_or_else(missing)?;
        for shard in 0..spec.shards() {
            let path = spec.path(folder, shard);
            let fault = |reason| Error::Trajectories { path: path.clone(), reason };
            if !path.is_file() {
                let shards = spec.shards();
                return Err(fault(format!(
                    "shard {shard} of {shards} is missing: record again, what is there is kept"
                )));
            }
            holds(&path, &spec, shard).map_err(fault)?;
        }
        Ok(Self { folder: folder.to_owned(), spec })
    }

    /// What was recorded.
    pub fn spec(&self) -> &TrajectorySpec {
        &self.spec
    }

    /// Some of the trajectories, with the points of numbers `picks` only.
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
            let shard = Checkpoint::open(self.spec.path(&self.folder, index / self.spec.shard))?;
            let (values, _) = shard.read_f32(&name(index))?;
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

/// Whether a file is the shard that it should be.
fn holds(path: &Path, spec: &TrajectorySpec, shard: usize) -> Result<(), String> {
    let file = Checkpoint::open(path).map_err(|error| error.to_string())?;
    let [channels, height, width] = spec.shape;
    let expected = [spec.after.len(), channels, height, width];
    for index in spec.range(shard) {
        match file.tensors().get(&name(index)) {
            Some(info) if info.shape == expected => (),
            Some(info) => {
                return Err(format!(
                    "trajectory {index} has shape {:?}, expected {expected:?}",
                    info.shape
                ));
            }
            None => return Err(format!("trajectory {index} is missing")),
        }
    }
    let (labels, _) = file.read_f32(LABELS).map_err(|error| error.to_string())?;
    let classes = spec.range(shard).map(|index| (index % spec.classes) as f32);
    match labels.iter().copied().eq(classes) {
        true => Ok(()),
        false => Err("its classes are others than those of its trajectories".into()),
    }
}
