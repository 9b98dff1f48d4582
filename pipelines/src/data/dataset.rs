//! Training images with their classes or captions.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::error::Error as _;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor};
use pyrograph_engine::nets::Conditioning;
use pyrograph_engine::random::Generator;
use pyrograph_engine::train::Batch;

use super::Annotation;
use super::augment::{Augment, Place};
use super::captions::{Captions, Reads};
use super::files::{self, Known, Listing};
use super::latents::{Encoder, Latents};
use super::notice::{Notice, Skip};
use super::pixels::{Background, Observe, Pixels, short};
use crate::error::{Error, Result};
use crate::labels::{composed, folded};

/// Name of the file in the folder of a run that keeps what captions are to the network.
const CAPTIONS: &str = "captions.safetensors";
/// Range of the numbers that choose a background.
const COLOUR_DRAWS: f64 = 65536.0;

/// How a folder of images is read.
#[derive(Clone, Default)]
pub struct Reading<'a> {
    /// `[height, width]` of the images in memory, 1 to 16384.
    pub size: [usize; 2],
    /// What is known of each image.
    pub annotation: Annotation,
    /// Columns of the folder's list that are read besides.
    pub columns: Vec<String>,
    /// What transparent pixels are laid on.
    pub background: Background,
    /// Leaves images out that are damaged, have no caption, or are in a folder whose name is not UTF-8, instead of
    /// refusing the folder.
    pub skip_damaged: bool,
    /// Hears of every file.
    pub observe: Option<&'a Observe<'a>>,
}

/// Images in memory, resized to one size, with a class or captions each; for training on latents, with those too.
#[derive(Debug, Clone)]
pub struct Dataset {
    pub(super) pixels: Pixels,
    /// Of each image, from the folder on.
    pub(super) files: Vec<PathBuf>,
    annotation: Annotation,
    /// What is known of each image, by its numbers among the names: its class, or its captions.
    told: Vec<Vec<usize>>,
    /// Different classes or captions.
    names: Vec<String>,
    /// The class that stands for none.
    null: usize,
    /// What stands in the columns that were asked for, of each image.
    columns: Vec<Vec<Option<String>>>,
    notices: Vec<Notice>,
    /// Mirrors half of the images of every batch.
    flip: bool,
    augment: Augment,
    /// What batches hold in place of pixels.
    latents: Option<Latents>,
    /// What the captions are to a network.
    captions: Option<Captions>,
}

impl Dataset {
    /// Reads all images of a folder of classes, none of which may be damaged; see [`Dataset::read`].
    ///
    /// # Errors
    /// See [`Dataset::read`].
    pub fn open(folder: &Path, size: [usize; 2], background: Background) -> Result<Self> {
        Self::read(folder, Reading { size, background, ..Reading::default() })
    }

    /// Reads all images of a folder, turned upright, scaled so that the shorter side fits the size and cropped at
    /// the centre.
    ///
    /// Sub-folders are classes, with all images in them however deep, or `metadata.jsonl`, `metadata.csv` or
    /// `dataset.json` lists the images and their classes. Names that are numbers come first and in their order,
    /// the others follow in that of their bytes. Captions are the lines of a `.txt` or `.caption` file beside each image, or
    /// those that one of the first two lists names, under `text`.
    ///
    /// # Errors
    /// A folder without images, a list that is broken or leaves the folder, one class under two spellings of its
    /// name, images without captions, all images that cannot be decoded, more than fits in memory, and a reading that
    /// was stopped.
    pub fn read(folder: &Path, reading: Reading<'_>) -> Result<Self> {
        let fault = |reason: String| Error::Dataset { path: folder.to_owned(), reason };
        let Reading { size, annotation, columns, background, skip_damaged, observe } = reading;
        if background.0.is_empty() {
            return Err(fault("no background colour".into()));
        }
        let listing = files::annotated(folder, annotation, &columns, skip_damaged)?;
        let Listing { files, mut skipped } = listing;
        let of_classes = annotation == Annotation::Classes;
        if of_classes {
            check_spelling(&files).map_err(&fault)?;
        }
        let paths: Vec<PathBuf> = files.iter().map(|known| known.path.clone()).collect();
        let observe = observe.unwrap_or(&|| ControlFlow::Continue(()));
        let (pixels, faults) = Pixels::read(&paths, size, background, observe)?;
        let all = faults.len() == paths.len();
        if !faults.is_empty() && (all || !skip_damaged) {
            let files: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
            return Err(unreadable(folder, &files, faults));
        }
        let damaged: HashSet<usize> = faults.iter().map(|(index, _)| *index).collect();
        faults.iter().for_each(|(index, _)| skipped.add(Skip::Damaged, folder, &paths[*index]));
        let whole = files.into_iter().enumerate().filter(|(index, _)| !damaged.contains(index));
        let parts = |(_, Known { path, told, columns })| (inside(folder, path), (told, columns));
        let (files, (told, columns)): (Vec<_>, (Vec<Vec<String>>, Vec<_>)) =
            whole.map(parts).unzip();
        let mut names: Vec<String> = told.iter().flatten().cloned().collect();
        names.sort_by(|a, b| natural(a).cmp(&natural(b)));
        names.dedup();
        let numbers: HashMap<&str, usize> =
            names.iter().enumerate().map(|(number, name)| (name.as_str(), number)).collect();
        let numbered = |own: &Vec<String>| own.iter().map(|name| numbers[name.as_str()]).collect();
        let told = told.iter().map(numbered).collect();
        let mut notices = skipped.notices();
        if of_classes {
            notices.extend(alike(&names));
        }
        Ok(Self {
            pixels,
            files,
            annotation,
            told,
            null: names.len(),
            names,
            columns,
            notices,
            flip: false,
            augment: Augment::default(),
            latents: None,
            captions: None,
        })
    }

