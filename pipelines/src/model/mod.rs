//! Opening models.
//!
//! A native bundle, a diffusers folder and an original checkpoint file all become a [`Model`]: the
//! networks on a device and a [`ModelConfig`]. Reading a foreign layout is a rule table of the
//! `pyrograph-weights` crate plus the few lines here that turn its configuration into ours.

pub(crate) mod aspect;
mod autoencoder;
mod check;
mod diffusers;
pub(crate) mod flux2;
mod folders;
mod gemma2;
mod lumina2;
mod minit2i;
mod original;
mod pixart;
mod reader;
mod recognised;
mod registry;
mod room;
mod scheduler;
mod scheduler_keys;
pub(crate) mod sd3;
mod states;
mod stored;
mod stream;
pub mod text;
pub mod text_encoder;
mod weight_type;
pub(crate) mod z_image;

pub(crate) use folders::resolved;
pub use reader::TextReader;
pub use recognised::{Parts, Recognised, recognise, recognise_with};
pub use registry::{SHIPPED, find};
pub(crate) use room::Footprint;
pub use room::Limits;
pub use weight_type::WeightType;

use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::Device;
use pyrograph_engine::diffusion::{Grid, Process};
use pyrograph_engine::nets::{Adaptable, Net, NetConfig, Vae, VaeConfig};
use pyrograph_weights::{
    Bundle, Checkpoint, FloatDtype, Layout, LoadReport, Manifest, Part, check_target, read_at_most,
    save_bundle,
};
use serde::{Deserialize, Serialize};

use self::autoencoder::Found;
use self::text::TextInput;
use crate::error::{Error, Result};
use crate::hooks::Notice;
use crate::labels::Labels;
use crate::settings::{Defaults, Settings};

/// Description of a model; the `config` of its `model.json`.
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
    /// How it reads texts, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<TextInput>,
}

impl ModelConfig {
    /// The levels of all steps of images with these settings.
    ///
    /// # Errors
    /// Settings that do not go with the process.
    pub fn grid(&self, settings: &Settings) -> Result<Grid> {
        let (net, factor) = (&self.net.dit, self.vae.as_ref().map_or(1, VaeConfig::factor));
        let size = settings.size.map_or(net.size, |size| size.map(|side| side / factor));
        let [rows, columns] = net.grid(size, net.patch);
        settings.grid(&self.process.of_image(rows * columns, settings.steps))
    }
}

/// Values of `family` in the `model.json` of a model that is told classes, or texts.
const FAMILIES: [&str; 2] = ["class", "text"];
/// Name of the transformer's part in a bundle.
const NET: &str = "dit";
/// Name of the autoencoder's part in a bundle.
const VAE: &str = "vae";
/// Name of the text encoder's part in a bundle.
const TEXT: &str = "text";
/// Names of the parts of encoders of CLIP.
const CLIPS: [&str; 2] = ["clip", "clip_2"];
/// Largest file of a configuration.
const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// A model on a device; a clone shares its weights.
#[derive(Debug, Clone)]
pub struct Model {
    /// The transformer.
    pub net: Net,
    /// The autoencoder, if the model works on latents.
    pub vae: Option<Vae>,
    /// What reads its texts, if it is told any.
    pub text: Option<TextReader>,
    /// Encoders of CLIP that read them, too.
    pub clips: Vec<TextReader>,
    /// Description.
    pub config: ModelConfig,
    /// Where its weights are.
    pub(crate) footprint: Footprint,
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

    fn verify(&self) -> Result<()> {
        match &self.seal {
            Some((bundle, part)) => Ok(bundle.verify(part)?),
            None => Ok(()),
        }
    }

    /// A part of a bundle.
    fn sealed(bundle: &Bundle, part: &'static str) -> Result<Self> {
        let checkpoint = bundle.checkpoint(part)?;
        Ok(Self { checkpoint, layout: Layout::native(), seal: Some((bundle.clone(), part)) })
    }
}

fn load_part<M: Module>(
    module: M,
    source: &Source,
    dtype: FloatDtype,
    device: &Device,
    notify: &mut dyn FnMut(Notice),
) -> Result<M> {
    if !device.supports_dtype(dtype.burn()) {
        return Err(Error::UnsupportedDtype { dtype: dtype.to_string() });
    }
    source.verify()?;
    let (module, report) =
        pyrograph_weights::load(module, &source.checkpoint, &source.layout, dtype, device)?;
    tell(&report, notify);
    Ok(module)
}

fn tell(LoadReport { not_finite, .. }: &LoadReport, notify: &mut dyn FnMut(Notice)) {
    if let Some(first) = not_finite.first() {
        notify(Notice::NotFinite { tensors: not_finite.len(), first: first.to_string() });
    }
}

/// Fingerprint of a model's network.
pub(crate) fn fingerprint(path: &Path) -> Result<String> {
    Ok(recognise(path)?.net.checkpoint.fingerprint())
}

