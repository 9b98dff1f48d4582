//! Training images: a folder with one sub-folder per class, or with a `metadata.jsonl`.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::path::{Component, Path, PathBuf};

use burn::tensor::{Device, Tensor};
use pyrograph_engine::random::SplitMix;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::image::{Drawn, decode, fit, to_tensor};

/// What transparent pixels are laid on: one of these colours, chosen per draw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Background(pub Vec<[u8; 3]>);

impl Default for Background {
    fn default() -> Self {
        Self(vec![[255; 3]])
    }
}

/// Images in memory, resized to one size, with a class each.
#[derive(Debug, Clone)]
pub struct Dataset {
    size: [usize; 2],
    /// Straight RGBA, one after the other.
    pixels: Vec<u8>,
    labels: Vec<usize>,
    classes: Vec<String>,
    background: Background,
}

/// Extensions that are read.
const EXTENSIONS: [&str; 4] = ["png", "jpg", "jpeg", "webp"];
/// Name of the list of images in a folder without classes.
const METADATA: &str = "metadata.jsonl";

#[derive(Deserialize)]
struct Entry {
    #[serde(alias = "file")]
    file_name: String,
    #[serde(alias = "class")]
    label: String,
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
        let files = match folder.join(METADATA) {
            list if list.is_file() => listed(folder, &list)?,
            _ => by_folder(folder)?,
        };
        if files.is_empty() {
            return Err(fault("no images: expected sub-folders of png, jpg or webp files"));
        }
        let names: BTreeSet<&String> = files.iter().map(|(_, class)| class).collect();
        let classes: Vec<String> = names.into_iter().cloned().collect();
        let labels = files
            .iter()
            .map(|(_, class)| classes.binary_search(class).expect("collected from the same list"))
            .collect();
        let images: Vec<Vec<u8>> = files
            .par_iter()
            .map(|(path, _)| Ok(fit(&decode(path)?, size)))
            .collect::<Result<_>>()?;
        Ok(Self { size, pixels: images.concat(), labels, classes, background })
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
        let mut hasher = std::hash::DefaultHasher::new();
        (&self.size, &self.pixels, &self.background.0).hash(&mut hasher);
        hasher.finish()
    }

    /// A batch with pixels in [-1, 1], `[batch, 3, height, width]`.
    ///
    /// `flips` mirrors an image, `colours` chooses its background, modulo their number.
    pub fn batch(
        &self,
        indices: &[usize],
        flips: &[bool],
        colours: &[usize],
        device: &Device,
    ) -> Tensor<4> {
        let plane = self.size[0] * self.size[1];
        let drawn =
            indices.iter().zip(flips).zip(colours).map(|((&index, &flip), &colour)| Drawn {
                rgba: &self.pixels[index * plane * 4..(index + 1) * plane * 4],
                background: self.background.0[colour % self.background.0.len()],
                flip,
            });
        to_tensor(drawn, self.size, device)
    }
}

fn by_folder(folder: &Path) -> Result<Vec<(PathBuf, String)>> {
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let images = |folder: &Path| -> Result<Vec<(PathBuf, String)>> {
        let class = name(folder);
        let readable = |path: &PathBuf| {
            let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
            EXTENSIONS.contains(&extension.as_str())
        };
        let found = sorted_entries(folder)?.into_iter().filter(readable);
        Ok(found.map(|path| (path, class.clone())).collect())
    };
    let mut files = Vec::new();
    for class in sorted_entries(folder)? {
        if !class.is_dir() || name(&class).starts_with('.') {
            continue;
        }
        let found = images(&class)?;
        if found.is_empty() {
            return Err(Error::Dataset { path: class, reason: "a class without images".into() });
        }
        files.extend(found);
    }
    if files.is_empty() {
        // A folder of images is a single class.
        files = images(folder)?;
    }
    Ok(files)
}

fn sorted_entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let file = |source| Error::File { path: folder.to_owned(), source };
    let entries: std::io::Result<Vec<PathBuf>> =
        std::fs::read_dir(folder).map_err(file)?.map(|entry| Ok(entry?.path())).collect();
    let mut entries = entries.map_err(file)?;
    entries.sort();
    Ok(entries)
}

fn listed(folder: &Path, list: &Path) -> Result<Vec<(PathBuf, String)>> {
    let text = std::fs::read_to_string(list)
        .map_err(|source| Error::File { path: list.to_owned(), source })?;
    let mut files: BTreeMap<PathBuf, String> = BTreeMap::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let fault = |reason: String| Error::Dataset {
            path: list.to_owned(),
            reason: format!("line {}: {reason}", number + 1),
        };
        let entry: Entry = serde_json::from_str(line).map_err(|error| fault(error.to_string()))?;
        let inside = Path::new(&entry.file_name)
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        if !inside {
            return Err(fault(format!("`{}` leaves the folder", entry.file_name)));
        }
        let path = folder.join(&entry.file_name);
        if files.insert(path, entry.label).is_some() {
            return Err(fault(format!("`{}` is listed twice", entry.file_name)));
        }
    }
    Ok(files.into_iter().collect())
}

/// The order in which a run sees its images: a new permutation per epoch, a pure function of the seed, so
/// that a run can go on anywhere.
#[derive(Debug, Clone, Copy)]
pub struct Order {
    len: usize,
    seed: u64,
}

impl Order {
    /// The order of `len` images.
    pub fn new(len: usize, seed: u64) -> Self {
        Self { len, seed }
    }

    /// Images at positions `position..position + count` of the endless sequence of epochs.
    pub fn indices(&self, position: u64, count: usize) -> Vec<usize> {
        let len = self.len as u64;
        let mut found = Vec::with_capacity(count);
        let mut epoch = None;
        let mut permutation = Vec::new();
        for at in position..position + count as u64 {
            if epoch != Some(at / len) {
                epoch = Some(at / len);
                permutation = self.permutation(at / len);
            }
            found.push(permutation[(at % len) as usize]);
        }
        found
    }

    /// Fisher-Yates with a stream of SplitMix64 per epoch.
    fn permutation(&self, epoch: u64) -> Vec<usize> {
        let mut stream = SplitMix(self.seed ^ SplitMix(epoch.wrapping_add(1)).draw());
        let mut order: Vec<usize> = (0..self.len).collect();
        for i in (1..self.len).rev() {
            // The bias of the remainder is below 2^-40 for any number of images that fits in memory.
            order.swap(i, (stream.draw() % (i as u64 + 1)) as usize);
        }
        order
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
        let x = data.batch(&[0, 0, 1], &[false, true, false], &[0, 1, 0], &device);
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
        let list = folder.path().join(METADATA);
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

    #[test]
    fn every_epoch_is_a_permutation_and_any_part_can_be_asked_for() {
        let order = Order::new(10, 3);
        let all = order.indices(0, 30);
        for epoch in all.chunks(10) {
            let mut sorted = epoch.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..10).collect::<Vec<_>>());
        }
        assert_ne!(all[..10], all[10..20]);
        assert_eq!(order.indices(7, 9), all[7..16]);
    }
}
