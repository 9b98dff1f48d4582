//! Writing files and folders whole or not at all, and removing what a killed writer left behind.
//!
//! What is being written stands beside its target under a name that starts with `.writing-`, and is locked by its
//! writer. A lock ends with its process, so that whoever gets it knows the writer to be gone.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tempfile::{Builder, NamedTempFile, TempDir};

use crate::error::{Error, Result};
use crate::files::folder_of;

/// How the names of unfinished files and folders start.
const PREFIX: &str = ".writing-";
/// In an unfinished folder: the folder of what is new, and that of what it replaces, each under the target's name.
const NEW: &str = "new";
const OLD: &str = "old";

/// Writes a file whole or not at all, and waits for the disk. Like any new file, it has the permissions that the
/// umask leaves.
///
/// # Errors
/// A folder that cannot be written; a file that was there before is then unchanged.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    replace(path, |file| file.write_all(bytes))
}

/// Lets `fill` write what takes the place of `path` when it is whole.
pub(crate) fn replace(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>,
) -> Result<()> {
    let folder = folder_of(path);
    let write = || -> io::Result<()> {
        remove_unfinished_once(folder);
        let temporary = unfinished_file(folder)?;
        let mut writer = BufWriter::with_capacity(1 << 20, temporary.as_file());
        fill(&mut writer)?;
        writer.flush()?;
        drop(writer);
        temporary.as_file().sync_all()?;
        temporary.persist(path).map_err(|error| error.error)?;
        sync_folder(folder)
    };
    write().map_err(|source| Error::File { path: path.to_owned(), source })
}

/// Lets `fill` write a folder, which takes the place of `folder`, if there is one, when it is whole. At every moment
/// either the old one or the new one is at its path, where the system can exchange two folders.
pub(crate) fn replace_folder(folder: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let failed = |source| Error::File { path: folder.to_owned(), source };
    // What a link points to is replaced, not the link.
    let target = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let name = target.file_name().ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
    let parent = folder_of(&target);
    std::fs::create_dir_all(parent).map_err(failed)?;
    remove_unfinished_once(parent);
    let (temporary, _lock) = unfinished_folder(parent).map_err(failed)?;
    let fresh = temporary.path().join(NEW).join(name);
    std::fs::create_dir_all(&fresh).map_err(failed)?;
    fill(&fresh)?;
    let swap = || -> io::Result<()> {
        sync_folder(&fresh)?;
        match target.exists() {
            false => std::fs::rename(&fresh, &target)?,
            true if exchange(&fresh, &target).is_ok() => (),
            true => {
                let old = temporary.path().join(OLD);
                std::fs::create_dir(&old)?;
                swap_in_two(&fresh, &target, &old.join(name))?;
            }
        }
        sync_folder(parent)
    };
    let swapped = swap();
    if temporary.path().join(OLD).join(name).exists() && !target.exists() {
        // Neither could be put in place: what was there is kept for the next writer, which tries again.
        let _ = temporary.keep();
    }
    swapped.map_err(failed)
}

/// Exchanges two folders in one step.
#[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    Ok(renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)?)
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
fn exchange(_a: &Path, _b: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Moves `target` to `old` and `fresh` to its place, or nothing.
fn swap_in_two(fresh: &Path, target: &Path, old: &Path) -> io::Result<()> {
    std::fs::rename(target, old)?;
    std::fs::rename(fresh, target).inspect_err(|_| {
        // If this fails too, the next writer in this folder does it.
        let _ = std::fs::rename(old, target);
    })
}

fn unfinished_file(folder: &Path) -> io::Result<NamedTempFile> {
    let mut builder = Builder::new();
    builder.prefix(PREFIX);
    // As for any new file; the system takes the umask off.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    loop {
        let file = builder.tempfile_in(folder).map_err(plain)?;
        if is_mine(file.as_file(), file.path()) {
            return Ok(file);
        }
    }
}

/// What the system answered, without the temporary name, which nobody asked for.
fn plain(error: io::Error) -> io::Error {
    let inner = error.get_ref().and_then(|inner| inner.source());
    let code = inner.and_then(|inner| inner.downcast_ref::<io::Error>()?.raw_os_error());
    code.map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
}

/// A folder, and what holds its lock where folders can be opened.
fn unfinished_folder(parent: &Path) -> io::Result<(TempDir, Option<File>)> {
    loop {
        let folder = Builder::new().prefix(PREFIX).tempdir_in(parent).map_err(plain)?;
        let Ok(opened) = File::open(folder.path()) else { return Ok((folder, None)) };
        if is_mine(&opened, folder.path()) {
            return Ok((folder, Some(opened)));
        }
    }
}

/// Locks what was just made. It is not there any more if another process took it for a leftover before the lock.
fn is_mine(file: &File, path: &Path) -> bool {
    // A file system without locks has no cleaning either.
    let _ = file.lock();
    path.exists()
}

/// Removes what killed writers left in a folder. What another process is writing stays, and so does everything
/// where files cannot be locked.
pub fn remove_unfinished(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let path = entry.path();
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if !is_folder && !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        let Ok(file) = File::open(&path) else { continue };
        if file.try_lock().is_err() {
            continue;
        }
        // What cannot be removed costs space, not the work.
        let _ = match is_folder {
            true => restore(&path, folder).and_then(|()| std::fs::remove_dir_all(&path)),
            false => std::fs::remove_file(&path),
        };
    }
}

/// Puts back what a killed writer had moved away.
fn restore(unfinished: &Path, folder: &Path) -> io::Result<()> {
    for old in std::fs::read_dir(unfinished.join(OLD)).into_iter().flatten() {
        let old = old?;
        let target = folder.join(old.file_name());
        if !target.exists() {
            std::fs::rename(old.path(), target)?;
        }
    }
    Ok(())
}

