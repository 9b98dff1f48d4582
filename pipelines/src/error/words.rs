//! Parts of messages.

use std::borrow::Borrow;
use std::path::{Path, PathBuf};

use pyrograph_engine::selfcheck::TOLERANCE;

use crate::metadata::Used;
use crate::model::WeightType;

/// Files listed in a message.
const LISTED: usize = 10;

/// A number of things, by the name of one.
pub(crate) fn counted(count: usize, name: &str) -> String {
    format!("{count} {name}{}", if count == 1 { "" } else { "s" })
}

/// What is wrong with some files, one a line where they are several.
pub(super) fn unreadable(faults: &[(PathBuf, String)]) -> String {
    let lines = faults.iter().take(LISTED).map(|(path, fault)| {
        let path = path.display();
        format!("\n  {path}: {fault}")
    });
    let further = match faults.len().saturating_sub(LISTED) {
        0 => String::new(),
        further => format!("\n  and {further} more"),
    };
    let lines: String = lines.collect();
    format!("{} cannot be read:{lines}{further}", counted(faults.len(), "picture"))
}

/// Names that may have been meant.
pub(crate) fn similar<T: Borrow<str>>(known: &[T]) -> String {
    match known.is_empty() {
        true => String::new(),
        false => format!("; similar: {}", known.join(", ")),
    }
}

/// Classes in the form in which they are asked for.
pub(super) fn ids(classes: &[usize]) -> String {
    let shown = classes.iter().take(LISTED).map(|id| format!("id:{id}"));
    shown.collect::<Vec<_>>().join(", ")
}

/// Where something came from, and why that is not enough.
pub(super) fn origin(used: &Used, other: Option<&Path>) -> String {
    let Some(file) = &used.file else {
        return "came from memory and cannot be repeated".into();
    };
    let digits = |text: &str| text.chars().take(12).collect::<String>();
    let fingerprint = used.fingerprint.as_deref().map(digits);
    let fingerprint = fingerprint.map_or(String::new(), |text| format!(" (fingerprint {text})"));
    let found = match other {
        Some(other) => format!("{} has another content", other.display()),
        None => "which is not here".into(),
    };
    format!("came from `{file}`{fingerprint}, {found}")
}

/// How weights are held.
pub(super) fn weights(held: WeightType) -> String {
    match held {
        WeightType::Stored => "as they are stored".into(),
        other => format!("in {other}"),
    }
}

/// A size in memory.
pub(crate) fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

/// Paths, separated by commas.
pub(super) fn listed(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// What is wrong with a GPU.
pub(super) fn fault(difference: Option<f64>) -> String {
    match difference {
        Some(found) => format!("differs from the CPU by {found:.1e}, allowed {TOLERANCE:.0e}"),
        None => "crashes".into(),
    }
}
