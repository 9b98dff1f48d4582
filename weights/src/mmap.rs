//! Memory-mapped files: the only unsafe code of this crate.
#![allow(unsafe_code)]

use std::fs::File;
use std::path::Path;

use memmap2::Mmap;

use crate::error::{Error, Result};

/// Maps a whole file for reading.
pub(crate) fn map(path: &Path) -> Result<Mmap> {
    let file = |source| Error::File { path: path.to_owned(), source };
    let opened = File::open(path).map_err(file)?;
    // SAFETY: the mapping is read-only. Another process that truncates the file while it is mapped could
    // end this one with a signal, which every program that maps weights accepts.
    unsafe { Mmap::map(&opened) }.map_err(file)
}
