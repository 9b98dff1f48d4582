//! Recording of trajectories.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::time::{Duration, Instant};

use burn::tensor::{DType, Tensor, TensorData};
use pyrograph_engine::diffusion::Grid;
use pyrograph_engine::nets::Points;
use pyrograph_engine::read;
use pyrograph_weights::{remove_unfinished, write_safetensors, write_whole};
use rayon::prelude::*;

use super::spec::{LABELS, SPEC, TrajectorySpec, holds, name};
use crate::differences::{differences, in_words};
use crate::error::{Error, Result, TrajectoryError};
use crate::lock::Lock;
use crate::pipeline::{Pipeline, Progress};
use crate::request::Request;
use crate::task::PromptTask;

/// Records the trajectories of a teacher in a folder. Several recorders can share a folder, each with its
/// own part of the shards.
#[derive(Debug)]
pub struct Recorder<'a, T: PromptTask> {
    folder: &'a Path,
    pipeline: &'a Pipeline<T>,
    /// What images are asked by, in turn.
    prompts: Vec<T::Prompt>,
    spec: TrajectorySpec,
    grid: Grid,
    /// Shards still to be recorded.
    missing: Vec<usize>,
    _lock: Lock,
}

/// What images are asked by, in turn.
fn prompts<T: PromptTask>(spec: &TrajectorySpec) -> Result<Vec<T::Prompt>, TrajectoryError> {
    let asked = spec.asked();
    T::prompts(&asked).ok_or_else(|| TrajectoryError::OtherTask { expected: asked.kind() })
}

/// What a recording is going to take.
#[derive(Debug, Clone, Copy)]
pub struct Estimate {
    /// Trajectories still to be recorded.
    pub trajectories: usize,
    /// Bytes on disk of all trajectories.
    pub bytes: u64,
    /// Time of what is still to be recorded, from one step of one batch.
    pub time: Duration,
}

impl<'a, T: PromptTask> Recorder<'a, T> {
    /// Prepares the shards `worker[0], worker[0] + worker[1], ..` of a set; those that are there already
    /// are kept.
    ///
    /// # Errors
    /// A folder with trajectories that were recorded otherwise, or with more of them, or in which another process
    /// records the same; a solver that is not deterministic, settings that do not go with the teacher.
    pub fn new(
        folder: &'a Path,
        pipeline: &'a Pipeline<T>,
        spec: TrajectorySpec,
        worker: [usize; 2],
    ) -> Result<Self> {
        let fault = |reason| Error::Trajectories { path: folder.to_owned(), reason };
        let grid = Self::check(folder, pipeline, &spec)?;
        let lock = Lock::take_part(folder, worker)?;
        remove_unfinished(folder);
        if let Some(old) = TrajectorySpec::read(folder)? {
            // A set can grow: everything but the number of trajectories must be as it was.
            let same = TrajectorySpec { count: spec.count, ..old.clone() };
            if let Some(differences) = in_words(&differences(&same, &spec)) {
                return Err(fault(TrajectoryError::OtherSet { differences }));
            }
            if old.count > spec.count {
                let (found, asked) = (old.count, spec.count);
                return Err(fault(TrajectoryError::Shrinks { found, asked }));
            }
        }
        let text = serde_json::to_string_pretty(&spec).expect("a description serialises");
        write_whole(&folder.join(SPEC), text.as_bytes())?;
        let [first, every] = worker;
        let mine: Vec<usize> = (first..spec.shards()).step_by(every.max(1)).collect();
        let is_missing = |shard: &usize| holds(&spec.path(folder, *shard), &spec, *shard).is_err();
        let missing = mine.into_par_iter().filter(is_missing).collect();
        let prompts = prompts::<T>(&spec).map_err(fault)?;
        Ok(Self { folder, pipeline, prompts, spec, grid, missing, _lock: lock })
    }

    /// Checks, without making anything, that trajectories like `spec` can be recorded, and returns their levels.
    ///
    /// # Errors
    /// A solver that is not deterministic, settings that do not go with the teacher, prompts that it cannot read.
    pub fn check(folder: &Path, pipeline: &Pipeline<T>, spec: &TrajectorySpec) -> Result<Grid> {
        let fault = |reason| Error::Trajectories { path: folder.to_owned(), reason };
        spec.check().map_err(fault)?;
        if !spec.settings.sampler.is_deterministic() {
            let sampler = spec.settings.sampler.to_string();
            return Err(fault(TrajectoryError::RandomSampler { sampler }));
        }
        let mut prompts = prompts::<T>(spec).map_err(fault)?;
        pipeline.task().check(&Request::with(prompts.clone(), &spec.settings))?;
        prompts.truncate(1);
        pipeline.resolve(&Request::with(prompts, &spec.settings))?;
        pipeline.config().grid(&spec.settings)
    }

