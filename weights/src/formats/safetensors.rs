//! Safetensors files.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;

use burn::tensor::TensorData;
use safetensors::tensor::Metadata;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::checkpoint::Checkpoint;
use crate::checksum::{CHECKSUM_KEY, Checksum};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::files::open_file;
use crate::replace::replace;
use crate::tensor::{OpenFile, TensorInfo, Values};

/// Bytes of the length before the header.
const LENGTH_BYTES: u64 = 8;
/// Most bytes of a header, as in the reference implementation.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Reads and validates the header of a file.
///
/// The `safetensors` crate checks offsets, gaps, overlaps and sizes; lengths and names given twice are
/// checked here.
pub(crate) fn open(path: &Path) -> Result<Checkpoint> {
    let fault = |reason: String| Error::Header { path: path.to_owned(), reason };
    let failed = |source| Error::File { path: path.to_owned(), source };
    let (mut file, whole) = open_file(path)?;
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
        tensors.insert(name, TensorInfo::new(dtype, info.shape.clone(), values));
    }
    let texts = header.metadata().iter().flatten();
    let texts = texts.map(|(key, text)| (key.clone(), text.clone())).collect();
    Ok(Checkpoint::new(path, tensors, texts))
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

/// Writes named tensors and texts as a safetensors file, whole or not at all. Equal arguments give equal bytes. A
/// checksum stands among the texts, for [`Checkpoint::verify`].
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
    views.sort_by(|(a, _), (b, _)| a.cmp(b));
    let mut checksum = Checksum::new(metadata);
    views.iter().for_each(|(name, view)| {
        checksum.add(name, view.dtype, view.shape(), view.data.as_bytes())
    });
    let mut metadata = metadata.clone();
    metadata.insert(CHECKSUM_KEY.to_owned(), checksum.finish());
    write_views(path, views, &metadata)
}

/// Tensors that are put into a safetensors file one after the other.
pub(crate) trait View {
    /// Type of the elements.
    fn dtype(&self) -> Dtype;
    /// Lengths of the dimensions.
    fn shape(&self) -> &[usize];
    /// The elements.
    ///
    /// # Errors
    /// Where they are read from, and cannot be.
    fn data(&self) -> Result<Cow<'_, [u8]>>;
}

/// A header; the crate writes the texts in the random order of a hash table.
struct Header<'a> {
    texts: &'a BTreeMap<String, String>,
    tensors: &'a [(String, safetensors::tensor::TensorInfo)],
}

impl Serialize for Header<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if !self.texts.is_empty() {
            map.serialize_entry("__metadata__", self.texts)?;
        }
        for (name, info) in self.tensors {
            map.serialize_entry(name, info)?;
        }
        map.end()
    }
}

/// Writes tensors and texts: the widest types first, then by name, as the `safetensors` crate does.
pub(crate) fn write_views<V: View>(
    path: &Path,
    mut views: Vec<(String, V)>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let stored = |view: &V| view.dtype().safetensors();
    views.sort_by(|(a, x), (b, y)| stored(y).cmp(&stored(x)).then(a.cmp(b)));
    let mut end = 0;
    let infos = views.iter().map(|(name, view)| {
        let start = end;
        end += view.shape().iter().product::<usize>() * view.dtype().size();
        let (dtype, shape) = (stored(view), view.shape().to_vec());
        (name.clone(), safetensors::tensor::TensorInfo { dtype, shape, data_offsets: (start, end) })
    });
    let tensors: Vec<_> = infos.collect();
    let mut header = serde_json::to_vec(&Header { texts: metadata, tensors: &tensors })
        .map_err(|source| Error::Json { path: path.to_owned(), source })?;
    header.resize(header.len().next_multiple_of(LENGTH_BYTES as usize), b' ');
    replace(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        views.iter().try_for_each(|(_, view)| {
            let data = view.data().map_err(std::io::Error::other)?;
            file.write_all(&data)
        })
    })
}

/// A tensor that is in memory.
struct Ready<'a> {
    dtype: Dtype,
    data: &'a TensorData,
}

impl View for Ready<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        self.data.shape()
    }

    fn data(&self) -> Result<Cow<'_, [u8]>> {
        Ok(Cow::Borrowed(self.data.as_bytes()))
    }
}
