//! Training images: a folder with one sub-folder per class, or with a list of images and classes.

mod augment;
mod dataset;
mod files;
mod latents;
mod list;
mod notice;
mod order;
mod pixels;

pub use augment::Augment;
pub use dataset::{Dataset, Reading};
pub(crate) use latents::Encoder;
pub use notice::{Notice, Skip};
pub use order::Order;
pub use pixels::{Background, Observe};

use std::path::Path;

use crate::decode;
use crate::error::{Error, Result};

/// `[height, width]` of the first image of a folder that can be read.
///
/// # Errors
/// A folder without images; if none can be read, what is wrong with the first.
pub fn first_size(folder: &Path) -> Result<[usize; 2]> {
    let files = files::labelled(folder)?.files;
    let mut fault = None;
    for (path, _) in &files {
        match decode::size(path) {
            Ok(size) => return Ok(size),
            Err(error) => fault = fault.or(Some(error)),
        }
    }
    Err(fault.unwrap_or(Error::Dataset { path: folder.to_owned(), reason: "no images".into() }))
}