    /// What is recorded.
    pub fn spec(&self) -> &TrajectorySpec {
        &self.spec
    }

    /// Measures what the recording is going to take.
    ///
    /// # Errors
    /// Settings that do not go with the teacher.
    pub fn estimate(&self) -> Result<Estimate> {
        let trajectories: usize =
            self.missing.iter().map(|&shard| self.spec.range(shard).len()).sum();
        let mut estimate =
            Estimate { trajectories, bytes: self.spec.bytes(), time: Duration::ZERO };
        if trajectories > 0 {
            let batch = self.spec.settings.batch.clamp(1, trajectories);
            let prompts = self.asked(0..batch);
            // The second step is timed: the first may compile kernels.
            let (mut since, mut step) = (Instant::now(), Duration::ZERO);
            let request = Request::with(prompts, &self.spec.settings);
            let timed = self.pipeline.latents(&request, &mut |progress| {
                step = since.elapsed();
                since = Instant::now();
                match progress.step {
                    0 => ControlFlow::Continue(()),
                    _ => ControlFlow::Break(()),
                }
            });
            match timed {
                Ok(_) | Err(Error::Cancelled) => (),
                Err(error) => return Err(error),
            }
            let steps = trajectories.div_ceil(batch) * self.grid.steps.len();
            estimate.time = step * u32::try_from(steps).unwrap_or(u32::MAX);
        }
        Ok(estimate)
    }

    /// Records what is missing, a file at a time, until `observe`, which hears of the number of trajectories
    /// done after every step, breaks.
    ///
    /// # Errors
    /// A file that cannot be written, values that are not finite.
    pub fn record(
        &self,
        observe: &mut (dyn FnMut(usize) -> ControlFlow<()> + Send),
    ) -> Result<ControlFlow<()>> {
        let mut done = 0;
        for &shard in &self.missing {
            match self.shard(shard, &mut |within| observe(done + within)) {
                Ok(()) => done += self.spec.range(shard).len(),
                Err(Error::Cancelled) => return Ok(ControlFlow::Break(())),
                Err(error) => return Err(error),
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn shard(
        &self,
        shard: usize,
        observe: &mut (dyn FnMut(usize) -> ControlFlow<()> + Send),
    ) -> Result<()> {
        let spec = &self.spec;
        let range = spec.range(shard);
        let seed = spec.settings.seed.wrapping_add(range.start as u64);
        let request = Request { seed, ..Request::with(self.asked(range.clone()), &spec.settings) };
        // One entry per point of each batch, each `[batch, 1, channels, height, width]`.
        let mut points: Vec<Vec<Tensor<5>>> = Vec::new();
        self.pipeline.latents(&request, &mut |progress| {
            if progress.step == 0 {
                points.push(Vec::new());
            }
            if let (Some(point), Some(batch)) = (self.point(&progress), points.last_mut()) {
                batch.push(point.unsqueeze_dim(1));
            }
            observe(progress.first)
        })?;
        let mut tensors: Vec<(String, TensorData)> = Vec::new();
        let mut indices = range.clone();
        for batch in points {
            let batch: Tensor<5> = Tensor::cat(batch, 1);
            let largest = read::number(batch.clone().abs().max())?;
            if !largest.is_finite() {
                let reason = TrajectoryError::NotFinite { index: indices.start };
                return Err(Error::Trajectories { path: self.folder.to_owned(), reason });
            }
            for i in 0..batch.dims()[0] {
                let index = indices.next().expect("one trajectory per class");
                let one: Tensor<4> = batch.clone().narrow(0, i, 1).squeeze_dim(0);
                tensors.push((name(index), read::data(one)?.convert_dtype(DType::F16)));
            }
        }
        let labels: Vec<i64> = range.map(|index| spec.condition(index) as i64).collect();
        let count = labels.len();
        tensors.push((LABELS.to_owned(), TensorData::new(labels, [count])));
        Ok(write_safetensors(&spec.path(self.folder, shard), &tensors, &BTreeMap::new())?)
    }

    /// What some of the trajectories are asked by.
    fn asked(&self, range: Range<usize>) -> Vec<T::Prompt> {
        range.map(|index| self.prompts[self.spec.condition(index)].clone()).collect()
    }

    /// What is recorded after a step, if anything.
    fn point(&self, progress: &Progress<'_>) -> Option<Tensor<4>> {
        let taken = progress.step + 1;
        if !self.spec.after.contains(&taken) {
            return None;
        }
        let [_, to] = self.grid.steps[progress.step];
        let prediction = &self.pipeline.config().process.prediction;
        Some(match self.spec.points {
            _ if taken == progress.steps => progress.x.clone(),
            Points::Estimates => progress.denoised.clone(),
            Points::States => progress.x.clone() * prediction.coefficients(&to).c_in,
        })
    }
}
