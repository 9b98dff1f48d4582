//! Folders that one process works in at a time.

use std::fs::{DirEntry, File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Name of the file whose lock is that of its folder.
const FILE: &str = ".lock";

/// The right to write into a folder. It ends with the process, however that ends. Where nothing was written, the folder
/// that was made for it goes with it.
#[derive(Debug)]
pub(crate) struct Lock {
    /// Files that are locked.
    files: Vec<File>,
    /// The folder of a single holder.
    alone: Option<PathBuf>,
    /// Folders that were made for it, the innermost first.
    made: Vec<PathBuf>,
}

impl Lock {
    /// Makes a folder, if there is none, and takes it.
    ///
    /// # Errors
    /// [`Error::InUse`] while another holds it, and a folder that cannot be written.
    pub(crate) fn take(folder: &Path) -> Result<Self> {
        let made = folder.ancestors().take_while(|above| !above.exists());
        let made = made.map(Path::to_owned).filter(|above| !above.as_os_str().is_empty()).collect();
        let files = vec![open(folder, FILE, File::try_lock)?];
        Ok(Self { files, alone: Some(folder.to_owned()), made })
    }

    /// Checks, without making anything, that a folder can be taken.
    ///
    /// # Errors
    /// [`Error::InUse`] while another holds it.
    pub(crate) fn check(folder: &Path) -> Result<()> {
        // Whatever else is wrong with the file shows when the folder is taken.
        match File::open(folder.join(FILE)).map(|file| file.try_lock()) {
            Ok(Err(TryLockError::WouldBlock)) => Err(Error::InUse { path: folder.to_owned() }),
            _ => Ok(()),
        }
    }

    /// As [`Lock::take`], for one of `worker[1]` workers, beside the others.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn take_part(folder: &Path, worker: [usize; 2]) -> Result<Self> {
        let [number, workers] = worker;
        if workers <= 1 {
            return Self::take(folder);
        }
        let beside = open(folder, FILE, File::try_lock_shared)?;
        let own = open(folder, &format!("{FILE}-{number}-{workers}"), File::try_lock)?;
        Ok(Self { files: vec![beside, own], alone: None, made: Vec::new() })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let is_lock = |entry: std::io::Result<DirEntry>| entry.is_ok_and(|e| e.file_name() == FILE);
        // What cannot be removed stays, as it does when the process is killed.
        if let Some(folder) = &self.alone
            && std::fs::read_dir(folder).is_ok_and(|mut entries| entries.all(is_lock))
        {
            let _ = std::fs::remove_file(folder.join(FILE));
            let _ = self.made.iter().try_for_each(std::fs::remove_dir);
        }
        // Not left to closing: a program that this process is just starting has the files open for a moment, too.
        for file in &self.files {
            let _ = file.unlock();
        }
    }
}

fn open(
    folder: &Path,
    name: &str,
    lock: impl FnOnce(&File) -> Result<(), TryLockError>,
) -> Result<File> {
    let failed = |source| Error::File { path: folder.to_owned(), source };
    std::fs::create_dir_all(folder).map_err(failed)?;
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(false).open(folder.join(name));
    let file = file.map_err(failed)?;
    match lock(&file) {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::InUse { path: folder.to_owned() }),
        // There are file systems without locks.
        Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => Ok(file),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_writer_or_several_that_share_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = &folder.path().join("new");
        let is_free = |worker| Lock::take_part(path, worker).is_ok();
        let whole = Lock::take(path).expect("free");
        assert!(matches!(Lock::take(path), Err(Error::InUse { .. })));
        assert!(matches!(Lock::check(path), Err(Error::InUse { .. })));
        assert!(!is_free([0, 2]));
        drop(whole);
        Lock::check(path).expect("free");
        assert!(!path.exists(), "nothing was written");
        let _first = Lock::take_part(path, [0, 2]).expect("free");
        assert!(is_free([1, 2]) && !is_free([0, 2]) && !is_free([0, 1]));
    }

    #[test]
    fn a_folder_goes_where_nothing_was_written_and_it_was_made_for_that() {
        let folder = tempfile::tempdir().expect("a folder");
        let deep = folder.path().join("runs/a");
        drop(Lock::take(&deep).expect("free"));
        assert!(!folder.path().join("runs").exists());
        drop(Lock::take(folder.path()).expect("free"));
        assert_eq!(std::fs::read_dir(folder.path()).expect("it stays").count(), 0);
        let lock = Lock::take(&deep).expect("free");
        std::fs::write(deep.join("log"), "").expect("written");
        drop(lock);
        assert!(deep.join("log").exists() && deep.join(FILE).exists());
    }
}
