//! Settings inside pictures: A1111's `parameters` and any other PNG text.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use crate::error::{Error, Result};

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

    #[test]
    fn broken_files_are_errors() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.png");
        for bytes in [&b""[..], b"\x89PNG\r\n\x1a\n", b"not a png at all"] {
            std::fs::write(&path, bytes).expect("written");
            assert!(read(&path).is_err());
        }
    }
}
