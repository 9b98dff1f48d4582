//! Models by name.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

#[cfg(feature = "shipped")]
mod shipped;

/// Names of the shipped models.
pub const SHIPPED: [&str; 2] = ["emoji-class", "emoji-4step"];
/// Folder of the shipped models in a checkout.
const FOLDER: &str = "assets/models";
/// Folders above the program that may be the checkout.
const ABOVE: usize = 4;

/// The path of a model: `name_or_path` itself, if something is there, or the shipped model of this name.
///
/// Shipped models are looked for in `assets/models` in the current folder, and beside the program or up to three folders
/// above. A build with the feature `shipped` holds them itself, and writes one that is not found there to
/// `pyrograph/models` in the user's cache folder; any other build looks in the checkout that it was made from.
///
/// # Errors
/// [`Error::UnknownModel`] if it is nowhere, and a cache folder that cannot be written.
pub fn find(name_or_path: &Path) -> Result<PathBuf> {
    if name_or_path.exists() {
        return Ok(name_or_path.to_owned());
    }
    let mut searched = vec![PathBuf::from(FOLDER)];
    if let Some(folder) = std::env::current_exe().ok().as_deref().and_then(Path::parent) {
        searched.extend(folder.ancestors().take(ABOVE).map(|folder| folder.join(FOLDER)));
    }
    #[cfg(not(feature = "shipped"))]
    searched.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(FOLDER));
    let found = searched.iter().map(|root| root.join(name_or_path)).find(|path| path.exists());
    #[cfg(feature = "shipped")]
    let found = match found {
        Some(path) => Some(path),
        None => shipped::unpacked(name_or_path)?,
    };
    found.ok_or_else(|| Error::UnknownModel { name: name_or_path.to_owned(), searched })
}
