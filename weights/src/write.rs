//! Writing safetensors files: whole or not at all.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::Path;

use burn::tensor::{DType, TensorData};
use safetensors::tensor::View;
use safetensors::{Dtype as Stored, serialize_to_file};

use crate::error::{Error, Result};

/// Writes named tensors with texts, through a temporary file in the same folder.
///
/// # Errors
/// If the folder cannot be written; a file that was there before is then unchanged.
pub fn write_safetensors(
    path: &Path,
    tensors: &[(String, TensorData)],
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let file = |source| Error::File { path: path.to_owned(), source };
    let folder = folder_of(path);
    let temporary =
        tempfile::Builder::new().prefix(".writing-").tempfile_in(folder).map_err(file)?;
    let views = tensors.iter().map(|(name, data)| (name.clone(), Ready(data)));
    stream(temporary.path(), views, metadata)?;
    temporary.persist(path).map_err(|error| file(error.error))?;
    sync_folder(folder).map_err(file)
}

/// Writes tensors to a file that need not be whole if this fails, and waits for the disk.
pub(crate) fn stream<V: View>(
    path: &Path,
    tensors: impl IntoIterator<Item = (String, V)>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let file = |source| Error::File { path: path.to_owned(), source };
    let texts: HashMap<String, String> =
        metadata.iter().map(|(key, text)| (key.clone(), text.clone())).collect();
    let texts = (!texts.is_empty()).then_some(texts);
    serialize_to_file(tensors, texts, path).map_err(|error| match error {
        safetensors::SafeTensorError::IoError(source) => file(source),
        other => Error::Header { path: path.to_owned(), reason: other.to_string() },
    })?;
    let settle = || -> std::io::Result<()> {
        // Readable like any other file, not only by its owner.
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644))?;
        }
        File::open(path)?.sync_all()
    };
    settle().map_err(file)
}

/// The folder that a file or folder is in; `.` for a bare name.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Makes renames in a folder survive a power cut, where the system can.
pub(crate) fn sync_folder(folder: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    File::open(folder)?.sync_all()?;
    #[cfg(not(unix))]
    let _ = folder;
    Ok(())
}

struct Ready<'a>(&'a TensorData);

impl View for Ready<'_> {
    fn dtype(&self) -> Stored {
        match self.0.dtype() {
            DType::F64 => Stored::F64,
            DType::F16 => Stored::F16,
            DType::BF16 => Stored::BF16,
            DType::I64 => Stored::I64,
            DType::I32 => Stored::I32,
            DType::U8 => Stored::U8,
            _ => Stored::F32,
        }
    }

    fn shape(&self) -> &[usize] {
        self.0.shape()
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(self.0.as_bytes())
    }

    fn data_len(&self) -> usize {
        self.0.as_bytes().len()
    }
}
