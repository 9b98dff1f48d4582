//! Checkpoints: one file holds everything a run needs to go on, written whole or not at all.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use pyrograph_engine::nets::Net;
use pyrograph_engine::train::{Trainer, params};
use pyrograph_weights::{Checkpoint, write_safetensors};
use serde::{Deserialize, Serialize};

use super::{Run, TrainConfig};
use crate::error::{Error, Result};

/// Checkpoints kept besides the newest.
const KEPT: usize = 1;
/// Folder of the averages stored for post-hoc reconstruction.
pub(super) const SNAPSHOTS: &str = "snapshots";
/// Key of the JSON in the header of a checkpoint.
const STATE_KEY: &str = "pyrograph.training";

/// Before the names of the tensors of a critic.
const CRITIC: &str = "critic.";

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

/// Puts those tensors into a fresh trainer.
fn restore<M: Module + Send>(
    trainer: &mut Trainer<M>,
    prefix: &str,
    checkpoint: &Checkpoint,
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
    Ok(())
}

/// Writes the state of a run and removes all but the last checkpoints.
pub(super) fn save(run: &Run) -> Result<PathBuf> {
    let folder = run.folder.join("checkpoints");
    std::fs::create_dir_all(&folder)
        .map_err(|source| Error::File { path: folder.clone(), source })?;
    let path = folder.join(format!("{:07}.safetensors", run.step()));
    let mut tensors = tensors(&run.trainer, "");
    tensors.extend(frozen(&run.trainer.model));
    if let Some(critic) = &run.critic {
        tensors.extend(self::tensors(&critic.trainer, CRITIC));
    }
    let state = State { step: run.step(), images: run.material.len(), config: run.config.clone() };
    let state = serde_json::to_string(&state).expect("a configuration serialises");
    write_safetensors(&path, &tensors, &BTreeMap::from([(STATE_KEY.to_owned(), state)]))?;
    let mut found = all(&run.folder)?;
    found.truncate(found.len().saturating_sub(1 + KEPT));
    for old in found {
        // A file that cannot be removed costs space, not the run.
        std::fs::remove_file(old).ok();
    }
    Ok(path)
}

/// The random features of the time code, which are not trained.
fn frozen(net: &Net) -> Vec<(String, TensorData)> {
    match &net.trunk().embedder.time.fourier {
        None => Vec::new(),
        Some(fourier) => vec![
            ("frozen/embedder.time.fourier.scale".to_owned(), fourier.scale.val().into_data()),
            ("frozen/embedder.time.fourier.shift".to_owned(), fourier.shift.val().into_data()),
        ],
    }
}

/// Puts the state of a checkpoint into a fresh run.
pub(super) fn load(path: &Path, run: &mut Run) -> Result<()> {
    let checkpoint = Checkpoint::open(path)?;
    let fault = |reason: String| Error::Resume { path: path.to_owned(), reason };
    let state = checkpoint
        .metadata()
        .get(STATE_KEY)
        .ok_or_else(|| fault("it holds no training state".into()))?;
    let state: State = serde_json::from_str(state).map_err(|e| fault(e.to_string()))?;
    if state.images != run.material.len() {
        return Err(fault(format!(
            "it was trained on {} images, the folder has {}",
            state.images,
            run.material.len()
        )));
    }
    for (what, then, now) in [
        ("model", format!("{:?}", state.config.model), format!("{:?}", run.config.model)),
        ("student", format!("{:?}", state.config.student), format!("{:?}", run.config.student)),
        (
            "adversarial",
            format!("{:?}", state.config.adversarial),
            format!("{:?}", run.config.adversarial),
        ),
        ("init", format!("{:?}", state.config.init), format!("{:?}", run.config.init)),
        ("averages", format!("{:?}", state.config.averages), format!("{:?}", run.config.averages)),
        ("seed", state.config.seed.to_string(), run.config.seed.to_string()),
        ("batch", state.config.batch.to_string(), run.config.batch.to_string()),
    ] {
        if then != now {
            return Err(fault(format!("{what} was {then}, is {now}")));
        }
    }
    let device = run.device.clone();
    let trainer = &mut run.trainer;
    restore(trainer, "", &checkpoint, &device)?;
    if let Some(fourier) = &mut trainer.model.trunk_mut().embedder.time.fourier {
        let read = |name: &str| -> Result<Tensor<1>> {
            let (values, shape) = checkpoint.read_f32(name)?;
            let length = shape.iter().product::<usize>();
            let autodiff = device.clone().autodiff();
            Ok(Tensor::from_data(TensorData::new(values, [length]), &autodiff))
        };
        let (scale, shift) = (
            read("frozen/embedder.time.fourier.scale")?,
            read("frozen/embedder.time.fourier.shift")?,
        );
        fourier.scale = fourier.scale.clone().map(|_| scale);
        fourier.shift = fourier.shift.clone().map(|_| shift);
    }
    trainer.step = state.step;
    if let Some(critic) = &mut run.critic {
        restore(&mut critic.trainer, CRITIC, &checkpoint, &device)?;
        critic.trainer.step = state.step;
    }
    Ok(())
}

/// Stores the averages of this step in f16, for post-hoc reconstruction.
pub(super) fn save_snapshot(run: &Run) -> Result<()> {
    let folder = run.folder.join(SNAPSHOTS);
    std::fs::create_dir_all(&folder)
        .map_err(|source| Error::File { path: folder.clone(), source })?;
    for (i, profile) in run.config.averages.iter().enumerate() {
        let path = folder.join(format!("{:07}-{i}.safetensors", run.step()));
        let names = params::names(&run.trainer.model).into_iter();
        let values = run.trainer.averages[i].iter();
        let tensors: Vec<(String, TensorData)> = names
            .zip(values)
            .map(|(name, value)| (name, value.to_data_dtype(burn::tensor::DType::F16)))
            .collect();
        let profile = serde_json::to_string(profile).expect("a profile serialises");
        let metadata = BTreeMap::from([
            ("profile".to_owned(), profile),
            ("step".to_owned(), run.step().to_string()),
        ]);
        write_safetensors(&path, &tensors, &metadata)?;
    }
    Ok(())
}
