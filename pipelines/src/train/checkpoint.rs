//! Checkpoints: one file holds everything a run needs to go on, written whole or not at all.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor, TensorData};
use pyrograph_engine::nets::Dit;
use pyrograph_engine::read;
use pyrograph_engine::train::{Trainer, params};
use pyrograph_weights::{Checkpoint, write_safetensors};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::config::TrainConfig;
use super::identity::{Sources, examples, identity};
use super::learner::{Learner, each};
use crate::differences::{differences, in_words};
use crate::error::{Error, Result};

/// Checkpoints kept besides the newest.
const KEPT: usize = 1;
/// Folder of the checkpoints.
pub(super) const CHECKPOINTS: &str = "checkpoints";
/// Folder of the averages stored for post-hoc reconstruction.
pub(super) const SNAPSHOTS: &str = "snapshots";
/// Key of the JSON in the header of a checkpoint.
const STATE_KEY: &str = "pyrograph.training";

/// Largest number of f16.
const MOST_IN_F16: f32 = 65504.0;

/// Before the names of the tensors of a critic.
const CRITIC: &str = "critic.";
/// Names of the random features of the time code.
const SCALE: &str = "frozen/embedder.time.fourier.scale";
const SHIFT: &str = "frozen/embedder.time.fourier.shift";

/// What a checkpoint holds besides tensors. Data order, noise, dropout and flips are functions of the
/// seed and the step, so that this is all.
#[derive(Serialize, Deserialize)]
struct State {
    step: u64,
    /// Without paths, but in early versions.
    config: TrainConfig,
    /// `None` in early versions.
    sources: Option<Sources>,
    /// Number of examples, which early versions had in place of their content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    images: Option<usize>,
}

/// A checkpoint that is whole.
pub(super) struct Whole {
    file: Checkpoint,
    state: State,
}

/// A checkpoint that cannot be used, and why.
pub(super) type Damaged = (PathBuf, Error);

/// The newest checkpoint of a run.
pub(super) fn newest(run: &Path) -> Result<Option<PathBuf>> {
    Ok(all(run)?.pop_last().map(|(_, path)| path))
}

/// The newest checkpoint of a run that is whole, and newer ones that are not.
///
/// # Errors
/// Checkpoints of which none is whole, or the newest whole one is of another program.
pub(super) fn newest_whole(run: &Path) -> Result<(Option<Whole>, Vec<Damaged>)> {
    let mut damaged = Vec::new();
    for path in all(run)?.into_values().rev() {
        match verified(&path) {
            Ok(file) => return Ok((Some(Whole::new(file)?), damaged)),
            Err(error) => damaged.push((path, error)),
        }
    }
    match damaged.is_empty() {
        true => Ok((None, damaged)),
        false => {
            let (path, error) = damaged.swap_remove(0);
            let reason =
                format!("it is damaged, and there is none before it that is whole: {error}");
            Err(Error::Resume { path, reason })
        }
    }
}

/// Opens a file whose content is what was written.
fn verified(path: &Path) -> Result<Checkpoint> {
    let file = Checkpoint::open(path)?;
    file.verify()?;
    Ok(file)
}

impl Whole {
    fn new(file: Checkpoint) -> Result<Self> {
        let fault = |reason: String| Error::Resume { path: file.path().to_owned(), reason };
        let state = file.metadata().get(STATE_KEY);
        let state = state.ok_or_else(|| fault("it holds no training state".into()))?;
        let state = serde_json::from_str(state).map_err(|error| fault(error.to_string()))?;
        Ok(Self { file, state })
    }
}

/// The settings that the newest whole checkpoint of a run has.
///
/// # Errors
/// See [`newest_whole`].
pub(super) fn settings(run: &Path) -> Result<Option<TrainConfig>> {
    Ok(newest_whole(run)?.0.map(|whole| whole.state.config))
}

/// Every checkpoint of a run by the number of its step.
fn all(run: &Path) -> Result<BTreeMap<u64, PathBuf>> {
    numbered(&run.join(CHECKPOINTS), |stem| stem.parse().ok())
}

/// The safetensors files of a folder whose names are numbers, in the order of these.
fn numbered<K: Ord>(
    folder: &Path,
    number: impl Fn(&str) -> Option<K>,
) -> Result<BTreeMap<K, PathBuf>> {
    let failed = |source| Error::File { path: folder.to_owned(), source };
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(source) => return Err(failed(source)),
    };
    let mut found = BTreeMap::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let is_one = path.extension().is_some_and(|extension| extension == "safetensors");
        let number = path.file_stem().and_then(|stem| number(stem.to_str()?));
        if let (true, Some(number)) = (is_one, number) {
            found.insert(number, path);
        }
    }
    Ok(found)
}

