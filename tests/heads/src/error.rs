//! Errors of this crate.

use std::path::{Path, PathBuf};

/// What can be wrong with files and folders.
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
    /// A file that holds no head.
    #[error("{}: not a head: {reason}", path.display())]
    Head {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A place for new pictures that holds something.
    #[error("{}: holds files already, expected an empty folder or none", path.display())]
    NotEmpty {
        /// The folder.
        path: PathBuf,
    },
    /// A picture that could not be read or written.
    #[error("{}", path.display())]
    Picture {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: image::ImageError,
    },
    /// A picture of another size than was asked.
    #[error("{}: is of {}x{} pixels, expected {expected}x{expected}", path.display(), found.0, found.1)]
    Size {
        /// The file.
        path: PathBuf,
        /// Its width and height.
        found: (u32, u32),
        /// What both should be.
        expected: u32,
    },
    /// A list that holds no pairs, or a line of it that is none.
    #[error("{}: {reason}", path.display())]
    List {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A file of matches that holds none, or others than it should.
    #[error("{}: {reason}", path.display())]
    Matches {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Portraits that could not be scored, or pictures of which there are no matches.
    #[error("{} of {all} pictures are left out\n{}", reasons.len(), reasons.join("\n"))]
    LeftOut {
        /// Of each of these, the file and what is wrong.
        reasons: Vec<String>,
        /// How many there should be.
        all: usize,
    },
}

impl Error {
    /// For `map_err`: an answer of the operating system on `path`.
    pub(crate) fn file(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        |source| Self::File { path: path.into(), source }
    }
}
