//! LoRA files: low-rank terms for linear layers, under the names that trainers give them. We write those of diffusers.
//!
//! The names are made from ours: the [`Layout`]s of a network say what its weights are called elsewhere, and a
//! table of prefixes and one of suffixes what trainers make of that. A file's keys are looked up among them as
//! they are, and a key that is not found is an error.

mod alpha;
#[cfg(test)]
mod tests;
mod write;

pub use write::{PersonParts, write_lora};

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use burn::tensor::TensorData;

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Mismatch, Result};
use crate::layout::{Layout, Part, Rule, Transform};
use crate::tensor::TensorInfo;
use alpha::{Scaling, fault};

/// Before the dotted name of a layer.
const DOTTED: [&str; 7] = [
    "",
    "transformer.",
    "unet.",
    "base_model.model.",
    "transformer.base_model.model.",
    "unet.base_model.model.",
    "diffusion_model.",
];
/// Before the name of a layer with `_` in place of every dot.
const UNDERSCORED: [&str; 3] = ["lora_unet_", "lora_transformer_", "lycoris_"];

/// Name of the tensor that stands for a person in a file of ours.
const TOKEN: &str = "pyrograph.token";
/// Key of the metadata that names the only network that a file is for, by its fingerprint.
const BASE: &str = "pyrograph.base";

/// What a tensor is to its layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// `[rank, in]`
    Down,
    /// `[out, rank]`
    Up,
    /// A number.
    Alpha,
}

/// After the name of a layer.
const SUFFIXES: [(&str, Role); 11] = [
    (".lora_A.weight", Role::Down),
    (".lora_B.weight", Role::Up),
    (".lora_A.default.weight", Role::Down),
    (".lora_B.default.weight", Role::Up),
    (".lora_down.weight", Role::Down),
    (".lora_up.weight", Role::Up),
    (".lora.down.weight", Role::Down),
    (".lora.up.weight", Role::Up),
    (".lora_linear_layer.down.weight", Role::Down),
    (".lora_linear_layer.up.weight", Role::Up),
    (".alpha", Role::Alpha),
];

/// Parts of names that only other kinds of adapters have; those that end in `_` are starts of parts.
const OTHER_KINDS: [(&str, &str); 9] = [
    ("lokr_", "LoKr"),
    ("hada_", "LoHa"),
    ("oft_", "OFT"),
    ("dora_scale", "DoRA"),
    ("lora_magnitude_vector", "DoRA"),
    ("lora_mid", "a LoRA with a third matrix"),
    ("lora_embedding_", "a LoRA of a table"),
    ("diff", "a difference of whole weights"),
    ("diff_b", "a difference of biases"),
];

/// The low-rank terms of a file.
#[derive(Debug, Clone)]
pub struct Lora {
    /// In the order of the layers.
    pub terms: Vec<LoraTerm>,
    /// Whether the file says nowhere what alpha is, so that it was taken for the rank.
    pub alpha_assumed: bool,
    /// Of a person's adapter: what stands for the person in the condition vector, `[1, hidden]`.
    pub token: Option<TensorData>,
    /// Fingerprint of the only network that it is for, if it says so.
    pub base: Option<String>,
}

/// `x · down · up`, added to some outputs of a layer.
#[derive(Debug, Clone)]
pub struct LoraTerm {
    /// Our name of the layer, without `.weight`.
    pub layer: String,
    /// `[in, rank]`, f32.
    pub down: TensorData,
    /// `[rank, width]`, f32, times `alpha / rank`.
    pub up: TensorData,
    /// The first of the `width` outputs.
    pub start: usize,
}

/// Where the tensors of a foreign layer go.
#[derive(Debug, Clone)]
struct Place {
    /// Index among the layers.
    layer: usize,
    /// Inputs and outputs of our layer.
    widths: [usize; 2],
    /// The foreign layer gives these of the outputs.
    outputs: Range<usize>,
    kernel: bool,
    chunks: Option<Vec<usize>>,
    /// Our layer is this part of the foreign one.
    cut: Option<Part>,
    /// Name of the foreign layer in its own network.
    module: String,
}

