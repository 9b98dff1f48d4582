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
mod registry;
mod scheduler;
mod scheduler_keys;
pub(crate) mod sd3;
mod states;
mod stored;
pub mod text;
pub mod text_encoder;
mod weight_type;
pub(crate) mod z_image;

pub(crate) use folders::resolved;
pub use reader::TextReader;
pub use registry::{SHIPPED, find};
pub use weight_type::WeightType;

use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::Device;
use pyrograph_engine::device::is_host;
use pyrograph_engine::diffusion::{Grid, Process};
use pyrograph_engine::nets::{Adaptable, Net, NetConfig, Vae, VaeConfig};
use pyrograph_weights::{
    Bundle, Checkpoint, FloatDtype, Layout, LoadReport, Manifest, Part, check_target, read_at_most,
    read_manifest, save_bundle,
};
use serde::{Deserialize, Serialize};

use self::autoencoder::{Found, Latents};
use self::check::{check, check_numbers, check_text};
use self::text::{TextInput, TextSource};
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
    /// What reads its texts.
    pub text: Option<TextSource>,
    /// Encoders of CLIP beside it.
    pub clips: Vec<TextSource>,
    /// How its network sees latents, if its family has one way.
    latents: Option<Latents>,
    /// What its user should know; loading passes it on.
    pub notices: Vec<Notice>,
}

/// Finds out what is at `path` and reads its configuration, but no weights. The folder of a training run stands for
/// its newest model.
///
/// # Errors
/// If nothing is there, nothing is recognised, or the configuration is broken.
pub fn recognise(path: &Path) -> Result<Recognised> {
    recognise_with(path, Parts::default())
}

/// Parts of a model that are elsewhere.
#[derive(Debug, Clone, Copy, Default)]
pub struct Parts<'a> {
    /// Autoencoder: a diffusers `vae` folder, a file, or a model with one.
    pub vae: Option<&'a Path>,
    /// Text encoder: its folder, or that of a pipeline, or a file.
    pub text_encoder: Option<&'a Path>,
    /// Tokenizer: its folder. Without, it is looked for with the text encoder.
    pub tokenizer: Option<&'a Path>,
}

/// The same with parts from elsewhere, for a model that comes without, or in place of its own.
///
/// # Errors
/// As there, and if they hold no such part, or one that does not fit the network.
pub fn recognise_with(path: &Path, parts: Parts<'_>) -> Result<Recognised> {
    let mut recognised = recognise_own(path, parts)?;
    if let Some(vae) = parts.vae {
        recognised = recognised.with_vae(vae)?;
    }
    match (parts.text_encoder, parts.tokenizer) {
        (Some(encoder), tokenizer) => recognised.with_text(encoder, tokenizer),
        (None, None) => Ok(recognised),
        (None, Some(tokenizer)) => {
            let reason = "a tokenizer of its own, without a text encoder".into();
            Err(Error::NotAModel { path: tokenizer.to_owned(), reason })
        }
    }
}

/// The model at `path`; if it is a diffusers folder, with what it holds of the parts that are not elsewhere.
fn recognise_own(path: &Path, elsewhere: Parts<'_>) -> Result<Recognised> {
    if !path.exists() {
        return Err(Error::NoModel { path: path.to_owned() });
    }
    let path = &resolved(path)?;
    let recognised = if path.join("model.json").is_file() {
        native(path)?
    } else if minit2i::is_in(path) {
        minit2i::recognise(path, elsewhere)?
    } else if path.is_dir() {
        diffusers::recognise(path, elsewhere)?
    } else {
        original::recognise(path, elsewhere)?
    };
    check(path, &recognised)?;
    Ok(recognised)
}

/// The part of a `model.json` that describes a model.
#[derive(Deserialize)]
struct Described {
    config: ModelConfig,
}

