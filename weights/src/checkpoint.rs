//! A set of named tensors in one or more files.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::checksum::{CHECKSUM_KEY, Checksum};
use crate::dtype::{Dtype, FloatDtype, to_f32};
use crate::error::{Error, Result};
use crate::files::hexadecimal;
use crate::tensor::{TensorInfo, Values};
use crate::wrappers::unwrap;

/// Most bytes that are read at a time of a tensor that is not needed as a whole, if its rows are no longer.
const PIECE: usize = 1 << 19;

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

    /// Its tensors and texts.
    pub(crate) fn into_parts(self) -> (BTreeMap<String, TensorInfo>, BTreeMap<String, String>) {
        (self.tensors, self.metadata)
    }

    /// Under the names that the network itself gives, with the scales of 8-bit floats at their tensors.
    pub(crate) fn unwrapped(mut self) -> Result<Self> {
        self.tensors = unwrap(self.tensors);
        self.put_scales().map(|()| self)
    }

    /// Programs that keep weights in 8-bit floats store the factor of each beside it, and sometimes one for its inputs,
    /// which is for products in 8 bits, and a text that names the type.
    fn put_scales(&mut self) -> Result<()> {
        const SCALES: [&str; 2] = ["scale_weight", "weight_scale"];
        const OTHERS: [&str; 4] = ["scale_input", "input_scale", "scaled_fp8", "comfy_quant"];
        let last = |name: &str| name.rsplit('.').next().map(str::to_owned).unwrap_or_default();
        let scales: Vec<(String, String)> = self
            .tensors
            .keys()
            .filter(|name| SCALES.contains(&last(name).as_str()))
            .map(|name| (name.clone(), format!("{}weight", &name[..name.len() - last(name).len()])))
            .filter(|(_, weight)| self.tensors.get(weight).is_some_and(|info| info.dtype.is_f8()))
            .collect();
        if scales.is_empty() {
            return Ok(());
        }
        self.tensors.retain(|name, _| !OTHERS.contains(&last(name).as_str()));
        for (name, weight) in scales {
            let Some(scale) = self.tensors.remove(&name) else { continue };
            let (path, shape) = (self.path.clone(), scale.shape.clone());
            if !scale.dtype.is_float() || shape.iter().any(|side| *side != 1) {
                return Err(Error::Scale { path, name, dtype: scale.dtype, shape });
            }
            if let Some(weight) = self.tensors.get_mut(&weight) {
                weight.scale = Some(Box::new(scale));
            }
        }
        Ok(())
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

    /// Whether some of it is in blocks of few bits, or in 8-bit floats.
    pub fn is_compressed(&self) -> bool {
        let few = |info: &TensorInfo| match info.values {
            Values::Blocks(..) => true,
            _ => info.dtype.is_f8(),
        };
        self.tensors.values().any(few)
    }

    /// Whether all of its matrices are bf16.
    pub fn is_bf16(&self) -> bool {
        let mut matrices = self.tensors.values().filter(|info| info.shape.len() > 1).peekable();
        matrices.peek().is_some() && matrices.all(|info| info.dtype == Dtype::BF16)
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
        let mut values = match info.values.unpacked() {
            Some(values) => values.map_err(|source| self.unreadable(name, source))?,
            None => to_f32(&self.read(name)?, info.dtype),
        };
        if info.scale.is_some() {
            let factor = self.factor(name)?;
            values.iter_mut().for_each(|value| *value *= factor);
        }
        Ok((values, info.shape.clone()))
    }

    /// The number that all elements of a tensor are multiplied by.
    pub(crate) fn factor(&self, name: &str) -> Result<f32> {
        let Some(scale) = &self.info(name)?.scale else { return Ok(1.0) };
        let bytes = scale.values.read(usize::MAX);
        let bytes = bytes.map_err(|source| self.unreadable(name, source))?;
        Ok(to_f32(&bytes, scale.dtype).into_iter().product())
    }

    /// A part of what is stored of a tensor that lies in one piece.
    pub(crate) fn bytes(&self, name: &str, start: usize, length: usize) -> Result<Vec<u8>> {
        let bytes = self.info(name)?.values.part(start as u64, length);
        bytes.map_err(|source| self.unreadable(name, source))
    }

    /// The elements of a tensor in this type, little-endian, whole rows of its first dimension at a time.
    ///
    /// # Errors
    /// As [`Checkpoint::read_f32`], each piece, too.
    pub(crate) fn pieces(
        &self,
        name: &str,
        dtype: FloatDtype,
    ) -> Result<Box<dyn Iterator<Item = Result<Vec<u8>>> + '_>> {
        let info = self.info(name)?;
        let row = info.shape.iter().skip(1).product::<usize>() * info.dtype.size();
        let (Values::Range(file, range), None, 1..) = (&info.values, &info.scale, row) else {
            let whole = dtype.bytes(&self.read_f32(name)?.0);
            return Ok(Box::new(std::iter::once(Ok(whole))));
        };
        let (all, step) = (row * info.shape[0], (PIECE / row).max(1) * row);
        let name = name.to_owned();
        Ok(Box::new((0..all).step_by(step).map(move |start| {
            let bytes = file.read(range.start + start as u64, step.min(all - start));
            let bytes = bytes.map_err(|source| self.unreadable(&name, source))?;
            Ok(match info.dtype == dtype.stored() {
                true => bytes,
                false => dtype.bytes(&to_f32(&bytes, info.dtype)),
            })
        })))
    }

    pub(crate) fn info(&self, name: &str) -> Result<&TensorInfo> {
        let missing = || Error::NoTensor { path: self.path.clone(), name: name.to_owned() };
        self.tensors.get(name).ok_or_else(missing)
    }

    fn unreadable(&self, name: &str, source: std::io::Error) -> Error {
        unreadable(&self.path, name, source)
    }

    /// The bytes of a tensor, as many as its type and shape say.
    pub(crate) fn read(&self, name: &str) -> Result<Vec<u8>> {
        let info = self.info(name)?;
        let failed = |source| self.unreadable(name, source);
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

    /// Reads everything and compares it with the checksum that [`write_safetensors`](crate::write_safetensors) stored;
    /// tells whether there is one.
    ///
    /// # Errors
    /// [`Error::Checksum`] if it differs, or a file that can no longer be read.
    pub fn verify(&self) -> Result<bool> {
        let Some(expected) = self.metadata.get(CHECKSUM_KEY) else { return Ok(false) };
        let mut checksum = Checksum::new(&self.metadata);
        for (name, info) in &self.tensors {
            checksum.add(name, info.dtype, &info.shape, &self.read(name)?);
        }
        let found = checksum.finish();
        match found == *expected {
            true => Ok(true),
            false => {
                Err(Error::Checksum { path: self.path.clone(), expected: expected.clone(), found })
            }
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

/// A tensor whose values cannot be read.
pub(crate) fn unreadable(path: &Path, name: &str, source: std::io::Error) -> Error {
    Error::Values { path: path.to_owned(), name: name.into(), source }
}
