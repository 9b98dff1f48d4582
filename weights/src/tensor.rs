//! Stored tensors: what is known of one, and where its values are.

use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Error, ErrorKind, Read, Result, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use zip::read::ZipFile;
use zip::{ZipArchive, ZipReadOptions};

use crate::dtype::Dtype;
use crate::formats::gguf::Kind;

/// What is known of a stored tensor without reading its values.
#[derive(Debug, Clone)]
pub struct TensorInfo {
    /// Type of the elements.
    pub dtype: Dtype,
    /// Lengths of the dimensions; empty for a scalar.
    pub shape: Vec<usize>,
    pub(crate) values: Values,
    /// One number that all elements are multiplied by.
    pub(crate) scale: Option<Box<TensorInfo>>,
}

impl TensorInfo {
    pub(crate) fn new(dtype: Dtype, shape: Vec<usize>, values: Values) -> Self {
        Self { dtype, shape, values, scale: None }
    }
}

/// Where the values of a tensor are.
#[derive(Debug, Clone)]
pub(crate) enum Values {
    /// A range of the bytes of a file.
    Range(Arc<OpenFile>, Range<u64>),
    /// Blocks of a GGUF file, in a range of its bytes.
    Blocks(Arc<OpenFile>, Range<u64>, Kind),
    /// A part of what PyTorch stores in one piece.
    View(Stored, Box<Window>),
}

/// A block of elements in a PyTorch file.
#[derive(Clone)]
pub(crate) enum Stored {
    /// From this byte of a file on.
    Range(Arc<OpenFile>, u64),
    /// An entry of an archive.
    Entry(Arc<Mutex<Zip>>, usize),
}

/// The archive of a file.
pub(crate) type Zip = ZipArchive<BufReader<File>>;

/// The part of a block that a tensor lies in.
#[derive(Debug, Clone)]
pub(crate) struct Window {
    /// Its first byte.
    pub(crate) start: u64,
    /// Its length.
    pub(crate) bytes: usize,
    /// Bytes of an element.
    pub(crate) element: usize,
    /// Lengths of the dimensions of the tensor, and their steps in elements.
    pub(crate) shape: Vec<usize>,
    pub(crate) strides: Vec<usize>,
}

/// A file that is held open.
pub(crate) struct OpenFile {
    path: PathBuf,
    file: Mutex<File>,
}

impl fmt::Debug for OpenFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())
    }
}

impl fmt::Debug for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Range(file, start) => write!(f, "{file:?} at {start}"),
            Self::Entry(_, index) => write!(f, "entry {index}"),
        }
    }
}

impl OpenFile {
    pub(crate) fn new(path: &Path, file: File) -> Self {
        Self { path: path.to_owned(), file: Mutex::new(file) }
    }

    pub(crate) fn read(&self, start: u64, length: usize) -> Result<Vec<u8>> {
        // A panic elsewhere cannot leave the file in a wrong state: each read seeks first.
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(start))?;
        exactly(&mut *file, length)
    }
}

/// An entry of an archive, whose end is compared with its checksum. PyTorch can leave checksums out, as 0.
pub(crate) fn entry(zip: &mut Zip, index: usize) -> Result<ZipFile<'_, BufReader<File>>> {
    let unchecked = zip.by_index_raw(index)?.crc32() == 0;
    Ok(zip.by_index_with_options(index, ZipReadOptions::new().ignore_crc32(unchecked))?)
}

fn exactly(from: impl Read, length: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(length);
    from.take(length as u64).read_to_end(&mut bytes)?;
    match bytes.len() {
        found if found == length => Ok(bytes),
        found => Err(Error::new(
            ErrorKind::UnexpectedEof,
            format!("{length} bytes expected, only {found} are left"),
        )),
    }
}

