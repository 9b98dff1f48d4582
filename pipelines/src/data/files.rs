//! The files of a folder of images.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::Annotation;
use super::list::{self, LISTS};
use super::notice::{Skip, Skipped};
use crate::error::words::counted;
use crate::error::{Error, Result};
use crate::text::read_text;

/// Extensions that are read.
pub(super) const READ: [&str; 6] = ["png", "jpg", "jpeg", "jpe", "jfif", "webp"];
/// Extensions of the text files beside pictures that hold their captions, one in a line.
const CAPTIONS: [&str; 2] = ["txt", "caption"];
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

/// A picture and what is known of it.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) path: PathBuf,
    /// Its class, or its captions.
    pub(super) told: Vec<String>,
    /// What stands in the columns of its list that were asked for; of none where there is no list.
    pub(super) columns: Vec<Option<String>>,
}

impl Known {
    fn new(path: PathBuf, told: Vec<String>) -> Self {
        Self { path, told, columns: Vec::new() }
    }
}

/// The pictures of a folder, in the order of paths, and what else it holds.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) files: Vec<Known>,
    pub(super) skipped: Skipped,
}

/// The pictures of a folder with what is known of them: those that its list names; or those of its sub-folders, which
/// are their classes; or all that have captions beside them. With `skip_damaged`, those in a folder of a class whose
/// name is not UTF-8, and those without a caption, are left out.
///
/// # Errors
/// A folder without pictures or with two lists, a list that is broken, names that are not UTF-8, a folder of
/// the parts of a data set, pictures without captions, columns without a list.
pub(super) fn annotated(
    folder: &Path,
    annotation: Annotation,
    columns: &[String],
    skip_damaged: bool,
) -> Result<Listing> {
    let fault = |reason: String| Error::Dataset { path: folder.to_owned(), reason };
    let lists: Vec<&str> = LISTS.into_iter().filter(|name| folder.join(name).is_file()).collect();
    if let ([], Some(column)) = (lists.as_slice(), columns.first()) {
        return Err(fault(format!("no list that could have a column `{column}`")));
    }
    let listing = match (lists.as_slice(), annotation) {
        ([], Annotation::Classes) => by_folder(folder, skip_damaged)?,
        ([], Annotation::Captions) => captioned(folder, skip_damaged)?,
        ([name], _) => listed(folder, name, annotation, columns)?,
        ([first, second, ..], _) => {
            return Err(fault(format!("two lists, {first} and {second}")));
        }
    };
    let expected = match annotation {
        Annotation::Classes => "sub-folders of png, jpg or webp files",
        Annotation::Captions => "png, jpg or webp files with a txt file beside each, or a list",
    };
    match listing.files.is_empty() {
        true => Err(fault(format!("no images: expected {expected}"))),
        false => Ok(listing),
    }
}

/// All pictures that have a text file of the same name beside them, a caption in each line of that.
fn captioned(root: &Path, skip_damaged: bool) -> Result<Listing> {
    let Listing { mut files, mut skipped } = Listing::default();
    let (mut bare, mut read) = (Vec::new(), HashSet::new());
    for path in pictures(root, root, &mut skipped)? {
        let beside = CAPTIONS.map(|extension| path.with_extension(extension));
        let Some(file) = beside.into_iter().find(|file| file.is_file()) else {
            bare.push(path);
            continue;
        };
        let text = read_text(&file)?;
        read.insert(file);
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        match lines.map(str::to_owned).collect::<Vec<_>>() {
            captions if captions.is_empty() => bare.push(path),
            captions => files.push(Known::new(path, captions)),
        }
    }
    skipped.keep(Skip::Other, root, |path| !read.contains(path));
    match (bare.first(), skip_damaged) {
        (Some(first), false) => {
            let (count, first) = (counted(bare.len(), "image"), first.display());
            let reason = format!(
                "{count} without a caption, such as {first}: expected a txt file of its name with one in each line"
            );
            Err(Error::Dataset { path: root.to_owned(), reason })
        }
        _ => {
            bare.iter().for_each(|path| skipped.add(Skip::Uncaptioned, root, path));
            Ok(Listing { files, skipped })
        }
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
        files.extend(found.into_iter().map(|path| Known::new(path, vec![class.clone()])));
    }
    check_parts(root, &files)?;
    match files.is_empty() {
        // A folder of images is a single class.
        true if !loose.is_empty() => {
            let class = class_name(&canonical(root)?)?;
            let of_class = |path| Known::new(path, vec![class.clone()]);
            files = loose.into_iter().map(of_class).collect();
        }
        true => (),
        false => loose.iter().for_each(|path| skipped.add(Skip::Loose, root, path)),
    }
    Ok(Listing { files, skipped })
}

fn listed(root: &Path, name: &str, annotation: Annotation, columns: &[String]) -> Result<Listing> {
    let files = list::read(root, name, annotation, columns)?;
    let mut skipped = Skipped::default();
    let known: HashSet<&Path> = files.iter().map(|known| known.path.as_path()).collect();
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
fn check_parts(root: &Path, files: &[Known]) -> Result<()> {
    let classes: HashSet<&str> =
        files.iter().flat_map(|known| &known.told).map(String::as_str).collect();
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
pub(super) fn pictures(folder: &Path, root: &Path, skipped: &mut Skipped) -> Result<Vec<PathBuf>> {
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
