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

    /// For each of these parts that there is, the same of the tensors whose names begin with it and a dot, without these.
    ///
    /// # Errors
    /// As there.
    pub fn open_parts<'a>(
        path: impl AsRef<Path>,
        parts: &[&'a str],
    ) -> Result<Vec<(&'a str, Self)>> {
        let path = path.as_ref();
        let (tensors, metadata) = open_file(path)?.into_parts();
        let opened = |part: &&'a str| {
            let own = tensors.iter().filter_map(|(name, info)| {
                Some((name.strip_prefix(part)?.strip_prefix('.')?.to_owned(), info.clone()))
            });
            let own: BTreeMap<_, _> = own.collect();
            (!own.is_empty()).then(|| {
                let own = Self::new(path, own, metadata.clone()).unwrapped()?;
                Ok((*part, own))
            })
        };
        parts.iter().filter_map(opened).collect()
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
