//! Opening a checkpoint of any format.

use std::path::Path;

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::formats::{pytorch, safetensors, shards};

impl Checkpoint {
    /// Opens a safetensors file, a `*.safetensors.index.json` with its shards, or a PyTorch file.
    ///
    /// # Errors
    /// A file that is not there, of no known format, or that breaks the rules of its format.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let extension = path.extension().and_then(|extension| extension.to_str());
        match extension {
            Some("json") => shards::open(path),
            Some("safetensors") => safetensors::open(path),
            _ if pytorch::is_pytorch(path)? => pytorch::open(path),
            _ => Err(Error::UnknownFormat { path: path.to_owned() }),
        }
    }
}
