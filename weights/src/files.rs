//! Reading files, with a limit, and the names of files.

use std::fs::{File, FileType};
use std::io::Read;
use std::path::{Component, Path};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// How the text starts that stands for a file in a Git repository until Git LFS has fetched it.
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";

/// Opens a file that has an end, with its length.
///
/// # Errors
/// A folder, a pipe or a device, and whatever the system refuses.
pub fn open_file(path: &Path) -> Result<(File, u64)> {
    let failed = |source| Error::File { path: path.to_owned(), source };
    // Before it is opened, which waits for ever on a pipe.
    let about = std::fs::metadata(path).map_err(failed)?;
    match about.is_file() {
        true => Ok((File::open(path).map_err(failed)?, about.len())),
        false => Err(Error::NotAFile { path: path.to_owned(), found: kind(about.file_type()) }),
    }
}

fn kind(found: FileType) -> &'static str {
    match found.is_dir() {
        true => "a folder",
        false => "a pipe or a device",
    }
}

/// The folder that a file or folder is in; `.` for a bare name.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Whether a name ends in `.extension`, in small letters or capitals.
pub(crate) fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found.eq_ignore_ascii_case(extension))
}

/// Whether a name stays in its folder.
pub(crate) fn is_plain_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
    plain && !name.contains(['/', '\\', '\0'])
}

/// The content of a file of at most `most` bytes.
///
/// # Errors
/// A larger file, and what is no file, such as a pipe or a device.
pub fn read_at_most(path: &Path, most: u64) -> Result<Vec<u8>> {
    let (file, length) = open_file(path)?;
    let large = || Error::Large { path: path.to_owned(), most };
    if length > most {
        return Err(large());
    }
    let mut content = Vec::new();
    // It may have grown since.
    file.take(most + 1)
        .read_to_end(&mut content)
        .map_err(|source| Error::File { path: path.to_owned(), source })?;
    if content.len() as u64 > most {
        return Err(large());
    }
    check_pointer(path, &content)?;
    Ok(content)
}

/// Refuses what stands for a file in a Git repository until Git LFS has fetched it; `start` is the file's.
///
/// # Errors
/// [`Error::LfsPointer`].
pub fn check_pointer(path: &Path, start: &[u8]) -> Result<()> {
    match start.starts_with(LFS_POINTER) {
        true => Err(Error::LfsPointer { path: path.to_owned() }),
        false => Ok(()),
    }
}

/// Up to `most` bytes from the start of a file.
///
/// # Errors
/// What is no file, and whatever the system refuses.
pub fn read_start(path: &Path, most: u64) -> Result<Vec<u8>> {
    let (file, _) = open_file(path)?;
    let mut start = Vec::new();
    file.take(most)
        .read_to_end(&mut start)
        .map_err(|source| Error::File { path: path.to_owned(), source })?;
    Ok(start)
}

/// The sha256 of a file in hexadecimal.
///
/// # Errors
/// A file that cannot be read.
pub fn sha256(path: &Path) -> Result<String> {
    let (file, length) = open_file(path)?;
    let mut content = file.take(length);
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = content.read(&mut buffer);
        match count.map_err(|source| Error::File { path: path.to_owned(), source })? {
            0 => return Ok(hexadecimal(&hash.finalize())),
            count => hash.update(&buffer[..count]),
        }
    }
}

/// The sha256 of bytes in hexadecimal.
pub fn sha256_of(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
