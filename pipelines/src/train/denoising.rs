//! Networks that learn to denoise images.

use std::borrow::Cow;
use std::path::Path;

use burn::module::Module;
use burn::tensor::Device;
use pyrograph_engine::diffusion::Process;
use pyrograph_engine::nets::{Control, Dit, Net, Steered, Tuned, Vae};
use pyrograph_engine::random::Generator;
use pyrograph_engine::train::{Batch, Denoising, Gradients, Perceptual, Target, Trainer};
use pyrograph_weights::FloatDtype;

use super::adopt::Adopted;
use super::checkpoint::Whole;
use super::config::TrainConfig;
use super::control::Beside;
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

    /// What it is told of a batch of these images, by what stands `beside` them; `random` is as it was when the batch was
    /// drawn.
    fn steer(
        &self,
        beside: &Beside,
        process: &Process,
        (batch, indices): (Batch, &[usize]),
        random: &mut Generator,
    ) -> Batch {
        let _ = (beside, process, indices, random);
        batch
    }
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

/// Branches that see pictures beside the images.
impl Denoises for Steered<Control> {
    fn net(&self) -> Cow<'_, Dit> {
        Cow::Borrowed(&self.net)
    }

    fn steer(
        &self,
        beside: &Beside,
        process: &Process,
        (batch, indices): (Batch, &[usize]),
        random: &mut Generator,
    ) -> Batch {
        beside.steer(self, process, batch, indices, random)
    }
}

/// A network that learns to denoise images.
pub(super) struct DenoisingLearner<M> {
    pub(super) trainer: Trainer<M>,
    pub(super) data: Dataset,
    loss: Denoising,
    /// What branches see.
    pub(super) beside: Option<Beside>,
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
        let known = data.notices().len();
        let (data, adopted) = match adopted {
            Some(adopted) if config.keeps_model() => {
                let what = if config.lora.is_some() { "a LoRA" } else { "a branch" };
                let ids = adopted.known(&format!("{what} learns of the model's own classes"))?;
                (data.of_model(&ids, model.net.dit.classes), None)
            }
            adopted => (data, adopted),
        };
        let beside = match config.control.as_ref().and_then(|own| Some((own, own.kind?))) {
            None => None,
            Some((own, kind)) => {
                let (shapes, from) = ((&model.net.dit, config), (&data, encoder.as_ref()));
                Some(own.beside(kind, shapes, from, (folder, &mut sources), device)?)
            }
        };
        if let Some(whole) = resumed {
            whole.check(config, &sources)?;
        }
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
        let outline = match &beside {
            Some(beside) => outline.beside(beside, &data, config)?,
            None => outline,
        };
        Ok((Self { trainer, data, loss, beside, notices }, outline))
    }

    /// The gradients of a step on images of these numbers.
    pub(super) fn gradients(
        &self,
        indices: &[usize],
        streams: Streams,
        config: &TrainConfig,
        device: &Device,
    ) -> Gradients {
        let Self { trainer, data, loss, beside, .. } = self;
        let net = trainer.model.net();
        let patch = match beside {
            // The one at which a branch steers.
            Some(beside) => beside.config.patch,
            None => config.patch(net.config(), streams.step, streams.patch()),
        };
        let parts: Vec<&[usize]> = indices.chunks(config.batch / config.micro_batches).collect();
        let (gradients, _) = trainer.gradients(config.micro_batches, |net, i| {
            let mut random = streams.part(i as u64);
            let mut again = random.clone();
            let batch = data.batch(parts[i], &mut random, device);
            let batch = match beside {
                Some(beside) => net.steer(beside, &loss.process, (batch, parts[i]), &mut again),
                None => batch,
            };
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
    let width = encoder.as_ref().map(|encoder| encoder.width());
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
                clean: config.captions.clean,
                ..TextInput::new(config.captions.tokens)
            }),
        };
        let net = net.init(config.seed, &device.clone().autodiff()).into();
        return Ok((Model::new(net, vae, model), None));
    };
    sources.insert("init".to_owned(), recognised.net.checkpoint.fingerprint().into());
    let model = recognised.load(FloatDtype::F32, device, &mut |_| ())?;
    if let Some(input) = model.config.text {
        let text = Some(TextInput { encoder, ..input });
        let (process, defaults) = (config.process.clone(), config.defaults.clone());
        let config = ModelConfig { process, vae: latents.cloned(), defaults, text, ..model.config };
        return Ok((Model::new(model.net, vae, config), None));
    }
    let dit = &model.config.net.dit;
    let adopted = Adopted::new(&model.config.labels, dit.classes, classes);
    if dit.adapter_rank().is_some() {
        adopted
            .expect_same("a model with adapters learns patch sizes alone, for its own classes")?;
    }
    let net = match model.net {
        Net::Dit(net) if !adopted.is_same() && !config.keeps_model() => {
            net.with_classes(&adopted.rows, config.seed).into()
        }
        net => net,
    };
    let config = ModelConfig {
        net: net.config(),
        process: config.process.clone(),
        vae: latents.cloned(),
        defaults: config.defaults.clone(),
        labels: match config.keeps_model() {
            true => model.config.labels,
            false => adopted.labels.clone(),
        },
        ..model.config
    };
    Ok((Model::new(net, vae, config), Some(adopted)))
}
