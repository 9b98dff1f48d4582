//! What a set of trajectories is, and its files.

use std::ops::Range;
use std::path::{Path, PathBuf};

use pyrograph_engine::nets::Points;
use pyrograph_weights::{Checkpoint, read_at_most, sha256_of};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, TrajectoryError};
use crate::metadata::Asked;
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
    /// Number of classes, which are asked for in turn; 0 of texts.
    pub classes: usize,
    /// Texts, which are asked for in turn; none of classes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prompts: Vec<String>,
    /// Number of trajectories.
    pub count: usize,
    /// Trajectories per file.
    pub shard: usize,
}

/// Of a stored number, in f16.
const BYTES: usize = 2;
/// Largest number of trajectories, and of what else a set has.
const SIZE_LIMIT: u64 = 1 << 32;
/// Largest description that is read.
const MAX_SPEC_BYTES: u64 = 1 << 26;
/// Most files.
const FILE_LIMIT: usize = 1_000_000;
/// Name of the description in the folder.
pub(super) const SPEC: &str = "trajectories.json";
/// Name of the classes, or numbers of the texts, in a shard.
pub(super) const LABELS: &str = "labels";

impl TrajectorySpec {
    /// Numbers of steps after which `points` points are recorded, evenly over `steps`.
    pub fn even(points: usize, steps: usize) -> Vec<usize> {
        (1..=points).map(|i| (i * steps).div_ceil(points)).collect()
    }

    /// The description of the set in a folder, if there is one.
    ///
    /// # Errors
    /// A description that cannot be read, or of a set that cannot be.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(SPEC);
        if !path.exists() {
            return Ok(None);
        }
        let text = read_at_most(&path, MAX_SPEC_BYTES)?;
        let text = String::from_utf8_lossy(&text);
        let spec: Self =
            serde_json::from_str(&text).map_err(|source| Error::json(&path, &text, source))?;
        match spec.check() {
            Ok(()) => Ok(Some(spec)),
            Err(reason) => Err(Error::Trajectories { path, reason }),
        }
    }

    /// What it is: itself, with what changes with the texts in place of all of them.
    pub(crate) fn identity(&self) -> serde_json::Value {
        let mut value = serde_json::to_value(self).expect("a description serialises");
        if !self.prompts.is_empty() {
            let prompts = serde_json::json!(self.prompts).to_string();
            value["prompts"] = sha256_of(prompts.as_bytes()).into();
        }
        value
    }

    /// What its images are asked by.
    pub(crate) fn asked(&self) -> Asked {
        match self.prompts.is_empty() {
            true => Asked::Classes((0..self.classes).collect()),
            false => Asked::Texts(self.prompts.clone()),
        }
    }

    /// Number of what trajectory `index` is asked by, among the classes or texts.
    pub(crate) fn condition(&self, index: usize) -> usize {
        index % self.conditions()
    }

    /// Number of classes or texts.
    pub fn conditions(&self) -> usize {
        self.classes.max(self.prompts.len())
    }

    /// Number of files.
    pub fn shards(&self) -> usize {
        self.count.div_ceil(self.shard)
    }

    /// Bytes of all points.
    pub fn bytes(&self) -> u64 {
        let numbers = [self.count, self.after.len(), BYTES].into_iter().chain(self.shape);
        numbers.fold(1u64, |bytes, number| bytes.saturating_mul(number as u64))
    }

    /// Numbers of the points that a student of `steps` steps predicts.
    ///
    /// # Errors
    /// Numbers that do not go together; a number of steps that does not divide that of the points, or a second step
    /// that would start from the estimate of pure noise.
    pub fn picks(&self, steps: usize) -> Result<Vec<usize>, TrajectoryError> {
        self.check()?;
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
    pub(super) fn range(&self, shard: usize) -> Range<usize> {
        let start = shard * self.shard;
        start..(start + self.shard).min(self.count)
    }

    pub(super) fn path(&self, folder: &Path, shard: usize) -> PathBuf {
        folder.join(format!("{shard:06}.safetensors"))
    }

    /// Says what is wrong with the numbers, if anything.
    pub(super) fn check(&self) -> Result<(), TrajectoryError> {
        let Self { count, shard, classes, shape, .. } = *self;
        let prompts = self.prompts.len();
        let (after, steps) = (&self.after, self.settings.steps);
        let rising = after.windows(2).all(|pair| pair[0] < pair[1]);
        let ends = after.first().is_some_and(|&first| first > 0) && after.last() == Some(&steps);
        if !(rising && ends) {
            return Err(TrajectoryError::Points { after: after.clone(), steps });
        }
        let possible = |size: usize| (1..=SIZE_LIMIT).contains(&(size as u64));
        let point = shape.iter().try_fold(1usize, |point, &length| point.checked_mul(length));
        let sizes = [count, shard, self.conditions(), point.unwrap_or(0)];
        if !sizes.into_iter().all(possible) || classes.min(prompts) > 0 {
            return Err(TrajectoryError::Sizes { count, shard, classes, prompts, shape });
        }
        match self.shards() {
            files if files > FILE_LIMIT => Err(TrajectoryError::Files { files, limit: FILE_LIMIT }),
            _ => Ok(()),
        }
    }
}

/// Name of a trajectory in its shard.
pub(super) fn name(index: usize) -> String {
    format!("{index:09}")
}

/// Says why a file is not the shard that it should be, if it is not.
pub(super) fn holds(
    path: &Path,
    spec: &TrajectorySpec,
    shard: usize,
) -> Result<(), TrajectoryError> {
    let file = Checkpoint::open(path)?;
    file.verify()?;
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
    let asked = spec.range(shard).map(|index| spec.condition(index) as f32);
    match labels.iter().copied().eq(asked) {
        true => Ok(()),
        false => Err(TrajectoryError::Classes),
    }
}
