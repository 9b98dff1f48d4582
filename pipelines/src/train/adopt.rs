//! Classes of a run that starts from a model of other classes.

use std::collections::HashSet;
use std::fmt;

use crate::error::{Error, Result};
use crate::labels::Labels;

/// Names listed in a message.
const LISTED: usize = 8;

/// Which classes of a model become those of the data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adopted {
    /// The class of the model behind each class of the data.
    pub(super) rows: Vec<Option<usize>>,
    /// Names of the classes: the model's own where they are kept.
    pub(super) labels: Labels,
    /// Classes of the model.
    model: usize,
    /// The model's classes have no names.
    unnamed: bool,
}

impl Adopted {
    /// The classes `names` of the data for a model of `count` classes.
    ///
    /// A class is kept by its name. Where the model names none, numbers are ids, and as many names as there are
    /// classes are taken in order.
    pub(super) fn new(labels: &Labels, count: usize, names: &[String]) -> Self {
        let unnamed = labels.0.iter().all(String::is_empty);
        let ids: Option<Vec<usize>> =
            names.iter().map(|name| name.parse().ok().filter(|id| *id < count)).collect();
        let rows: Vec<Option<usize>> = match (unnamed, ids) {
            (false, _) => names.iter().map(|name| labels.named(name).ok().flatten()).collect(),
            (true, Some(ids)) => ids.into_iter().map(Some).collect(),
            (true, None) if names.len() == count => (0..count).map(Some).collect(),
            (true, None) => vec![None; names.len()],
        };
        let mut taken = HashSet::new();
        let label = |(row, name): (&Option<usize>, &String)| match row {
            // Two names of the data can be synonyms of one class.
            Some(row) if !unnamed && taken.insert(*row) => labels.0[*row].clone(),
            _ => name.clone(),
        };
        let labels = Labels(rows.iter().zip(names).map(label).collect());
        Self { rows, labels, model: count, unnamed }
    }

    /// Whether the data has the classes of the model in its order, and no others.
    pub fn is_same(&self) -> bool {
        self.rows.len() == self.model
            && self.rows.iter().enumerate().all(|(class, row)| *row == Some(class))
    }

    /// The class of the model behind each class of the data, where all of them are the model's.
    fn ids(&self) -> Option<Vec<usize>> {
        self.rows.iter().copied().collect()
    }

    /// The same.
    ///
    /// # Errors
    /// A class that the model does not have.
    pub(super) fn known(&self, why: &str) -> Result<Vec<usize>> {
        self.ids().ok_or_else(|| Error::Config { reason: format!("{why}: {self}") })
    }

    /// The class of the model behind each class of the data, where each is behind one.
    pub(super) fn order(&self) -> Option<Vec<usize>> {
        let ids = self.ids()?;
        let distinct: HashSet<usize> = ids.iter().copied().collect();
        (ids.len() == self.model && distinct.len() == self.model).then_some(ids)
    }

    /// Refuses other classes than the model's.
    pub(super) fn expect_same(&self, why: &str) -> Result<()> {
        match self.is_same() {
            true => Ok(()),
            false => Err(Error::Config { reason: format!("{why}: {self}") }),
        }
    }

    fn listed(&self, kept: bool) -> (usize, String) {
        let numbered = self.rows.iter().enumerate();
        let names: Vec<String> = numbered
            .filter(|(_, row)| row.is_some() == kept)
            .map(|(class, _)| self.labels.name(class))
            .collect();
        let shown = names.iter().take(LISTED).map(String::as_str).collect::<Vec<_>>().join(", ");
        let more = if names.len() > LISTED { ", .." } else { "" };
        (names.len(), format!("{shown}{more}"))
    }
}

impl fmt::Display for Adopted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ((kept, old), (fresh, new)) = (self.listed(true), self.listed(false));
        let used: HashSet<usize> = self.rows.iter().flatten().copied().collect();
        let mut parts = Vec::new();
        if kept > 0 && self.unnamed {
            parts.push(format!(
                "{kept} of the model's {} unnamed classes are kept: {old}",
                self.model
            ));
        } else if kept > 0 {
            parts.push(format!("{kept} of the model's {} classes are kept: {old}", self.model));
        }
        if fresh > 0 {
            parts.push(format!("{fresh} are new, drawn at random like the model's: {new}"));
        }
        match self.model - used.len() {
            0 => (),
            left => parts.push(format!("{left} of the model's are left out")),
        }
        f.write_str(&parts.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adopted(model: &[&str], count: usize, names: &[&str]) -> Adopted {
        let text = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        Adopted::new(&Labels(text(model)), count, &text(names))
    }

    #[test]
    fn classes_are_kept_by_name() {
        let model = ["tench, Tinca tinca", "goldfish", "shark"];
        let found = adopted(&model, 3, &["Goldfish", "apple", "tench"]);
        assert_eq!(found.rows, [Some(1), None, Some(0)]);
        assert_eq!(found.labels.0, ["goldfish", "apple", "tench, Tinca tinca"]);
        assert!(!found.is_same());
        let said = found.to_string();
        assert_eq!(
            said,
            "2 of the model's 3 classes are kept: goldfish, tench; 1 are new, drawn at random like \
             the model's: apple; 1 of the model's are left out"
        );
        assert!(adopted(&model, 3, &["tench", "goldfish", "shark"]).is_same());
        // Two names of one class are two classes.
        let twins = adopted(&model, 3, &["Tinca tinca", "tench"]);
        assert_eq!(twins.labels.0, ["tench, Tinca tinca", "tench"]);
    }

    #[test]
    fn an_order_has_every_class_once() {
        let model = ["a", "b", "c"];
        assert_eq!(adopted(&model, 3, &["c", "a", "b"]).order(), Some(vec![2, 0, 1]));
        for other in [vec!["a", "b"], vec!["a", "b", "x"], vec!["a", "b", "C", "c"]] {
            assert_eq!(adopted(&model, 3, &other).order(), None, "{other:?}");
        }
    }

    #[test]
    fn classes_without_names_are_kept_by_number_or_in_order() {
        assert_eq!(adopted(&[], 4, &["3", "0"]).rows, [Some(3), Some(0)]);
        assert!(adopted(&[], 2, &["cat", "dog"]).is_same());
        assert_eq!(adopted(&[], 2, &["cat", "dog"]).labels.0, ["cat", "dog"]);
        assert_eq!(adopted(&[], 3, &["cat", "dog"]).rows, [None, None]);
        // A number past the last is no id.
        assert_eq!(adopted(&[], 3, &["0", "7"]).rows, [None, None]);
    }
}
