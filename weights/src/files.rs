//! Files: read with a limit, written whole or not at all.

use std::fs::File;
use std::io::Read;
use std::path::{Component, Path};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// Writes a file whole or not at all, and waits for the disk.
///
/// # Errors
/// A folder that cannot be written; a file that was there before is then unchanged.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let file = |source| Error::File { path: path.to_owned(), source };
    replace(path, |temporary| std::fs::write(temporary, bytes).map_err(file))
}

/// Lets `fill` write a temporary file in the same folder, which then takes the place of `path`.
pub(crate) fn replace(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let file = |source| Error::File { path: path.to_owned(), source };
    let folder = folder_of(path);
    let temporary =
        tempfile::Builder::new().prefix(".writing-").tempfile_in(folder).map_err(file)?;
    fill(temporary.path())?;
    // Readable like any other file, not only by its owner.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::Permissions::from_mode(0o644);
        temporary.as_file().set_permissions(mode).map_err(file)?;
    }
    temporary.as_file().sync_all().map_err(file)?;
    temporary.persist(path).map_err(|error| file(error.error))?;
    sync_folder(folder).map_err(file)
}

/// Makes renames in a folder survive a power cut, where the system can.
pub(crate) fn sync_folder(folder: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    File::open(folder)?.sync_all()?;
    #[cfg(not(unix))]
    let _ = folder;
    Ok(())
}

/// The folder that a file or folder is in; `.` for a bare name.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Whether a name stays in its folder.
pub(crate) fn is_plain_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
    plain && !name.contains(['/', '\\', '\0'])
}

/// The content of a file that should be small.
pub(crate) fn read_at_most(path: &Path, most: u64) -> Result<Vec<u8>> {
    let file = |source| Error::File { path: path.to_owned(), source };
    let mut content = Vec::new();
    File::open(path).map_err(file)?.take(most + 1).read_to_end(&mut content).map_err(file)?;
    match content.len() as u64 > most {
        true => Err(Error::Large { path: path.to_owned(), most }),
        false => Ok(content),
    }
}

/// The sha256 of a file in hexadecimal.
pub(crate) fn sha256(path: &Path) -> Result<String> {
    let file = |source| Error::File { path: path.to_owned(), source };
    let mut opened = File::open(path).map_err(file)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match opened.read(&mut buffer).map_err(file)? {
            0 => return Ok(hexadecimal(&hash.finalize())),
            count => hash.update(&buffer[..count]),
        }
    }
}

pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
