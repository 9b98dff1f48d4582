//! Writing of LoRA files, as diffusers does.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::TensorData;
use serde_json::json;

use super::alpha::METADATA;
use super::{BASE, LoraTerm, TOKEN};
use crate::error::{Error, Result};
use crate::layout::{Layout, Rule, Transform};
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
    let mut tensors: Vec<(String, TensorData)> = Vec::new();
    let mut modules = Vec::new();
    let rank = terms.first().map_or(0, |term| term.down.shape()[1]);
    for LoraTerm { layer, down, up, .. } in terms {
        let no_place = || Error::NoTensor {
            path: path.to_owned(),
            name: format!("{layer} as a linear layer of {}", layout.name),
        };
        let rule = layout.rule(&format!("{layer}.weight"));
        let is_plain = |rule: &Rule| rule.transform != Transform::PatchKernel;
        let rule = rule.filter(is_plain).ok_or_else(no_place)?;
        let parts = rule.sources.len();
        let (down, up) = (Columns::of(down), Columns::of(up).reordered(rule.chunks.as_deref()));
        let width = up.width / parts;
        for (part, source) in rule.sources.iter().enumerate() {
            let module = source.strip_suffix(".weight").unwrap_or(source);
            let name = |matrix: &str| format!("{PREFIX}{module}.lora_{matrix}.weight");
            tensors.push((name("A"), down.transposed(0, down.width)));
            tensors.push((name("B"), up.transposed(part * width, width)));
            modules.push(module.to_owned());
        }
    }
    let setting = |name: &str| format!("{PREFIX}{name}");
    let settings = json!({
        setting("r"): rank,
        setting("lora_alpha"): rank,
        setting("target_modules"): modules,
    });
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

    /// Some of the columns, as rows.
    fn transposed(&self, start: usize, count: usize) -> TensorData {
        let column =
            |column: usize| (0..self.rows).map(move |row| self.values[row * self.width + column]);
        let values: Vec<f32> = (start..start + count).flat_map(column).collect();
        TensorData::new(values, [count, self.rows])
    }
}
