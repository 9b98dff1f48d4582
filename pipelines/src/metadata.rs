//! Settings inside pictures: what makes them again, A1111's `parameters`, and any other PNG text.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::adapter::PutOn;
use crate::error::{Error, Result};
use crate::labels::Labels;
use crate::model::WeightType;
use crate::pipeline::{ClassPipeline, Compute};
use crate::request::{Picture, Request, StartPicture};
use crate::settings::Settings;

/// Keyword of a [`Record`] in a PNG.
const KEY: &str = "pyrograph";

/// What determines a generation, as its pictures keep it. What an application gave from memory, noise or the pixels of
/// a picture, is not kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// Of this library.
    pub version: String,
    /// Name of the model's file or folder.
    pub model: String,
    /// Fingerprint of its weights.
    pub weights: String,
    /// One per image.
    pub classes: Vec<usize>,
    /// Name of the device.
    pub device: String,
    /// How the weights were held.
    pub dtype: WeightType,
    /// Autoencoder that was added to the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vae: Option<PathBuf>,
    /// Model that guided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guide: Option<PathBuf>,
    /// Adapters that were on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub adapters: Vec<AdapterRecord>,
    /// Picture that it started from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub picture: Option<StartPicture>,
    /// What was kept of that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<Picture>,
    /// What each image took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute: Option<Compute>,
    /// With nothing left open.
    pub settings: Settings,
}

/// An adapter of a generation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdapterRecord {
    /// File or folder.
    pub file: PathBuf,
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
            file: adapter.path().to_owned(),
            fingerprint: adapter.fingerprint().to_owned(),
            alpha: adapter.alpha(),
            weight: *weight,
        }
    }
}

impl Record {
    /// Of a request to a pipeline.
    ///
    /// # Errors
    /// See [`ClassPipeline::resolve`].
    pub fn of(pipeline: &ClassPipeline, request: &Request<usize>) -> Result<Self> {
        let origin = pipeline.origin();
        let is_file = |picture: &Picture| matches!(picture, Picture::File(_));
        Ok(Self {
            version: env!("CARGO_PKG_VERSION").into(),
            model: origin.name.clone(),
            weights: origin.weights.clone(),
            classes: request.prompts.clone(),
            device: origin.device.clone(),
            dtype: origin.dtype,
            vae: origin.vae.clone(),
            guide: origin.guide.clone(),
            adapters: pipeline.adapters().iter().map(AdapterRecord::of).collect(),
            picture: request.picture.clone().filter(|start| is_file(&start.picture)),
            mask: request.mask.clone().filter(is_file),
            compute: Some(pipeline.compute(request)?),
            settings: pipeline.resolve(request)?,
        })
    }

    /// Of a picture that was made before.
    ///
    /// # Errors
    /// A file that is no PNG or holds no record.
    pub fn read(path: &Path) -> Result<Self> {
        let texts = read(path)?;
        let missing = || Error::NoRecord { path: path.to_owned() };
        let text = texts.get(KEY).ok_or_else(missing)?;
        serde_json::from_str(text).map_err(|source| Error::Json { path: path.to_owned(), source })
    }

    /// The request that makes the same again.
    pub fn request(&self) -> Request<usize> {
        Request {
            picture: self.picture.clone(),
            mask: self.mask.clone(),
            ..Request::with(self.classes.iter().copied(), &self.settings)
        }
    }

    /// That of one of the images alone.
    ///
    /// # Panics
    /// If there is no image of this index.
    pub fn image(&self, index: usize) -> Self {
        let mut own = Self { classes: vec![self.classes[index]], ..self.clone() };
        own.settings.seed = own.settings.seed.wrapping_add(index as u64);
        own
    }

    /// Keywords and texts for a PNG of images of this `[width, height]`: A1111's `parameters`, and the record itself.
    ///
    /// # Errors
    /// A path that is not Unicode.
    pub fn texts(&self, labels: &Labels, size: [u32; 2]) -> Result<Vec<(String, String)>> {
        let names: Vec<String> = self.classes.iter().map(|&class| labels.name(class)).collect();
        let parameters = Parameters {
            prompt: names.join(", "),
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

/// Fields of A1111's `parameters` text.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameters {
    /// What was asked for; here the names of the classes.
    pub prompt: String,
    /// Sampling steps.
    pub steps: usize,
    /// Sampler.
    pub sampler: String,
    /// Guidance scale.
    pub cfg_scale: f64,
    /// Seed of the first image.
    pub seed: u64,
    /// `[width, height]` of one image.
    pub size: [u32; 2],
    /// Base name of the model.
    pub model: String,
    /// Start of the weights' fingerprint.
    pub model_hash: String,
}

impl fmt::Display for Parameters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}\nSteps: {}, Sampler: {}, CFG scale: {}, Seed: {}, Size: {}x{}, Model hash: {}, \
             Model: {}, Version: pyrograph {}",
            self.prompt,
            self.steps,
            quoted(&self.sampler),
            self.cfg_scale,
            self.seed,
            self.size[0],
            self.size[1],
            quoted(&self.model_hash),
            quoted(&self.model),
            env!("CARGO_PKG_VERSION"),
        )
    }
}

/// A value as A1111 writes it: in JSON quotes if it would end the field.
fn quoted(value: &str) -> String {
    match value.contains([',', ':', '\n']) {
        true => serde_json::Value::from(value).to_string(),
        false => value.to_owned(),
    }
}

/// Most memory that the texts of one picture may take, in bytes.
const TEXT_LIMIT: usize = 8 << 20;

