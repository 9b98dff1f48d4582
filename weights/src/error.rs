//! Errors of this crate.

use std::fmt;
use std::path::PathBuf;

use crate::dtype::Dtype;

/// What can be wrong with a file or with what it holds.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("{}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// Its answer.
        #[source]
        source: std::io::Error,
    },
    /// A device that failed before the values of a parameter were read from it.
    #[error("the GPU failed: {reason}")]
    Device {
        /// What burn says.
        reason: String,
    },
    /// Something else in the place of a file.
    #[error("{}: {found}, expected a file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// What is there.
        found: &'static str,
    },
    /// A file that should be small.
    #[error("{}: larger than {most} bytes", path.display())]
    Large {
        /// The file.
        path: PathBuf,
        /// Most bytes accepted.
        most: u64,
    },
    /// A GGUF file that breaks the rules of its format, or needs more than is known of it.
    #[error("{}: not a GGUF file that can be read: {reason}", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A file of none of the known formats.
    #[error("{}: neither safetensors, nor a shard index, nor a PyTorch or GGUF file", path.display())]
    UnknownFormat {
        /// The file.
        path: PathBuf,
    },
    /// A text in the place of a file.
    #[error("{}: a Git LFS pointer instead of the file: run `git lfs pull` where it was cloned", path.display())]
    LfsPointer {
        /// The file.
        path: PathBuf,
    },
    /// A safetensors file that breaks its own rules.
    #[error("{}: broken safetensors header: {reason}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// The broken rule.
        reason: String,
    },
    /// A shard index that breaks the rules.
    #[error("{}: broken shard index: {reason}", path.display())]
    Index {
        /// The index.
        path: PathBuf,
        /// The broken rule.
        reason: String,
    },
    /// A PyTorch file that cannot be read.
    #[error("{}: {reason}", path.display())]
    Pytorch {
        /// The file.
        path: PathBuf,
        /// What its reader said.
        reason: String,
    },
    /// A pickle that names Python code other than what tensors need.
    #[error("{}: refused: the pickle names `{global}`, which no checkpoint needs", path.display())]
    Global {
        /// The file.
        path: PathBuf,
        /// The Python name.
        global: String,
    },
    /// A JSON file that cannot be parsed.
    #[error("{}: broken JSON", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// A bundle that breaks the rules.
    #[error("{}: {reason}", path.display())]
    Bundle {
        /// The folder.
        path: PathBuf,
        /// The broken rule.
        reason: String,
    },
    /// A part whose content is not what the manifest says.
    #[error("{}: sha256 is {found}, the manifest says {expected}", path.display())]
    Checksum {
        /// The file.
        path: PathBuf,
        /// Of the manifest.
        expected: String,
        /// Of the file.
        found: String,
    },
    /// A tensor that is not there.
    #[error("{}: no tensor `{name}`", path.display())]
    NoTensor {
        /// The checkpoint.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// A tensor whose values cannot be read.
    #[error("{}: tensor `{name}`", path.display())]
    Values {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What is wrong.
        #[source]
        source: std::io::Error,
    },
    /// A factor of 8-bit weights that is not one number.
    #[error(
        "{}: the scale `{name}` has type {dtype} and shape {shape:?}, expected one float: save the weights without scales, in \
         f16 or bf16", path.display()
    )]
    Scale {
        /// The checkpoint.
        path: PathBuf,
        /// The factor.
        name: String,
        /// Its type.
        dtype: Dtype,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// A checkpoint that does not fit the network.
    #[error("{}: {mismatch}", path.display())]
    Mismatch {
        /// The checkpoint.
        path: PathBuf,
        /// Everything that does not fit.
        mismatch: Box<Mismatch>,
    },
    /// An adapter that is no LoRA, or whose numbers cannot be.
    #[error("{}: {reason}", path.display())]
    Lora {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the tensor's name.
        reason: String,
    },
    /// A target that exists.
    #[error("{} exists", path.display())]
    Exists {
        /// The target.
        path: PathBuf,
    },
    /// A target that cannot be replaced, since it is more than a bundle.
    #[error("{} is not replaced: {reason}", path.display())]
    NotOurs {
        /// The target.
        path: PathBuf,
        /// What is there.
        reason: String,
    },
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// All differences between a checkpoint and a network.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// Parameters without a tensor, each with the foreign names looked for.
    pub missing: Vec<String>,
    /// Tensors without a parameter, each with the most similar missing one, if any.
    pub unused: Vec<String>,
    /// Tensors of another shape or type, with both.
    pub different: Vec<String>,
}

impl Mismatch {
    /// Names shown of each kind of difference.
    pub(crate) const SHOWN: usize = 10;

    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.unused.is_empty() && self.different.is_empty()
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the weights do not fit the network")?;
        let kinds =
            [("missing", &self.missing), ("unused", &self.unused), ("different", &self.different)];
        for (kind, names) in kinds {
            if names.is_empty() {
                continue;
            }
            write!(f, "\n  {kind} ({}):", names.len())?;
            for name in names.iter().take(Self::SHOWN) {
                write!(f, "\n    {name}")?;
            }
            if names.len() > Self::SHOWN {
                write!(f, "\n    ... {} more", names.len() - Self::SHOWN)?;
            }
        }
        Ok(())
    }
}
