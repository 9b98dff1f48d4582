//! Errors of texts that models read.

use std::path::PathBuf;

/// What is wrong with a text, or with what reads it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// A text that a model cannot read.
    #[error("the text {text:?}: {reason}")]
    Unreadable {
        /// As the encoder is given it.
        text: String,
        /// Why.
        reason: String,
    },
    /// A model that reads texts, but came without what does.
    #[error("the model reads texts, and has no text encoder")]
    NoEncoder,
    /// Something else in place of the tokenizer of a text encoder, or a text that it cannot take.
    #[error("{}: tokenizer: {reason}", path.display())]
    Tokenizer {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}
