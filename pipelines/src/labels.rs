//! Names of classes.

use serde::{Deserialize, Serialize};
use unicode_normalization::UnicodeNormalization;

use crate::error::{Error, Result};

/// What stands before an id where a name could be meant.
const ID: &str = "id:";
/// Similar names that are told.
const SIMILAR: usize = 5;
/// How similar they are at least, of 1.
const SIMILARITY: f64 = 0.75;
/// Characters of a name that count for similarity.
const COMPARED: usize = 64;

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

    /// The class of this name or id.
    ///
    /// A name goes before an id, an exact one before one in another case or Unicode form, and all names of a class
    /// before one of them. A number is an id only where no class is named by a number; `id:3` always is, unless a
    /// class is called so.
    ///
    /// # Errors
    /// [`Error::UnknownClass`] with the closest names, [`Error::AmbiguousClass`], [`Error::ClassRange`].
    pub fn find(&self, text: &str, classes: usize) -> Result<usize> {
        let text = text.trim();
        if let Some(class) = self.named(text)? {
            return Ok(class);
        }
        let number = |text: &str| text.trim().parse::<usize>().ok();
        let id = match text.strip_prefix(ID) {
            Some(id) => number(id),
            None if self.are_numbered() => None,
            None => number(text),
        };
        match id {
            Some(id) if id < classes => Ok(id),
            Some(class) => Err(Error::ClassRange { class, classes }),
            None => {
                let mut known = self.similar(text);
                if let Some(id) = number(text).filter(|id| *id < classes) {
                    known.insert(0, format!("{ID}{id}"));
                }
                Err(Error::UnknownClass { found: text.to_owned(), classes, known })
            }
        }
    }

    /// Whether some class is named by a number, whole or not.
    fn are_numbered(&self) -> bool {
        let number = |name: &str| name.trim().parse::<f64>().is_ok();
        self.0.iter().any(|names| names.split(',').any(number))
    }

    /// The class of this name, if there is one.
    ///
    /// # Errors
    /// [`Error::AmbiguousClass`] if there are several.
    pub fn named(&self, text: &str) -> Result<Option<usize>> {
        if text.is_empty() {
            return Ok(None);
        }
        let fold = folded(text);
        let exact = |name: &str| name.trim() == text;
        let alike = |name: &str| folded(name.trim()) == fold;
        let levels: [&dyn Fn(&str) -> bool; 4] =
            [&exact, &|names| names.split(',').any(exact), &alike, &|names| {
                names.split(',').any(alike)
            }];
        for level in levels {
            let numbered = self.0.iter().enumerate();
            let found: Vec<usize> =
                numbered.filter(|(_, names)| level(names)).map(|(id, _)| id).collect();
            match found.as_slice() {
                [] => (),
                [class] => return Ok(Some(*class)),
                _ => return Err(Error::AmbiguousClass { found: text.to_owned(), classes: found }),
            }
        }
        Ok(None)
    }

    /// The names that are most like `text`.
    fn similar(&self, text: &str) -> Vec<String> {
        let short = |name: &str| folded(&name.chars().take(COMPARED).collect::<String>());
        let text = short(text);
        let all = self.0.iter().flat_map(|names| names.split(',').map(str::trim));
        let mut near: Vec<(f64, &str)> = all
            .map(|name| (strsim::jaro_winkler(&text, &short(name)), name))
            .filter(|(similarity, _)| *similarity >= SIMILARITY)
            .collect();
        near.sort_by(|(a, x), (b, y)| b.total_cmp(a).then(x.cmp(y)));
        near.dedup();
        near.into_iter().take(SIMILAR).map(|(_, name)| name.to_owned()).collect()
    }
}

/// A name in the one Unicode form in which letters and their accents are together (NFC).
pub(crate) fn composed(name: &str) -> String {
    name.nfc().collect()
}

