//! What a run on images starts from, as far as its settings tell: all that can be refused before the images are read.

use std::path::Path;

use burn::tensor::Device;
use pyrograph_engine::nets::{DitConfig, Vae, VaeConfig};

use super::config::{CaptionShape, TrainConfig};
use super::identity::Sources;
use super::shape::Condition;
use crate::data::{Dataset, Encoder};
use crate::error::{Error, Result, TextError};
use crate::model::text::TextSource;
use crate::model::{Recognised, TextReader, autoencoder_config, recognise};

/// The start of a run, but for its classes and all weights.
pub(super) struct Start {
    /// The model that it starts from, if there is one.
    pub(super) init: Option<Recognised>,
    /// Channels of the images or latents.
    pub(super) channels: usize,
    /// `[height, width]` of the images or latents.
    pub(super) size: [usize; 2],
    /// What reads captions, of a model of texts.
    pub(super) text: Option<TextSource>,
}

/// Checks, before any image is read, that images can make the model of these settings.
///
/// # Errors
/// Settings that do not go together, that are those of a student, or that the model or the autoencoder of the run, the
/// device or its memory cannot follow.
pub fn check_model(config: &TrainConfig, device: &Device) -> Result<()> {
    config.check()?;
    config.check_precision(device)?;
    let latents = config.vae.as_deref().map(autoencoder_config).transpose()?;
    Start::new(config, latents.as_ref(), device).map(drop)
}

impl Start {
    /// That of a run on latents of an autoencoder, or on pixels.
    ///
    /// # Errors
    /// See [`check_model`].
    pub(super) fn new(
        config: &TrainConfig,
        latents: Option<&VaeConfig>,
        device: &Device,
    ) -> Result<Self> {
        let fault = |reason: String| Err(Error::Config { reason });
        let of_students = [
            ("student", config.student.is_some()),
            ("adversarial", config.adversarial.is_some()),
            ("trajectories", config.trajectories.is_some()),
        ];
        if let Some((key, _)) = of_students.into_iter().find(|(_, is_set)| *is_set) {
            return fault(format!("{key} is set, training on images does not read it"));
        }
        let of_texts = [
            ("tokenizer", config.tokenizer.is_some()),
            ("captions", config.captions != CaptionShape::default()),
            ("model.pooled", config.model.pooled),
            ("sample_prompts", !config.sample_prompts.is_empty()),
        ];
        let unread = of_texts.into_iter().find(|(_, set)| *set && config.text_encoder.is_none());
        if let Some((key, _)) = unread {
            return fault(format!("{key} is set, a run without text_encoder does not read it"));
        }
        let (channels, factor) =
            latents.map_or((3, 1), |latents| (latents.scaled_channels(), latents.factor()));
        let [height, width] = config.model.size;
        if !height.is_multiple_of(factor) || !width.is_multiple_of(factor) {
            return fault(format!(
                "model.size is {height}x{width}, expected multiples of {factor}, the factor of the autoencoder"
            ));
        }
        let size = [height / factor, width / factor];
        let text = config.text_encoder.as_deref();
        let text = text.map(|path| TextSource::find(path, config.tokenizer.as_deref()));
        let mut text = text.transpose()?;
        let init = match &config.init {
            Some(path) => Some(started_from(config, path, channels, factor, &mut text)?),
            None => None,
        };
        let width = text.as_ref().map(|text| text.encoder.config.width());
        let net = match &init {
            Some(recognised) => recognised.config.net.dit.clone(),
            // How many classes there are does not matter.
            None => config.net(channels, size, told(width, 1))?,
        };
        check_lora(config, &net)?;
        if let Some(control) = &config.control {
            control.check(config, init.as_ref())?;
        }
        if let Some(perceptual) = &config.perceptual {
            perceptual.check(config, net.adapter_rank().is_some())?;
        }
        check_use(config, &net, device)?;
        Ok(Self { init, channels, size, text })
    }
}

/// What a run on images stands on, all opened but the model that it starts from and what reads its captions.
pub(super) struct Ground {
    /// Makes latents of the images.
    pub(super) encoder: Option<Encoder>,
    /// Its autoencoder.
    pub(super) vae: Option<Vae>,
    pub(super) sources: Sources,
    pub(super) start: Start,
}

