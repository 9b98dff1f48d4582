//! The files of a folder of images.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::list::{self, LISTS};
use super::notice::{Skip, Skipped};
use crate::error::{Error, Result};

/// Extensions that are read.
const READ: [&str; 6] = ["png", "jpg", "jpeg", "jpe", "jfif", "webp"];
/// Extensions of other pictures.
const NOT_READ: [&str; 14] = [
    "apng", "avif", "bmp", "gif", "heic", "heif", "ico", "jp2", "jxl", "psd", "raw", "svg", "tif",
    "tiff",
];
/// Names of what systems leave in folders, beside all that is hidden.
const CLUTTER: [&str; 8] = [
    "__macosx",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "icon\r",
    "@eadir",
    "$recycle.bin",
    "system volume information",
];
/// Names of the parts of a data set, each of which has folders of classes.
const PARTS: [&str; 8] =
    ["train", "training", "val", "valid", "validation", "test", "testing", "eval"];

/// The pictures of a folder with their classes, in the order of paths, and what else it holds.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) files: Vec<(PathBuf, String)>,
    pub(super) skipped: Skipped,
}

/// The pictures of a folder with their classes: those that its list names, or those of its sub-folders. With
/// `skip_damaged`, those in a folder whose name is not UTF-8 are left out.
///
/// # Errors
/// A folder without pictures or with two lists, a list that is broken, names that are not UTF-8, and a folder of
/// the parts of a data set.
pub(super) fn labelled(folder: &Path, skip_damaged: bool) -> Result<Listing> {
    let fault = |reason: String| Error::Dataset { path: folder.to_owned(), reason };
    let lists: Vec<&str> = LISTS.into_iter().filter(|name| folder.join(name).is_file()).collect();
    let listing = match lists.as_slice() {
        [] => by_folder(folder, skip_damaged)?,
        [name] => listed(folder, name)?,
        [first, second, ..] => return Err(fault(format!("two lists, {first} and {second}"))),
    };
    match listing.files.is_empty() {
        true => Err(fault("no images: expected sub-folders of png, jpg or webp files".into())),
        false => Ok(listing),
    }
}

fn by_folder(root: &Path, skip_damaged: bool) -> Result<Listing> {
    let Listing { mut files, mut skipped } = Listing::default();
    let Entries { folders, pictures: loose } = entries(root, root, &mut skipped)?;
    for folder in folders {
        let found = pictures(&folder, root, &mut skipped)?;
        if found.is_empty() {
            skipped.add(Skip::Empty, root, &folder);
            continue;
        }
        if skip_damaged && folder.file_name().is_some_and(|name| name.to_str().is_none()) {
            found.iter().for_each(|path| skipped.add(Skip::Unnamed, root, path));
            continue;
        }
        let class = class_name(&folder)?;
        files.extend(found.into_iter().map(|path| (path, class.clone())));
    }
    check_parts(root, &files)?;
    match files.is_empty() {
        // A folder of images is a single class.
        true if !loose.is_empty() => {
            let class = class_name(&canonical(root)?)?;
            files = loose.into_iter().map(|path| (path, class.clone())).collect();
        }
        true => (),
        false => loose.iter().for_each(|path| skipped.add(Skip::Loose, root, path)),
    }
    Ok(Listing { files, skipped })
}

fn listed(root: &Path, name: &str) -> Result<Listing> {
    let files = list::read(root, name)?;
    let mut skipped = Skipped::default();
    let known: HashSet<&Path> = files.iter().map(|(path, _)| path.as_path()).collect();
    for path in pictures(root, root, &mut skipped)? {
        if !known.contains(path.as_path()) {
            skipped.add(Skip::Unlisted, root, &path);
        }
    }
    Ok(Listing { files, skipped })
}

