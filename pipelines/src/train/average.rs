//! Averages of any width from the snapshots of a finished run (EDM2 section 3).

use std::path::Path;

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use pyrograph_engine::train::{
    self as engine, Average, Reconstruction, Snapshot, WIDTH_LIMIT, params,
};
use pyrograph_weights::Checkpoint;

use super::checkpoint;
use super::folder::MODEL;
use crate::error::{Error, Result};
use crate::model::Model;

/// A stored average.
struct Stored {
    snapshot: Snapshot,
    file: Checkpoint,
}

/// Largest error of a profile that is used, as a share of its norm.
const ERROR_LIMIT: f64 = 0.3;
/// Share of a value by which storing it in f16 may change it.
const ROUNDING: f64 = 1.0 / 2048.0;

/// A model with an average of weights that was made afterwards.
#[derive(Debug)]
pub struct Averaged {
    /// The model.
    pub model: Model,
    /// How far it may be from the true average: see [`Reconstruction::error`], or what the rounding of the snapshots
    /// adds, as a share of the weights, if that is more.
    pub error: f64,
}

/// The model of a run with the power-function average of relative width `width` at `step`, or at the last stored step.
///
/// # Errors
/// A run without a model or that kept no snapshots of power-function averages, a width outside (0, 0.28), a step after
/// the last one stored, an average that those stored do not add up to, a snapshot that is damaged.
pub fn reconstruct(run: &Path, width: f64, step: Option<u64>, device: &Device) -> Result<Averaged> {
    let fault = |reason: String| Error::Average { path: run.to_owned(), reason };
    if !Average::Power(width).is_possible() {
        let reason = format!("width {width}, expected more than 0 and less than {WIDTH_LIMIT}");
        return Err(fault(reason));
    }
    let stored = stored(run)?;
    let last = stored.iter().map(|stored| stored.snapshot.step).max();
    let last = last.ok_or_else(|| {
        fault("no snapshots of power-function averages: train with snapshot_every".into())
    })?;
    let step = step.unwrap_or(last);
    if step == 0 || step > last {
        return Err(fault(format!("step {step}, expected 1 to {last}")));
    }
    let snapshots: Vec<Snapshot> = stored.iter().map(|stored| stored.snapshot).collect();
    let Reconstruction { weights, error } =
        engine::reconstruct(&snapshots, Snapshot { step, width })
            .ok_or_else(|| fault("two snapshots have the same step and width".into()))?;
    let rounding = weights.iter().map(|weight| weight.abs()).sum::<f64>() * ROUNDING;
    let error = error.max(rounding);
    if error > ERROR_LIMIT {
        return Err(fault(format!(
            "an average of width {width} at step {step} would be wrong by {:.0} %: it needs more snapshots, widths nearer \
             to it, or a step that was stored",
            100.0 * error
        )));
    }

    let mut model = crate::model::open(&run.join(MODEL), device)?;
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
    Ok(Averaged { model, error })
}

/// The snapshots of power-function averages of a run.
fn stored(run: &Path) -> Result<Vec<Stored>> {
    let mut found = Vec::new();
    for path in checkpoint::snapshots(run)?.into_values() {
        let file = Checkpoint::open(&path)?;
        file.verify()?;
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