impl Ground {
    /// That of a run on these images.
    ///
    /// # Errors
    /// Those of [`Start::new`], an autoencoder that cannot be opened.
    pub(super) fn new(config: &TrainConfig, data: &Dataset, device: &Device) -> Result<Self> {
        let encoder = config.vae.as_ref().map(|path| Encoder::open(path, device)).transpose()?;
        let vae = encoder.as_ref().map(|encoder| encoder.vae.clone());
        let mut sources = Sources::from([("data".to_owned(), data.identity())]);
        if let Some(encoder) = &encoder {
            sources.insert("vae".to_owned(), encoder.fingerprint.clone().into());
        }
        let start = Start::new(config, vae.as_ref().map(Vae::config), device)?;
        Ok(Self { encoder, vae, sources, start })
    }
}

impl Start {
    /// What reads captions, if anything does; it is added to the `sources` of the run.
    ///
    /// # Errors
    /// An encoder that cannot be opened.
    pub(super) fn reader(
        &mut self,
        sources: &mut Sources,
        device: &Device,
    ) -> Result<Option<TextReader>> {
        let Some(text) = self.text.take() else { return Ok(None) };
        let reader = text.open(false, device, &mut |_| ())?;
        sources.insert("text_encoder".to_owned(), reader.source().fingerprint()?.into());
        Ok(Some(reader))
    }
}

/// What a fresh network is told: texts, by states of this width, or one of so many classes.
pub(super) fn told(width: Option<usize>, classes: usize) -> Condition {
    width.map_or(Condition::Classes(classes), Condition::Text)
}

/// The model at `path`, where a run on images or latents of so many channels, with captions that `text` reads, as the model
/// does from here on, can start from it.
fn started_from(
    config: &TrainConfig,
    path: &Path,
    channels: usize,
    factor: usize,
    text: &mut Option<TextSource>,
) -> Result<Recognised> {
    let not = |reason: String| Err(Error::NotAModel { path: path.to_owned(), reason });
    let recognised = recognise(path)?;
    let net = &recognised.config.net;
    if net.student.is_some() {
        let reason = "a few-step student learns from trajectories, not from images";
        return Err(Error::Config { reason: reason.into() });
    }
    recognised.config.check_trained()?;
    config.check_start(&recognised.config, factor)?;
    if let Some(input) = &recognised.config.text {
        *text = text.take().map(|text| text.reading(input));
    }
    let width = text.as_ref().map(|text| text.encoder.config.width());
    match (net.dit.channels, net.dit.text.as_ref().map(|text| text.width)) {
        (found, _) if found != channels => {
            not(format!("made for images of {found} channels, the run has {channels}"))
        }
        (_, Some(_)) if width.is_none() => Err(TextError::NoEncoder.into()),
        (_, None) if width.is_some() => Err(Error::Task { found: "classes", expected: "texts" }),
        (_, Some(found)) if Some(found) != width => not(format!(
            "made for texts of width {found}, the run's text encoder has {}",
            width.unwrap_or_default()
        )),
        _ => Ok(recognised),
    }
}

/// Checks that a LoRA can be made of a network, if it is to be.
fn check_lora(config: &TrainConfig, net: &DitConfig) -> Result<()> {
    let Some(lora) = &config.lora else { return Ok(()) };
    let fault = |reason: &str| Err(Error::Config { reason: reason.into() });
    match () {
        () if config.init.is_none() => {
            fault("lora is set, and there is no init, the model that it is for")
        }
        () if net.adapter_rank().is_some() => {
            fault("lora is set, the model has adapters for its patch sizes")
        }
        () if config.snapshot_every > 0 => fault("snapshot_every is set, a LoRA has no snapshots"),
        () => lora.layers(net).map(drop),
    }
}

/// Checks what is done with a network: its training, and the samples of it and of the finished model.
fn check_use(config: &TrainConfig, net: &DitConfig, device: &Device) -> Result<()> {
    config.check_patches(net)?;
    let samples = config.defaults.settings(config.seed);
    let possible = samples.check(net.channels);
    possible
        .and_then(|()| samples.grid(&config.process).map(drop))
        .map_err(|error| Error::Config { reason: format!("defaults: {error}") })?;
    config.check_memory(net, device)
}