impl Stored {
    fn read(&self, start: u64, length: usize) -> Result<Vec<u8>> {
        let (zip, index) = match self {
            Self::Range(file, from) => return file.read(from + start, length),
            Self::Entry(zip, index) => (zip, *index),
        };
        let mut zip = zip.lock().unwrap_or_else(PoisonError::into_inner);
        if start > 0
            && let Ok(mut entry) = zip.by_index_seek(index)
        {
            // What is not compressed is read where it is.
            entry.seek(SeekFrom::Start(start))?;
            return exactly(entry, length);
        }
        let mut entry = entry(&mut zip, index)?;
        let whole = start == 0 && entry.size() == length as u64;
        io::copy(&mut (&mut entry).take(start), &mut io::sink())?;
        let bytes = exactly(&mut entry, length)?;
        if whole {
            // At its end an entry is compared with its checksum.
            io::copy(&mut entry, &mut io::sink())?;
        }
        Ok(bytes)
    }
}

impl Window {
    fn is_contiguous(&self) -> bool {
        let mut expected = 1usize;
        let dimensions = self.shape.iter().zip(&self.strides).rev();
        dimensions.filter(|(side, _)| **side != 1).all(|(side, stride)| {
            let fits = *stride == expected;
            expected = expected.saturating_mul(*side);
            fits
        })
    }

    /// The first `count` elements, row by row, of a tensor that lies in `bytes` in another order.
    fn gather(&self, bytes: &[u8], count: usize) -> Vec<u8> {
        let mut gathered = Vec::with_capacity(count * self.element);
        let mut place = vec![0; self.shape.len()];
        let mut at = 0;
        for _ in 0..count {
            gathered.extend_from_slice(&bytes[at * self.element..][..self.element]);
            for axis in (0..place.len()).rev() {
                place[axis] += 1;
                at += self.strides[axis];
                if place[axis] < self.shape[axis] {
                    break;
                }
                at -= place[axis] * self.strides[axis];
                place[axis] = 0;
            }
        }
        gathered
    }
}

#[cfg(test)]
impl Values {
    /// Nowhere.
    pub(crate) fn none() -> Self {
        let file = OpenFile::new(Path::new(""), tempfile::tempfile().expect("a file"));
        Self::Range(Arc::new(file), 0..0)
    }
}

/// At least the first `most` values of blocks, or all.
fn unpacked(file: &OpenFile, range: &Range<u64>, kind: Kind, most: usize) -> Result<Vec<f32>> {
    let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
    let blocks = most.div_ceil(kind.block()).saturating_mul(kind.bytes());
    Ok(kind.to_f32(&file.read(range.start, length.min(blocks))?))
}

impl Values {
    /// The values of blocks, if that is what they are.
    pub(crate) fn unpacked(&self) -> Option<Result<Vec<f32>>> {
        match self {
            Values::Blocks(file, range, kind) => Some(unpacked(file, range, *kind, usize::MAX)),
            _ => None,
        }
    }

    /// Bytes of the file, of values that lie in a range of it.
    pub(crate) fn part(&self, start: u64, length: usize) -> Result<Vec<u8>> {
        match self {
            Values::Range(file, range) | Values::Blocks(file, range, _)
                if start + length as u64 <= range.end - range.start =>
            {
                file.read(range.start + start, length)
            }
            _ => Err(Error::new(ErrorKind::InvalidData, "not in one piece of this length")),
        }
    }

    /// Up to `most` bytes from the first.
    pub(crate) fn read(&self, most: usize) -> Result<Vec<u8>> {
        match self {
            Values::Range(file, range) => {
                let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
                file.read(range.start, length.min(most))
            }
            Values::Blocks(file, range, kind) => {
                let values = unpacked(file, range, *kind, most.div_ceil(4))?;
                let mut bytes: Vec<u8> = values.into_iter().flat_map(f32::to_le_bytes).collect();
                bytes.truncate(most);
                Ok(bytes)
            }
            Values::View(stored, window) if window.is_contiguous() => {
                stored.read(window.start, window.bytes.min(most))
            }
            Values::View(stored, window) => {
                let bytes = stored.read(window.start, window.bytes)?;
                let count: usize = window.shape.iter().product();
                Ok(window.gather(&bytes, count.min(most / window.element)))
            }
        }
    }
}