/// The tensors of a trainer under their names in a checkpoint.
fn tensors<M: Module + Send>(
    trainer: &Trainer<M>,
    prefix: &str,
) -> Result<Vec<(String, TensorData)>> {
    let mut groups = vec![
        ("model".to_owned(), params::values(&trainer.model)),
        ("first".to_owned(), trainer.optimizer.first.clone()),
        ("second".to_owned(), trainer.optimizer.second.clone()),
    ];
    let averages = trainer.averages.iter().enumerate();
    groups.extend(averages.map(|(i, average)| (format!("average.{i}"), average.clone())));
    let names = params::names(&trainer.model);
    let mut tensors = Vec::new();
    for (group, values) in groups {
        for (name, value) in names.iter().zip(values) {
            tensors.push((format!("{prefix}{group}/{name}"), read::data(value)?));
        }
    }
    Ok(tensors)
}

/// Puts those tensors into a fresh trainer, which took `step` steps.
fn restore<M: Module + Send>(
    trainer: &mut Trainer<M>,
    prefix: &str,
    checkpoint: &Checkpoint,
    step: u64,
    device: &Device,
) -> Result<()> {
    let names = params::names(&trainer.model);
    let lengths: Vec<usize> =
        params::values(&trainer.model).iter().map(|value| value.dims()[0]).collect();
    let group = |group: &str| -> Result<Vec<Tensor<1>>> {
        let read = |(name, &length): (&String, &usize)| {
            let (values, _) = checkpoint.read_f32(&format!("{prefix}{group}/{name}"))?;
            match values.len() == length {
                true => Ok(Tensor::from_data(TensorData::new(values, [length]), device)),
                false => Err(Error::Resume {
                    path: checkpoint.path().to_owned(),
                    reason: format!("{name} has {} values, expected {length}", values.len()),
                }),
            }
        };
        names.iter().zip(&lengths).map(read).collect()
    };
    let (model, first, second) = (group("model")?, group("first")?, group("second")?);
    let averages = (0..trainer.averages.len()).map(|i| group(&format!("average.{i}")));
    trainer.averages = averages.collect::<Result<_>>()?;
    trainer.model = params::with_values(trainer.model.clone(), model);
    (trainer.optimizer.first, trainer.optimizer.second) = (first, second);
    trainer.step = step;
    Ok(())
}

/// A checkpoint on its way to a file.
pub(super) struct Prepared<'a> {
    run: &'a Path,
    step: u64,
    tensors: Vec<(String, TensorData)>,
    state: State,
}

/// The state of a run in the folder `run`.
///
/// # Errors
/// Weights that are not finite, whose checkpoint would take the place of a good one; a GPU that failed.
pub(super) fn prepare<'a>(
    run: &'a Path,
    config: &TrainConfig,
    sources: &Sources,
    learner: &Learner,
) -> Result<Prepared<'a>> {
    let mut tensors = each!(learner, learner => tensors(&learner.trainer, ""))?;
    tensors.extend(frozen(learner.trunk())?);
    if let Some(critic) = learner.critic() {
        tensors.extend(self::tensors(&critic.trainer, CRITIC)?);
    }
    let step = learner.step();
    check_finite(&tensors, step)?;
    let config = config.clone().without_paths();
    let state = State { step, config, sources: Some(sources.clone()), images: None };
    Ok(Prepared { run, step, tensors, state })
}

impl Prepared<'_> {
    /// Writes it, and removes all checkpoints but this and the one before.
    ///
    /// # Errors
    /// A disk that refuses.
    pub(super) fn write(&self) -> Result<PathBuf> {
        let folder = self.run.join(CHECKPOINTS);
        std::fs::create_dir_all(&folder)
            .map_err(|source| Error::File { path: folder.clone(), source })?;
        let path = folder.join(format!("{:07}.safetensors", self.step));
        let state = serde_json::to_string(&self.state).expect("a configuration serialises");
        write_safetensors(&path, &self.tensors, &BTreeMap::from([(STATE_KEY.to_owned(), state)]))?;
        // Later ones are damaged, or of a run that was resumed from before them.
        let mut found = all(self.run)?;
        let later = found.split_off(&(self.step + 1));
        for old in found.into_values().rev().skip(1 + KEPT).chain(later.into_values()) {
            // A file that cannot be removed costs space, not the run.
            std::fs::remove_file(old).ok();
        }
        Ok(path)
    }
}

/// Refuses values that are not finite, of an average those too that are not in f16, in which it is stored.
fn check_finite(tensors: &[(String, TensorData)], step: u64) -> Result<()> {
    let is_possible = |(name, data): &(String, TensorData)| {
        let most = if name.starts_with("average.") { MOST_IN_F16 } else { f32::MAX };
        match data.as_slice::<f32>() {
            // Not a number is not in a range.
            Ok(values) => values.iter().all(|value| (-most..=most).contains(value)),
            Err(_) => data.iter::<f64>().all(f64::is_finite),
        }
    };
    match tensors.iter().find(|tensor| !is_possible(tensor)) {
        Some((tensor, _)) => Err(Error::NotFinite { step, tensor: tensor.clone() }),
        None => Ok(()),
    }
}