    /// The same with `ids[class]` in place of each class, every id being that of one.
    pub(crate) fn with_ids(self, ids: &[usize]) -> Self {
        let of_model = self.of_model(ids, ids.len());
        let mut named: Vec<(usize, String)> = ids.iter().copied().zip(of_model.names).collect();
        named.sort_unstable();
        Self { names: named.into_iter().map(|(_, name)| name).collect(), ..of_model }
    }

    /// The same for a model of so many classes, of which `ids[class]` is in place of each class.
    pub(crate) fn of_model(mut self, ids: &[usize], classes: usize) -> Self {
        self.told.iter_mut().flatten().for_each(|class| *class = ids[*class]);
        Self { null: classes, ..self }
    }

    /// The same of other pictures, one for each.
    pub(super) fn with(&self, pixels: Pixels) -> Self {
        Self { pixels, ..self.clone() }
    }

    /// What was not read, classes that are easily mistaken, and captions that are cut off.
    pub fn notices(&self) -> &[Notice] {
        &self.notices
    }

    /// The same for training: with `flip`, half of the images of every batch are mirrored, and `augment` varies all;
    /// with an `encoder`, batches are of latents of the images as they are, which are made on `device` and kept in
    /// `folder`.
    ///
    /// # Errors
    /// Latents in `folder` of another shape, or a file that cannot be written.
    pub(crate) fn for_training(
        self,
        flip: bool,
        augment: Augment,
        encoder: Option<Encoder>,
        folder: &Path,
        device: &Device,
    ) -> Result<Self> {
        let open = |encoder| Latents::open(folder, &self.pixels, encoder, flip, device);
        let latents = encoder.map(open).transpose()?;
        Ok(Self { flip, augment, latents, ..self })
    }

    /// The same with captions that a network can be told; what they are to it is kept in `folder`.
    ///
    /// # Errors
    /// A caption that cannot be read, more than fits in memory, or a file that cannot be written.
    pub(crate) fn for_texts(mut self, reads: Reads<'_>, folder: &Path) -> Result<Self> {
        let (captions, notice) = Captions::open(Some(&folder.join(CAPTIONS)), &self.names, reads)?;
        self.notices.extend(notice);
        Ok(Self { captions: Some(captions), ..self })
    }

    /// `[height, width]` of the images.
    pub fn size(&self) -> [usize; 2] {
        self.pixels.size()
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.told.len()
    }

    /// Whether there are none; never, once opened.
    pub fn is_empty(&self) -> bool {
        self.told.is_empty()
    }

    /// What is known of the images.
    pub fn annotation(&self) -> Annotation {
        self.annotation
    }

    /// Names of the classes, numbers first; of images with captions, none.
    pub fn classes(&self) -> &[String] {
        match self.annotation {
            Annotation::Classes => &self.names,
            Annotation::Captions => &[],
        }
    }

    /// Different captions; of images with classes, none.
    pub fn captions(&self) -> &[String] {
        match self.annotation {
            Annotation::Classes => &[],
            Annotation::Captions => &self.names,
        }
    }

    /// What stands in a column of the folder's list, by its number among those that were asked for.
    ///
    /// # Panics
    /// If so many were not asked for.
    pub fn column(&self, index: usize, column: usize) -> Option<&str> {
        self.columns[index][column].as_deref()
    }

    /// Class of an image, or number of its first caption.
    pub fn label(&self, index: usize) -> usize {
        self.told[index][0]
    }

    /// What changes with the pixels, the size or the background, in hexadecimal.
    pub fn fingerprint(&self) -> String {
        self.pixels.fingerprint()
    }

