//! Opening models.
//!
//! A native bundle, a diffusers folder and an original checkpoint file all become a [`Model`]: the
//! networks on a device and a [`ModelConfig`]. Reading a foreign layout is a rule table of the
//! `pyrograph-weights` crate plus the few lines here that turn its configuration into ours.

mod diffusers;
mod original;
mod registry;
mod weight_type;

pub use registry::find;
pub use weight_type::WeightType;

use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::Device;
use pyrograph_engine::denoisers;
use pyrograph_engine::diffusion::Process;
use pyrograph_engine::nets::{ConfigError, Net, NetConfig, Vae, VaeConfig};
use pyrograph_weights::{
    Bundle, Checkpoint, FloatDtype, Layout, LoadReport, Manifest, Part, save_bundle,
};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::hooks::Notice;
use crate::labels::Labels;
use crate::settings::Defaults;

/// Description of a class-conditional model; the `config` of its `model.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// The transformer.
    pub net: NetConfig,
    /// The diffusion process it was trained on.
    pub process: Process,
    /// The autoencoder; a model without one works on pixels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vae: Option<VaeConfig>,
    /// Settings where the user says nothing.
    pub defaults: Defaults,
    /// Names of the classes.
    #[serde(default)]
    pub labels: Labels,
}

/// Value of `family` in the `model.json` of a class-conditional model.
const FAMILY: &str = "class";
/// Name of the transformer's part in a bundle.
const NET: &str = "dit";
/// Name of the autoencoder's part in a bundle.
const VAE: &str = "vae";

/// A model on a device.
#[derive(Debug)]
pub struct Model {
    /// The transformer.
    pub net: Net,
    /// The autoencoder, if the model works on latents.
    pub vae: Option<Vae>,
    /// Description.
    pub config: ModelConfig,
}

/// A network's weights before they are read: a checkpoint and the table that maps its names.
#[derive(Debug)]
pub struct Source {
    /// The tensors.
    pub checkpoint: Checkpoint,
    /// How they map to our parameters.
    pub layout: Layout,
    /// The bundle that knows their checksum, and their name there.
    seal: Option<(Bundle, &'static str)>,
}

impl Source {
    /// Weights under names that `layout` maps to ours.
    pub fn new(checkpoint: Checkpoint, layout: Layout) -> Self {
        Self { checkpoint, layout, seal: None }
    }

    /// A part of a bundle.
    fn sealed(bundle: &Bundle, part: &'static str) -> Result<Self> {
        let checkpoint = bundle.checkpoint(part)?;
        Ok(Self { checkpoint, layout: Layout::native(), seal: Some((bundle.clone(), part)) })
    }
}

/// A model that has been recognised but not loaded.
#[derive(Debug)]
pub struct Recognised {
    /// What it is, for people.
    pub kind: String,
    /// Description.
    pub config: ModelConfig,
    /// Weights of the transformer.
    pub net: Source,
    /// Weights of the autoencoder.
    pub vae: Option<Source>,
}

/// Finds out what is at `path` and reads its configuration, but no weights.
///
/// # Errors
/// If nothing is there, nothing is recognised, or the configuration is broken.
pub fn recognise(path: &Path) -> Result<Recognised> {
    if !path.exists() {
        return Err(Error::NoModel { path: path.to_owned() });
    }
    let recognised = if path.join("model.json").is_file() {
        native(path)?
    } else if path.join("model_index.json").is_file() {
        diffusers::recognise(path)?
    } else if path.is_file() {
        original::recognise(path)?
    } else {
        return Err(Error::NotAModel {
            path: path.to_owned(),
            reason: "a folder with neither model.json nor model_index.json".into(),
        });
    };
    let fault =
        |error: ConfigError| Error::NotAModel { path: path.to_owned(), reason: error.to_string() };
    let ModelConfig { net, process, .. } = &recognised.config;
    net.check().map_err(fault)?;
    denoisers::check(process, &net.dit).map_err(fault)?;
    if let Some(vae) = &recognised.config.vae {
        vae.check().map_err(fault)?;
    }
    Ok(recognised)
}

fn native(path: &Path) -> Result<Recognised> {
    let bundle = Bundle::open(path)?;
    let manifest = bundle.manifest();
    if manifest.family != FAMILY {
        return Err(Error::NotAModel {
            path: path.to_owned(),
            reason: format!("family `{}`, expected `{FAMILY}`", manifest.family),
        });
    }
    let config: ModelConfig = serde_json::from_value(manifest.config.clone())
        .map_err(|source| Error::Json { path: path.join("model.json"), source })?;
    Ok(Recognised {
        kind: "pyrograph bundle".into(),
        net: Source::sealed(&bundle, NET)?,
        vae: config.vae.is_some().then(|| Source::sealed(&bundle, VAE)).transpose()?,
        config,
    })
}

impl Recognised {
    /// Adds the autoencoder of another model, for a checkpoint that comes without one.
    ///
    /// # Errors
    /// If `path` holds no autoencoder, or one of other latents.
    pub fn with_vae(mut self, path: &Path) -> Result<Self> {
        let fault = |reason: String| Error::NotAModel { path: path.to_owned(), reason };
        let (config, source) = match path.join("config.json").is_file() {
            true => diffusers::autoencoder(path)?,
            false => {
                let other = recognise(path)?;
                let part = other.config.vae.zip(other.vae);
                part.ok_or_else(|| fault("it has no autoencoder".into()))?
            }
        };
        let channels = self.config.net.dit.channels;
        if config.latent_channels != channels {
            let found = config.latent_channels;
            return Err(fault(format!("latents of {found} channels, the model has {channels}")));
        }
        self.config.vae = Some(config);
        self.vae = Some(source);
        Ok(self)
    }

