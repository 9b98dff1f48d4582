//! Models by name.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Folder of the shipped models in a checkout.
const FOLDER: &str = "assets/models";
/// Folders above the program that may be the checkout.
const ABOVE: usize = 4;

/// The path of a model: `name_or_path` itself, if something is there, or the shipped model of this name, in the
/// current folder, beside the program or up to three folders above, or in the checkout that this library was built
/// from.
///
/// # Errors
/// [`Error::UnknownModel`] if it is nowhere.
pub fn find(name_or_path: &Path) -> Result<PathBuf> {
    if name_or_path.exists() {
        return Ok(name_or_path.to_owned());
    }
    let mut roots = vec![PathBuf::from(FOLDER)];
    if let Some(folder) = std::env::current_exe().ok().as_deref().and_then(Path::parent) {
        roots.extend(folder.ancestors().take(ABOVE).map(|folder| folder.join(FOLDER)));
    }
    roots.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(FOLDER));
    let found = roots.into_iter().map(|root| root.join(name_or_path)).find(|path| path.exists());
    found.ok_or_else(|| Error::UnknownModel { name: name_or_path.to_owned() })
}
