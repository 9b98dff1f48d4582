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
use crate::error::Result;

/// `[height, width]` of the first image of a folder that can be read.
///
/// # Errors
/// A folder without images; if none can be read, what is wrong with each.
pub fn first_size(folder: &Path) -> Result<[usize; 2]> {
    let files = files::labelled(folder, true)?.files;
    let paths: Vec<&Path> = files.iter().map(|(path, _)| path.as_path()).collect();
    let mut faults = Vec::new();
    for (index, path) in paths.iter().enumerate() {
        match decode::size(path) {
            Ok(size) => return Ok(size),
            Err(error) => faults.push((index, error)),
        }
    }
    Err(dataset::unreadable(folder, &paths, faults))
}