/// The random features of the time code, which are not trained.
fn frozen(net: &Dit) -> Result<Vec<(String, TensorData)>> {
    let Some(fourier) = &net.embedder.time.fourier else { return Ok(Vec::new()) };
    let values = |name: &str, param: &Param<Tensor<1>>| -> Result<(String, TensorData)> {
        Ok((name.to_owned(), read::data(param.val())?))
    };
    Ok(vec![values(SCALE, &fourier.scale)?, values(SHIFT, &fourier.shift)?])
}

/// Puts those into a fresh network.
fn restore_frozen(net: &mut Dit, checkpoint: &Checkpoint, device: &Device) -> Result<()> {
    if let Some(fourier) = &mut net.embedder.time.fourier {
        let read = |name: &str| -> Result<Tensor<1>> {
            let (values, shape) = checkpoint.read_f32(name)?;
            let length = shape.iter().product::<usize>();
            let autodiff = device.clone().autodiff();
            Ok(Tensor::from_data(TensorData::new(values, [length]), &autodiff))
        };
        let (scale, shift) = (read(SCALE)?, read(SHIFT)?);
        fourier.scale = fourier.scale.clone().map(|_| scale);
        fourier.shift = fourier.shift.clone().map(|_| shift);
    }
    Ok(())
}

impl Whole {
    /// Checks that a run of these settings, which starts and learns from `sources`, can go on from it.
    ///
    /// # Errors
    /// A run of other settings, data or models, or that should not go as far.
    pub(super) fn check(&self, config: &TrainConfig, sources: &Sources) -> Result<()> {
        let Self { file, state } = self;
        let fault = |reason: String| Error::Resume { path: file.path().to_owned(), reason };
        let known = state.sources.as_ref();
        let now = known.is_some().then_some(sources);
        let mut different = differences(&identity(&state.config, known), &identity(config, now));
        if let Some(was) = state.images {
            different.extend(differences(
                &json!({ "images": was }),
                &json!({ "images": examples(sources) }),
            ));
        }
        if let Some(reason) = in_words(&different) {
            return Err(fault(reason));
        }
        match config.steps < state.step {
            true => {
                let (step, asked) = (state.step, config.steps);
                Err(fault(format!("it has taken {step} steps, asked for {asked} in all")))
            }
            false => Ok(()),
        }
    }

    /// Puts its state into the fresh learner of a run that was checked.
    ///
    /// # Errors
    /// Tensors that are missing or of another size.
    pub(super) fn restore(&self, learner: &mut Learner, device: &Device) -> Result<()> {
        let (file, step) = (&self.file, self.state.step);
        each!(learner, learner => restore(&mut learner.trainer, "", file, step, device)?);
        if let Some(critic) = learner.critic_mut() {
            restore(&mut critic.trainer, CRITIC, file, step, device)?;
        }
        restore_frozen(learner.trunk_mut(), file, device)
    }
}

/// Removes the snapshots of a run that starts anew.
///
/// # Errors
/// A file that cannot be removed.
pub(super) fn remove_snapshots(run: &Path) -> Result<()> {
    for (_, path) in snapshots(run)? {
        std::fs::remove_file(&path).map_err(|source| Error::File { path, source })?;
    }
    Ok(())
}

/// The snapshots of a run, by their steps and the numbers of their averages.
///
/// # Errors
/// A folder that cannot be read.
pub(super) fn snapshots(run: &Path) -> Result<BTreeMap<(u64, usize), PathBuf>> {
    numbered(&run.join(SNAPSHOTS), |stem| {
        let (step, average) = stem.split_once('-')?;
        Some((step.parse().ok()?, average.parse().ok()?))
    })
}

/// Stores the averages of this step in f16 in the folder of a run, `run`, for post-hoc reconstruction.
pub(super) fn save_snapshot(run: &Path, config: &TrainConfig, learner: &Learner) -> Result<()> {
    let folder = run.join(SNAPSHOTS);
    std::fs::create_dir_all(&folder)
        .map_err(|source| Error::File { path: folder.clone(), source })?;
    let names = params::names(&learner.net());
    let averages = config.averages.iter().zip(learner.averages());
    let step = learner.step();
    for (i, (profile, values)) in averages.enumerate() {
        let path = folder.join(format!("{step:07}-{i}.safetensors"));
        let tensors: Vec<(String, TensorData)> = names
            .iter()
            .zip(values)
            .map(|(name, value)| (name.clone(), value.to_data_dtype(DType::F16)))
            .collect();
        check_finite(&tensors, step)?;
        let profile = serde_json::to_string(profile).expect("a profile serialises");
        let metadata = BTreeMap::from([
            ("profile".to_owned(), profile),
            ("step".to_owned(), step.to_string()),
        ]);
        write_safetensors(&path, &tensors, &metadata)?;
    }
    Ok(())
}
