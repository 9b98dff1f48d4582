//! The files of a folder of images, and their pixels.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use crate::error::{Error, Result};

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

/// The images of a folder with their classes: those that its `metadata.jsonl` lists, or those of its sub-folders.
pub(super) fn labelled(folder: &Path) -> Result<Vec<(PathBuf, String)>> {
    match folder.join(METADATA) {
        list if list.is_file() => listed(folder, &list),
        _ => by_folder(folder),
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
