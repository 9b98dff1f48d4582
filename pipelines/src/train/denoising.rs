//! Networks that learn to denoise images.

use std::path::Path;

use burn::tensor::Device;
use pyrograph_engine::nets::{Dit, Net, Vae};
use pyrograph_engine::train::{Batch, Denoising, Gradients, Target, Trainer};
use pyrograph_weights::FloatDtype;

use super::adopt::Adopted;
use super::checkpoint::Whole;
use super::config::TrainConfig;
use super::identity::Sources;
use super::outline::Outline;
use super::start::Start;
use super::streams::Streams;
use crate::data::{Dataset, Encoder};
use crate::error::Result;
use crate::labels::Labels;
use crate::model::{Model, ModelConfig};

/// A network that learns to denoise images.
pub(super) struct DenoisingLearner {
    pub(super) trainer: Trainer<Dit>,
    pub(super) data: Dataset,
    loss: Denoising,
}

impl DenoisingLearner {
    /// A network with fresh weights or those of a model, in a run that goes on from `resumed`; latents are kept in
    /// `folder`.
    ///
    /// # Errors
    /// A configuration that does not fit the data or the checkpoint, or a model that cannot be opened or has another
    /// number of classes, channels, or another size.
    pub(super) fn new(
        folder: &Path,
        config: &TrainConfig,
        data: Dataset,
        resumed: Option<&Whole>,
        device: &Device,
    ) -> Result<(Self, Outline)> {
        let encoder = config.vae.as_ref().map(|path| Encoder::open(path, device)).transpose()?;
        let vae = encoder.as_ref().map(|encoder| encoder.vae.clone());
        let mut sources = Sources::from([("data".to_owned(), data.identity())]);
        if let Some(encoder) = &encoder {
            sources.insert("vae".to_owned(), encoder.fingerprint.clone().into());
        }
        let start = Start::new(config, vae.as_ref().map(Vae::config), device)?;
        let (model, adopted) = initial(config, start, data.classes(), vae, &mut sources, device)?;
        let Model { net, vae, config: model, .. } = model;
        let adapters = model.net.dit.adapter_rank().is_some();
        let net = match net {
            Net::Student(_) => unreachable!("a start from a student is refused"),
            Net::Dit(net) if adapters => net.freeze_native(),
            Net::Dit(net) => net,
        };
        let loss = Denoising {
            process: model.process.clone(),
            condition_dropout: config.label_dropout,
            target: if adapters { Target::Native } else { Target::Data },
        };
        if let Some(whole) = resumed {
            whole.check(config, &sources)?;
        }
        let data = data.for_training(config.flip, config.augment, encoder, folder, device)?;
        let trainer = Trainer::new(net, config.trainer(&model.net.dit));
        Ok((Self { trainer, data, loss }, Outline { config: model, vae, sources, adopted }))
    }

    /// The gradients of a step on images of these numbers.
    pub(super) fn gradients(
        &self,
        indices: &[usize],
        streams: Streams,
        config: &TrainConfig,
        device: &Device,
    ) -> Gradients {
        let Self { trainer, data, loss } = self;
        let net = trainer.model.config();
        let patch = config.patch(net, streams.step, streams.patch());
        let parts: Vec<&[usize]> = indices.chunks(config.batch / config.micro_batches).collect();
        let (gradients, _) = trainer.gradients(config.micro_batches, |net, i| {
            let mut random = streams.part(i as u64);
            let batch = data.batch(parts[i], &mut random, device);
            let batch = Batch { clean: batch.clean.autodiff(), ..batch };
            (loss.loss(net, &batch, patch, &mut random), ())
        });
        gradients
    }
}

/// The model that a run on images starts from, which is added to its `sources`, and which of its classes become
/// those of the data.
fn initial(
    config: &TrainConfig,
    start: Start,
    classes: &[String],
    vae: Option<Vae>,
    sources: &mut Sources,
    device: &Device,
) -> Result<(Model, Option<Adopted>)> {
    let latents = vae.as_ref().map(Vae::config);
    let Some(recognised) = start.init else {
        let net = config.net(start.channels, start.size, classes.len())?;
        let model = ModelConfig {
            net: net.clone().into(),
            process: config.process.clone(),
            vae: latents.cloned(),
            defaults: config.defaults.clone(),
            labels: Labels(classes.to_vec()),
            text: None,
        };
        let net = net.init(config.seed, &device.clone().autodiff()).into();
        return Ok((Model { net, vae, text: None, config: model }, None));
    };
    sources.insert("init".to_owned(), recognised.net.checkpoint.fingerprint().into());
    let model = recognised.load(FloatDtype::F32, device, &mut |_| ())?;
    let dit = &model.config.net.dit;
    let adopted = Adopted::new(&model.config.labels, dit.classes, classes);
    if dit.adapter_rank().is_some() {
        adopted
            .expect_same("a model with adapters learns patch sizes alone, for its own classes")?;
    }
    let net = match model.net {
        Net::Dit(net) if !adopted.is_same() => net.with_classes(&adopted.rows, config.seed).into(),
        net => net,
    };
    let config = ModelConfig {
        net: net.config(),
        vae: latents.cloned(),
        defaults: config.defaults.clone(),
        labels: adopted.labels.clone(),
        ..model.config
    };
    Ok((Model { net, vae, text: None, config }, Some(adopted)))
}
