//! Writing of LoRA files, as diffusers does.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::TensorData;
use serde_json::json;

use super::alpha::METADATA;
use super::{BASE, LoraTerm, TOKEN};
use crate::error::{Error, Result};
use crate::layout::{Layout, Part, Rule, Transform};
use crate::write_safetensors;

/// Before the names of layers.
const PREFIX: &str = "transformer.";

/// Of a person's adapter what other LoRA files do not have.
#[derive(Debug, Clone)]
pub struct PersonParts {
    /// See [`Lora::token`](super::Lora::token).
    pub token: TensorData,
    /// See [`Lora::base`](super::Lora::base).
    pub base: String,
}

/// Writes a LoRA file: terms of one rank for all outputs of their layers, under the names that `layout` has for the
/// layers, with alpha equal to the rank.
///
/// # Errors
/// A layer that the layout does not have, or not as a plain linear layer; a file that cannot be written.
pub fn write_lora(
    path: &Path,
    layout: &Layout,
    terms: &[LoraTerm],
    person: Option<PersonParts>,
) -> Result<()> {
    let mut modules: BTreeMap<String, [Columns; 2]> = BTreeMap::new();
    let rank = terms.first().map_or(0, |term| term.down.shape()[1]);
    for LoraTerm { layer, down, up, .. } in terms {
        let no_place = || Error::NoTensor {
            path: path.to_owned(),
            name: format!("{layer} as a linear layer of {}", layout.name),
        };
        let rule = layout.rule(&format!("{layer}.weight"));
        let is_plain = |rule: &Rule| rule.transform != Transform::PatchKernel;
        let rule = rule.filter(is_plain).ok_or_else(no_place)?;
        let up = Columns::of(up).reordered(rule.chunks.as_deref());
        let shared = rule.outputs(up.width).ok_or_else(no_place)?;
        for (outputs, source) in shared.into_iter().zip(&rule.sources) {
            let [mut down, mut up] =
                [Columns::of(down).turned(), up.some(outputs.start, outputs.len())];
            let [inputs, outputs] = layout.reach(source);
            match &rule.part {
                None => (),
                Some(Part::Inputs(range)) => down = down.among(range.start, inputs),
                Some(Part::Outputs(range)) => up = up.among(range.start, outputs),
            }
            let module = source.strip_suffix(".weight").unwrap_or(source).to_owned();
            // Of several of our layers in one of theirs, the terms stand side by side.
            let both = match modules.remove(&module) {
                Some([first_down, first_up]) => [first_down.above(down), first_up.above(up)],
                None => [down, up],
            };
            modules.insert(module, both);
        }
    }
    let mut tensors: Vec<(String, TensorData)> = Vec::new();
    let mut ranks = BTreeMap::new();
    for (module, [down, up]) in &modules {
        if down.rows != rank {
            ranks.insert(module.clone(), down.rows);
        }
        let name = |matrix: &str| format!("{PREFIX}{module}.lora_{matrix}.weight");
        tensors.push((name("A"), TensorData::new(down.values.clone(), [down.rows, down.width])));
        tensors.push((name("B"), up.transposed()));
    }
    let setting = |name: &str| format!("{PREFIX}{name}");
    let mut settings = json!({
        setting("r"): rank,
        setting("lora_alpha"): rank,
        setting("target_modules"): modules.keys().collect::<Vec<_>>(),
    });
    if !ranks.is_empty() {
        for name in ["rank_pattern", "alpha_pattern"] {
            settings[setting(name)] = json!(ranks);
        }
    }
    let mut metadata = BTreeMap::from([
        (METADATA.to_owned(), settings.to_string()),
        ("format".to_owned(), "pt".to_owned()),
    ]);
    if let Some(PersonParts { token, base }) = person {
        tensors.push((TOKEN.to_owned(), token));
        metadata.insert(BASE.to_owned(), base);
    }
    write_safetensors(path, &tensors, &metadata)
}

/// A matrix by its columns.
struct Columns {
    rows: usize,
    width: usize,
    values: Vec<f32>,
}

impl Columns {
    fn of(matrix: &TensorData) -> Self {
        let shape = matrix.shape();
        Self { rows: shape[0], width: shape[1], values: matrix.iter::<f32>().collect() }
    }

    /// With equal chunks of the columns in the order in which a layout had them before it brought them into this one.
    fn reordered(self, chunks: Option<&[usize]>) -> Self {
        let Some(chunks) = chunks else { return self };
        let (each, mut values) = (self.width / chunks.len(), self.values.clone());
        for row in 0..self.rows {
            for (ours, theirs) in chunks.iter().enumerate() {
                let at = |chunk: usize| row * self.width + chunk * each;
                values[at(*theirs)..][..each].copy_from_slice(&self.values[at(ours)..][..each]);
            }
        }
        Self { values, ..self }
    }

    /// Some of the columns.
    fn some(&self, start: usize, count: usize) -> Self {
        let rows = self.values.chunks_exact(self.width.max(1));
        let values = rows.flat_map(|row| row[start..start + count].iter().copied()).collect();
        Self { rows: self.rows, width: count, values }
    }

    /// These columns among zeros.
    fn among(&self, start: usize, width: usize) -> Self {
        let mut values = vec![0.0; self.rows * width];
        let rows = self.values.chunks_exact(self.width.max(1));
        for (to, row) in values.chunks_exact_mut(width.max(1)).zip(rows) {
            to[start..start + self.width].copy_from_slice(row);
        }
        Self { rows: self.rows, width, values }
    }

    /// The rows of both.
    fn above(self, other: Self) -> Self {
        let values = [self.values, other.values].concat();
        Self { rows: self.rows + other.rows, width: self.width, values }
    }

    /// Rows for columns.
    fn turned(&self) -> Self {
        let column =
            |column: usize| (0..self.rows).map(move |row| self.values[row * self.width + column]);
        let values = (0..self.width).flat_map(column).collect();
        Self { rows: self.width, width: self.rows, values }
    }

    fn transposed(&self) -> TensorData {
        let Self { rows, width, values } = self.turned();
        TensorData::new(values, [rows, width])
    }
}