    /// Loads the weights onto `device`, the transformer's in `dtype`, the autoencoder's in f32, which its
    /// activations need; `notify` hears of weights that are not finite.
    ///
    /// # Errors
    /// If a file of a bundle is not the one that was saved, if anything is missing, unused, or of the wrong shape, or
    /// if `device` cannot compute in `dtype`.
    pub fn load(
        self,
        dtype: impl Into<WeightType>,
        device: &Device,
        notify: &mut dyn FnMut(Notice),
    ) -> Result<Model> {
        let dtype = match dtype.into() {
            WeightType::Float(dtype) => dtype,
            WeightType::Int8 => return self.load(FloatDtype::F16, device, notify)?.quantized(),
        };
        if !device.supports_dtype(dtype.burn()) {
            return Err(Error::UnsupportedDtype { dtype: dtype.to_string() });
        }
        let Self { config, net, vae, .. } = self;
        Ok(Model {
            net: load_part(config.net.init(0, device), &net, dtype, device, notify)?,
            vae: match (&config.vae, &vae) {
                (Some(config), Some(source)) => {
                    Some(load_part(config.init(device), source, FloatDtype::F32, device, notify)?)
                }
                _ => None,
            },
            config,
        })
    }
}

fn load_part<M: Module>(
    module: M,
    source: &Source,
    dtype: FloatDtype,
    device: &Device,
    notify: &mut dyn FnMut(Notice),
) -> Result<M> {
    if let Some((bundle, part)) = &source.seal {
        bundle.verify(part)?;
    }
    let (module, LoadReport { not_finite, .. }) =
        pyrograph_weights::load(module, &source.checkpoint, &source.layout, dtype, device)?;
    if let Some(first) = not_finite.first() {
        notify(Notice::NotFinite { tensors: not_finite.len(), first: first.to_string() });
    }
    Ok(module)
}

/// The autoencoder of a model, in f32, and the fingerprint of its weights.
pub(crate) fn open_autoencoder(path: &Path, device: &Device) -> Result<(Vae, String)> {
    let Recognised { config, vae, .. } = recognise(path)?;
    let (Some(config), Some(source)) = (config.vae, vae) else {
        let reason = "it has no autoencoder".into();
        return Err(Error::NotAModel { path: path.to_owned(), reason });
    };
    let fresh = config.init(device);
    let vae = load_part(fresh, &source, FloatDtype::F32, device, &mut |_| ())?;
    Ok((vae, source.checkpoint.fingerprint()))
}

impl Model {
    /// The model with the transformer's weights in 8 bits, for inference on the CPU alone: it cannot be
    /// saved or trained. Loaded in f16, it takes about half the memory, and computes in f32.
    ///
    /// # Errors
    /// If it is on a GPU or was not loaded in f16.
    pub fn quantized(self) -> Result<Self> {
        let unsupported = || Error::UnsupportedDtype { dtype: WeightType::Int8.to_string() };
        Ok(Self { net: self.net.quantized().ok_or_else(unsupported)?, ..self })
    }

    /// The start of a `model.json`; licence and source are the caller's to fill in.
    ///
    /// # Errors
    /// None that this description can cause.
    pub fn manifest(&self) -> Result<Manifest> {
        Ok(Manifest::new(FAMILY, &self.config)?)
    }

    /// Writes a native bundle: a folder that appears whole or not at all.
    ///
    /// # Errors
    /// If the folder is there and `overwrite` is not set, or it cannot be written.
    pub fn save(
        &self,
        path: &Path,
        manifest: Manifest,
        dtype: FloatDtype,
        overwrite: bool,
    ) -> Result<()> {
        let mut parts = vec![(NET, Part::module(&self.net))];
        parts.extend(self.vae.as_ref().map(|vae| (VAE, Part::module(vae))));
        Ok(save_bundle(path, manifest, parts, dtype, overwrite)?)
    }
}

/// Opens a model in one go, in f32.
///
/// # Errors
/// See [`recognise`] and [`Recognised::load`].
pub fn open(path: &Path, device: &Device) -> Result<Model> {
    recognise(path)?.load(FloatDtype::F32, device, &mut |_| ())
}

/// Reads a JSON file of at most a few megabytes.
fn read_json<T: serde::de::DeserializeOwned>(path: PathBuf) -> Result<T> {
    let text = std::fs::read_to_string(&path)
        .map_err(|source| Error::File { path: path.clone(), source })?;
    // Python writes values that JSON does not have; no field that is read here takes them.
    let text = [": -Infinity", ": Infinity", ": NaN"]
        .iter()
        .fold(text, |text, value| text.replace(value, ": null"));
    serde_json::from_str(&text).map_err(|source| Error::Json { path, source })
}
