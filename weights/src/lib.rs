//! Checkpoint formats: safetensors files and shards, PyTorch files, and the native bundle.
//!
//! A [`Checkpoint`] is a set of named tensors in one or more files. A [`Layout`] is a table that maps the
//! names and shapes of a foreign checkpoint to the parameters of a burn module, and [`load()`] applies it
//! strictly: nothing missing, nothing unused. A [`Bundle`] is the native format, a folder with a
//! `model.json` and one safetensors file per network. No network type is known here.
//!
//! ```
//! use burn::module::Module;
//! use burn::nn::LinearConfig;
//! use burn::tensor::Device;
//! use pyrograph_weights::{Bundle, FloatDtype, Manifest, Part, save_bundle};
//!
//! # fn main() -> pyrograph_weights::Result<()> {
//! let device = Device::flex();
//! let folder = tempfile::tempdir().expect("a temporary folder");
//! let path = folder.path().join("model");
//! let layer = LinearConfig::new(4, 2).init(&device);
//! let manifest = Manifest::new("example", &"any JSON")?;
//! save_bundle(&path, manifest, vec![("net", Part::module(&layer))], FloatDtype::F16, false)?;
//!
//! let bundle = Bundle::open(&path)?;
//! let fresh = LinearConfig::new(4, 2).init(&device);
//! let (layer, report) = bundle.load("net", fresh, FloatDtype::F32, &device)?;
//! assert!(report.not_finite.is_empty() && layer.num_params() == 10);
//! # Ok(())
//! # }
//! ```

// Values in files are little-endian, and are used as they are.
#[cfg(not(target_endian = "little"))]
compile_error!("pyrograph needs a little-endian machine");

mod bundle;
mod checkpoint;
mod checksum;
mod compressed;
pub mod convert;
mod dtype;
mod error;
mod files;
mod float8;
mod formats;
mod layout;
mod load;
mod open;
mod recognise;
mod replace;
mod tensor;
#[cfg(test)]
mod tests;
mod wrappers;

pub use bundle::{Bundle, Manifest, Part, PartEntry, check_target, read_manifest, save_bundle};
pub use checkpoint::Checkpoint;
pub use compressed::{Compressed, Filed};
pub use dtype::{Dtype, FloatDtype};
pub use error::{Error, Mismatch, Result};
pub use files::{check_pointer, folder_of, open_file, read_at_most, read_start, sha256, sha256_of};
pub use formats::safetensors::write_safetensors;
pub use layout::{Layout, Rule, Transform};
pub use load::{LoadReport, check, load, load_beside, load_part, load_rows};
pub use recognise::{Foreign, recognise};
pub use replace::{check_writable, remove_unfinished, write_whole};
pub use tensor::TensorInfo;