/// All texts of a PNG by keyword.
///
/// # Errors
/// A file that is no PNG, is broken, or whose texts are larger than 8 MiB.
pub fn read(path: &Path) -> Result<BTreeMap<String, String>> {
    let fault = |reason: String| Error::Png { path: path.to_owned(), reason };
    let file = File::open(path).map_err(|source| Error::File { path: path.to_owned(), source })?;
    let limits = png::Limits { bytes: TEXT_LIMIT };
    let decoder = png::Decoder::new_with_limits(BufReader::new(file), limits);
    let mut reader = decoder.read_info().map_err(|error| fault(error.to_string()))?;
    // Texts may follow the pixels; a damaged end costs those only.
    let _ = reader.finish();
    let info = reader.info();
    let mut texts = BTreeMap::new();
    for chunk in &info.uncompressed_latin1_text {
        texts.insert(chunk.keyword.clone(), chunk.text.clone());
    }
    for chunk in &info.compressed_latin1_text {
        let text = chunk.get_text().map_err(|error| fault(error.to_string()))?;
        texts.insert(chunk.keyword.clone(), text);
    }
    for chunk in &info.utf8_text {
        let text = chunk.get_text().map_err(|error| fault(error.to_string()))?;
        texts.insert(chunk.keyword.clone(), text);
    }
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::image::write_image;

    fn parameters(model: &str) -> Parameters {
        Parameters {
            prompt: "cat, dog".into(),
            steps: 20,
            sampler: "ddim".into(),
            cfg_scale: 4.0,
            seed: 7,
            size: [64, 32],
            model: model.into(),
            model_hash: "abc".into(),
        }
    }

    #[test]
    fn texts_survive_a_round_trip() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.png");
        let picture = image::RgbImage::from_fn(8, 8, |x, y| image::Rgb([x as u8, y as u8, 0]));
        let texts: Vec<(String, String)> = [
            ("parameters", parameters("m").to_string()),
            ("latin", "naïve \"quotes\"\nand lines".to_owned()),
            ("wide", "🦊, “curly” and\nlines".to_owned()),
        ]
        .map(|(key, text)| (key.to_owned(), text))
        .into();
        write_image(&path, &picture, &texts).expect("written");
        let found = read(&path).expect("read");
        for (key, text) in texts {
            assert_eq!(found.get(&key), Some(&text));
        }
        assert_eq!(image::open(&path).expect("a picture").to_rgb8(), picture);
    }

    #[test]
    fn values_that_would_end_a_field_are_quoted() {
        let text = parameters("a, b: c").to_string();
        assert!(text.contains(r#"Model: "a, b: c", Version"#), "{text}");
        assert!(text.starts_with("cat, dog\nSteps: 20, Sampler: ddim, CFG scale: 4, Seed: 7, "));
    }

    /// As pictures were written before a request had masks.
    #[test]
    fn records_stay_readable() {
        let text = r#"{"version":"0.0.0","model":"m","weights":"ab","classes":[5,6],"device":"CPU","dtype":"f16",
            "picture":{"file":"a.png","strength":null},
            "settings":{"seed":3,"steps":2,"sampler":{"ddim":{"eta":0.0}},"spacing":{"leading":{"offset":1}},
            "guidance":{"scale":3.0,"channels":"all","interval":null,"rescale":0.0},"size":null,"batch":8,
            "vae_tile":64}}"#;
        let record: Record = serde_json::from_str(text).expect("a record");
        let request = record.request();
        assert_eq!((request.prompts.as_slice(), request.seed), (&[5, 6][..], 3));
        assert!(matches!(
            request.picture,
            Some(StartPicture { picture: Picture::File(_), strength: None })
        ));
        let own = record.image(1);
        assert_eq!((own.classes.as_slice(), own.settings.seed), (&[6][..], 4));
        let again: serde_json::Value =
            serde_json::from_str(&own.texts(&Labels::default(), [8, 8]).expect("texts")[1].1)
                .expect("JSON");
        let before: serde_json::Value = serde_json::from_str(text).expect("JSON");
        assert_eq!(again["picture"], before["picture"]);
        assert_eq!(again["settings"]["guidance"], before["settings"]["guidance"]);
    }

    #[test]
    fn broken_files_are_errors() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.png");
        for bytes in [&b""[..], b"\x89PNG\r\n\x1a\n", b"not a png at all"] {
            std::fs::write(&path, bytes).expect("written");
            assert!(read(&path).is_err());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_text_survives_a_round_trip(texts in prop::collection::vec(any::<String>(), 1..4)) {
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("a.png");
            let keyed = texts.into_iter().enumerate();
            let texts: Vec<_> = keyed.map(|(i, text)| (format!("key {i}"), text)).collect();
            write_image(&path, &image::RgbImage::new(2, 2), &texts).expect("written");
            prop_assert_eq!(read(&path).expect("read"), BTreeMap::from_iter(texts));
        }

        /// Bytes as they come, and a good file with some replaced.
        #[test]
        fn any_bytes_are_read_or_refused(
            bytes in prop::collection::vec(any::<u8>(), 0..64),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
            text in ".{0,40}",
        ) {
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("a.png");
            std::fs::write(&path, [&b"\x89PNG\r\n\x1a\n"[..], &bytes].concat()).expect("written");
            prop_assert!(read(&path).is_err());
            let picture = image::RgbImage::new(2, 2);
            write_image(&path, &picture, &[("key".into(), text)]).expect("written");
            let mut good = std::fs::read(&path).expect("a file");
            for (at, byte) in changes {
                let at = at.index(good.len());
                good[at] = byte;
            }
            std::fs::write(&path, good).expect("written");
            let _ = read(&path);
        }
    }
}
