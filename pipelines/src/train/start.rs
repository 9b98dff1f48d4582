//! Where a run starts: fresh weights, or those of a model.

use burn::tensor::Device;
use pyrograph_engine::layers::TimeCode;
use pyrograph_engine::nets::{Dit, Vae};
use pyrograph_engine::process::TimeInput;
use pyrograph_weights::FloatDtype;

use super::TrainConfig;
use crate::error::{Error, Result};
use crate::labels::Labels;
use crate::model::{ModelConfig, recognise};

/// What a run starts from.
pub(super) struct Start {
    /// On an autodiff device, or to be brought to one.
    pub(super) net: Dit,
    /// Description of the finished model.
    pub(super) model: ModelConfig,
    /// Autoencoder of the finished model.
    pub(super) vae: Option<Vae>,
}

/// The start of a run on images; the autoencoder is left to the caller.
///
/// # Errors
/// A configuration that does not fit the data, or a model that cannot be opened or has another number of
/// classes, channels, or another size.
pub(super) fn images(
    config: &TrainConfig,
    classes: &[String],
    vae: Option<&Vae>,
    device: &Device,
) -> Result<Start> {
    let (channels, factor) =
        vae.map_or((3, 1), |vae| (vae.config().latent_channels, vae.config().factor()));
    let size = config.model.size.map(|side| side / factor);
    let vae = vae.map(|vae| vae.config().clone());
    let (net, model) = match &config.init {
        None => {
            let net = config.net(channels, size, classes.len())?;
            let model = ModelConfig {
                net: net.clone(),
                process: config.process.clone(),
                vae,
                defaults: config.defaults.clone(),
                labels: Labels(classes.to_vec()),
            };
            (net.init(config.seed, &device.clone().autodiff()), model)
        }
        Some(path) => {
            let model = recognise(path)?.load(FloatDtype::F32, device, &mut |_| ())?;
            let net = &model.config.net;
            let found = (net.channels, net.size, net.classes);
            let expected = (channels, size, classes.len());
            if found != expected {
                let text = |(channels, [height, width], classes): (usize, [usize; 2], usize)| {
                    format!("{channels} channels of {height}x{width} in {classes} classes")
                };
                return Err(Error::NotAModel {
                    path: path.clone(),
                    reason: format!("made for {}, the data is {}", text(found), text(expected)),
                });
            }
            (model.net, ModelConfig { vae, ..model.config })
        }
    };
    if matches!(model.net.time, TimeCode::Table { .. }) && model.process.time == TimeInput::LogSigma
    {
        let reason = "a table of times needs process.time = \"timestep\", it is \"log_sigma\"";
        return Err(Error::Config { reason: reason.into() });
    }
    config.check_patches(&model.net)?;
    let net = if model.net.adapter_rank().is_some() { net.freeze_native() } else { net };
    Ok(Start { net, model, vae: None })
}
