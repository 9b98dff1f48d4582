//! Safetensors files.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use burn::tensor::TensorData;
use safetensors::tensor::{Metadata, View};
use safetensors::{Dtype as Stored, SafeTensorError, serialize_to_file};
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::checkpoint::Checkpoint;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::files::replace;
use crate::tensor::{OpenFile, TensorInfo, Values};

/// Bytes of the length before the header.
const LENGTH_BYTES: u64 = 8;
/// Most bytes of a header, as in the reference implementation.
const MAX_HEADER_BYTES: u64 = 100_000_000;

pub(crate) fn open(path: &Path) -> Result<Checkpoint> {
    let (tensors, metadata) = read(path)?;
    Ok(Checkpoint::new(path, tensors, metadata))
}

/// Reads and validates the header of a file: its tensors and texts.
///
/// The `safetensors` crate checks offsets, gaps, overlaps and sizes; lengths and names given twice are
/// checked here.
pub(crate) fn read(
    path: &Path,
) -> Result<(BTreeMap<String, TensorInfo>, BTreeMap<String, String>)> {
    let fault = |reason: String| Error::Header { path: path.to_owned(), reason };
    let failed = |source| Error::File { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed)?;
    let whole = file.metadata().map_err(failed)?.len();
    if whole < LENGTH_BYTES {
        return Err(fault(format!("{whole} bytes, too few for a header")));
    }
    let mut length = [0; LENGTH_BYTES as usize];
    file.read_exact(&mut length).map_err(failed)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES.min(whole - LENGTH_BYTES) {
        return Err(fault(format!("a header of {length} bytes in a file of {whole}")));
    }
    let mut json = vec![0; length as usize];
    file.read_exact(&mut json).map_err(failed)?;
    let header: Metadata =
        serde_json::from_slice(&json).map_err(|error| fault(error.to_string()))?;
    refuse_duplicates(&json).map_err(fault)?;
    let (expected, found) = (header.data_len() as u64, whole - LENGTH_BYTES - length);
    if expected != found {
        return Err(fault(format!("{expected} bytes of tensors expected, found {found}")));
    }
    let start = LENGTH_BYTES + length;
    let open = Arc::new(OpenFile::new(path, file));
    let mut tensors = BTreeMap::new();
    for (name, info) in header.tensors() {
        let dtype = Dtype::of_safetensors(info.dtype).ok_or_else(|| {
            fault(format!("`{name}` has type {:?}, which is not known", info.dtype))
        })?;
        let (from, to) = info.data_offsets;
        let values = Values::Range(Arc::clone(&open), start + from as u64..start + to as u64);
        tensors.insert(name, TensorInfo { dtype, shape: info.shape.clone(), values });
    }
    let texts = header.metadata().iter().flatten();
    Ok((tensors, texts.map(|(key, text)| (key.clone(), text.clone())).collect()))
}

/// JSON parsers keep the last of two equal names, which would hide a tensor.
fn refuse_duplicates(json: &[u8]) -> Result<(), String> {
    struct Names;
    impl<'de> Visitor<'de> for Names {
        type Value = Option<String>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let (mut seen, mut twice) = (HashSet::new(), None);
            while let Some((name, _)) = map.next_entry::<String, IgnoredAny>()? {
                if !seen.insert(name.clone()) {
                    twice = Some(name);
                }
            }
            Ok(twice)
        }
    }
    let twice = serde_json::Deserializer::from_slice(json).deserialize_map(Names);
    match twice.map_err(|error| error.to_string())? {
        Some(name) => Err(format!("`{name}` is given twice")),
        None => Ok(()),
    }
}

/// Writes named tensors and texts as a safetensors file, whole or not at all.
///
/// # Errors
/// A type of elements that has no [`Dtype`], or a folder that cannot be written; a file that was there
/// before is then unchanged.
pub fn write_safetensors(
    path: &Path,
    tensors: &[(String, TensorData)],
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let mut views = Vec::new();
    for (name, data) in tensors {
        let dtype = Dtype::of_burn(data.dtype()).ok_or_else(|| Error::Header {
            path: path.to_owned(),
            reason: format!("`{name}` has type {:?}, which is not known", data.dtype()),
        })?;
        views.push((name.clone(), Ready { dtype, data }));
    }
    replace(path, |temporary| write_views(temporary, views, metadata))
}

/// Writes tensors and texts to a file, which is broken if this fails.
pub(crate) fn write_views<V: View>(
    path: &Path,
    tensors: impl IntoIterator<Item = (String, V)>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let texts: HashMap<String, String> =
        metadata.iter().map(|(key, text)| (key.clone(), text.clone())).collect();
    let texts = (!texts.is_empty()).then_some(texts);
    serialize_to_file(tensors, texts, path).map_err(|error| match error {
        SafeTensorError::IoError(source) => Error::File { path: path.to_owned(), source },
        other => Error::Header { path: path.to_owned(), reason: other.to_string() },
    })
}

/// A tensor that is in memory.
struct Ready<'a> {
    dtype: Dtype,
    data: &'a TensorData,
}

impl View for Ready<'_> {
    fn dtype(&self) -> Stored {
        self.dtype.safetensors()
    }

    fn shape(&self) -> &[usize] {
        self.data.shape()
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(self.data.as_bytes())
    }

    fn data_len(&self) -> usize {
        self.data.as_bytes().len()
    }
}
