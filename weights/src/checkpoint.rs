//! A set of named tensors in one or more files.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};

use crate::dtype::{Dtype, to_f32};
use crate::error::{Error, Result};
use crate::write::hexadecimal;
use crate::{header, pytorch, shards};

/// What is known of a stored tensor without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name in the file.
    pub name: String,
    /// Type of the elements.
    pub dtype: Dtype,
    /// Lengths of the dimensions; empty for a scalar.
    pub shape: Vec<usize>,
    /// Index of its file among [`Checkpoint::files`].
    pub file: usize,
}

/// Where the bytes of a tensor are.
pub(crate) enum Bytes {
    Safetensors(Range<u64>),
    Pytorch(Box<pytorch_reader::Tensor>),
}

/// Named tensors in safetensors files or in a PyTorch file; each is read when it is asked for.
pub struct Checkpoint {
    path: PathBuf,
    files: Vec<PathBuf>,
    open: Vec<Mutex<File>>,
    tensors: BTreeMap<String, TensorInfo>,
    bytes: BTreeMap<String, Bytes>,
    metadata: BTreeMap<String, String>,
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Checkpoint({}, {} tensors)", self.path.display(), self.tensors.len())
    }
}

impl Checkpoint {
    /// Opens a safetensors file, a `*.safetensors.index.json` with its shards, or a PyTorch file.
    ///
    /// # Errors
    /// A file that is not there, of no known format, or that breaks the rules of its format.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if path.extension().is_some_and(|extension| extension == "json") {
            return Self::open_files(path, &shards::files(path)?, Some(&shards::weight_map(path)?));
        }
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            return Self::open_files(path, &[path.to_owned()], None);
        }
        match pytorch::is_pytorch(path)? {
            true => pytorch::open(path),
            false => Err(Error::UnknownFormat { path: path.to_owned() }),
        }
    }

    fn open_files(
        path: &Path,
        files: &[PathBuf],
        weight_map: Option<&BTreeMap<String, String>>,
    ) -> Result<Self> {
        let mut checkpoint = Self::empty(path);
        for file in files {
            let mut open =
                File::open(file).map_err(|source| Error::File { path: file.clone(), source })?;
            let header = header::read(file, &mut open)?;
            for (mut info, range) in header.tensors {
                info.file = checkpoint.files.len();
                if checkpoint.tensors.contains_key(&info.name) {
                    return Err(Error::Index {
                        path: path.to_owned(),
                        reason: format!("`{}` is in two shards", info.name),
                    });
                }
                checkpoint.add(info, Bytes::Safetensors(range));
            }
            checkpoint.metadata.extend(header.metadata);
            checkpoint.files.push(file.clone());
            checkpoint.open.push(Mutex::new(open));
        }
        if let Some(weight_map) = weight_map {
            shards::check(path, weight_map, &checkpoint)?;
        }
        Ok(checkpoint)
    }

    pub(crate) fn empty(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            files: Vec::new(),
            open: Vec::new(),
            tensors: BTreeMap::new(),
            bytes: BTreeMap::new(),
            metadata: BTreeMap::new(),
        }
    }

    pub(crate) fn add(&mut self, info: TensorInfo, bytes: Bytes) {
        self.bytes.insert(info.name.clone(), bytes);
        self.tensors.insert(info.name.clone(), info);
    }

    pub(crate) fn add_file(&mut self, path: &Path, metadata: BTreeMap<String, String>) {
        self.files.push(path.to_owned());
        self.metadata.extend(metadata);
    }

    /// The file or index that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Files that hold the tensors.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
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
        let values = to_f32(&self.bytes(name)?, info.dtype);
        let expected: usize = info.shape.iter().product();
        match values.len() == expected {
            true => Ok((values, info.shape.clone())),
            false => Err(Error::Header {
                path: self.path.clone(),
                reason: format!("`{name}` has {} elements, its shape {expected}", values.len()),
            }),
        }
    }

    pub(crate) fn info(&self, name: &str) -> Result<&TensorInfo> {
        let missing = || Error::NoTensor { path: self.path.clone(), name: name.to_owned() };
        self.tensors.get(name).ok_or_else(missing)
    }

    pub(crate) fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        self.first_bytes(name, usize::MAX)
    }

    /// Up to `most` bytes from the start of a tensor.
    fn first_bytes(&self, name: &str, most: usize) -> Result<Vec<u8>> {
        let info = self.info(name)?;
        match self.bytes.get(name) {
            Some(Bytes::Safetensors(range)) => {
                let length = most.min((range.end - range.start) as usize);
                let mut bytes = Vec::with_capacity(length);
                // A panic elsewhere cannot leave a file in a wrong state: each read seeks first.
                let mut file = self.open[info.file].lock().unwrap_or_else(PoisonError::into_inner);
                let read = file
                    .seek(SeekFrom::Start(range.start))
                    .and_then(|_| (&mut *file).take(length as u64).read_to_end(&mut bytes));
                let failed = |source| Error::File { path: self.files[info.file].clone(), source };
                match read.map_err(failed)? {
                    found if found == length => Ok(bytes),
                    found => Err(Error::Header {
                        path: self.files[info.file].clone(),
                        reason: format!("`{name}` has {length} bytes, only {found} are left"),
                    }),
                }
            }
            Some(Bytes::Pytorch(tensor)) => {
                let file = |source| Error::File { path: self.path.clone(), source };
                let mut bytes = tensor.read().map_err(file)?;
                bytes.truncate(most);
                Ok(bytes)
            }
            None => Err(Error::NoTensor { path: self.path.clone(), name: info.name.clone() }),
        }
    }

    /// A short name for the content: sha256 over names, types, shapes and a sample of the values, in
    /// hexadecimal. It does not read the whole file.
    pub fn fingerprint(&self) -> String {
        /// Bytes taken from the start of each tensor.
        const SAMPLE: usize = 4096;
        let mut hash = Sha256::new();
        for (name, info) in &self.tensors {
            hash.update(format!("{name} {} {:?}", info.dtype, info.shape));
            if let Ok(bytes) = self.first_bytes(name, SAMPLE) {
                hash.update(&bytes);
            }
        }
        hexadecimal(&hash.finalize())
    }
}
