//! Averages of any width from the snapshots of a finished run (EDM2 section 3).

use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use pyrograph_engine::train::{Average, Snapshot, params, reconstruction_weights};
use pyrograph_weights::Checkpoint;

use super::checkpoint;
use crate::error::{Error, Result};
use crate::model::Model;

/// A stored average.
struct Stored {
    snapshot: Snapshot,
    file: Checkpoint,
}

/// The model of a finished run with the power-function average of relative width `width` at `step`, or
/// at the last stored step.
///
/// # Errors
/// A run that is not finished or kept no snapshots of power-function averages, a width outside
/// (0, 0.28), a step after the last one stored.
pub fn reconstruct(run: &Path, width: f64, step: Option<u64>, device: &Device) -> Result<Model> {
    let fault = |reason: String| Error::Average { path: run.to_owned(), reason };
    if !(width > 0.0 && width < 0.28) {
        return Err(fault(format!("width {width}, expected more than 0 and less than 0.28")));
    }
    let stored = stored(&run.join(checkpoint::SNAPSHOTS))?;
    let last = stored.iter().map(|stored| stored.snapshot.step).max();
    let last = last.ok_or_else(|| {
        fault("no snapshots of power-function averages: train with snapshot_every".into())
    })?;
    let step = step.unwrap_or(last);
    if step == 0 || step > last {
        return Err(fault(format!("step {step}, expected 1 to {last}")));
    }
    let snapshots: Vec<Snapshot> = stored.iter().map(|stored| stored.snapshot).collect();
    let weights = reconstruction_weights(&snapshots, Snapshot { step, width })
        .ok_or_else(|| fault("two snapshots have the same step and width".into()))?;

    let mut model = crate::model::open(&run.join("model"), device)?;
    // What is trained is marked in a network in training only.
    let net = model.net.train();
    let old = params::values(&net);
    let mut values = Vec::with_capacity(old.len());
    for (name, old) in params::names(&net).iter().zip(old) {
        let mut sum = vec![0f64; old.dims()[0]];
        for (Stored { file, .. }, weight) in stored.iter().zip(&weights) {
            let (part, _) = file.read_f32(name)?;
            if part.len() != sum.len() {
                let (found, expected) = (part.len(), sum.len());
                return Err(fault(format!("{name} has {found} values, expected {expected}")));
            }
            sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += weight * f64::from(part));
        }
        let sum: Vec<f32> = sum.into_iter().map(|value| value as f32).collect();
        values.push(Tensor::from_data(TensorData::new(sum, old.dims()), device));
    }
    model.net = params::with_values(net, values).valid();
    Ok(model)
}

/// The snapshots of power-function averages in a folder.
fn stored(folder: &Path) -> Result<Vec<Stored>> {
    let file = |source| Error::File { path: folder.to_owned(), source };
    let mut paths: Vec<PathBuf> = match std::fs::read_dir(folder) {
        Ok(entries) => {
            let paths: std::io::Result<_> = entries.map(|entry| Ok(entry?.path())).collect();
            paths.map_err(file)?
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(source) => return Err(file(source)),
    };
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
    paths.sort();
    let mut found = Vec::new();
    for path in paths {
        let file = Checkpoint::open(&path)?;
        let text = |key: &str| file.metadata().get(key).map(String::as_str).unwrap_or_default();
        let fault = |reason: String| Error::Average { path: path.clone(), reason };
        let profile: Average = serde_json::from_str(text("profile"))
            .map_err(|error| fault(format!("not a snapshot: {error}")))?;
        let step = text("step").parse().map_err(|error| fault(format!("step: {error}")))?;
        if let Average::Power(width) = profile {
            found.push(Stored { snapshot: Snapshot { step, width }, file });
        }
    }
    Ok(found)
}
