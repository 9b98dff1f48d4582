//! Stored tensors: what is known of one, and where its values are.

use std::fmt;
use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::dtype::Dtype;

/// What is known of a stored tensor without reading its values.
#[derive(Debug, Clone)]
pub struct TensorInfo {
    /// Type of the elements.
    pub dtype: Dtype,
    /// Lengths of the dimensions; empty for a scalar.
    pub shape: Vec<usize>,
    pub(crate) values: Values,
}

/// Where the values of a tensor are.
#[derive(Debug, Clone)]
pub(crate) enum Values {
    /// A range of the bytes of a file.
    Range(Arc<OpenFile>, Range<u64>),
    /// Found by the reader of PyTorch files.
    Pytorch(pytorch_reader::Tensor),
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

impl OpenFile {
    pub(crate) fn new(path: &Path, file: File) -> Self {
        Self { path: path.to_owned(), file: Mutex::new(file) }
    }

    fn read(&self, start: u64, length: usize) -> Result<Vec<u8>> {
        // A panic elsewhere cannot leave the file in a wrong state: each read seeks first.
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::with_capacity(length);
        (&mut *file).take(length as u64).read_to_end(&mut bytes)?;
        match bytes.len() {
            found if found == length => Ok(bytes),
            found => Err(Error::new(
                ErrorKind::UnexpectedEof,
                format!("{length} bytes expected at {start}, only {found} are left"),
            )),
        }
    }
}

impl Values {
    /// Up to `most` bytes from the first.
    pub(crate) fn read(&self, most: usize) -> Result<Vec<u8>> {
        match self {
            Values::Range(file, range) => {
                let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
                file.read(range.start, length.min(most))
            }
            Values::Pytorch(tensor) => {
                let mut bytes = tensor.read()?;
                bytes.truncate(most);
                Ok(bytes)
            }
        }
    }
}