/// Description of the autoencoder that [`open_autoencoder`] opens.
pub(crate) fn autoencoder_config(path: &Path) -> Result<VaeConfig> {
    Ok(autoencoder::find(path, None)?.config)
}

/// Fingerprint of the autoencoder that [`recognise_with`] would add.
pub(crate) fn vae_fingerprint(path: &Path) -> Result<String> {
    autoencoder::fingerprint(path)
}

/// Fingerprint of the text encoder that [`recognise_with`] would add.
pub(crate) fn text_fingerprint(path: &Path) -> Result<String> {
    Ok(text::encoder(path)?.source.checkpoint.fingerprint())
}

/// The autoencoder of a model, in f32, and the fingerprint of its weights.
///
/// What it takes for granted is in the configuration from then on, and no matter for a new model.
pub(crate) fn open_autoencoder(path: &Path, device: &Device) -> Result<(Vae, String)> {
    let Found { config, source, .. } = autoencoder::find(path, None)?;
    let vae = load_part(config.init(device), &source, FloatDtype::F32, device, &mut |_| ())?;
    Ok((vae, source.checkpoint.fingerprint()))
}

impl Model {
    /// Networks that are in memory, and nothing that reads texts.
    pub fn new(net: Net, vae: Option<Vae>, config: ModelConfig) -> Self {
        let (text, clips, footprint) = (None, Vec::new(), Footprint::default());
        Self { net, vae, text, clips, config, footprint }
    }

    /// The model with the transformer's weights in 8 bits, for inference on the CPU alone: it cannot be
    /// saved or trained. Loaded in f16, it takes about half the memory, and computes in f32.
    ///
    /// # Errors
    /// If it is on a GPU or was not loaded in f16.
    pub fn quantized(self) -> Result<Self> {
        let unsupported = || Error::UnsupportedDtype { dtype: WeightType::Int8.to_string() };
        let vae = self.vae.map(Vae::rounding);
        Ok(Self { net: self.net.quantized().ok_or_else(unsupported)?, vae, ..self })
    }

    /// The start of a `model.json`; licence and source are the caller's to fill in.
    ///
    /// # Errors
    /// None that this description can cause.
    pub fn manifest(&self) -> Result<Manifest> {
        Ok(Manifest::new(FAMILIES[usize::from(self.config.text.is_some())], &self.config)?)
    }

    /// [`Model::save`] as the model of a training run, which is replaced again and again: without a text encoder that is
    /// too large to be held in memory.
    pub(crate) fn save_lean(&self, path: &Path, dtype: FloatDtype) -> Result<()> {
        let large = self.text.as_ref().is_some_and(TextReader::is_streamed);
        let lean = large.then(|| {
            let mut lean = Self { text: None, ..self.clone() };
            lean.config.text.iter_mut().for_each(|input| input.encoder = None);
            lean
        });
        let model = lean.as_ref().unwrap_or(self);
        model.save(path, model.manifest()?, dtype, true)
    }

    /// Writes a native bundle: a folder that appears whole or not at all.
    ///
    /// # Errors
    /// See [`check_save`], and weights that were loaded in 8 bits or as a file stores them.
    pub fn save(
        &self,
        path: &Path,
        manifest: Manifest,
        dtype: FloatDtype,
        overwrite: bool,
    ) -> Result<()> {
        if !self.net.is_plain() {
            return Err(Error::NotSaved { path: path.to_owned() });
        }
        let mut parts = vec![(NET, Part::module(&self.net))];
        parts.extend(self.vae.as_ref().map(|vae| (VAE, Part::module(vae))));
        if let Some(text) = &self.text {
            parts.push((TEXT, text.source().part()?));
        }
        for (clip, name) in self.clips.iter().zip(CLIPS) {
            parts.push((name, clip.source().part()?));
        }
        Ok(save_bundle(path, manifest, parts, dtype, overwrite)?)
    }
}

/// Checks, before any work, that [`Model::save`] can write to a path.
///
/// # Errors
/// Something that is there without `overwrite`, something else than a bundle, a folder that cannot be written.
pub fn check_save(path: &Path, overwrite: bool) -> Result<()> {
    Ok(check_target(path, overwrite)?)
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
    let text = read_at_most(&path, MAX_CONFIG_BYTES)?;
    let text = String::from_utf8_lossy(&text);
    // Some editors put a mark before the text.
    let text = text.trim_start_matches('\u{feff}');
    // Python writes values that JSON does not have; no field that is read here takes them. All stays in its place.
    let plain =
        [": -Infinity", ": Infinity", ": NaN"].iter().fold(text.to_owned(), |text, value| {
            text.replace(value, &format!(":{:>1$}", "null", value.len() - 1))
        });
    serde_json::from_str(&plain).map_err(|source| Error::json(&path, text, source))
}