/// The tensors of one foreign layer, by their names in the file.
#[derive(Debug, Default)]
struct Found<'a> {
    down: Option<Named<'a>>,
    up: Option<Named<'a>>,
    alpha: Option<Named<'a>>,
}

/// A tensor and its name in the file.
type Named<'a> = (&'a str, &'a TensorInfo);

/// Reads the LoRA in `checkpoint` for a network with these linear layers: names and `[inputs, outputs]`.
///
/// `layouts` are the spellings of the network's weights that are known; [`dit_lora`](super::dit_lora) lists
/// those of a DiT. `alpha` replaces what the file says. Without it alpha comes from the tensor beside a layer's
/// matrices, from the metadata that diffusers writes, or from the `adapter_config.json` of PEFT beside an
/// `adapter_model` file; if there is none it is the rank.
///
/// # Errors
/// [`Error::Lora`] for adapters of other kinds and values that are not finite, [`Error::Mismatch`] with
/// everything that is unused, incomplete or of another shape, before any matrix is read; files that cannot be
/// read.
pub fn read_lora(
    checkpoint: &Checkpoint,
    layouts: &[Layout],
    layers: &[(String, [usize; 2])],
    alpha: Option<f64>,
) -> Result<Lora> {
    refuse_other_kinds(checkpoint)?;
    let places = places(layouts, layers);
    let found = matched(checkpoint, &places)?;
    let scaling = Scaling::of(checkpoint, alpha)?;
    let mut read = Vec::new();
    let mut alpha_assumed = false;
    for (name, tensors) in found {
        let own = tensors.alpha.map(|(name, _)| name);
        let (Some(down), Some(up)) = (tensors.down, tensors.up) else { continue };
        for place in &places[name] {
            let factor = scaling.factor(checkpoint, &place.module, own, down.1.shape[0])?;
            alpha_assumed |= factor.is_none();
            let term = term(checkpoint, [down, up], place, factor.unwrap_or(1.0))?;
            read.push((place.layer, LoraTerm { layer: layers[place.layer].0.clone(), ..term }));
        }
    }
    read.sort_by_key(|(layer, term)| (*layer, term.start));
    let terms = read.into_iter().map(|(_, term)| term).collect();
    let base = checkpoint.metadata().get(BASE).cloned();
    Ok(Lora { terms, alpha_assumed, token: token(checkpoint)?, base })
}

/// What stands for a person.
fn token(checkpoint: &Checkpoint) -> Result<Option<TensorData>> {
    if !checkpoint.tensors().contains_key(TOKEN) {
        return Ok(None);
    }
    let (values, shape) = checkpoint.read_f32(TOKEN)?;
    match (shape.as_slice(), values.iter().all(|value| value.is_finite())) {
        ([1, _], true) => Ok(Some(TensorData::new(values, shape))),
        ([1, _], false) => Err(fault(checkpoint, format!("`{TOKEN}` holds NaN or infinity"))),
        (found, _) => {
            Err(fault(checkpoint, format!("`{TOKEN}` of {found:?}, expected [1, hidden]")))
        }
    }
}

