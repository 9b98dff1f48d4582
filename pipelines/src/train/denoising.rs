//! Networks that learn to denoise images.

use std::path::Path;

use burn::tensor::{Device, Tensor};
use pyrograph_engine::denoisers;
use pyrograph_engine::nets::{Dit, Net, Vae};
use pyrograph_engine::train::{Batch, Denoising, Target, Trainer};
use pyrograph_weights::FloatDtype;

use super::config::TrainConfig;
use super::outline::Outline;
use super::streams::Streams;
use crate::data::{Dataset, Encoder};
use crate::error::{Error, Result};
use crate::labels::Labels;
use crate::model::{Model, ModelConfig, recognise};

/// The part of a step whose stream chooses its patch size.
const PATCH: u64 = u64::MAX;

/// A network that learns to denoise images.
pub(super) struct DenoisingLearner {
    pub(super) trainer: Trainer<Dit>,
    pub(super) data: Dataset,
    loss: Denoising,
}

impl DenoisingLearner {
    /// A network with fresh weights or those of a model; latents are kept in `folder`.
    ///
    /// # Errors
    /// A configuration that does not fit the data, or a model that cannot be opened or has another number of
    /// classes, channels, or another size.
    pub(super) fn new(
        folder: &Path,
        config: &TrainConfig,
        data: Dataset,
        device: &Device,
    ) -> Result<(Self, Outline)> {
        let fault = |reason: String| Error::Config { reason };
        if config.student.is_some() || config.adversarial.is_some() {
            return Err(fault("`student` and `adversarial` are for trajectories".into()));
        }
        let encoder = config.vae.as_ref().map(|path| Encoder::open(path, device)).transpose()?;
        let vae = encoder.as_ref().map(|encoder| encoder.vae.clone());
        let Model { net, vae, config: model } = initial(config, data.classes(), vae, device)?;
        denoisers::check(&model.process, &model.net.dit)
            .map_err(|error| fault(error.to_string()))?;
        config.check_patches(&model.net.dit)?;
        let adapters = model.net.dit.adapter_rank().is_some();
        let net = match net {
            Net::Student(_) => {
                let reason = "a few-step student learns from trajectories, not from images";
                return Err(fault(reason.into()));
            }
            Net::Dit(net) if adapters => net.freeze_native(),
            Net::Dit(net) => net,
        };
        let loss = Denoising {
            process: model.process.clone(),
            condition_dropout: config.label_dropout,
            target: if adapters { Target::Native } else { Target::Data },
        };
        let data = data.for_training(config.flip, encoder, folder, device)?;
        let trainer = Trainer::new(net, config.trainer(&model.net.dit));
        Ok((Self { trainer, data, loss }, Outline { config: model, vae }))
    }

    /// Takes a step on images of these numbers and returns its loss, `[1]`.
    pub(super) fn step(
        &mut self,
        indices: &[usize],
        streams: Streams,
        config: &TrainConfig,
        device: &Device,
    ) -> Tensor<1> {
        let Self { trainer, data, loss } = self;
        let net = trainer.model.config();
        let patch = config.patch(net, streams.step, streams.part(PATCH).uniform());
        let parts: Vec<&[usize]> = indices.chunks(config.batch / config.micro_batches).collect();
        let (report, _) = trainer.step(config.micro_batches, |net, i| {
            let mut random = streams.part(i as u64);
            let batch = data.batch(parts[i], &mut random, device);
            let batch = Batch { clean: batch.clean.autodiff(), ..batch };
            (loss.loss(net, &batch, patch, &mut random), ())
        });
        report.loss
    }
}

/// The model that a run on images starts from.
fn initial(
    config: &TrainConfig,
    classes: &[String],
    vae: Option<Vae>,
    device: &Device,
) -> Result<Model> {
    let latents = vae.as_ref().map(Vae::config);
    let (channels, factor) =
        latents.map_or((3, 1), |latents| (latents.latent_channels, latents.factor()));
    let size = config.model.size.map(|side| side / factor);
    let Some(path) = &config.init else {
        let net = config.net(channels, size, classes.len())?;
        let model = ModelConfig {
            net: net.clone().into(),
            process: config.process.clone(),
            vae: latents.cloned(),
            defaults: config.defaults.clone(),
            labels: Labels(classes.to_vec()),
        };
        let net = net.init(config.seed, &device.clone().autodiff()).into();
        return Ok(Model { net, vae, config: model });
    };
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
    let config = ModelConfig { vae: latents.cloned(), ..model.config };
    Ok(Model { net: model.net, vae, config })
}
