//! What a reader of a folder should know.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use crate::error::words::counted;

/// Names listed of one kind.
const LISTED: usize = 5;

/// Why something in a folder of images is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Skip {
    /// Left by an operating system or a program: hidden files, `__MACOSX`, `Thumbs.db`.
    Clutter,
    /// Text, archives and all else.
    Other,
    /// Pictures of another format than PNG, JPEG and WebP.
    Format,
    /// Pictures beside the folders of classes.
    Loose,
    /// Pictures that the list of the folder does not name.
    Unlisted,
    /// Pipes, devices, and links to nothing.
    Special,
    /// Folders that were read already, reached again by a link.
    Again,
    /// Folders of classes without pictures.
    Empty,
    /// Pictures in a folder whose name is not UTF-8.
    Unnamed,
    /// Pictures without a caption.
    Uncaptioned,
    /// Pictures that cannot be decoded.
    Damaged,
}

impl Skip {
    /// What one is called, and several.
    fn names(self) -> [&'static str; 2] {
        match self {
            Self::Clutter => {
                ["file of the operating system", "files and folders of the operating system"]
            }
            Self::Other => ["file that is no picture", "files that are no pictures"],
            Self::Format => {
                ["picture that is no PNG, JPEG or WebP", "pictures that are no PNG, JPEG or WebP"]
            }
            Self::Loose => {
                ["picture outside the class folders", "pictures outside the class folders"]
            }
            Self::Unlisted => {
                ["picture that the list does not name", "pictures that the list does not name"]
            }
            Self::Special => {
                ["link to nothing or special file", "links to nothing or special files"]
            }
            Self::Again => ["link to a folder read already", "links to folders read already"],
            Self::Empty => ["class folder without pictures", "class folders without pictures"],
            Self::Unnamed => [
                "picture in a folder whose name is not UTF-8",
                "pictures in folders whose names are not UTF-8",
            ],
            Self::Uncaptioned => ["picture without a caption", "pictures without captions"],
            Self::Damaged => ["damaged picture", "damaged pictures"],
        }
    }
}

/// Something about a folder of images that is not an error.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// Things of one kind that are not read.
    Skipped {
        /// The kind.
        why: Skip,
        /// Their paths within the folder.
        what: Vec<String>,
    },
    /// Two classes whose names differ in case only.
    Alike {
        /// The names.
        names: [String; 2],
    },
    /// Captions whose ends are not read.
    Cut {
        /// Their number.
        captions: usize,
        /// One of them.
        first: String,
        /// Most tokens of a caption.
        tokens: usize,
    },
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Skipped { why, what } => {
                let [one, several] = why.names();
                let name = if what.len() == 1 { one } else { several };
                let listed = what.iter().take(LISTED).map(String::as_str).collect::<Vec<_>>();
                write!(f, "skipped {} {name}: {}", what.len(), listed.join(", "))?;
                match what.len().checked_sub(LISTED + 1) {
                    None => Ok(()),
                    Some(further) => write!(f, " and {} more", further + 1),
                }
            }
            Self::Alike { names: [a, b] } => {
                write!(f, "the classes `{a}` and `{b}` differ in case only")
            }
            Self::Cut { captions, first, tokens } => {
                let count = counted(*captions, "caption");
                write!(f, "{count} cut off after {tokens} tokens, such as `{first}`")
            }
        }
    }
}

/// What was not read so far.
#[derive(Debug, Default)]
pub(super) struct Skipped(BTreeMap<Skip, Vec<String>>);

impl Skipped {
    /// Notes a path in `folder`.
    pub(super) fn add(&mut self, why: Skip, folder: &Path, path: &Path) {
        let inside = path.strip_prefix(folder).unwrap_or(path);
        self.0.entry(why).or_default().push(inside.display().to_string());
    }

    /// Leaves paths in `folder` out that are not to be kept.
    pub(super) fn keep(&mut self, why: Skip, folder: &Path, keeps: impl Fn(&Path) -> bool) {
        if let Some(noted) = self.0.get_mut(&why) {
            noted.retain(|path| keeps(&folder.join(path)));
        }
        self.0.retain(|_, noted| !noted.is_empty());
    }

    /// A notice for each kind.
    pub(super) fn notices(self) -> Vec<Notice> {
        self.0.into_iter().map(|(why, what)| Notice::Skipped { why, what }).collect()
    }
}
