//! Training images with their classes.

use std::collections::BTreeSet;
use std::path::Path;

use burn::tensor::{Device, Tensor};
use pyrograph_engine::nets::Conditioning;
use pyrograph_engine::random::Generator;
use pyrograph_engine::train::Batch;
use rayon::prelude::*;

use super::files;
use super::latents::{Encoder, Latents};
use super::pixels::{Background, Pixels};
use crate::error::{Error, Result};

/// Range of the numbers that choose a background.
const COLOUR_DRAWS: f64 = 65536.0;

/// Images in memory, resized to one size, with a class each; for training on latents, with those too.
#[derive(Debug, Clone)]
pub struct Dataset {
    pixels: Pixels,
    labels: Vec<usize>,
    classes: Vec<String>,
    /// Mirrors half of the images of every batch.
    flip: bool,
    /// What batches hold in place of pixels.
    latents: Option<Latents>,
}

impl Dataset {
    /// Reads all images of a folder, scaled so that the shorter side fits `size`, `[height, width]`, and
    /// cropped at the centre.
    ///
    /// # Errors
    /// A folder without images, an image that cannot be decoded, a name in `metadata.jsonl` that leaves
    /// the folder or appears twice.
    pub fn open(folder: &Path, size: [usize; 2], background: Background) -> Result<Self> {
        let fault =
            |reason: &str| Error::Dataset { path: folder.to_owned(), reason: reason.into() };
        if background.0.is_empty() {
            return Err(fault("no background colour"));
        }
        let files = files::labelled(folder)?;
        if files.is_empty() {
            return Err(fault("no images: expected sub-folders of png, jpg or webp files"));
        }
        let names: BTreeSet<&String> = files.iter().map(|(_, class)| class).collect();
        let classes: Vec<String> = names.into_iter().cloned().collect();
        let labels = files
            .iter()
            .map(|(_, class)| classes.binary_search(class).expect("collected from the same list"))
            .collect();
        let paths = files.par_iter().map(|(path, _)| path.as_path());
        let pixels = Pixels::read(paths, size, background)?;
        Ok(Self { pixels, labels, classes, flip: false, latents: None })
    }

    /// The same for training: with `flip`, half of the images of every batch are mirrored; with an `encoder`,
    /// batches are of latents, which are made on `device` and kept in `folder`.
    ///
    /// # Errors
    /// Latents in `folder` of another shape, or a file that cannot be written.
    pub(crate) fn for_training(
        self,
        flip: bool,
        encoder: Option<Encoder>,
        folder: &Path,
        device: &Device,
    ) -> Result<Self> {
        let open = |encoder| Latents::open(folder, &self.pixels, encoder, flip, device);
        let latents = encoder.map(open).transpose()?;
        Ok(Self { flip, latents, ..self })
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are none; never, once opened.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Names of the classes, sorted.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Class of an image.
    pub fn label(&self, index: usize) -> usize {
        self.labels[index]
    }

    /// A number that changes with the pixels, the size or the background.
    pub fn fingerprint(&self) -> u64 {
        self.pixels.fingerprint()
    }

    /// Some of the images, or their latents, with their classes; the null class is the one past the last. All
    /// randomness is that of `random`: which are mirrored, their backgrounds, and the draws from their
    /// posteriors.
    ///
    /// # Shapes
    /// `clean`: `[batch, 3, height, width]`, or `[batch, channels, height, width]` of the latents
    pub fn batch(&self, indices: &[usize], random: &mut Generator, device: &Device) -> Batch {
        let flips: Vec<bool> =
            indices.iter().map(|_| self.flip && random.uniform() < 0.5).collect();
        let colours: Vec<usize> =
            indices.iter().map(|_| (random.uniform() * COLOUR_DRAWS) as usize).collect();
        let clean = match &self.latents {
            Some(latents) => latents.batch(indices, &flips, random, device),
            None => self.pixels(indices, &flips, &colours, device),
        };
        let classes: Vec<usize> = indices.iter().map(|&index| self.label(index)).collect();
        let null = vec![self.classes.len(); indices.len()];
        let [told, null] = [classes, null].map(|ids| Conditioning::classes(&ids, device));
        Batch { clean, told, null }
    }

    /// Images with pixels in [-1, 1], `[batch, 3, height, width]`.
    ///
    /// `flips` mirrors an image, `colours` chooses its background, modulo their number.
    pub fn pixels(
        &self,
        indices: &[usize],
        flips: &[bool],
        colours: &[usize],
        device: &Device,
    ) -> Tensor<4> {
        self.pixels.batch(indices, flips, colours, device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{Rgba, RgbaImage};

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        for (class, colour) in [("b", [255, 0, 0, 255]), ("a", [0, 255, 0, 0])] {
            std::fs::create_dir(folder.path().join(class)).expect("created");
            let picture = RgbaImage::from_fn(6, 4, |x, _| match x {
                0 => Rgba([0, 0, 255, 255]),
                _ => Rgba(colour),
            });
            picture.save(folder.path().join(class).join("1.png")).expect("written");
        }
        folder
    }

    #[test]
    fn classes_are_sorted_and_transparency_shows_the_background() {
        let folder = folder();
        let background = Background(vec![[255; 3], [0; 3]]);
        let data = Dataset::open(folder.path(), [4, 6], background).expect("two images");
        assert_eq!(data.classes(), ["a", "b"]);
        let device = Device::flex();
        let x = data.pixels(&[0, 0, 1], &[false, true, false], &[0, 1, 0], &device);
        assert_eq!([data.label(0), data.label(1)], [0, 1]);
        let at = |image: usize, channel: usize, column: usize| -> f32 {
            x.clone()
                .slice([image..image + 1, channel..channel + 1, 0..1, column..column + 1])
                .into_scalar()
        };
        assert_eq!((at(0, 0, 3), at(1, 0, 3)), (1.0, -1.0));
        assert_eq!((at(0, 2, 0), at(1, 2, 5)), (1.0, 1.0));
        assert_eq!((at(2, 0, 3), at(2, 1, 3)), (1.0, -1.0));
    }

    #[test]
    fn lists_stay_in_their_folder() {
        let folder = folder();
        let list = folder.path().join("metadata.jsonl");
        let open = || Dataset::open(folder.path(), [4, 4], Background::default());
        std::fs::write(&list, r#"{"file_name": "a/1.png", "label": "x"}"#).expect("written");
        assert_eq!(open().expect("one image").classes(), ["x"]);
        for bad in [
            r#"{"file_name": "../a/1.png", "label": "x"}"#,
            r#"{"file_name": "/etc/passwd", "label": "x"}"#,
            "not json",
            "{\"file\": \"a/1.png\", \"class\": \"x\"}\n{\"file\": \"a/1.png\", \"class\": \"y\"}",
        ] {
            std::fs::write(&list, bad).expect("written");
            assert!(open().is_err(), "{bad}");
        }
    }

    #[test]
    fn broken_images_are_named() {
        let folder = folder();
        std::fs::write(folder.path().join("a/2.png"), b"no picture").expect("written");
        let error =
            Dataset::open(folder.path(), [4, 4], Background::default()).expect_err("broken");
        assert!(error.to_string().contains("2.png"), "{error}");
    }
}
