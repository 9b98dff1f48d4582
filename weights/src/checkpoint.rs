//! A set of named tensors in one or more files.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::dtype::to_f32;
use crate::error::{Error, Result};
use crate::files::hexadecimal;
use crate::tensor::TensorInfo;

/// Named tensors in safetensors files or in a PyTorch file.
///
/// Opening reads names, types and shapes; values are read when they are asked for. The files stay open, so
/// that a checkpoint can be kept and read many times, also from several threads.
pub struct Checkpoint {
    path: PathBuf,
    tensors: BTreeMap<String, TensorInfo>,
    metadata: BTreeMap<String, String>,
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Checkpoint({}, {} tensors)", self.path.display(), self.tensors.len())
    }
}

impl Checkpoint {
    pub(crate) fn new(
        path: &Path,
        tensors: BTreeMap<String, TensorInfo>,
        metadata: BTreeMap<String, String>,
    ) -> Self {
        Self { path: path.to_owned(), tensors, metadata }
    }

    /// The file or index that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All tensors by name.
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// Texts stored beside the tensors.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Number of elements of all tensors.
    pub fn elements(&self) -> usize {
        self.tensors.values().map(|info| info.shape.iter().product::<usize>()).sum()
    }

    /// The elements of a tensor as f32, with its shape.
    ///
    /// # Errors
    /// [`Error::NoTensor`], or a file that can no longer be read.
    pub fn read_f32(&self, name: &str) -> Result<(Vec<f32>, Vec<usize>)> {
        let info = self.info(name)?;
        Ok((to_f32(&self.read(name)?, info.dtype), info.shape.clone()))
    }

    pub(crate) fn info(&self, name: &str) -> Result<&TensorInfo> {
        let missing = || Error::NoTensor { path: self.path.clone(), name: name.to_owned() };
        self.tensors.get(name).ok_or_else(missing)
    }

    /// The bytes of a tensor, as many as its type and shape say.
    pub(crate) fn read(&self, name: &str) -> Result<Vec<u8>> {
        let info = self.info(name)?;
        let failed = |source| Error::Values { path: self.path.clone(), name: name.into(), source };
        let bytes = info.values.read(usize::MAX).map_err(failed)?;
        let expected = info.shape.iter().product::<usize>() * info.dtype.size();
        match bytes.len() {
            found if found == expected => Ok(bytes),
            found => Err(failed(std::io::Error::new(
                std::io::ErrorKind::InvalidData,
                format!("{expected} bytes expected, found {found}"),
            ))),
        }
    }

    /// A short name for the content: sha256 over names, types, shapes and the first values of each tensor,
    /// in hexadecimal. Of a safetensors file it reads no more than that.
    pub fn fingerprint(&self) -> String {
        /// Bytes taken from the start of each tensor.
        const SAMPLE: usize = 4096;
        let mut hash = Sha256::new();
        for (name, info) in &self.tensors {
            hash.update(format!("{name} {} {:?}", info.dtype, info.shape));
            if let Ok(bytes) = info.values.read(SAMPLE) {
                hash.update(&bytes);
            }
        }
        hexadecimal(&hash.finalize())
    }
}
