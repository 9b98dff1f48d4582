//! Checkpoints: one file holds everything a run needs to go on, written whole or not at all.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor, TensorData};
use pyrograph_engine::nets::Dit;
use pyrograph_engine::train::{Trainer, params};
use pyrograph_weights::{Checkpoint, write_safetensors};
use serde::{Deserialize, Serialize};

use super::config::TrainConfig;
use super::learner::Learner;
use crate::error::{Error, Result};

/// Checkpoints kept besides the newest.
const KEPT: usize = 1;
/// Folder of the averages stored for post-hoc reconstruction.
pub(super) const SNAPSHOTS: &str = "snapshots";
/// Key of the JSON in the header of a checkpoint.
const STATE_KEY: &str = "pyrograph.training";

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
    images: usize,
    config: TrainConfig,
}

/// The newest checkpoint of a run.
pub(super) fn newest(folder: &Path) -> Result<Option<PathBuf>> {
    Ok(all(folder)?.pop())
}

fn all(folder: &Path) -> Result<Vec<PathBuf>> {
    let folder = folder.join("checkpoints");
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(Error::File { path: folder, source }),
    };
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
        .collect();
    found.sort();
    Ok(found)
}

/// The tensors of a trainer under their names in a checkpoint.
fn tensors<M: Module + Send>(trainer: &Trainer<M>, prefix: &str) -> Vec<(String, TensorData)> {
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
        let named = names.iter().zip(values);
        let full = |name: &String| format!("{prefix}{group}/{name}");
        tensors.extend(named.map(|(name, value)| (full(name), value.into_data())));
    }
    tensors
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

/// Writes the state of a run into its folder, `run`, and removes all but the last checkpoints.
pub(super) fn save(run: &Path, config: &TrainConfig, learner: &Learner) -> Result<PathBuf> {
    let folder = run.join("checkpoints");
    std::fs::create_dir_all(&folder)
        .map_err(|source| Error::File { path: folder.clone(), source })?;
    let path = folder.join(format!("{:07}.safetensors", learner.step()));
    let mut tensors = match learner {
        Learner::Denoising(learner) => tensors(&learner.trainer, ""),
        Learner::Student(learner) => tensors(&learner.trainer, ""),
    };
    tensors.extend(frozen(learner.trunk()));
    if let Some(critic) = learner.critic() {
        tensors.extend(self::tensors(&critic.trainer, CRITIC));
    }
    let (step, images) = (learner.step(), learner.examples());
    let state = State { step, images, config: config.clone() };
    let state = serde_json::to_string(&state).expect("a configuration serialises");
    write_safetensors(&path, &tensors, &BTreeMap::from([(STATE_KEY.to_owned(), state)]))?;
    let mut found = all(run)?;
    found.truncate(found.len().saturating_sub(1 + KEPT));
    for old in found {
        // A file that cannot be removed costs space, not the run.
        std::fs::remove_file(old).ok();
    }
    Ok(path)
}

/// The random features of the time code, which are not trained.
fn frozen(net: &Dit) -> Vec<(String, TensorData)> {
    match &net.embedder.time.fourier {
        None => Vec::new(),
        Some(fourier) => vec![
            (SCALE.to_owned(), fourier.scale.val().into_data()),
            (SHIFT.to_owned(), fourier.shift.val().into_data()),
        ],
    }
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

/// Puts the state of a checkpoint into the fresh learner of a run of these settings.
///
/// # Errors
/// No checkpoint, or one of a run of other settings or data.
pub(super) fn load(
    path: &Path,
    config: &TrainConfig,
    learner: &mut Learner,
    device: &Device,
) -> Result<()> {
    let checkpoint = Checkpoint::open(path)?;
    let fault = |reason: String| Error::Resume { path: path.to_owned(), reason };
    let state = checkpoint
        .metadata()
        .get(STATE_KEY)
        .ok_or_else(|| fault("it holds no training state".into()))?;
    let state: State = serde_json::from_str(state).map_err(|e| fault(e.to_string()))?;
    let images = learner.examples();
    if state.images != images {
        let then = state.images;
        return Err(fault(format!("it was trained on {then} images, the folder has {images}")));
    }
    if let Some([what, then, now]) = changed(&state.config, config) {
        return Err(fault(format!("{what} was {then}, is {now}")));
    }
    let step = state.step;
    match learner {
        Learner::Denoising(learner) => {
            restore(&mut learner.trainer, "", &checkpoint, step, device)?;
        }
        Learner::Student(learner) => {
            restore(&mut learner.trainer, "", &checkpoint, step, device)?;
            if let Some(critic) = &mut learner.critic {
                restore(&mut critic.trainer, CRITIC, &checkpoint, step, device)?;
            }
        }
    }
    restore_frozen(learner.trunk_mut(), &checkpoint, device)
}

/// A setting that must stay as it was and did not: its name, what it was, what it is.
fn changed(then: &TrainConfig, now: &TrainConfig) -> Option<[String; 3]> {
    fn text(value: &impl std::fmt::Debug) -> String {
        format!("{value:?}")
    }
    let settings = |config: &TrainConfig| {
        [
            ("model", text(&config.model)),
            ("student", text(&config.student)),
            ("adversarial", text(&config.adversarial)),
            ("init", text(&config.init)),
            ("averages", text(&config.averages)),
            ("seed", text(&config.seed)),
            ("batch", text(&config.batch)),
        ]
    };
    let mut pairs = settings(then).into_iter().zip(settings(now));
    let ((what, then), (_, now)) = pairs.find(|((_, then), (_, now))| then != now)?;
    Some([what.to_owned(), then, now])
}

/// Stores the averages of this step in f16 in the folder of a run, `run`, for post-hoc reconstruction.
pub(super) fn save_snapshot(run: &Path, config: &TrainConfig, learner: &Learner) -> Result<()> {
    let folder = run.join(SNAPSHOTS);
    std::fs::create_dir_all(&folder)
        .map_err(|source| Error::File { path: folder.clone(), source })?;
    let names = params::names(&learner.net());
    let averages = config.averages.iter().zip(learner.averages());
    for (i, (profile, values)) in averages.enumerate() {
        let path = folder.join(format!("{:07}-{i}.safetensors", learner.step()));
        let tensors: Vec<(String, TensorData)> = names
            .iter()
            .zip(values)
            .map(|(name, value)| (name.clone(), value.to_data_dtype(DType::F16)))
            .collect();
        let profile = serde_json::to_string(profile).expect("a profile serialises");
        let metadata = BTreeMap::from([
            ("profile".to_owned(), profile),
            ("step".to_owned(), learner.step().to_string()),
        ]);
        write_safetensors(&path, &tensors, &metadata)?;
    }
    Ok(())
}
