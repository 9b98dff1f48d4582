//! Networks that learn to denoise images.

use std::borrow::Cow;
use std::path::Path;

use burn::module::Module;
use burn::tensor::Device;
use pyrograph_engine::nets::{Dit, Net, Tuned, Vae};
use pyrograph_engine::train::{Batch, Denoising, Gradients, Perceptual, Target, Trainer};
use pyrograph_weights::FloatDtype;

use super::adopt::Adopted;
use super::checkpoint::Whole;
use super::config::TrainConfig;
use super::identity::Sources;
use super::outline::Outline;
use super::samples;
use super::start::{Ground, Start, told};
use super::streams::Streams;
use crate::data::{Annotation, Dataset, Notice, Reads};
use crate::error::{Error, Result};
use crate::labels::Labels;
use crate::model::text::TextInput;
use crate::model::{Model, ModelConfig, TextReader};

/// What is trained of a network.
pub(super) trait Denoises: Module + Send {
    /// The network as it denoises.
    fn net(&self) -> Cow<'_, Dit>;
}

/// All of it.
impl Denoises for Dit {
    fn net(&self) -> Cow<'_, Dit> {
        Cow::Borrowed(self)
    }
}

/// Adapters on it.
impl Denoises for Tuned {
    fn net(&self) -> Cow<'_, Dit> {
        Cow::Owned(self.bound())
    }
}

/// A network that learns to denoise images.
pub(super) struct DenoisingLearner<M> {
    pub(super) trainer: Trainer<M>,
    pub(super) data: Dataset,
    loss: Denoising,
    /// What should be known of the captions.
    pub(super) notices: Vec<Notice>,
}

impl<M: Denoises> DenoisingLearner<M> {
    /// A network with fresh weights or those of a model, of which `train` says what is trained, in a run that goes on from
    /// `resumed`; latents are kept in `folder`.
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
        train: impl FnOnce(Dit) -> Result<M>,
    ) -> Result<(Self, Outline)> {
        let Ground { encoder, vae, mut sources, mut start } = Ground::new(config, &data, device)?;
        check_annotation(&data, config)?;
        let text = start.reader(&mut sources, device)?;
        let told = (&data, text.as_ref());
        let (model, adopted) = initial(config, start, told, vae, &mut sources, device)?;
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
            weighting: config.weighting,
            perceptual: perceptual(config, &mut sources, device)?,
        };
        if let Some(whole) = resumed {
            whole.check(config, &sources)?;
        }
        let known = data.notices().len();
        let (data, adopted) = match (&config.lora, adopted) {
            (Some(_), Some(adopted)) => {
                let ids = adopted.known("a LoRA learns of the model's own classes")?;
                (data.of_model(&ids, model.net.dit.classes), None)
            }
            (_, adopted) => (data, adopted),
        };
        let mut data = data.for_training(config.flip, config.augment, encoder, folder, device)?;
        if let (Some(reader), Some(input)) = (&text, &model.text) {
            let size = model.net.dit.sized.then_some(config.model.size);
            let pooled = model.net.dit.pools();
            data = data.for_texts(Reads { reader, input, size, pooled }, folder)?;
        }
        let notices = data.notices()[known..].to_vec();
        let trainer = Trainer::new(train(net)?, config.trainer(&model.net.dit));
        let prompts = match config.sample_prompts.is_empty() {
            true => samples::captions(&data),
            false => config.sample_prompts.clone(),
        };
        let outline = Outline { text, prompts, sources, adopted, ..Outline::new(model, vae) };
        Ok((Self { trainer, data, loss, notices }, outline))
    }

    /// The gradients of a step on images of these numbers.
    pub(super) fn gradients(
        &self,
        indices: &[usize],
        streams: Streams,
        config: &TrainConfig,
        device: &Device,
    ) -> Gradients {
        let Self { trainer, data, loss, .. } = self;
        let net = trainer.model.net();
        let patch = config.patch(net.config(), streams.step, streams.patch());
        let parts: Vec<&[usize]> = indices.chunks(config.batch / config.micro_batches).collect();
        let (gradients, _) = trainer.gradients(config.micro_batches, |net, i| {
            let mut random = streams.part(i as u64);
            let batch = data.batch(parts[i], &mut random, device);
            let batch = Batch { clean: batch.clean.autodiff(), ..batch };
            (loss.loss(&net.net(), &batch, patch, &mut random), ())
        });
        gradients
    }
}

