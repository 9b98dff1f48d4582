//! Opening a checkpoint of any format.

use std::collections::BTreeMap;
use std::path::Path;

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::files::{check_pointer, has_extension, read_start};
use crate::formats::{gguf, pytorch, safetensors, shards};

impl Checkpoint {
    /// Opens a safetensors file, a `*.index.json` with its shards, a PyTorch file, or a GGUF file. Prefixes that trainers put around
    /// the names of a network, such as `module.` and `_orig_mod.`, are taken off.
    ///
    /// # Errors
    /// A file that is not there, of no known format, or that breaks the rules of its format.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let opened = match has_extension(path, "json") {
            true => shards::open(path)?,
            false => open_file(path)?,
        };
        opened.unwrapped()
    }

    /// The same of the tensors whose names begin with `part` and a dot, without these; `None` if there are none.
    ///
    /// # Errors
    /// As there.
    pub fn open_part(path: impl AsRef<Path>, part: &str) -> Result<Option<Self>> {
        let path = path.as_ref();
        let (tensors, metadata) = open_file(path)?.into_parts();
        let own = |(name, info): (String, _)| {
            Some((name.strip_prefix(part)?.strip_prefix('.')?.to_owned(), info))
        };
        let tensors: BTreeMap<_, _> = tensors.into_iter().filter_map(own).collect();
        match tensors.is_empty() {
            true => Ok(None),
            false => Self::new(path, tensors, metadata).unwrapped().map(Some),
        }
    }
}

/// Opens a file that holds tensors, as they are named there.
pub(crate) fn open_file(path: &Path) -> Result<Checkpoint> {
    let start = read_start(path, 512)?;
    check_pointer(path, &start)?;
    if has_extension(path, "safetensors") {
        return safetensors::open(path);
    }
    if gguf::is_gguf(&start) {
        return gguf::open(path);
    }
    match pytorch::is_pytorch(&start) {
        true => pytorch::open(path, &start),
        false => Err(Error::UnknownFormat { path: path.to_owned() }),
    }
}
