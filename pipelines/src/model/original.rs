//! Checkpoint files of the original DiT and MP-DiT code.
//!
//! Sizes are read from the tensors. What the tensors do not tell, above all the number of heads, comes
//! from a `config.json` beside the file, from the arguments stored in a training checkpoint, or from the
//! published sizes.

use std::path::Path;

use pyrograph_engine::diffusion::{NoiseSchedule, Prediction, Sampler, Spacing};
use pyrograph_engine::diffusion::{Process, TimeInput};
use pyrograph_engine::layers::{ModulationConfig, TimeCode};
use pyrograph_engine::nets::{DitConfig, History, NetConfig, Points, STEP_LIMIT, StudentConfig};
use pyrograph_weights::{Checkpoint, Foreign, convert};
use serde::Deserialize;

use super::{ModelConfig, Recognised, Source, read_json};
use crate::error::{Error, Result};
use crate::labels::Labels;
use crate::pipeline::DIT_GUIDED_CHANNELS;
use crate::settings::Defaults;

/// What a `config.json` beside a checkpoint may say.
#[derive(Default, Deserialize)]
struct Hints {
    num_heads: Option<usize>,
    input_size: Option<usize>,
    scale: Option<bool>,
    shift: Option<bool>,
    gate: Option<bool>,
    rotation: Option<bool>,
    history_layers: Option<usize>,
}

pub(super) fn recognise(path: &Path) -> Result<Recognised> {
    let checkpoint = Checkpoint::open(path)?;
    let unknown = |reason: String| Error::NotAModel { path: path.to_owned(), reason };
    let hints = match path.with_file_name("config.json") {
        beside if beside.is_file() => read_json(beside)?,
        _ => Hints::default(),
    };
    match pyrograph_weights::recognise(&checkpoint) {
        Some(Foreign::DitOriginal) => dit(checkpoint, &hints).map_err(unknown),
        Some(Foreign::MpDit) => mp_dit(checkpoint, &hints).map_err(unknown),
        Some(other) => Err(unknown(format!("{other:?} alone is not a class-conditional model"))),
        None => Err(unknown("the names of its tensors belong to no known model".into())),
    }
}

fn dit(checkpoint: Checkpoint, hints: &Hints) -> Result<Recognised, String> {
    let [hidden, channels, patch, _] = shape(&checkpoint, "x_embedder.proj.weight")?;
    let [rows, _] = shape(&checkpoint, "y_embedder.embedding_table.weight")?;
    let [out, _] = shape(&checkpoint, "final_layer.linear.weight")?;
    let depth = depth(&checkpoint);
    let student = student(&checkpoint, patch, depth, hints);
    let net = DitConfig {
        channels,
        size: size(&checkpoint, patch, hints)?,
        patch,
        classes: rows.saturating_sub(1),
        learned_variance: out == 2 * patch * patch * channels,
        ..DitConfig::dit(hidden, depth, heads(&checkpoint, hidden, depth, hints)?)
    };
    let mut defaults = defaults();
    defaults.cfg_channels = DIT_GUIDED_CHANNELS;
    let (kind, steps) = match &student {
        None => ("original DiT checkpoint", 1),
        Some(student) => {
            let steps = student.steps();
            defaults = Defaults::student(steps, Spacing::Timesteps(student.times.clone()));
            ("original ARD checkpoint", steps)
        }
    };
    Ok(Recognised {
        kind: kind.into(),
        config: config(NetConfig { dit: net, student }, defaults),
        net: Source { checkpoint, layout: convert::dit_original(steps) },
        vae: None,
    })
}

/// The steps of a student of the ARD code, which has a head for each, on the teacher's estimates of the
/// clean image. How many blocks see its history is not in the file; the published number is 6.
fn student(
    checkpoint: &Checkpoint,
    patch: usize,
    depth: usize,
    hints: &Hints,
) -> Option<StudentConfig> {
    let holds = |step: &usize| {
        checkpoint.tensors().contains_key(&format!("final_layer{step}.linear.weight"))
    };
    let steps = (2..=STEP_LIMIT).take_while(holds).last()?;
    Some(StudentConfig {
        times: StudentConfig::even_times(steps, LAST_TIMESTEP),
        patches: vec![patch; steps],
        history: History::All,
        history_layers: hints.history_layers.unwrap_or(HISTORY_LAYERS.min(depth)),
        own_heads: true,
        points: Points::Estimates,
    })
}

fn mp_dit(checkpoint: Checkpoint, hints: &Hints) -> Result<Recognised, String> {
    let [hidden, inputs] = shape(&checkpoint, "x_embedder.weight")?;
    let [rows, _] = shape(&checkpoint, "y_embedder.embedding.weight")?;
    let [out, _] = shape(&checkpoint, "final_layer.linear.weight")?;
    let depth = depth(&checkpoint);
    let modulation = modulation(&checkpoint, hidden, hints)?;
    // The head has two outputs per input value, the patches one constant more.
    if inputs < 2 || out != 2 * (inputs - 1) {
        return Err(format!("{out} outputs per token, expected {}", 2 * inputs.saturating_sub(1)));
    }
    let [_, tokens, _] = shape(&checkpoint, "pos_embed")?;
    let (patch, channels) = patch(inputs - 1, tokens, hints)?;
    let net = DitConfig {
        channels,
        size: size(&checkpoint, patch, hints)?,
        patch,
        classes: rows.saturating_sub(1),
        learned_variance: true,
        time: TimeCode::Fourier { channels: 256, unit_variance: false },
        modulation,
        ..DitConfig::mp_dit(hidden, depth, heads(&checkpoint, hidden, depth, hints)?)
    };
    let [scale, shift, gate, rotation] =
        [modulation.scale, modulation.shift, modulation.gate, modulation.rotation];
    Ok(Recognised {
        kind: "MP-DiT checkpoint".into(),
        config: config(net.into(), defaults()),
        net: Source { checkpoint, layout: convert::mp_dit(scale, shift, gate, rotation) },
        vae: None,
    })
}

