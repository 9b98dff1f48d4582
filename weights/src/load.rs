//! Strict loading of a module.

use std::collections::BTreeSet;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Tensor};

use crate::checkpoint::Checkpoint;
use crate::dtype::FloatDtype;
use crate::error::{Error, Mismatch, Result};
use crate::layout::{Layout, reorder, side_by_side};

/// What is worth knowing about a load that succeeded.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct LoadReport {
    /// Parameters that hold NaN or infinite values.
    pub not_finite: Vec<String>,
}

/// Fills every parameter of `module` from `checkpoint`, in `dtype` on `device`.
///
/// Parameters that were never used are not initialised first, so that no more than the final tensors and
/// one tensor in conversion are in memory.
///
/// # Errors
/// [`Error::Mismatch`] with everything that is missing, unused or different; files that cannot be read.
pub fn load<M: Module>(
    module: M,
    checkpoint: &Checkpoint,
    layout: &Layout,
    dtype: FloatDtype,
    device: &Device,
) -> Result<(M, LoadReport)> {
    let mut loader = Loader {
        checkpoint,
        layout,
        dtype,
        device,
        path: Vec::new(),
        used: BTreeSet::new(),
        mismatch: Mismatch::default(),
        report: LoadReport::default(),
        failure: None,
    };
    let module = module.map(&mut loader);
    if let Some(failure) = loader.failure {
        return Err(failure);
    }
    let Loader { used, mut mismatch, report, .. } = loader;
    let unused = checkpoint.tensors().keys();
    let unused: Vec<String> =
        unused.filter(|name| !used.contains(*name) && !layout.ignores(name)).cloned().collect();
    let missing = mismatch.missing.clone();
    mismatch.unused = unused.into_iter().map(|name| with_hint(name, &missing)).collect();
    match mismatch.is_empty() {
        true => Ok((module, report)),
        false => Err(Error::Mismatch {
            path: checkpoint.path().to_owned(),
            mismatch: Box::new(mismatch),
        }),
    }
}

struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    layout: &'a Layout,
    dtype: FloatDtype,
    device: &'a Device,
    path: Vec<String>,
    used: BTreeSet<String>,
    mismatch: Mismatch,
    report: LoadReport,
    failure: Option<Error>,
}

impl ModuleMapper for Loader<'_> {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.failure.is_some() {
            return param;
        }
        let name = self.path.join(".");
        let expected = param.lazy_shape().to_vec();
        match self.values(&name, &expected) {
            Ok(Some(values)) => {
                if !values.iter().all(|value| value.is_finite()) {
                    self.report.not_finite.push(name);
                }
                let data = self.dtype.data(values, expected);
                let tensor = Tensor::<D>::from_data(data, (self.device, self.dtype.burn()));
                let id = param.id;
                param.transform_for_load(tensor, id)
            }
            Ok(None) => param,
            Err(failure) => {
                self.failure = Some(failure);
                param
            }
        }
    }
}

impl Loader<'_> {
    /// Values of a parameter, or `None` with an entry in the list of differences.
    fn values(&mut self, name: &str, expected: &[usize]) -> Result<Option<Vec<f32>>> {
        let Some(rule) = self.layout.rule(name) else {
            self.mismatch.missing.push(format!("{name} (not in layout {})", self.layout.name));
            return Ok(None);
        };
        let known = self.checkpoint.tensors();
        if let Some(absent) = rule.sources.iter().find(|source| !known.contains_key(*source)) {
            self.mismatch.missing.push(match absent == name {
                true => name.to_owned(),
                false => format!("{name} (from {absent})"),
            });
            return Ok(None);
        }
        let mut parts = Vec::new();
        for source in &rule.sources {
            let info = self.checkpoint.info(source)?;
            self.used.insert(source.clone());
            if !info.dtype.is_float() {
                let found = format!("{source}: type {}, expected floats", info.dtype);
                self.mismatch.different.push(found);
                return Ok(None);
            }
            let (values, shape) = self.checkpoint.read_f32(source)?;
            parts.push(rule.transform.apply(values, &shape));
        }
        let found: Vec<&[usize]> =
            rule.sources.iter().map(|source| known[source].shape.as_slice()).collect();
        let different = format!("{name}: shape {expected:?} expected, found {found:?}");
        let result = parts.into_iter().collect::<Option<Vec<_>>>().and_then(side_by_side);
        let Some((values, shape)) = result.filter(|(_, shape)| shape == expected) else {
            self.mismatch.different.push(different);
            return Ok(None);
        };
        let Some(order) = &rule.chunks else { return Ok(Some(values)) };
        let reordered = reorder(values, &shape, order);
        if reordered.is_none() {
            self.mismatch.different.push(different);
        }
        Ok(reordered)
    }
}

/// Adds the most similar missing name, if one is close.
fn with_hint(name: String, missing: &[String]) -> String {
    let close = missing
        .iter()
        .map(|candidate| candidate.split(' ').next().unwrap_or(candidate))
        .map(|candidate| (distance(&name, candidate), candidate))
        .min()
        .filter(|(distance, _)| *distance <= name.len() / 3);
    match close {
        Some((_, candidate)) => format!("{name} (did you mean {candidate}?)"),
        None => name,
    }
}

/// Number of insertions, deletions and replacements between two names (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_count_edits() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        let missing = ["blocks.0.mlp.up.weight (from x)".to_owned()];
        let hint = with_hint("blocks.0.mlp.upp.weight".into(), &missing);
        assert!(hint.contains("did you mean blocks.0.mlp.up.weight"));
    }
}