/// A name for comparing without regard to case.
pub(crate) fn folded(name: &str) -> String {
    composed(&composed(name).to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn labels(names: &[&str]) -> Labels {
        Labels(names.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn classes_are_found_by_id_name_and_synonym() {
        let labels = labels(&["tench, Tinca tinca", "goldfish"]);
        assert_eq!(labels.find("1", 2).expect("an id"), 1);
        assert_eq!(labels.find("id:1", 2).expect("an id"), 1);
        assert_eq!(labels.find("TINCA tinca", 2).expect("a synonym"), 0);
        assert_eq!(labels.find("tench, Tinca tinca", 2).expect("all names"), 0);
        assert_eq!(labels.name(0), "tench");
        assert_eq!(labels.name(7), "7");
        assert!(matches!(labels.find("2", 2), Err(Error::ClassRange { class: 2, classes: 2 })));
        let error = labels.find("goldfisch", 2).expect_err("misspelled").to_string();
        assert!(error.ends_with("similar: goldfish"), "{error}");
        let error = labels.find("xyzzy", 2).expect_err("nothing like it").to_string();
        assert_eq!(error, "unknown class `xyzzy`, of 2");
    }

    #[test]
    fn a_number_is_a_name_where_classes_are_named_by_numbers() {
        let labels = labels(&["1", "2", "10", "cat"]);
        for (text, class) in [("1", 0), ("2", 1), ("10", 2), ("id:2", 2), ("CAT", 3)] {
            assert_eq!(labels.find(text, 4).expect(text), class, "{text}");
        }
        for text in ["0", "3", "", "id:", "id:x"] {
            assert!(matches!(labels.find(text, 4), Err(Error::UnknownClass { .. })), "{text}");
        }
        let error = labels.find("3", 4).expect_err("no name").to_string();
        assert!(error.contains("similar: id:3"), "{error}");
        assert!(!labels.find("4", 4).expect_err("no id").to_string().contains("id:"));
        let halves = Labels(vec!["0.0".into(), "1.0".into()]);
        assert!(halves.find("1", 2).is_err() && halves.find("1.0", 2).is_ok());
        // Without names there are only ids.
        assert_eq!(Labels::default().find("3", 4).expect("an id"), 3);
        assert_eq!(Labels::default().find("id:3", 4).expect("an id"), 3);
    }

    #[test]
    fn names_of_several_classes_are_refused_unless_one_is_exact() {
        let labels =
            labels(&["crane", "Cardigan, dog", "cardigan", "crane", "missile, rocket", "missile"]);
        let error = labels.find("crane", 6).expect_err("two").to_string();
        assert!(error.contains("id:0, id:3"), "{error}");
        assert_eq!(labels.find("Cardigan", 6).expect("exact"), 1);
        assert_eq!(labels.find("cardigan", 6).expect("exact"), 2);
        assert_eq!(labels.find("CARDIGAN", 6).expect("the only name"), 2);
        assert_eq!(labels.find("missile", 6).expect("the only name"), 5);
        assert_eq!(labels.find("id:3", 6).expect("an id"), 3);
    }

    #[test]
    fn forms_of_unicode_do_not_matter() {
        let labels = labels(&["caf\u{e9}", "na\u{ef}ve"]);
        assert_eq!(labels.find("cafe\u{301}", 2).expect("decomposed"), 0);
        assert_eq!(labels.find("NAI\u{308}VE", 2).expect("decomposed"), 1);
    }

    proptest! {
        /// Every class is found under each of its names that no other has, whatever the names are.
        #[test]
        fn every_name_finds_its_class(
            names in prop::collection::btree_set("[0-9]{1,3}|[a-zA-Zé ]{1,6}|id:[0-9]", 1..12),
        ) {
            let names: Vec<String> = names.into_iter().collect();
            let labels = Labels(names.clone());
            for (id, name) in names.iter().enumerate() {
                let same = names.iter().filter(|other| other.trim() == name.trim()).count();
                match labels.find(name, names.len()) {
                    Ok(found) => prop_assert_eq!(found, id),
                    Err(_) => prop_assert!(same > 1 || name.trim().is_empty(), "{}", name),
                }
            }
        }

        /// A number that is no name is an id only where no name is a number.
        #[test]
        fn numbers_are_not_confused(
            names in prop::collection::btree_set("[0-9]{1,2}|[a-z]{1,3}", 1..12), asked in 0..40usize,
        ) {
            let names: Vec<String> = names.into_iter().collect();
            let (count, text) = (names.len(), asked.to_string());
            let found = Labels(names.clone()).find(&text, count).ok();
            let numbered = names.iter().any(|name| name.parse::<usize>().is_ok());
            let expected = match names.iter().position(|name| *name == text) {
                Some(id) => Some(id),
                None => (!numbered && asked < count).then_some(asked),
            };
            prop_assert_eq!(found, expected);
        }
    }
}