fn native(path: &Path) -> Result<Recognised> {
    let manifest = read_manifest(path)?;
    if !FAMILIES.contains(&manifest.family.as_str()) {
        return Err(Error::NotAModel {
            path: path.to_owned(),
            reason: format!("family `{}`, expected {}", manifest.family, FAMILIES.join(" or ")),
        });
    }
    let config: ModelConfig =
        serde_json::from_value(manifest.config.clone()).or_else(|source| {
            // Where in the file it is, only its text tells.
            let path = path.join("model.json");
            let again = read_json::<Described>(path.clone()).map(|described| described.config);
            again.map_err(|error| match error {
                Error::Value { .. } => error,
                _ => Error::Json { path, source },
            })
        })?;
    // Numbers before the weights, which need not be there for them to be wrong.
    check_numbers(path, &config)?;
    let bundle = Bundle::open(path)?;
    let input = config.text.as_ref();
    let text = input.and_then(|input| Some((input, input.encoder.as_ref()?)));
    let text = text.map(|(input, encoder)| {
        let source = TextSource::sealed(path, encoder, None, Source::sealed(&bundle, TEXT)?);
        source.map(|source| source.reading(input))
    });
    let clips = input.iter().flat_map(|input| &input.clips).zip(CLIPS).map(|(clip, name)| {
        let source = Source::sealed(&bundle, name)?;
        Ok(TextSource::sealed(path, &clip.encoder, clip.end, source)?.clip().0)
    });
    Ok(Recognised {
        kind: "pyrograph bundle".into(),
        net: Source::sealed(&bundle, NET)?,
        vae: config.vae.is_some().then(|| Source::sealed(&bundle, VAE)).transpose()?,
        text: text.transpose()?,
        clips: clips.collect::<Result<_>>()?,
        latents: None,
        notices: Vec::new(),
        config,
    })
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

impl Recognised {
    /// Reads all of a bundle and compares it with the checksums in its manifest; other models have none.
    ///
    /// # Errors
    /// A part that differs.
    pub fn verify(&self) -> Result<()> {
        let texts = self.text.iter().chain(&self.clips).map(|text| &text.encoder.source);
        let sources = std::iter::once(&self.net).chain(&self.vae).chain(texts);
        sources.into_iter().try_for_each(Source::verify)
    }

    /// How the weights are held on a device if nobody says: as they are stored, on the CPU, where those of the transformer are
    /// of fewer than 16 bits, and in f32 otherwise.
    pub fn weight_type(&self, device: &Device) -> WeightType {
        match is_host(device) && self.net.checkpoint.is_compressed() {
            true => WeightType::Stored,
            false => WeightType::default(),
        }
    }

    /// Adds the autoencoder of another model.
    fn with_vae(mut self, path: &Path) -> Result<Self> {
        let Found { config, source, notice } = autoencoder::find(path, self.latents)?;
        let channels = self.config.net.dit.channels;
        if config.scaled_channels() != channels {
            let found = config.scaled_channels();
            return Err(Error::Autoencoder {
                path: path.to_owned(),
                reason: format!("latents of {found} channels, the model has {channels}"),
            });
        }
        self.config.vae = Some(config);
        self.vae = Some(source);
        self.notices.extend(notice);
        Ok(self)
    }

    /// Adds a text encoder from elsewhere.
    fn with_text(mut self, path: &Path, tokenizer: Option<&Path>) -> Result<Self> {
        let fault = |reason| Error::NotAModel { path: path.to_owned(), reason };
        let Some(input) = &mut self.config.text else {
            return Err(fault("a text encoder, for a model that reads no text".into()));
        };
        if self.config.net.dit.text.as_ref().is_some_and(|text| text.closing) {
            if tokenizer.is_some() {
                return Err(fault(
                    "several text encoders, each with a tokenizer of its own".into(),
                ));
            }
            input.clips.clear();
            (self.text, self.clips) = diffusers::encoders(path, true, input)?;
            check_text(&self.config).map_err(fault)?;
            return Ok(self);
        }
        let text = TextSource::find(path, tokenizer)?.reading(input);
        input.encoder = Some(text.encoder.config.clone());
        check_text(&self.config).map_err(fault)?;
        Ok(Self { text: Some(text), ..self })
    }

    /// Loads the weights onto `device`, the transformer's in `dtype`, the autoencoder's in f32, which its
    /// activations need, though beside weights of fewer bits its products may [round](Vae::rounding); `notify` hears of weights that are not finite.
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
        let held = dtype.into();
        let dtype = match held {
            WeightType::Float(dtype) => dtype,
            WeightType::Int8 => return self.load(FloatDtype::F16, device, notify)?.quantized(),
            WeightType::Stored if is_host(device) => FloatDtype::F32,
            WeightType::Stored => return Err(Error::UnsupportedDtype { dtype: held.to_string() }),
        };
        let Self { config, net, vae, text, clips, notices, .. } = self;
        notices.into_iter().for_each(&mut *notify);
        let fresh = config.net.init(0, device);
        let net = match held {
            WeightType::Stored => stored::load(fresh, &net, device, notify)?,
            _ => load_part(fresh, &net, dtype, device, notify)?,
        };
        let vae = match (&config.vae, &vae) {
            (Some(config), Some(source)) => {
                let vae = load_part(config.init(device), source, FloatDtype::F32, device, notify)?;
                let rounds = dtype == FloatDtype::Bf16 || held == WeightType::Stored;
                Some(if rounds { vae.rounding() } else { vae })
            }
            _ => None,
        };
        let text = text.map(|text| text.open(device, notify)).transpose()?;
        let clips = clips.into_iter().map(|clip| clip.open(device, notify));
        let clips = clips.collect::<Result<_>>()?;
        Ok(Model { net, vae, text, clips, config })
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

/// The autoencoder of a model, in f32, and the fingerprint of its weights.
///
/// What it takes for granted is in the configuration from then on, and no matter for a new model.
pub(crate) fn open_autoencoder(path: &Path, device: &Device) -> Result<(Vae, String)> {
    let Found { config, source, .. } = autoencoder::find(path, None)?;
    let vae = load_part(config.init(device), &source, FloatDtype::F32, device, &mut |_| ())?;
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
