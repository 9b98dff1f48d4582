//! Models of one shape, such as those of several runs from the same start, merged into the mean of their weights
//! (Wortsman et al. 2022), and LoRAs merged into the weights of a model.

use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use pyrograph_engine::nets::{Adaptable, Net};
use pyrograph_engine::read;
use pyrograph_engine::train::params;

use crate::adapter::Adapter;
use crate::error::{Error, Result};
use crate::hooks::Notice;
use crate::model::{Model, ModelConfig, open, recognise};

/// The first model with the mean of all networks, each with its share; the shares are scaled to add up to 1. An
/// autoencoder is that of the first.
///
/// # Errors
/// No models, shares that are not finite or add up to nothing, models that are not to be found, that differ in more
/// than their sampling defaults, or whose constants differ, as those of runs from different seeds do.
pub fn merge(models: &[(PathBuf, f64)], device: &Device) -> Result<Model> {
    let fault =
        |path: &Path, reason: &str| Error::Average { path: path.into(), reason: reason.into() };
    let total: f64 = models.iter().map(|(_, share)| share).sum();
    let Some(((first, share), rest)) = models.split_first() else {
        return Err(fault(Path::new(""), "no models to merge"));
    };
    if total == 0.0 || !total.is_finite() {
        return Err(fault(first, &format!("shares that add up to {total}")));
    }
    recognise(first)?.config.check_trained()?;
    let mut merged = open(first, device)?;
    let mut sum = scaled(&merged.net, share / total);
    for (path, share) in rest {
        let model = open(path, device)?;
        let config = ModelConfig { defaults: merged.config.defaults.clone(), ..model.config };
        if config != merged.config {
            return Err(fault(path, &format!("another kind of model than {}", first.display())));
        }
        if constants(&model.net)? != constants(&merged.net)? {
            let reason = format!(
                "does not come from the same start as {}: its constants differ",
                first.display()
            );
            return Err(fault(path, &reason));
        }
        let parts = scaled(&model.net, share / total);
        sum = sum.into_iter().zip(parts).map(|(sum, part)| sum + part).collect();
    }
    merged.net = params::with_values(merged.net.train(), sum).valid();
    Ok(merged)
}

/// The model with LoRAs, each times a weight, added to its weights; `notify` hears of what a file does not say.
///
/// # Errors
/// Files that cannot be read or do not fit, weights that are not finite, and a LoRA of layers whose weights are normalised
/// when they are used, as those of a magnitude-preserving model are: it can only be put on.
pub fn merge_adapters(
    mut model: Model,
    adapters: &[(PathBuf, f64)],
    device: &Device,
    notify: &mut dyn FnMut(Notice),
) -> Result<Model> {
    if let Some((path, weight)) = adapters.iter().find(|(_, weight)| !weight.is_finite()) {
        return Err(Error::AdapterWeight { path: path.clone(), weight: *weight });
    }
    let open = |(path, weight): &(PathBuf, f64)| {
        Ok((Adapter::open(path, &model.net, None, device, notify)?, *weight))
    };
    let opened = adapters.iter().map(open).collect::<Result<Vec<_>>>()?;
    if let Some((person, _)) = opened.iter().find(|(own, _)| own.terms().token.is_some()) {
        let reason = "an adapter of a person is put on a model, and not merged with it".into();
        return Err(Error::NotAModel { path: person.path().to_owned(), reason });
    }
    let terms: Vec<_> = opened.iter().map(|(adapter, weight)| (adapter.terms(), *weight)).collect();
    model.net.merge(&terms)?;
    Ok(model)
}

/// What is trained, times `share`.
fn scaled(net: &Net, share: f64) -> Vec<Tensor<1>> {
    params::values(&net.clone().train()).into_iter().map(|value| value * share).collect()
}

/// What is drawn once and never trained.
fn constants(net: &Net) -> Result<Option<[TensorData; 2]>> {
    let Some(fourier) = &net.trunk().embedder.time.fourier else { return Ok(None) };
    Ok(Some([read::data(fourier.scale.val())?, read::data(fourier.shift.val())?]))
}
