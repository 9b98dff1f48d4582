//! The zip archives of `torch.save`.

use std::fs::File;
use std::io::{BufReader, Read};
use std::sync::{Arc, Mutex, PoisonError};

use zip::read::{ArchiveOffset, Config};

use super::pickle::Fault;
use crate::tensor::{Stored, Zip, entry};

/// Bytes that the pickle of any file may have when it is unpacked.
const SMALL_BYTES: u64 = 16 << 20;
/// Bytes of the text that names the order of bytes.
const ORDER_BYTES: u64 = 16;

/// An archive whose entries stand in a folder of any name.
pub(super) struct Archive {
    zip: Arc<Mutex<Zip>>,
    /// The folder, with its slash.
    root: String,
}

impl Archive {
    pub(super) fn open(file: File, length: u64) -> Result<Self, Fault> {
        // The crate looks for the directory where its length puts it before the end record, and PyTorch has two more
        // records of 76 bytes between. A file name of 21 letters makes the first entry as long: the search finds the
        // second and takes it for the first. An archive that starts the file needs no search.
        let config = Config { archive_offset: ArchiveOffset::Known(0) };
        let zip =
            Zip::with_config(config, BufReader::new(file)).map_err(|error| error.to_string())?;
        let names = zip.file_names_raw().filter_map(|name| std::str::from_utf8(name).ok());
        let roots = names.filter_map(|name| name.strip_suffix("data.pkl"));
        let roots = roots.filter(|root| root.is_empty() || root.ends_with('/'));
        let root = roots.min_by_key(|root| root.len()).map(str::to_owned);
        let root = root.ok_or("an archive without `data.pkl`")?;
        let archive = Self { zip: Arc::new(Mutex::new(zip)), root };
        match archive.read("byteorder", ORDER_BYTES.min(length)) {
            Ok(order) if order.starts_with(b"big") => Err("its numbers are big-endian".into()),
            _ => Ok(archive),
        }
    }

    /// The pickle of a file of `length` bytes.
    pub(super) fn pickle(&self, length: u64) -> Result<Vec<u8>, Fault> {
        self.read("data.pkl", SMALL_BYTES.saturating_add(length))
    }

    /// An entry of at most `most` bytes.
    fn read(&self, name: &str, most: u64) -> Result<Vec<u8>, Fault> {
        let mut zip = self.zip.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = |error: std::io::Error| format!("`{name}`: {error}");
        let index = zip.index_for_name(&format!("{}{name}", self.root));
        let index = index.ok_or_else(|| format!("`{name}` is not there"))?;
        let entry = entry(&mut zip, index).map_err(failed)?;
        let mut bytes = Vec::new();
        entry.take(most + 1).read_to_end(&mut bytes).map_err(failed)?;
        match bytes.len() as u64 > most {
            true => Err(format!("`{name}` has more than {most} bytes")),
            false => Ok(bytes),
        }
    }

    /// A storage and its length.
    pub(super) fn stored(&self, key: &str) -> Result<(Stored, u64), Fault> {
        let mut zip = self.zip.lock().unwrap_or_else(PoisonError::into_inner);
        let name = format!("{}data/{key}", self.root);
        let index = zip.index_for_name(&name).ok_or_else(|| format!("`{name}` is not there"))?;
        let entry = zip.by_index_raw(index).map_err(|error| format!("`{name}`: {error}"))?;
        let length = entry.size();
        drop(entry);
        Ok((Stored::Entry(Arc::clone(&self.zip), index), length))
    }
}
