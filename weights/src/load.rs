//! Strict loading of a module.

use std::collections::{BTreeMap, BTreeSet};

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Tensor, TensorData};

use crate::checkpoint::Checkpoint;
use crate::compressed::{Filed, read_rows};
use crate::dtype::FloatDtype;
use crate::error::{Error, Mismatch, Result};
use crate::layout::{Layout, Rule, Transform, put_columns};
use crate::tensor::TensorInfo;

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
    Loader::new(checkpoint, layout, Some((dtype, device))).fill(module, true)
}

/// [`load()`] in f32, or [`load_part`] of a part of this name, but for those of these parameters whose numbers have 16 bits
/// or fewer: they are neither read nor filled, but returned by name, as what they are in the file.
///
/// # Errors
/// As there.
pub fn load_beside<M: Module>(
    module: M,
    name: Option<&str>,
    checkpoint: &Checkpoint,
    layout: &Layout,
    kept: BTreeSet<String>,
    device: &Device,
) -> Result<(M, BTreeMap<String, Filed>, LoadReport)> {
    let mut loader = Loader::new(checkpoint, layout, Some((FloatDtype::F32, device)));
    loader.path.extend(name.map(str::to_owned));
    loader.kept = kept;
    let module = module.map(&mut loader);
    let filed = std::mem::take(&mut loader.filed);
    loader.end(name.is_none()).map(|report| (module, filed, report))
}

/// Checks that [`load()`] could fill `module` from `checkpoint`, but for the values, which are not read; returns its
/// parameters' names and shapes.
///
/// # Errors
/// [`Error::Mismatch`] as there.
pub fn check<M: Module>(
    module: M,
    checkpoint: &Checkpoint,
    layout: &Layout,
) -> Result<Vec<(String, Vec<usize>)>> {
    let mut loader = Loader::new(checkpoint, layout, None);
    module.map(&mut loader);
    let shapes = std::mem::take(&mut loader.shapes);
    loader.end(true).map(|_| shapes)
}

/// The values of one parameter of a module that [`check`]s.
pub(crate) fn parameter(
    checkpoint: &Checkpoint,
    layout: &Layout,
    name: &str,
    shape: &[usize],
    dtype: FloatDtype,
) -> Result<TensorData> {
    let device = Device::flex();
    let mut loader = Loader::new(checkpoint, layout, Some((dtype, &device)));
    let found = loader.parameter(name, shape)?;
    match found {
        Some(data) => Ok(data),
        None => Err(loader.end(false).expect_err("a parameter that is not there")),
    }
}

/// [`load()`] for a part of a module, of this name in it, or for some of its fields; what is stored of the others may stay
/// unused.
///
/// # Errors
/// As there.
pub fn load_part<M: Module>(
    module: M,
    name: Option<&str>,
    checkpoint: &Checkpoint,
    layout: &Layout,
    dtype: FloatDtype,
    device: &Device,
) -> Result<(M, LoadReport)> {
    let mut loader = Loader::new(checkpoint, layout, Some((dtype, device)));
    loader.path.extend(name.map(str::to_owned));
    loader.fill(module, false)
}

/// [`load_part`] of some of a module's fields, among them a table that has these rows alone of the one that is stored.
///
/// # Errors
/// As there, and a row that is not stored.
pub fn load_rows<M: Module>(
    module: M,
    (table, rows): (&str, &[usize]),
    checkpoint: &Checkpoint,
    layout: &Layout,
    dtype: FloatDtype,
    device: &Device,
) -> Result<(M, LoadReport)> {
    let mut loader = Loader::new(checkpoint, layout, Some((dtype, device)));
    loader.rows = Some((table, rows));
    loader.fill(module, false)
}

struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    layout: &'a Layout,
    /// What the values become; without, none are read.
    to: Option<(FloatDtype, &'a Device)>,
    path: Vec<String>,
    /// A table, and the rows of it that are read.
    rows: Option<(&'a str, &'a [usize])>,
    /// Parameters that stay in the file if their numbers have 16 bits or fewer, and those that do.
    kept: BTreeSet<String>,
    filed: BTreeMap<String, Filed>,
    /// Of all parameters, where none are read.
    shapes: Vec<(String, Vec<usize>)>,
    used: BTreeSet<String>,
    mismatch: Mismatch,
    report: LoadReport,
    failure: Option<Error>,
}

