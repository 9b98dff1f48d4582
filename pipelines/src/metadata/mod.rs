//! Settings inside pictures: what makes them again, A1111's `parameters`, and any other text.
//!
//! PNG keeps them as texts, JPEG and WebP in Exif. No folder is ever kept: files are named by their base names and
//! recognised by the fingerprints of what they hold.

mod exif;
mod find;
mod parameters;
mod texts;

use std::path::Path;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

pub(crate) use exif::exif;
pub use find::Search;
pub use parameters::Parameters;
pub use texts::read;

use crate::adapter::PutOn;
use crate::branches;
use crate::control::ControlBranch;
use crate::error::{Error, Result};
use crate::labels::Labels;
use crate::model::WeightType;
use crate::pipeline::{Compute, Pipeline};
use crate::request::{Controlled, Noise, Picture, Request, is_false};
use crate::settings::Settings;
use crate::task::PromptTask;

/// Keyword of a [`Record`] in a picture.
const KEY: &str = "pyrograph";
/// Of this library, as records name it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A file or folder that images are made from: its name, without folders, and what it holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Used {
    /// Its base name; `None` for what an application gave from memory, and for a part of the model. Pictures of earlier
    /// versions may have a path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Of weights their fingerprint, of pictures and noise the sha256 of the file or of the values in memory; `None` in
    /// pictures of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
}

/// The last part of a path, also of one that ends in dots.
pub(crate) fn base_name(path: &Path) -> String {
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    name(path).or_else(|| name(&path.canonicalize().ok()?)).unwrap_or_default()
}

impl Used {
    /// Weights at a path.
    pub(crate) fn weights(path: &Path, fingerprint: String) -> Self {
        Self { file: Some(base_name(path)), fingerprint: Some(fingerprint) }
    }

    /// The content of a file.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn file(path: &Path) -> Result<Self> {
        Ok(Self::weights(path, pyrograph_weights::sha256(path)?))
    }

    fn memory(bytes: &[u8]) -> Self {
        Self { file: None, fingerprint: Some(pyrograph_weights::sha256_of(bytes)) }
    }

    fn picture(picture: &Picture) -> Result<Self> {
        Ok(match picture {
            Picture::File(path) => Self::file(path)?,
            Picture::Pixels(pixels) => Self::memory(pixels.as_raw()),
            Picture::Latent(latent) => Self::memory(latent.to_data().bytes()),
        })
    }
}

/// A picture that images start from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartRecord {
    /// The picture.
    #[serde(flatten)]
    pub picture: Used,
    /// See [`StartPicture::strength`](crate::StartPicture::strength).
    #[serde(default)]
    pub strength: Option<f64>,
}

/// A picture that controls images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlRecord {
    /// The branch that sees it.
    pub branch: Used,
    /// The picture.
    pub picture: Used,
    /// See [`Controlled::ready`].
    #[serde(default, skip_serializing_if = "is_false")]
    pub ready: bool,
    /// See [`Controlled::scale`].
    pub scale: f64,
    /// See [`Controlled::steps`].
    pub steps: [f64; 2],
}

impl ControlRecord {
    fn of(control: &Controlled) -> Result<Self> {
        let Controlled { branch, picture, ready, scale, steps } = control;
        let branch = match branch {
            ControlBranch::Folder(path) => Used::weights(path, branches::fingerprint(path)?),
            ControlBranch::Open(branch) => {
                Used { file: None, fingerprint: Some(branch.fingerprint.clone()) }
            }
        };
        let picture = Used::picture(picture)?;
        Ok(Self { branch, picture, ready: *ready, scale: *scale, steps: *steps })
    }
}

/// Noise that replaces that of the seed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoiseRecord {
    /// All of it.
    #[serde(flatten)]
    pub noise: Used,
    /// Which of it is that of the first image.
    #[serde(default)]
    pub first: usize,
}

impl NoiseRecord {
    fn of(noise: &Noise) -> Result<Self> {
        Ok(match noise {
            Noise::File(path) => Self { noise: Used::file(path)?, first: 0 },
            Noise::Part { file, first } => Self { noise: Used::file(file)?, first: *first },
            Noise::Values(values) => {
                Self { noise: Used::memory(values.to_data().bytes()), first: 0 }
            }
        })
    }
}

/// Prompts of one kind of model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Asked {
    /// Class ids.
    Classes(Vec<usize>),
    /// Texts.
    Texts(Vec<String>),
}

