//! GGUF files, in which llama.cpp and its relatives keep weights, mostly in blocks of few bits.

mod header;
mod kind;
mod names;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;

use crate::checkpoint::Checkpoint;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::files::open_file;
use crate::tensor::{OpenFile, TensorInfo, Values};
use header::{Gguf, MAGIC, Tensor, read};
pub(crate) use kind::Kind;
pub(crate) use names::Names;

/// Number of files that a model was split into.
const PARTS_KEY: &str = "split.count";

/// Whether a file that starts so is one.
pub(crate) fn is_gguf(start: &[u8]) -> bool {
    start.starts_with(&MAGIC)
}

/// Reads and validates the header of a file. Tensors in blocks are numbers of 32 bits from here on; those of a text
/// encoder have the names of the transformers library.
pub(crate) fn open(path: &Path) -> Result<Checkpoint> {
    let fault = |reason: String| Error::Gguf { path: path.to_owned(), reason };
    let (file, whole) = open_file(path)?;
    let Gguf { tensors, metadata } = read(&file, whole).map_err(fault)?;
    if let Some(parts) = metadata.get(PARTS_KEY).filter(|parts| parts.as_str() != "1") {
        return Err(fault(format!("one of {parts} parts of a model: join them first")));
    }
    let names = Names::of(tensors.keys());
    let named = |name: String| names.as_ref().and_then(|names| names.name(&name)).unwrap_or(name);
    let file = Arc::new(OpenFile::new(path, file));
    let placed = |Tensor { kind, shape, range }| {
        let file = Arc::clone(&file);
        match plain(kind) {
            Some(dtype) => TensorInfo::new(dtype, shape, Values::Range(file, range)),
            None => TensorInfo::new(Dtype::F32, shape, Values::Blocks(file, range, kind)),
        }
    };
    let tensors = tensors.into_iter().map(|(name, tensor)| (named(name), placed(tensor)));
    Ok(Checkpoint::new(path, tensors.collect(), metadata))
}

/// The type of elements that stand alone.
fn plain(kind: Kind) -> Option<Dtype> {
    Some(match kind {
        Kind::F64 => Dtype::F64,
        Kind::F32 => Dtype::F32,
        Kind::F16 => Dtype::F16,
        Kind::BF16 => Dtype::BF16,
        Kind::I64 => Dtype::I64,
        Kind::I32 => Dtype::I32,
        Kind::I16 => Dtype::I16,
        Kind::I8 => Dtype::I8,
        _ => return None,
    })
}