/// The term of a classifier in the loss, if there is one; the classifier is added to the run's `sources`.
pub(super) fn perceptual(
    config: &TrainConfig,
    sources: &mut Sources,
    device: &Device,
) -> Result<Option<Perceptual>> {
    let Some(shape) = &config.perceptual else { return Ok(None) };
    let (perceptual, fingerprint) = shape.open(device)?;
    sources.insert("perceptual.net".to_owned(), fingerprint.into());
    Ok(Some(perceptual))
}

/// Refuses images that have no captions for a model of texts, or captions alone for one of classes.
fn check_annotation(data: &Dataset, config: &TrainConfig) -> Result<()> {
    let reason = match (data.annotation(), config.annotation()) {
        (Annotation::Classes, Annotation::Captions) => {
            "text_encoder is set, the images have classes"
        }
        (Annotation::Captions, Annotation::Classes) => {
            "the images have captions, and there is no text_encoder"
        }
        _ => return Ok(()),
    };
    Err(Error::Config { reason: reason.into() })
}

/// The model that a run on images starts from, which is added to its `sources`, and which of its classes become
/// those of the data.
fn initial(
    config: &TrainConfig,
    start: Start,
    (data, reader): (&Dataset, Option<&TextReader>),
    vae: Option<Vae>,
    sources: &mut Sources,
    device: &Device,
) -> Result<(Model, Option<Adopted>)> {
    let (latents, classes) = (vae.as_ref().map(Vae::config), data.classes());
    let encoder = reader.map(|reader| reader.source().encoder.config.clone());
    let width = encoder.as_ref().map(|encoder| encoder.hidden);
    let Some(recognised) = start.init else {
        let net = config.net(start.channels, start.size, told(width, classes.len()))?;
        let model = ModelConfig {
            net: net.clone().into(),
            process: config.process.clone(),
            vae: latents.cloned(),
            defaults: config.defaults.clone(),
            labels: Labels(classes.to_vec()),
            text: encoder.map(|encoder| TextInput {
                encoder: Some(encoder),
                tokens: config.captions.tokens,
                clean: config.captions.clean,
                sizes: None,
            }),
        };
        let net = net.init(config.seed, &device.clone().autodiff()).into();
        return Ok((Model { net, vae, text: None, config: model }, None));
    };
    sources.insert("init".to_owned(), recognised.net.checkpoint.fingerprint().into());
    let model = recognised.load(FloatDtype::F32, device, &mut |_| ())?;
    if let Some(input) = model.config.text {
        let text = Some(TextInput { encoder, ..input });
        let (vae_config, defaults) = (latents.cloned(), config.defaults.clone());
        let config = ModelConfig { vae: vae_config, defaults, text, ..model.config };
        return Ok((Model { net: model.net, vae, text: None, config }, None));
    }
    let dit = &model.config.net.dit;
    let adopted = Adopted::new(&model.config.labels, dit.classes, classes);
    if dit.adapter_rank().is_some() {
        adopted
            .expect_same("a model with adapters learns patch sizes alone, for its own classes")?;
    }
    let net = match model.net {
        Net::Dit(net) if !adopted.is_same() && config.lora.is_none() => {
            net.with_classes(&adopted.rows, config.seed).into()
        }
        net => net,
    };
    let config = ModelConfig {
        net: net.config(),
        vae: latents.cloned(),
        defaults: config.defaults.clone(),
        labels: match config.lora {
            Some(_) => model.config.labels,
            None => adopted.labels.clone(),
        },
        ..model.config
    };
    Ok((Model { net, vae, text: None, config }, Some(adopted)))
}
