//! What is at a path: a model that is recognised before its weights are read.

use std::path::Path;

use burn::tensor::Device;
use pyrograph_engine::device::is_host;
use pyrograph_weights::{Bundle, Checkpoint, FloatDtype, read_manifest};
use serde::Deserialize;

use super::autoencoder::{self, Found, Latents};
use super::check::{check, check_numbers, check_text};
use super::room::{Limits, Room};
use super::text::TextSource;
use super::{
    CLIPS, FAMILIES, Model, ModelConfig, NET, Source, TEXT, VAE, WeightType, diffusers, load_part,
    minit2i, original, read_json, resolved, stored,
};
use crate::error::{Error, Result};
use crate::hooks::Notice;

/// Weights of a transformer, beyond which those in bf16 stay so if nobody says anything else.
const MANY: usize = 1_000_000_000;

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
    pub(super) latents: Option<Latents>,
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

    /// How the weights are held on a device if nobody says: as they are stored, where those of the transformer would take more
    /// than a limit in f32, and on the CPU where they are of fewer than 16 bits, or bf16 and many; otherwise, in f32.
    pub fn weight_type(&self, device: &Device, limits: Limits) -> WeightType {
        let fits = || {
            let room = Room::of(self, limits, false, device);
            room.left().is_none_or(|left| self.weights(FloatDtype::F32) <= left)
        };
        let stored = match is_host(device) {
            true => stays_stored(&self.net.checkpoint) || limits.memory.is_some() && !fits(),
            false => !fits(),
        };
        match stored {
            true => WeightType::Stored,
            false => WeightType::default(),
        }
    }

    /// Bytes of the transformer's weights.
    fn weights(&self, dtype: FloatDtype) -> u64 {
        (self.net.checkpoint.elements() * dtype.size()) as u64
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
    /// activations need, though beside weights in bf16 or as they are stored its products may
    /// [round](pyrograph_engine::nets::Vae::rounding), and on the CPU those of a text encoder that is read block by block;
    /// `notify` hears of weights that are not finite.
    ///
    /// # Errors
    /// If a file of a bundle is not the one that was saved, if anything is missing, unused, or of the wrong shape, if
    /// `device` cannot compute in `dtype`, or the machine has no room.
    pub fn load(
        self,
        dtype: impl Into<WeightType>,
        device: &Device,
        notify: &mut dyn FnMut(Notice),
    ) -> Result<Model> {
        self.load_within(Limits::default(), dtype.into(), device, notify)
    }

    /// [`Recognised::load`] with at most so much memory: of weights as they are [stored](WeightType::Stored), those that do not
    /// fit are read from the file whenever they are needed.
    ///
    /// # Errors
    /// As there, and a limit on memory for weights that a GPU holds.
    pub fn load_within(
        self,
        limits: Limits,
        held: WeightType,
        device: &Device,
        notify: &mut dyn FnMut(Notice),
    ) -> Result<Model> {
        let dtype = match held {
            WeightType::Float(dtype) => dtype,
            WeightType::Int8 => {
                let half = FloatDtype::F16.into();
                return self.load_within(limits, half, device, notify)?.quantized();
            }
            WeightType::Stored => FloatDtype::F32,
        };
        if limits.memory.is_some() && !is_host(device) && held != WeightType::Stored {
            return Err(Error::Setting {
                what: "limit on memory",
                found: format!("one for weights in {held} on a GPU"),
                expected: "one for the CPU, or for weights as they are stored".into(),
            });
        }
        let rounds = dtype == FloatDtype::Bf16 || held == WeightType::Stored;
        let room = Room::of(&self, limits, rounds, device);
        let weights = self.weights(dtype);
        let Self { config, net, vae, text, clips, notices, .. } = self;
        notices.into_iter().for_each(&mut *notify);
        let fresh = config.net.init(0, device);
        let (net, footprint) = match held {
            WeightType::Stored if !is_host(device) => {
                let machine = Room::of_machine(limits);
                stored::load(fresh, &net, &machine, Some(&room), device, notify)?
            }
            WeightType::Stored => stored::load(fresh, &net, &room, None, device, notify)?,
            _ => {
                room.check(held, weights)?;
                let footprint = room.footprint(weights, 0, notify);
                (load_part(fresh, &net, dtype, device, notify)?, footprint)
            }
        };
        let vae = match (&config.vae, &vae) {
            (Some(config), Some(source)) => {
                let vae = load_part(config.init(device), source, FloatDtype::F32, device, notify)?;
                Some(if rounds { vae.rounding() } else { vae })
            }
            _ => None,
        };
        let text = text.map(|text| text.open(rounds, device, notify)).transpose()?;
        let clips = clips.into_iter().map(|clip| clip.open(rounds, device, notify));
        let clips = clips.collect::<Result<_>>()?;
        Ok(Model { net, vae, text, clips, config, footprint })
    }
}

/// Whether weights are used as they are stored though there is room for them in f32.
fn stays_stored(checkpoint: &Checkpoint) -> bool {
    checkpoint.is_compressed() || checkpoint.elements() > MANY && checkpoint.is_bf16()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use super::*;

    #[test]
    fn many_weights_in_bf16_stay_so() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file.safetensors");
        // A file without its numbers takes no room on disk.
        let stays = |dtype: &str, rows: u64| {
            let bytes = 2 * rows * 40_000;
            let header = format!(
                r#"{{"a": {{"dtype": "{dtype}", "shape": [{rows}, 40000], "data_offsets": [0, {bytes}]}}}}"#
            );
            let mut file = File::create(&path).expect("a file");
            file.write_all(&(header.len() as u64).to_le_bytes()).expect("written");
            file.write_all(header.as_bytes()).expect("written");
            file.set_len(8 + header.len() as u64 + bytes).expect("longer");
            stays_stored(&Checkpoint::open(&path).expect("a file"))
        };
        assert_eq!(
            [stays("BF16", 30_000), stays("BF16", 20_000), stays("F16", 30_000)],
            [true, false, false]
        );
    }
}
