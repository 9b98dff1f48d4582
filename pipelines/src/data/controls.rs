//! Pictures that control those of a data set, one for each.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use pyrograph_engine::portrait::conditions::ControlKind;

use super::dataset::{Dataset, unreadable};
use super::files::READ;
use super::pixels::{Background, Pixels};
use crate::error::{Error, Result};

impl Dataset {
    /// The same images, of which only what such a branch sees is left.
    ///
    /// # Errors
    /// Pixels that are not finite.
    pub(crate) fn seen(&self, kind: ControlKind) -> Result<Self> {
        let pixels = self.pixels.converted(|pixels| kind.of(pixels))?;
        Ok(self.with(pixels))
    }

    /// The pictures of another folder in place of the images, each under the name of its image, with any ending of a
    /// picture.
    ///
    /// # Errors
    /// An image that has none, or one that cannot be decoded, and more than fits in memory.
    pub(crate) fn drawn(&self, folder: &Path) -> Result<Self> {
        let paths =
            self.files.iter().map(|file| drawn(folder, file)).collect::<Result<Vec<_>>>()?;
        let observe = &|| ControlFlow::Continue(());
        let (pixels, faults) = Pixels::read(&paths, self.size(), Background::default(), observe)?;
        match faults.is_empty() {
            true => Ok(self.with(pixels)),
            false => {
                let paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
                Err(unreadable(folder, &paths, faults))
            }
        }
    }
}

/// The picture for the image `file`.
fn drawn(folder: &Path, file: &Path) -> Result<PathBuf> {
    let same = folder.join(file);
    let endings = READ.iter().map(|ending| same.with_extension(ending));
    let mut candidates = [same.clone()].into_iter().chain(endings);
    candidates.find(|path| path.is_file()).ok_or_else(|| Error::Dataset {
        path: folder.to_owned(),
        reason: format!("no picture for the image {}", file.display()),
    })
}
