//! Names of classes.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Names of the classes of a model, one entry per class id; synonyms are separated by commas.
///
/// A model without names has an empty list.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Labels(pub Vec<String>);

impl Labels {
    /// The first name of a class, or its id.
    pub fn name(&self, class: usize) -> String {
        let names = self.0.get(class).map(String::as_str).unwrap_or_default();
        match names.split(',').next().map(str::trim) {
            Some(name) if !name.is_empty() => name.to_owned(),
            _ => class.to_string(),
        }
    }

    /// The class with this id or exactly this name, ignoring case.
    ///
    /// # Errors
    /// [`Error::UnknownClass`] with the closest names.
    pub fn find(&self, text: &str, classes: usize) -> Result<usize> {
        let text = text.trim();
        if let Ok(id) = text.parse::<usize>() {
            return match id < classes {
                true => Ok(id),
                false => Err(Error::ClassRange { class: id, classes }),
            };
        }
        let same = |name: &str| name.trim().eq_ignore_ascii_case(text);
        match self.0.iter().position(|names| same(names) || names.split(',').any(same)) {
            Some(id) => Ok(id),
            None => Err(Error::UnknownClass { found: text.to_owned(), known: self.similar(text) }),
        }
    }

    /// Up to a dozen names that share the most with `text`.
    fn similar(&self, text: &str) -> Vec<String> {
        let text = text.to_lowercase();
        let mut names: Vec<(usize, String)> = self
            .0
            .iter()
            .enumerate()
            .map(|(id, _)| {
                let name = self.name(id);
                let lower = name.to_lowercase();
                let common = text
                    .as_bytes()
                    .windows(2)
                    .filter(|pair| lower.as_bytes().windows(2).any(|other| other == *pair))
                    .count();
                (usize::MAX - common, name)
            })
            .collect();
        names.sort();
        names.into_iter().take(12).map(|(_, name)| name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_found_by_id_name_and_synonym() {
        let labels = Labels(vec!["tench, Tinca tinca".into(), "goldfish".into()]);
        assert_eq!(labels.find("1", 2).expect("an id"), 1);
        assert_eq!(labels.find("TINCA tinca", 2).expect("a synonym"), 0);
        assert_eq!(labels.name(0), "tench");
        assert_eq!(labels.name(7), "7");
        assert!(matches!(labels.find("2", 2), Err(Error::ClassRange { class: 2, classes: 2 })));
        let error = labels.find("goldfisch", 2).expect_err("misspelled");
        assert!(error.to_string().contains("goldfish"), "{error}");
    }
}