impl Asked {
    /// What they are, for people.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Classes(_) => "classes",
            Self::Texts(_) => "texts",
        }
    }

    /// Each as people call it.
    fn names(&self, labels: &Labels) -> Vec<String> {
        match self {
            Self::Classes(classes) => classes.iter().map(|&class| labels.name(class)).collect(),
            Self::Texts(texts) => texts.clone(),
        }
    }
}

/// What determines a generation, as its pictures keep it. A key that is none of these, as a later version may have, is an
/// error: the picture would not be the same without.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Of this library.
    pub version: String,
    /// Name of the model's file or folder.
    pub model: String,
    /// Fingerprint of its weights.
    pub weights: String,
    /// One per image, of a model of classes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<usize>,
    /// One per image, of a model of texts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub texts: Vec<String>,
    /// What guidance went away from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub negative: Option<Asked>,
    /// Name of the device.
    pub device: String,
    /// How the weights were held.
    pub dtype: WeightType,
    /// Autoencoder: one with a name was added to the model, one without is the model's own.
    #[serde(default, deserialize_with = "path_or_used", skip_serializing_if = "Option::is_none")]
    pub vae: Option<Used>,
    /// Text encoder that was added to the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_encoder: Option<Used>,
    /// Model that guided.
    #[serde(default, deserialize_with = "path_or_used", skip_serializing_if = "Option::is_none")]
    pub guide: Option<Used>,
    /// Adapters that were on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub adapters: Vec<AdapterRecord>,
    /// Picture that it started from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub picture: Option<StartRecord>,
    /// What was kept of that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<Used>,
    /// Pictures that controlled it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub controls: Vec<ControlRecord>,
    /// Noise in place of the seed's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noise: Option<NoiseRecord>,
    /// Columns of a picture of all images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grid: Option<usize>,
    /// What each image took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute: Option<Compute>,
    /// With nothing left open.
    pub settings: Settings,
}

/// As [`Used`], or as a path, which earlier versions wrote.
fn path_or_used<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Used>, D::Error> {
    Ok(match Value::deserialize(from)? {
        Value::Null => None,
        Value::String(path) => Some(Used { file: Some(path), fingerprint: None }),
        stored => Some(Used::deserialize(stored).map_err(D::Error::custom)?),
    })
}

/// An adapter of a generation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterRecord {
    /// Name of the file or folder.
    pub file: String,
    /// Fingerprint of its tensors.
    pub fingerprint: String,
    /// What replaced the file's own alpha.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// Its weight.
    pub weight: f64,
}

impl AdapterRecord {
    fn of(PutOn { adapter, weight, .. }: &PutOn) -> Self {
        Self {
            file: base_name(adapter.path()),
            fingerprint: adapter.fingerprint().to_owned(),
            alpha: adapter.alpha(),
            weight: *weight,
        }
    }
}

/// The version that wrote a record, whatever else is in it.
fn written_by(text: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Written {
        version: String,
    }
    serde_json::from_str::<Written>(text).ok().map(|written| written.version)
}

impl Record {
    /// Of a request to a pipeline.
    ///
    /// # Errors
    /// See [`Pipeline::resolve`]; files that cannot be read.
    pub fn of<T: PromptTask>(pipeline: &Pipeline<T>, request: &Request<T::Prompt>) -> Result<Self> {
        let origin = pipeline.origin();
        let settings = pipeline.resolve(request)?;
        let (classes, texts) = match T::asked(request.prompts.clone()) {
            Asked::Classes(classes) => (classes, Vec::new()),
            Asked::Texts(texts) => (Vec::new(), texts),
        };
        let picture = request.picture.as_ref().map(|start| {
            let picture = Used::picture(&start.picture)?;
            Ok::<_, Error>(StartRecord { picture, strength: start.strength })
        });
        Ok(Self {
            version: VERSION.into(),
            model: origin.name.clone(),
            weights: origin.weights.clone(),
            classes,
            texts,
            negative: request.negative.clone().map(|negative| T::asked(vec![negative])),
            device: origin.device.clone(),
            dtype: origin.dtype,
            vae: origin.vae.clone(),
            text_encoder: origin.text_encoder.clone(),
            guide: origin.guide.clone(),
            adapters: pipeline.adapters().iter().map(AdapterRecord::of).collect(),
            picture: picture.transpose()?,
            mask: request.mask.as_ref().map(Used::picture).transpose()?,
            controls: request.controls.iter().map(ControlRecord::of).collect::<Result<_>>()?,
            noise: request.noise.as_ref().map(NoiseRecord::of).transpose()?,
            grid: None,
            compute: Some(pipeline.compute(request)?),
            settings,
        })
    }