/// The first time that this process writes into a folder.
fn remove_unfinished_once(folder: &Path) {
    static CLEANED: Mutex<Option<HashSet<PathBuf>>> = Mutex::new(None);
    let Ok(whole) = folder.canonicalize() else { return };
    let mut cleaned = CLEANED.lock().unwrap_or_else(PoisonError::into_inner);
    if cleaned.get_or_insert_default().insert(whole) {
        drop(cleaned);
        remove_unfinished(folder);
    }
}

/// Checks, before any work, that something can be written into a folder, which may not be there yet.
///
/// # Errors
/// A folder that cannot be made or written, or a file in its place.
pub fn check_writable(folder: &Path) -> Result<()> {
    let mut there = folder;
    while !there.exists() {
        there = folder_of(there);
    }
    let made = match there.is_dir() {
        true => unfinished_file(there).map(|_| ()),
        false => Err(io::ErrorKind::NotADirectory.into()),
    };
    made.map_err(|source| Error::File { path: there.to_owned(), source })
}

/// Makes renames in a folder survive a power cut, where the system can.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    #[cfg(unix)]
    File::open(folder)?.sync_all()?;
    #[cfg(not(unix))]
    let _ = folder;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).expect("a folder");
        let name = |entry: io::Result<std::fs::DirEntry>| {
            entry.expect("an entry").file_name().to_string_lossy().into_owned()
        };
        let mut names: Vec<String> = entries.map(name).collect();
        names.sort();
        names
    }

    fn fill(text: &'static str) -> impl FnOnce(&Path) -> Result<()> {
        move |folder| write_whole(&folder.join("a"), text.as_bytes())
    }

    #[test]
    fn leftovers_go_and_what_is_being_written_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path();
        std::fs::write(path.join(".writing-dead"), "x").expect("written");
        std::fs::create_dir_all(path.join(".writing-gone/new/model")).expect("created");
        let (alive, _lock) = unfinished_folder(path).expect("made");
        let file = unfinished_file(path).expect("made");
        std::fs::write(path.join(".writing"), "mine").expect("written");
        remove_unfinished(path);
        let mut left = [alive.path(), file.path(), &path.join(".writing")]
            .map(|path| path.file_name().expect("a name").to_string_lossy().into_owned());
        left.sort();
        assert_eq!(names(path), left);
    }

    #[test]
    fn what_a_killed_writer_moved_away_comes_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path();
        for name in ["lost", "kept"] {
            std::fs::create_dir_all(path.join(".writing-x/old").join(name)).expect("created");
            std::fs::write(path.join(".writing-x/old").join(name).join("a"), "old")
                .expect("written");
        }
        std::fs::create_dir(path.join("kept")).expect("created");
        remove_unfinished(path);
        assert_eq!(names(path), ["kept", "lost"]);
        assert_eq!(names(&path.join("lost")), ["a"]);
        assert!(names(&path.join("kept")).is_empty());
    }

    #[test]
    fn a_folder_is_replaced_whole_or_not_at_all() {
        let folder = tempfile::tempdir().expect("a folder");
        let target = folder.path().join("model");
        let content = || std::fs::read_to_string(target.join("a")).expect("a file");
        replace_folder(&target, fill("first")).expect("made");
        replace_folder(&target, fill("second")).expect("replaced");
        assert_eq!((content().as_str(), names(folder.path())), ("second", vec!["model".into()]));
        let full = |_: &Path| {
            Err(Error::File { path: "x".into(), source: io::ErrorKind::StorageFull.into() })
        };
        assert!(replace_folder(&target, full).is_err());
        assert_eq!((content().as_str(), names(folder.path())), ("second", vec!["model".into()]));
    }

    #[test]
    fn a_swap_in_two_that_fails_changes_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let [fresh, target, old] = ["fresh", "target", "old"].map(|name| folder.path().join(name));
        std::fs::create_dir(&target).expect("created");
        assert!(swap_in_two(&fresh, &target, &old).is_err());
        assert_eq!(names(folder.path()), ["target"]);
        std::fs::create_dir(&fresh).expect("created");
        swap_in_two(&fresh, &target, &old).expect("swapped");
        assert_eq!(names(folder.path()), ["old", "target"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_to_a_folder_stays_a_link() {
        let folder = tempfile::tempdir().expect("a folder");
        let [real, link] = ["real", "link"].map(|name| folder.path().join(name));
        std::fs::create_dir(&real).expect("created");
        std::os::unix::fs::symlink(&real, &link).expect("linked");
        replace_folder(&link, fill("new")).expect("replaced");
        assert!(link.is_symlink() && real.join("a").is_file());
    }

    #[cfg(unix)]
    #[test]
    fn new_files_have_the_permissions_of_any_new_file() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a folder");
        let mode = |name: &str| {
            let path = folder.path().join(name);
            std::fs::metadata(path).expect("there").permissions().mode() & 0o777
        };
        std::fs::write(folder.path().join("plain"), "x").expect("written");
        std::fs::create_dir(folder.path().join("folder")).expect("created");
        write_whole(&folder.path().join("ours"), b"x").expect("written");
        replace_folder(&folder.path().join("our folder"), fill("x")).expect("made");
        assert_eq!([mode("ours"), mode("our folder")], [mode("plain"), mode("folder")]);
    }

    #[test]
    fn what_cannot_be_written_is_known_before() {
        let folder = tempfile::tempdir().expect("a folder");
        check_writable(&folder.path().join("not/there/yet")).expect("can be made");
        std::fs::write(folder.path().join("file"), "x").expect("written");
        assert!(check_writable(&folder.path().join("file/a")).is_err());
        assert_eq!(names(folder.path()), ["file"]);
    }
}