impl<'a> Loader<'a> {
    fn new(
        checkpoint: &'a Checkpoint,
        layout: &'a Layout,
        to: Option<(FloatDtype, &'a Device)>,
    ) -> Self {
        Self {
            checkpoint,
            layout,
            to,
            path: Vec::new(),
            rows: None,
            kept: BTreeSet::new(),
            filed: BTreeMap::new(),
            shapes: Vec::new(),
            used: BTreeSet::new(),
            mismatch: Mismatch::default(),
            report: LoadReport::default(),
            failure: None,
        }
    }

    /// The module with its values, where all that is stored should be used, or not.
    fn fill<M: Module>(mut self, module: M, whole: bool) -> Result<(M, LoadReport)> {
        let module = module.map(&mut self);
        self.end(whole).map(|report| (module, report))
    }

    /// What was found, where all that is stored should have been used, or not.
    fn end(self, whole: bool) -> Result<LoadReport> {
        let Self { checkpoint, layout, used, mut mismatch, report, failure, .. } = self;
        if let Some(failure) = failure {
            return Err(failure);
        }
        if whole {
            mismatch.unused = unused(checkpoint, layout, &used, &mismatch.missing);
        }
        match mismatch.is_empty() {
            true => Ok(report),
            false => Err(Error::Mismatch {
                path: checkpoint.path().to_owned(),
                mismatch: Box::new(mismatch),
            }),
        }
    }
}

/// What is stored and has no use, the first of it with the most similar name that is missing.
fn unused(
    checkpoint: &Checkpoint,
    layout: &Layout,
    used: &BTreeSet<String>,
    missing: &[String],
) -> Vec<String> {
    let unused = checkpoint.tensors().keys();
    let unused: Vec<String> =
        unused.filter(|name| !used.contains(*name) && !layout.ignores(name)).cloned().collect();
    let missing = &missing[..missing.len().min(CANDIDATES)];
    let hinted = |(i, name): (usize, String)| match i < Mismatch::SHOWN {
        true => with_hint(name, missing),
        false => name,
    };
    unused.into_iter().enumerate().map(hinted).collect()
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
        let (name, shape) = (self.path.join("."), param.lazy_shape().to_vec());
        let found = self.parameter(&name, &shape);
        if self.to.is_none() {
            self.shapes.push((name.clone(), shape));
        }
        match found {
            Ok(Some(data)) => {
                let Some((dtype, device)) = self.to else { return param };
                if !dtype.is_finite(data.as_bytes()) {
                    self.report.not_finite.push(name);
                }
                let tensor = Tensor::<D>::from_data(data, (device, dtype.burn()));
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
    /// The values of a parameter; `None` with an entry in the list of differences, or where none are read.
    fn parameter(&mut self, name: &str, expected: &[usize]) -> Result<Option<TensorData>> {
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
        self.used.extend(rule.sources.iter().cloned());
        let infos: Vec<&TensorInfo> = rule.sources.iter().map(|source| &known[source]).collect();
        if let Some(i) = infos.iter().position(|info| !info.dtype.is_float()) {
            let (source, dtype) = (&rule.sources[i], infos[i].dtype);
            self.mismatch.different.push(format!("{source}: type {dtype}, expected floats"));
            return Ok(None);
        }
        // Shapes first: what does not fit is never read.
        let shapes: Vec<&[usize]> = infos.iter().map(|info| info.shape.as_slice()).collect();
        let mut shape = rule.shape(&shapes);
        let rows = self.rows.filter(|(table, _)| *table == name).map(|(_, rows)| rows);
        if let (Some(rows), Some([count, _])) = (rows, shape.as_deref_mut())
            && rule.is_copy()
            && rows.iter().all(|row| row < count)
        {
            *count = rows.len();
        }
        if shape.as_deref() != Some(expected) {
            self.mismatch.different.push(different(name, expected, &rule, &shapes));
            return Ok(None);
        }
        let Some((dtype, _)) = self.to else { return Ok(None) };
        if let Some(rows) = rows {
            let values = read_rows(self.checkpoint, &rule.sources[0], rows)?;
            return Ok(Some(dtype.data(values, expected.to_vec())));
        }
        if self.kept.contains(name)
            && let Some(filed) = Filed::of(self.checkpoint, &rule, expected)?
        {
            self.filed.insert(name.to_owned(), filed);
            return Ok(None);
        }
        self.read(&rule, &infos, expected, dtype).map(Some)
    }

    /// Reads a parameter from tensors whose shapes suit the rule.
    fn read(
        &self,
        rule: &Rule,
        infos: &[&TensorInfo],
        shape: &[usize],
        dtype: FloatDtype,
    ) -> Result<TensorData> {
        if rule.is_copy() && infos[0].dtype == dtype.stored() {
            let bytes = self.checkpoint.read(&rule.sources[0])?;
            return Ok(TensorData::from_bytes_vec(bytes, shape, dtype.burn()));
        }
        if let (Transform::Transpose, &[inputs, width], None) = (rule.transform, shape, &rule.part)
        {
            return self.transposed(rule, [inputs, width], dtype);
        }
        let parts = rule.sources.iter().map(|source| self.checkpoint.read_f32(source));
        let values = rule.apply(parts.collect::<Result<_>>()?);
        Ok(dtype.data(values, shape.to_vec()))
    }
}

impl Loader<'_> {
    /// A matrix from rows that are its columns, some at a time: whole tensors would be in memory two or three times.
    fn transposed(
        &self,
        rule: &Rule,
        [inputs, width]: [usize; 2],
        dtype: FloatDtype,
    ) -> Result<TensorData> {
        let size = dtype.stored().size();
        let (mut bytes, columns) = (vec![0; inputs * width * size], rule.columns(width));
        let mut first = 0;
        for source in &rule.sources {
            for piece in self.checkpoint.pieces(source, dtype)? {
                let piece = piece?;
                let next = first + piece.len() / (size * inputs).max(1);
                let columns = &columns[first..next];
                match size {
                    2 => put::<2>(&mut bytes, width, &piece, columns),
                    _ => put::<4>(&mut bytes, width, &piece, columns),
                }
                first = next;
            }
        }
        Ok(TensorData::from_bytes_vec(bytes, [inputs, width], dtype.burn()))
    }
}

/// Shapes that do not go together, where they can be as the file has them.
fn different(name: &str, expected: &[usize], rule: &Rule, shapes: &[&[usize]]) -> String {
    match (rule.transform, rule.sources.as_slice(), &rule.part, expected, shapes) {
        (Transform::Copy, [_], None, expected, [found]) => {
            format!("{name}: shape {expected:?} expected, found {found:?}")
        }
        (Transform::Transpose, [source], None, [inputs, outputs], [found]) => {
            let expected = [outputs, inputs];
            format!("{name} (from {source}): shape {expected:?} expected, found {found:?}")
        }
        _ => format!("{name}: shape {expected:?} expected, found {shapes:?}"),
    }
}

/// [`put_columns`] for elements of `N` bytes.
fn put<const N: usize>(result: &mut [u8], width: usize, rows: &[u8], columns: &[usize]) {
    put_columns(result.as_chunks_mut::<N>().0, width, rows.as_chunks::<N>().0, columns);
}

/// Most names that are compared with one.
const CANDIDATES: usize = 1000;
/// Longest name that is compared with others.
const COMPARED: usize = 128;

/// Adds the most similar missing name, if one is close.
fn with_hint(name: String, missing: &[String]) -> String {
    if name.len() > COMPARED {
        return name;
    }
    let close = missing
        .iter()
        .map(|candidate| candidate.split(' ').next().unwrap_or(candidate))
        .filter(|candidate| candidate.len() <= COMPARED)
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

    /// 100,000 names on both sides.
    #[test]
    fn names_are_suggested_in_no_time() {
        let long = "x".repeat(COMPARED);
        let missing: Vec<String> = (0..CANDIDATES).map(|i| format!("{i}{long}")).collect();
        let started = std::time::Instant::now();
        for i in 0..Mismatch::SHOWN {
            with_hint(format!("{i}.{}", &long[3..]), &missing);
        }
        with_hint("y".repeat(1 << 20), &missing);
        assert!(started.elapsed() < std::time::Duration::from_secs(1), "{:?}", started.elapsed());
    }

    #[test]
    fn distances_count_edits() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        let missing = ["blocks.0.mlp.up.weight (from x)".to_owned()];
        let hint = with_hint("blocks.0.mlp.upp.weight".into(), &missing);
        assert!(hint.contains("did you mean blocks.0.mlp.up.weight"));
    }
}