/// The tensors of every foreign layer by its name in the file, complete and of the right shapes.
fn matched<'a>(
    checkpoint: &'a Checkpoint,
    places: &HashMap<String, Vec<Place>>,
) -> Result<BTreeMap<&'a str, Found<'a>>> {
    let mut mismatch = Mismatch::default();
    let mut found: BTreeMap<&str, Found<'_>> = BTreeMap::new();
    for (key, info) in checkpoint.tensors().iter().filter(|(key, _)| *key != TOKEN) {
        let split = SUFFIXES.iter().find_map(|(end, role)| Some((key.strip_suffix(end)?, role)));
        let Some((name, role)) = split.filter(|(name, _)| places.contains_key(*name)) else {
            mismatch.unused.push(key.clone());
            continue;
        };
        let entry = found.entry(name).or_default();
        let slot = match role {
            Role::Down => &mut entry.down,
            Role::Up => &mut entry.up,
            Role::Alpha => &mut entry.alpha,
        };
        if let Some((other, _)) = slot.replace((key.as_str(), info)) {
            mismatch.different.push(twice(other, key));
        }
    }
    let mut taken = HashMap::new();
    for (name, tensors) in &found {
        let places = &places[*name];
        check(places, name, tensors, &mut mismatch);
        for place in places {
            if let Some(other) = taken.insert((place.layer, place.outputs.start), name) {
                mismatch.different.push(twice(other, name));
            }
        }
    }
    if !mismatch.is_empty() {
        let (path, mismatch) = (checkpoint.path().to_owned(), Box::new(mismatch));
        return Err(Error::Mismatch { path, mismatch });
    }
    match found.is_empty() {
        true => Err(fault(checkpoint, "no tensors")),
        false => Ok(found),
    }
}

fn twice(first: &str, second: &str) -> String {
    format!("{second}: of the same layer as {first}")
}

fn refuse_other_kinds(checkpoint: &Checkpoint) -> Result<()> {
    for key in checkpoint.tensors().keys() {
        let is = |part: &str, marker: &str| match marker.ends_with('_') {
            true => part.starts_with(marker),
            false => part == marker,
        };
        let kind =
            OTHER_KINDS.iter().find(|(marker, _)| key.split('.').any(|part| is(part, marker)));
        if let Some((_, kind)) = kind {
            return Err(fault(checkpoint, format!("`{key}` is of {kind}, only LoRA is supported")));
        }
    }
    Ok(())
}

/// Every spelling of every foreign layer, which can hold several of ours.
fn places(layouts: &[Layout], layers: &[(String, [usize; 2])]) -> HashMap<String, Vec<Place>> {
    let mut places: HashMap<String, Vec<Place>> = HashMap::new();
    for (layer, (name, widths)) in layers.iter().enumerate() {
        let rules = layouts.iter().filter_map(|layout| layout.rule(&format!("{name}.weight")));
        for rule in rules {
            // Chunks of several tensors are not in one place.
            let is_one_place = rule.sources.len() == 1 || rule.chunks.is_none();
            let Some(shared) = rule.outputs(widths[1]).filter(|_| is_one_place) else { continue };
            for (outputs, source) in shared.into_iter().zip(&rule.sources) {
                let module = source.strip_suffix(".weight").unwrap_or(source).to_owned();
                let place = Place {
                    layer,
                    widths: *widths,
                    outputs: outputs.clone(),
                    kernel: rule.transform == Transform::PatchKernel,
                    chunks: rule.chunks.clone(),
                    cut: rule.part.clone(),
                    module: module.clone(),
                };
                let dotted = DOTTED.map(|prefix| format!("{prefix}{module}"));
                let plain = module.replace('.', "_");
                let underscored = UNDERSCORED.map(|prefix| format!("{prefix}{plain}"));
                for name in dotted.into_iter().chain(underscored) {
                    let known = places.entry(name).or_default();
                    // Of two spellings with one name, the last.
                    known.retain(|other| place.cut.is_some() && other.layer != layer);
                    known.push(place.clone());
                }
            }
        }
    }
    places
}

/// Inputs and outputs of a foreign layer, of which these are all parts.
fn whole(places: &[Place]) -> [usize; 2] {
    let end = |place: &Place| match &place.cut {
        None => place.widths,
        Some(Part::Inputs(rows)) => [rows.end, place.widths[1]],
        Some(Part::Outputs(columns)) => [place.widths[0], columns.end],
    };
    let ends = places.iter().map(end);
    ends.fold([0; 2], |[inputs, outputs], [a, b]| [inputs.max(a), outputs.max(b)])
}