fn class_name(folder: &Path) -> Result<String> {
    let fault = |reason: &str| Error::Dataset { path: folder.to_owned(), reason: reason.into() };
    let name = folder.file_name().unwrap_or_default();
    let name = name.to_str().ok_or_else(|| fault("its name is not UTF-8: rename it"))?;
    match name.trim().is_empty() {
        true => Err(fault("it has no name that could be that of a class")),
        false => Ok(name.to_owned()),
    }
}

/// Refuses folders such as `train` and `test`, which are no classes.
fn check_parts(root: &Path, files: &[(PathBuf, String)]) -> Result<()> {
    let classes: HashSet<&str> = files.iter().map(|(_, class)| class.as_str()).collect();
    let part = |class: &&&str| PARTS.contains(&class.to_lowercase().as_str());
    if classes.len() < 2 || classes.iter().filter(part).count() < classes.len() {
        return Ok(());
    }
    let mut parts: Vec<&str> = classes.into_iter().collect();
    parts.sort_unstable();
    let reason = format!(
        "{} are parts of a data set, not classes: name the folder of one of them",
        parts.join(" and ")
    );
    Err(Error::Dataset { path: root.to_owned(), reason })
}

/// The pictures in a folder and all folders in it, in the order of paths; each folder is read once.
fn pictures(folder: &Path, root: &Path, skipped: &mut Skipped) -> Result<Vec<PathBuf>> {
    let above = canonical(root)?;
    let mut seen: HashSet<PathBuf> = above.ancestors().map(Path::to_owned).collect();
    if folder == root {
        seen.remove(&above);
    }
    let mut left = vec![folder.to_owned()];
    let mut found = Vec::new();
    while let Some(folder) = left.pop() {
        if !seen.insert(canonical(&folder)?) {
            skipped.add(Skip::Again, root, &folder);
            continue;
        }
        let Entries { folders, pictures } = entries(&folder, root, skipped)?;
        left.extend(folders);
        found.extend(pictures);
    }
    found.sort();
    Ok(found)
}

fn canonical(path: &Path) -> Result<PathBuf> {
    path.canonicalize().map_err(|source| Error::File { path: path.to_owned(), source })
}

/// What is in a folder, sorted.
#[derive(Default)]
struct Entries {
    folders: Vec<PathBuf>,
    pictures: Vec<PathBuf>,
}

fn entries(folder: &Path, root: &Path, skipped: &mut Skipped) -> Result<Entries> {
    let file = |source| Error::File { path: folder.to_owned(), source };
    let paths: std::io::Result<Vec<PathBuf>> =
        std::fs::read_dir(folder).map_err(file)?.map(|entry| Ok(entry?.path())).collect();
    let mut paths = paths.map_err(file)?;
    paths.sort();
    let mut entries = Entries::default();
    for path in paths {
        match kind(&path) {
            Kind::Folder => entries.folders.push(path),
            Kind::Picture => entries.pictures.push(path),
            Kind::List if folder == root => (),
            Kind::List => skipped.add(Skip::Other, root, &path),
            Kind::None(why) => skipped.add(why, root, &path),
        }
    }
    Ok(entries)
}

/// What an entry of a folder is.
enum Kind {
    Folder,
    Picture,
    List,
    None(Skip),
}

fn kind(path: &Path) -> Kind {
    let lower =
        |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().to_lowercase();
    let (name, extension) = (lower(path.file_name()), lower(path.extension()));
    let known = |list: &[&str], name: &String| list.contains(&name.as_str());
    match std::fs::metadata(path) {
        _ if name.starts_with('.') || known(&CLUTTER, &name) => Kind::None(Skip::Clutter),
        Ok(entry) if entry.is_dir() => Kind::Folder,
        Ok(entry) if !entry.is_file() => Kind::None(Skip::Special),
        Err(_) => Kind::None(Skip::Special),
        Ok(_) if known(&READ, &extension) => Kind::Picture,
        Ok(_) if known(&NOT_READ, &extension) => Kind::None(Skip::Format),
        Ok(_) if known(&LISTS, &name) => Kind::List,
        Ok(_) => Kind::None(Skip::Other),
    }
}
