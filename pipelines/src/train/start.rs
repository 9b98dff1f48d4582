//! Where a run starts: fresh weights, or those of a model.

use burn::tensor::Device;
use pyrograph_engine::denoisers;
use pyrograph_engine::nets::{Net, Vae};
use pyrograph_weights::FloatDtype;

use super::TrainConfig;
use crate::error::{Error, Result};
use crate::labels::Labels;
use crate::model::{ModelConfig, recognise};

/// What a run starts from.
pub(super) struct Start {
    /// On an autodiff device, or to be brought to one.
    pub(super) net: Net,
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
                net: net.clone().into(),
                process: config.process.clone(),
                vae,
                defaults: config.defaults.clone(),
                labels: Labels(classes.to_vec()),
            };
            (net.init(config.seed, &device.clone().autodiff()).into(), model)
        }
        Some(path) => {
            let model = recognise(path)?.load(FloatDtype::F32, device, &mut |_| ())?;
            let net = &model.config.net.dit;
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
    let fits = denoisers::check(&model.process, &model.net.dit);
    fits.map_err(|fault| Error::Config { reason: fault.to_string() })?;
    config.check_patches(&model.net.dit)?;
    let net = match net {
        Net::Student(_) => {
            let reason = "a few-step student learns from trajectories, not from images";
            return Err(Error::Config { reason: reason.into() });
        }
        Net::Dit(net) if net.config().adapter_rank().is_some() => net.freeze_native().into(),
        net => net,
    };
    Ok(Start { net, model, vae: None })
}