/// Adds what is missing of a layer's tensors, or of another type or shape.
fn check(places: &[Place], name: &str, tensors: &Found<'_>, mismatch: &mut Mismatch) {
    let place = &places[0];
    let (Some(down), Some(up)) = (tensors.down, tensors.up) else {
        let absent = if tensors.down.is_none() { "[rank, in]" } else { "[out, rank]" };
        mismatch.missing.push(format!("{name}: the matrix of shape {absent}"));
        return;
    };
    let [inputs, outputs] = whole(places);
    // Of a foreign layer of several of ours, all.
    let width = if place.cut.is_some() { outputs } else { place.outputs.len() };
    let most = inputs.max(outputs);
    let rank = down.1.shape.first().copied().unwrap_or_default();
    let ones = |shape: &[usize]| shape.iter().all(|length| *length == 1);
    let fits = match (place.kernel, down.1.shape.as_slice()) {
        // A convolution over square patches.
        (true, [_, channels, rows, columns]) => {
            rows == columns && channels * rows * columns == inputs
        }
        (false, [_, found, rest @ ..]) => *found == inputs && ones(rest),
        _ => false,
    };
    let mut differs = |(name, info): Named<'_>, fits: bool, expected: String| {
        if !fits {
            let (shape, dtype) = (&info.shape, info.dtype);
            let found = format!("{name}: {dtype} of shape {shape:?}, expected {expected}");
            mismatch.different.push(found);
        }
    };
    let form = if place.kernel { "channels, side, side" } else { "in" };
    let fits = fits && (1..=most).contains(&rank) && down.1.dtype.is_float();
    differs(down, fits, format!("floats [rank, {form}] with a rank to {most} and {inputs} inputs"));
    let fits = matches!(up.1.shape.as_slice(), [a, b, rest @ ..] if [*a, *b] == [width, rank] && ones(rest));
    differs(up, fits && up.1.dtype.is_float(), format!("floats [{width}, {rank}]"));
    if let Some(alpha) = tensors.alpha {
        differs(alpha, ones(&alpha.1.shape), "one number".into());
    }
}

/// Reads the matrices of a layer; the name of ours is left empty.
fn term(
    checkpoint: &Checkpoint,
    matrices: [Named<'_>; 2],
    place: &Place,
    factor: f64,
) -> Result<LoraTerm> {
    let finite = |(name, _): Named<'_>| {
        let (values, shape) = checkpoint.read_f32(name)?;
        match values.iter().all(|value| value.is_finite()) {
            true => Ok((values, shape)),
            false => Err(fault(checkpoint, format!("`{name}` holds NaN or infinity"))),
        }
    };
    let [down, up] = matrices.map(finite);
    let (down, up) = (down?, up?);
    let transform = match place.kernel {
        true => Transform::PatchKernel,
        false => Transform::Transpose,
    };
    let rule = |transform, chunks, part| Rule { chunks, part, ..Rule::new("", "", transform) };
    let cut = |of: fn(&Part) -> bool| place.cut.clone().filter(of);
    let placed = |rule: Rule, (values, shape): (Vec<f32>, Vec<usize>)| {
        let placed = rule.shape(&[&shape]).ok_or_else(|| {
            let chunks = rule.chunks.as_ref().map_or(1, Vec::len);
            fault(checkpoint, format!("`{}`: {shape:?} in {chunks} chunks", place.module))
        })?;
        Ok((rule.apply(vec![(values, shape)]), placed))
    };
    let (down, rank) =
        placed(rule(transform, None, cut(|part| matches!(part, Part::Inputs(_)))), down)?;
    let (mut up, shape) = placed(
        rule(
            Transform::Transpose,
            place.chunks.clone(),
            cut(|part| matches!(part, Part::Outputs(_))),
        ),
        up,
    )?;
    up.iter_mut().for_each(|value| *value = (f64::from(*value) * factor) as f32);
    Ok(LoraTerm {
        layer: String::new(),
        down: TensorData::new(down, rank),
        start: place.outputs.start,
        up: TensorData::new(up, shape),
    })
}