    /// What it is: the number of its images, the names of its classes, and what changes with the images and with the
    /// class or the captions of each.
    pub fn identity(&self) -> serde_json::Value {
        match self.annotation {
            Annotation::Classes => {
                let labels = self.told.iter().flatten();
                let labels: Vec<u8> =
                    labels.flat_map(|label| (*label as u64).to_le_bytes()).collect();
                serde_json::json!({
                    "images": self.len(),
                    "classes": self.names,
                    "content": self.fingerprint(),
                    "labels": short(&labels),
                })
            }
            Annotation::Captions => {
                let captions = serde_json::json!([self.names, self.told]).to_string();
                serde_json::json!({
                    "images": self.len(),
                    "content": self.fingerprint(),
                    "captions": short(captions.as_bytes()),
                })
            }
        }
    }

    /// Some of the images, or their latents, with their classes, the null class being the one past the last of the model, or
    /// with a caption each. All randomness is that of `random`: which are mirrored, their backgrounds, their places, the draws
    /// from their posteriors, and which caption of several.
    ///
    /// # Panics
    /// If it has captions: only a run tells those to a network.
    ///
    /// # Shapes
    /// `clean`: `[batch, 3, height, width]`, or `[batch, channels, height, width]` of the latents
    pub fn batch(&self, indices: &[usize], random: &mut Generator, device: &Device) -> Batch {
        let clean = self.clean(indices, random, device);
        let drawn: Vec<usize> = indices.iter().map(|&index| self.draw(index, random)).collect();
        let [told, null] = match (&self.captions, self.annotation) {
            (Some(captions), _) => captions.told(&drawn, device),
            (None, Annotation::Captions) => panic!("captions that no network can be told"),
            (None, Annotation::Classes) => {
                let null = vec![self.null; indices.len()];
                [drawn, null].map(|ids| Conditioning::classes(&ids, device))
            }
        };
        Batch { clean, told, null }
    }

    /// The images of [`Dataset::batch`] alone.
    pub(crate) fn clean(
        &self,
        indices: &[usize],
        random: &mut Generator,
        device: &Device,
    ) -> Tensor<4> {
        let flips: Vec<bool> =
            indices.iter().map(|_| self.flip && random.uniform() < 0.5).collect();
        let colours: Vec<usize> =
            indices.iter().map(|_| (random.uniform() * COLOUR_DRAWS) as usize).collect();
        match &self.latents {
            Some(latents) => latents.batch(indices, &flips, random, device),
            None if self.augment.is_nothing() => self.pixels(indices, &flips, &colours, device),
            None => {
                let places: Vec<Place> =
                    indices.iter().map(|_| self.augment.draw(random)).collect();
                self.pixels.placed(indices, &places, &flips, &colours, device)
            }
        }
    }

    /// What is told of an image: its class, or one of its captions.
    fn draw(&self, index: usize, random: &mut Generator) -> usize {
        match self.told[index].as_slice() {
            [one] => *one,
            several => several[(random.uniform() * several.len() as f64) as usize],
        }
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

/// A path from a folder on.
fn inside(folder: &Path, path: PathBuf) -> PathBuf {
    path.strip_prefix(folder).map(Path::to_owned).unwrap_or(path)
}

/// What is wrong with some images of a folder, by their numbers.
pub(super) fn unreadable(folder: &Path, paths: &[&Path], faults: Vec<(usize, Error)>) -> Error {
    let all = faults.len() == paths.len();
    let described = faults.into_iter().map(|(index, error)| {
        let text = error.source().map_or_else(|| error.to_string(), ToString::to_string);
        // The path is said once.
        let before = format!("{}: ", paths[index].display());
        let reason = text.strip_prefix(&before).unwrap_or(&text).to_owned();
        (inside(folder, paths[index].to_owned()), reason)
    });
    Error::Unreadable { path: folder.to_owned(), faults: described.collect(), all }
}

/// Refuses one class under two spellings in Unicode, which look alike.
fn check_spelling(files: &[Known]) -> Result<(), String> {
    let mut spellings: HashMap<String, &str> = HashMap::new();
    for class in files.iter().flat_map(|known| &known.told) {
        let first = spellings.entry(composed(class)).or_insert(class);
        if first != class {
            return Err(format!(
                "`{class}` is spelt in two ways in Unicode, {} and {}: rename one",
                first.escape_unicode(),
                class.escape_unicode()
            ));
        }
    }
    Ok(())
}

/// Classes whose names differ in case only.
fn alike(classes: &[String]) -> Vec<Notice> {
    let mut folds: HashMap<String, &String> = HashMap::new();
    let mut found = Vec::new();
    for class in classes {
        match folds.entry(folded(class)) {
            Entry::Occupied(first) => {
                let names = [first.get(), &class].map(|name| String::clone(name));
                found.push(Notice::Alike { names });
            }
            Entry::Vacant(place) => {
                place.insert(class);
            }
        }
    }
    found
}

/// Where a name stands: numbers by their value, then all else by its bytes.
fn natural(name: &str) -> (bool, usize, &str, &str) {
    let number = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit());
    let digits = if number { name.trim_start_matches('0') } else { "" };
    (!number, digits.len(), digits, name)
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
