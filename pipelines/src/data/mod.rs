//! Training images: a folder with one sub-folder per class or a caption beside each image, or with a list of images
//! and their classes or captions.

mod augment;
mod captions;
mod controls;
mod dataset;
mod files;
mod latents;
mod list;
mod notice;
mod order;
mod pixels;

pub use augment::Augment;
pub(crate) use captions::{Captions, Reads};
pub use dataset::{Dataset, Reading};
pub(crate) use latents::Encoder;
pub use notice::{Notice, Skip};
pub use order::Order;
pub use pixels::{Background, Observe};

use std::path::{Path, PathBuf};

use crate::decode;
use crate::error::{Error, Result};
use notice::Skipped;

/// What is known of the images of a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Annotation {
    /// The class of each.
    #[default]
    Classes,
    /// One or more captions of each, of which one is drawn each time.
    Captions,
}

impl Annotation {
    /// What one is called.
    fn one(self) -> &'static str {
        match self {
            Self::Classes => "class",
            Self::Captions => "caption",
        }
    }
}

/// Files of the pictures in a folder and in those in it, in the order of paths.
///
/// # Errors
/// A folder that cannot be read, or without pictures.
pub(crate) fn pictures_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let found = files::pictures(folder, folder, &mut Skipped::default())?;
    match found.is_empty() {
        true => Err(Error::Dataset { path: folder.to_owned(), reason: "no pictures".into() }),
        false => Ok(found),
    }
}

/// `[height, width]` of the first image of a folder that can be read.
///
/// # Errors
/// A folder without images; if none can be read, what is wrong with each.
pub fn first_size(folder: &Path) -> Result<[usize; 2]> {
    let files = files::annotated(folder, Annotation::Classes, &[], true)?.files;
    let paths: Vec<&Path> = files.iter().map(|known| known.path.as_path()).collect();
    let mut faults = Vec::new();
    for (index, path) in paths.iter().enumerate() {
        match decode::size(path) {
            Ok(size) => return Ok(size),
            Err(error) => faults.push((index, error)),
        }
    }
    Err(dataset::unreadable(folder, &paths, faults))
}
