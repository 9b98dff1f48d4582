//! The header of a safetensors file.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use safetensors::Dtype as Stored;
use safetensors::tensor::Metadata;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::checkpoint::TensorInfo;
use crate::dtype::Dtype;
use crate::error::{Error, Result};

/// Tensors with their places in the file, and the metadata.
pub(crate) struct Header {
    pub tensors: Vec<(TensorInfo, Range<u64>)>,
    pub metadata: BTreeMap<String, String>,
}

/// Bytes of the length before the header.
const LENGTH_BYTES: u64 = 8;
/// Most bytes of a header, as in the reference implementation.
const LONGEST: u64 = 100_000_000;

/// Reads and validates the header of a file.
///
/// The `safetensors` crate checks offsets, gaps, overlaps and sizes; lengths and names given twice are
/// checked here.
pub(crate) fn read(path: &Path, file: &mut File) -> Result<Header> {
    let fault = |reason: String| Error::Header { path: path.to_owned(), reason };
    let failed = |source| Error::File { path: path.to_owned(), source };
    let whole = file.metadata().map_err(failed)?.len();
    if whole < LENGTH_BYTES {
        return Err(fault(format!("{whole} bytes, too few for a header")));
    }
    let mut length = [0; LENGTH_BYTES as usize];
    file.read_exact(&mut length).map_err(failed)?;
    let length = u64::from_le_bytes(length);
    if length > LONGEST.min(whole - LENGTH_BYTES) {
        return Err(fault(format!("a header of {length} bytes in a file of {whole}")));
    }
    let mut json = vec![0; length as usize];
    file.read_exact(&mut json).map_err(failed)?;
    let metadata: Metadata =
        serde_json::from_slice(&json).map_err(|error| fault(error.to_string()))?;
    refuse_duplicates(&json).map_err(fault)?;
    let (expected, found) = (metadata.data_len() as u64, whole - LENGTH_BYTES - length);
    if expected != found {
        return Err(fault(format!("{expected} bytes of tensors expected, found {found}")));
    }
    let start = LENGTH_BYTES + length;
    let mut tensors = Vec::new();
    for (name, info) in metadata.tensors() {
        let dtype = dtype(info.dtype).ok_or_else(|| {
            fault(format!("`{name}` has type {:?}, which is not known", info.dtype))
        })?;
        let (from, to) = info.data_offsets;
        tensors.push((
            TensorInfo { name, dtype, shape: info.shape.clone(), file: 0 },
            start + from as u64..start + to as u64,
        ));
    }
    let metadata = metadata.metadata().iter().flatten();
    Ok(Header { tensors, metadata: metadata.map(|(k, v)| (k.clone(), v.clone())).collect() })
}

fn dtype(stored: Stored) -> Option<Dtype> {
    Some(match stored {
        Stored::F64 => Dtype::F64,
        Stored::F32 => Dtype::F32,
        Stored::F16 => Dtype::F16,
        Stored::BF16 => Dtype::BF16,
        Stored::I64 => Dtype::I64,
        Stored::I32 => Dtype::I32,
        Stored::I16 => Dtype::I16,
        Stored::I8 => Dtype::I8,
        Stored::U8 => Dtype::U8,
        Stored::BOOL => Dtype::Bool,
        _ => return None,
    })
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
