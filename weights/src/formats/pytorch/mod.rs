//! PyTorch files: archives and, before PyTorch 1.6, a row of pickles with the elements behind them.

mod archive;
mod build;
mod pickle;
mod values;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use archive::Archive;
use pickle::{Fault, Pickles};
use values::{Storage, Value, View};

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::files::{open_file, read_start};
use crate::tensor::{OpenFile, Stored, TensorInfo, Values, Window};

/// Bytes from which the pickles of a file without an archive are read.
const PICKLE_BYTES: u64 = 32 << 20;
/// What the first of those pickles holds: `0x1950a86a20f9469cfc6c`, which is more than 64 bits.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
/// Bytes that all tensors of any file may have. Larger ones must be in proportion to the file: a few bytes can say that
/// a tensor repeats one number without end.
const SMALL_BYTES: u64 = 32 << 20;

/// Whether the file starts like a zip archive, a pickle, or a tar archive of one.
pub(crate) fn is_pytorch(start: &[u8]) -> bool {
    let pickle = start.first() == Some(&0x80) && start.get(1).is_some_and(|version| *version <= 5);
    start.starts_with(b"PK\x03\x04") || pickle || is_tar(start)
}

fn is_tar(start: &[u8]) -> bool {
    start.get(257..262) == Some(b"ustar") && !start.starts_with(b"PK")
}

/// Opens a file with this `start`, by which it was told.
pub(crate) fn open(path: &Path, start: &[u8]) -> Result<Checkpoint> {
    let fault = |reason: Fault| Error::Pytorch { path: path.to_owned(), reason };
    if is_tar(start) {
        let reason = "a tar archive, as PyTorch wrote before 2017: save it again with PyTorch";
        return Err(fault(reason.into()));
    }
    let (file, length) = open_file(path)?;
    if start.starts_with(b"PK") {
        let archive = Archive::open(file, length).map_err(fault)?;
        let bytes = archive.pickle(length).map_err(fault)?;
        let mut pickles = Pickles::new(&bytes, length);
        let root = pickles.read().map_err(fault)?;
        return checkpoint(path, length, pickles, root, |storage| archive.stored(&storage.key));
    }
    let bytes = read_start(path, PICKLE_BYTES)?;
    let mut pickles = Pickles::new(&bytes, length);
    let mut root = pickles.read().map_err(fault)?;
    let mut places = BTreeMap::new();
    if bytes[..pickles.at].windows(MAGIC.len()).any(|window| window == MAGIC) {
        pickles.read().map_err(fault)?;
        pickles.read().map_err(fault)?;
        root = pickles.read().map_err(fault)?;
        places = storages(&mut pickles, length).map_err(fault)?;
    }
    let file = Arc::new(OpenFile::new(path, file));
    checkpoint(path, length, pickles, root, |storage| {
        let start = places.get(&storage.key).copied();
        let start = start.ok_or_else(|| format!("storage {} is not in the file", storage.key))?;
        Ok((Stored::Range(Arc::clone(&file), start), storage.bytes))
    })
}

/// Where each storage starts behind the pickles, by its key: they stand in the order of a list of their keys, each after
/// its number of elements.
fn storages(pickles: &mut Pickles, length: u64) -> Result<BTreeMap<String, u64>, Fault> {
    let keys = pickles.read()?;
    let keys = pickles.keys(keys)?;
    let sizes: BTreeMap<&str, u64> =
        pickles.storages.iter().map(|storage| (storage.key.as_str(), storage.bytes)).collect();
    let mut at = pickles.at as u64;
    let mut places = BTreeMap::new();
    for key in keys {
        let bytes = sizes.get(key.as_str()).ok_or_else(|| format!("storage {key} has no type"))?;
        let start = at + 8;
        at = start.checked_add(*bytes).filter(|end| *end <= length).ok_or_else(|| {
            format!("storage {key} of {bytes} bytes at {start} in a file of {length}")
        })?;
        places.insert(key, start);
    }
    Ok(places)
}

/// The weights among the values of a file, when `stored` tells where a storage is and how many bytes it has there.
fn checkpoint(
    path: &Path,
    length: u64,
    mut pickles: Pickles,
    root: Value,
    stored: impl Fn(&Storage) -> Result<(Stored, u64), Fault>,
) -> Result<Checkpoint> {
    if let Some(global) = pickles.unknown_global(root) {
        return Err(Error::Global { path: path.to_owned(), global });
    }
    let fault = |reason: Fault| Error::Pytorch { path: path.to_owned(), reason };
    if !matches!(root, Value::Dict(_) | Value::Object(_)) {
        return Err(fault("the pickle holds no dictionary of tensors".into()));
    }
    let weights = pickles.weights(root);
    let names = pickles.tensors(weights).map_err(fault)?;
    let texts = pickles.texts(root).map_err(fault)?;
    let most = length.saturating_mul(2).saturating_add(SMALL_BYTES);
    let mut total = 0u64;
    let mut tensors = BTreeMap::new();
    for (name, number) in names {
        let view = &pickles.views[number];
        let named = |reason: Fault| fault(format!("`{name}` {reason}"));
        let bytes = size(view).ok_or_else(|| named(format!("has shape {:?}", view.shape)))?;
        total = total.saturating_add(bytes);
        if total > most {
            let shape = &view.shape;
            return Err(named(format!(
                "with shape {shape:?} has {bytes} bytes, which makes {total} in a file of {length}; \
                 expected at most {most}"
            )));
        }
        let storage = &pickles.storages[view.storage];
        let (stored, there) = stored(storage).map_err(named)?;
        let window = window(view, storage, there.min(storage.bytes), most).map_err(named)?;
        let values = Values::View(stored, Box::new(window));
        tensors.insert(name, TensorInfo::new(view.dtype, view.shape.clone(), values));
    }
    Ok(Checkpoint::new(path, tensors, texts))
}

/// Bytes of a tensor.
fn size(view: &View) -> Option<u64> {
    let elements = view.shape.iter().try_fold(1u64, |all, side| all.checked_mul(*side as u64))?;
    elements.checked_mul(view.dtype.size() as u64)
}

/// The part of a storage of `there` bytes that a tensor lies in, which has at most `most`.
fn window(view: &View, storage: &Storage, there: u64, most: u64) -> Result<Window, Fault> {
    let outside = || {
        let View { offset, shape, strides, .. } = view;
        format!("with shape {shape:?} and strides {strides:?} at {offset} leaves its storage")
    };
    if view.shape.len() != view.strides.len() {
        return Err(outside());
    }
    let element = view.dtype.size();
    let last = view.shape.iter().zip(&view.strides).try_fold(0u64, |last, (side, stride)| {
        let steps = side.saturating_sub(1) as u64;
        last.checked_add(steps.checked_mul(*stride as u64)?)
    });
    let elements =
        if view.shape.contains(&0) { Some(0) } else { last.and_then(|l| l.checked_add(1)) };
    let start = view.offset.checked_add(storage.offset);
    let start = start.and_then(|start| start.checked_mul(element as u64)).ok_or_else(outside)?;
    let bytes = elements.and_then(|count| count.checked_mul(element as u64)).ok_or_else(outside)?;
    if start.checked_add(bytes).is_none_or(|end| end > there) {
        return Err(outside());
    }
    if bytes > most {
        return Err(format!("is spread over {bytes} bytes, expected at most {most}"));
    }
    let (shape, strides) = (view.shape.clone(), view.strides.clone());
    Ok(Window { start, bytes: bytes as usize, element, shape, strides })
}
