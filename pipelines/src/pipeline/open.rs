//! Opening a pipeline: a model by its name or path, on a device.

use std::path::{Path, PathBuf};

use pyrograph_engine::device::{DeviceChoice, Opened};

use super::{Pipeline, work_on};
use crate::device::{self, Hooks};
use crate::error::Result;
use crate::metadata::{Used, base_name};
use crate::model::{self, Footprint, Limits, Model, Parts, Source, WeightType};
use crate::task::PromptTask;
use crate::threads;

/// How to open a model; by default on a GPU if there is one.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions<'a> {
    /// Where it works.
    pub device: DeviceChoice,
    /// How the network's weights are held; without, in the model's [own way](model::Recognised::weight_type).
    pub dtype: Option<WeightType>,
    /// How much memory the model may take.
    pub limits: Limits,
    /// Autoencoder for a checkpoint that comes without one: a diffusers `vae` folder, a file, or a model with one.
    pub vae: Option<PathBuf>,
    /// Text encoder for a checkpoint that comes without one: its folder, that of a pipeline, or a file.
    pub text_encoder: Option<PathBuf>,
    /// Tokenizer, if it is not with the text encoder.
    pub tokenizer: Option<PathBuf>,
    /// Weaker model to guide away from, by name or path.
    pub guide: Option<PathBuf>,
    /// CPU threads of the process; without, one per core. See [`threads`].
    pub threads: Option<usize>,
    /// How the application takes part.
    pub hooks: Hooks<'a>,
}

/// Where a pipeline comes from, as its pictures keep it.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// Name of the file or folder of the model.
    pub name: String,
    /// What it is, for people.
    pub kind: String,
    /// Fingerprint of the network's weights.
    pub weights: String,
    /// How they are held.
    pub dtype: WeightType,
    /// Autoencoder; one without a name is the model's own.
    pub vae: Option<Used>,
    /// Text encoder that was added to the model.
    pub text_encoder: Option<Used>,
    /// Weaker model that guides.
    pub guide: Option<Used>,
    /// Name of the device.
    pub device: String,
}

impl<T: PromptTask> Pipeline<T> {
    /// Opens a model: a bundle, a diffusers folder, a checkpoint file, or a shipped model by its name.
    ///
    /// # Errors
    /// See [`device::open`], [`model::find`], [`model::recognise`] and
    /// [`Recognised::load_within`](model::Recognised::load_within).
    pub fn open(model: impl AsRef<Path>, options: &OpenOptions<'_>) -> Result<Self> {
        threads::start(options.threads)?;
        let opened = device::open(options.device, &options.hooks)?;
        Self::open_on(model, &opened, options)
    }

    /// The same on a device that is open already, such as one that [`device::share`] made of the application's own.
    ///
    /// # Errors
    /// As there, but for those of the device.
    pub fn open_on(
        model: impl AsRef<Path>,
        on: &Opened,
        options: &OpenOptions<'_>,
    ) -> Result<Self> {
        threads::start(options.threads)?;
        let (device, hooks) = (&on.device, &options.hooks);
        let path = model::find(model.as_ref())?;
        work_on(device, || {
            let (model, origin) = read(&path, on, options)?;
            let mut pipeline = Self { origin, ..Self::new(model, device)? };
            if let Some(guide) = &options.guide {
                let path = model::find(guide)?;
                let guide = model::recognise(&path)?;
                let used = Used::weights(&path, guide.net.checkpoint.fingerprint());
                let notify = &mut |notice| hooks.notify(notice);
                let Footprint { allowed, left, .. } = &pipeline.footprint;
                let card = left.map(|(bytes, _)| bytes);
                let limits = Limits { memory: *allowed, card, ..options.limits };
                let dtype = options.dtype.unwrap_or_else(|| guide.weight_type(device, limits));
                let guide = guide.load_within(limits, dtype, device, notify)?;
                pipeline = pipeline.with_guide(guide)?;
                pipeline.origin.guide = Some(used);
            }
            Ok(pipeline)
        })
    }
}

/// The model at a path, and where it comes from; a guide is not looked at.
pub(super) fn read(path: &Path, on: &Opened, options: &OpenOptions<'_>) -> Result<(Model, Origin)> {
    let OpenOptions { dtype, vae, hooks, .. } = options;
    let card = options.limits.card.or_else(|| on.adapter.as_ref()?.memory);
    let limits = Limits { card, ..options.limits };
    let parts = Parts {
        vae: vae.as_deref(),
        text_encoder: options.text_encoder.as_deref(),
        tokenizer: options.tokenizer.as_deref(),
    };
    let recognised = model::recognise_with(path, parts)?;
    let dtype = dtype.unwrap_or_else(|| recognised.weight_type(&on.device, limits));
    let weights = |source: &Source| source.checkpoint.fingerprint();
    let origin = Origin {
        name: base_name(path),
        kind: recognised.kind.clone(),
        weights: weights(&recognised.net),
        dtype,
        vae: recognised.vae.as_ref().map(|source| Used {
            file: vae.as_deref().map(base_name),
            fingerprint: Some(weights(source)),
        }),
        text_encoder: parts
            .text_encoder
            .zip(recognised.text.as_ref())
            .map(|(path, text)| Used::weights(path, weights(&text.encoder.source))),
        guide: None,
        device: on.to_string(),
    };
    let model =
        recognised.load_within(limits, dtype, &on.device, &mut |notice| hooks.notify(notice))?;
    Ok((model, origin))
}