    /// Of a picture that was made before.
    ///
    /// # Errors
    /// A file that is no PNG, JPEG or WebP, or holds no record of images.
    pub fn read(path: &Path) -> Result<Self> {
        let texts = read(path)?;
        let missing = || Error::NoRecord { path: path.to_owned() };
        let text = texts.get(KEY).ok_or_else(missing)?;
        let record: Self = serde_json::from_str(text).map_err(|source| {
            let (error, version) = (Error::json(path, text, source), written_by(text));
            match (error, version.filter(|version| version != VERSION)) {
                (Error::Value { path, reason }, Some(version)) => {
                    let reason =
                        format!("{reason}; it was written by version {version}, this is {VERSION}");
                    Error::Value { path, reason }
                }
                (error, _) => error,
            }
        })?;
        match record.is_empty() {
            true => {
                let reason = "`classes` is [], expected one for each image".into();
                Err(Error::Value { path: path.to_owned(), reason })
            }
            false => Ok(record),
        }
    }

    /// The request to a model of this kind that makes the same again, but for the picture, mask and noise that it starts from:
    /// see [`Search`]. `path` is that of the picture.
    ///
    /// # Errors
    /// [`Error::OtherTask`] for a picture of another kind of model.
    pub fn request<T: PromptTask>(&self, path: &Path) -> Result<Request<T::Prompt>> {
        let prompts = |asked: &Asked| {
            T::prompts(asked).ok_or_else(|| Error::OtherTask {
                path: path.to_owned(),
                found: asked.kind(),
                expected: T::asked(Vec::new()).kind(),
            })
        };
        let negative = self.negative.as_ref().map(prompts).transpose()?;
        Ok(Request {
            negative: negative.and_then(|negative| negative.into_iter().next()),
            ..Request::with(prompts(&self.asked())?, &self.settings)
        })
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.classes.len().max(self.texts.len())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The prompts of all images.
    fn asked(&self) -> Asked {
        match self.texts.is_empty() {
            true => Asked::Classes(self.classes.clone()),
            false => Asked::Texts(self.texts.clone()),
        }
    }

    /// What one of the images shows, as people call it.
    ///
    /// # Panics
    /// If there is no image of this index.
    pub fn name(&self, index: usize, labels: &Labels) -> String {
        match self.texts.is_empty() {
            true => labels.name(self.classes[index]),
            false => self.texts[index].clone(),
        }
    }

    /// What each image shows, as people call it.
    pub fn names(&self, labels: &Labels) -> Vec<String> {
        self.asked().names(labels)
    }

    /// That of the first images.
    pub fn first(&self, images: usize) -> Self {
        let mut own = self.clone();
        own.classes.truncate(images);
        own.texts.truncate(images);
        own
    }

    /// That of one of the images alone.
    ///
    /// # Panics
    /// If there is no image of this index.
    pub fn image(&self, index: usize) -> Self {
        assert!(index < self.len(), "image {index} of {}", self.len());
        let mut own = Self {
            classes: self.classes.get(index).copied().into_iter().collect(),
            texts: self.texts.get(index).cloned().into_iter().collect(),
            ..self.clone()
        };
        own.settings.seed = own.settings.seed.wrapping_add(index as u64);
        if let Some(noise) = &mut own.noise {
            noise.first = noise.first.saturating_add(index);
        }
        own
    }

    /// Keywords and texts for a picture of images of this `[width, height]`: A1111's `parameters`, and the record itself.
    ///
    /// # Errors
    /// None that a record can cause.
    pub fn texts(&self, labels: &Labels, size: [u32; 2]) -> Result<Vec<(String, String)>> {
        let negative = self.negative.as_ref().map(|negative| negative.names(labels).join(", "));
        let parameters = Parameters {
            prompt: self.names(labels).join(", "),
            negative,
            steps: self.settings.steps,
            sampler: self.settings.sampler.to_string(),
            cfg_scale: self.settings.guidance.scale,
            seed: self.settings.seed,
            size,
            model: self.model.clone(),
            model_hash: self.weights.chars().take(10).collect(),
        };
        let record = serde_json::to_string(self)
            .map_err(|source| Error::Json { path: KEY.into(), source })?;
        Ok(vec![("parameters".to_owned(), parameters.to_string()), (KEY.to_owned(), record)])
    }
}

#[cfg(test)]
mod tests;