/// Both were trained on the linear schedule of Ho et al. 2020 to predict noise and its variance.
fn config(net: NetConfig, defaults: Defaults) -> ModelConfig {
    let schedule = NoiseSchedule::Linear { steps: 1000, first: 1e-4, last: 0.02, zero_snr: false };
    let labels = match net.dit.classes {
        1000 => Labels(IMAGENET.lines().map(str::to_owned).collect()),
        _ => Labels::default(),
    };
    ModelConfig {
        net,
        process: Process { schedule, prediction: Prediction::Noise, time: TimeInput::Timestep },
        vae: None,
        defaults,
        labels,
    }
}

/// The noisiest timestep of that schedule.
const LAST_TIMESTEP: f64 = 999.0;
/// Blocks with history in the published students.
const HISTORY_LAYERS: usize = 6;

/// Names of the classes of ImageNet-1k, a line each.
const IMAGENET: &str = include_str!("imagenet.txt");

fn defaults() -> Defaults {
    Defaults {
        sampler: Sampler::Ddim { eta: 0.0 },
        spacing: Some(Spacing::Leading { offset: 0 }),
        steps: 50,
        cfg_scale: 4.0,
        cfg_channels: Default::default(),
        cfg_interval: None,
    }
}

fn shape<const D: usize>(checkpoint: &Checkpoint, name: &str) -> Result<[usize; D], String> {
    let info = checkpoint.tensors().get(name).ok_or_else(|| format!("no tensor `{name}`"))?;
    info.shape
        .as_slice()
        .try_into()
        .map_err(|_| format!("`{name}` has shape {:?}, expected {D} dimensions", info.shape))
}

fn depth(checkpoint: &Checkpoint) -> usize {
    let index = |name: &String| name.strip_prefix("blocks.")?.split('.').next()?.parse().ok();
    checkpoint.tensors().keys().filter_map(index).max().map_or(0, |last: usize| last + 1)
}

fn size(checkpoint: &Checkpoint, patch: usize, hints: &Hints) -> Result<[usize; 2], String> {
    if let Some(size) = hints.input_size {
        return Ok([size; 2]);
    }
    let [_, tokens, _] = shape(checkpoint, "pos_embed")?;
    let side = tokens.isqrt();
    match side * side == tokens {
        true => Ok([side * patch; 2]),
        false => Err(format!("{tokens} positions, expected a square number")),
    }
}

/// Patch size and channels from the values per patch; a patch of the usual size with the fewest
/// channels, unless the size of the input is known.
fn patch(values: usize, tokens: usize, hints: &Hints) -> Result<(usize, usize), String> {
    let known = hints.input_size.map(|size| size / tokens.isqrt().max(1));
    let fits = |patch: &usize| *patch > 0 && values.is_multiple_of(patch * patch);
    let fits_latent = |patch: &usize| values == patch * patch * 4;
    known
        .filter(fits)
        .or_else(|| [2, 4, 8, 16].into_iter().find(fits_latent))
        .or_else(|| [8, 4, 2, 1].into_iter().find(fits))
        .map(|patch| (patch, values / (patch * patch)))
        .ok_or_else(|| format!("{values} values per patch fit no patch size"))
}

fn heads(
    checkpoint: &Checkpoint,
    hidden: usize,
    depth: usize,
    hints: &Hints,
) -> Result<usize, String> {
    let named = checkpoint
        .metadata()
        .get("args.model")
        .and_then(|model| model.split(['-', '/']).nth(1).map(str::to_owned))
        .and_then(|size| DitConfig::preset(&size))
        .filter(|(named_hidden, named_depth, _)| (*named_hidden, *named_depth) == (hidden, depth));
    let published = ["XS", "S", "B", "L", "XL"]
        .into_iter()
        .filter_map(DitConfig::preset)
        .find(|(named, ..)| *named == hidden);
    match (hints.num_heads, named.or(published)) {
        (Some(heads), _) => Ok(heads),
        (None, Some((.., heads))) => Ok(heads),
        (None, None) => Err(format!(
            "the number of attention heads of a model of width {hidden} is not in the file: put a \
             config.json with `num_heads` beside it"
        )),
    }
}

/// The switches, from the hints or from the shapes: a rotation predicts half as many values.
fn modulation(
    checkpoint: &Checkpoint,
    hidden: usize,
    hints: &Hints,
) -> Result<ModulationConfig, String> {
    let mut parts = Vec::new();
    while let Ok([out, _]) =
        shape(checkpoint, &format!("blocks.0.mod1.mods.{}.net.1.weight", parts.len()))
    {
        parts.push(out);
    }
    let full = parts.iter().filter(|&&out| out == hidden).count();
    let gate = checkpoint.tensors().contains_key("blocks.0.gate1.net.1.weight");
    Ok(ModulationConfig {
        scale: hints.scale.unwrap_or(full > 0),
        shift: hints.shift.unwrap_or(full > 1),
        rotation: hints.rotation.unwrap_or(parts.len() > full),
        gate: hints.gate.unwrap_or(gate),
        ..ModulationConfig::ROTATION_SCALE
    })
}
