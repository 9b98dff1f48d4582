//! Folders written by diffusers' `DiTPipeline.save_pretrained`.

use std::collections::BTreeMap;
use std::path::Path;

use pyrograph_engine::diffusion::{
    GridError, GuidedChannels, NoiseSchedule, Prediction, Sampler, Spacing, Variance,
};
use pyrograph_engine::diffusion::{Process, TimeInput};
use pyrograph_engine::layers::TimeCode;
use pyrograph_engine::nets::{DitConfig, Norm, VaeConfig};
use pyrograph_weights::{Checkpoint, convert};
use serde::Deserialize;

use super::{ModelConfig, Recognised, Source, read_json};
use crate::error::{Error, Result};
use crate::labels::Labels;
use crate::settings::Defaults;

#[derive(Deserialize)]
struct Index {
    #[serde(rename = "_class_name")]
    class: String,
    #[serde(default)]
    id2label: BTreeMap<usize, String>,
}

#[derive(Deserialize)]
struct Transformer {
    num_attention_heads: usize,
    attention_head_dim: usize,
    in_channels: usize,
    out_channels: Option<usize>,
    num_layers: usize,
    sample_size: usize,
    patch_size: usize,
    num_embeds_ada_norm: usize,
    #[serde(default = "norm_eps")]
    norm_eps: f64,
    norm_type: Option<String>,
    activation_fn: Option<String>,
}

fn norm_eps() -> f64 {
    1e-5
}

/// The parts of a scheduler's configuration that matter here; names and defaults are diffusers'.
#[derive(Deserialize)]
struct Scheduler {
    #[serde(rename = "_class_name")]
    class: String,
    num_train_timesteps: usize,
    beta_start: f64,
    beta_end: f64,
    beta_schedule: String,
    #[serde(default)]
    prediction_type: Option<String>,
    #[serde(default)]
    timestep_spacing: Option<String>,
    #[serde(default)]
    steps_offset: usize,
    #[serde(default)]
    rescale_betas_zero_snr: bool,
    #[serde(default)]
    use_karras_sigmas: bool,
    #[serde(default)]
    use_exponential_sigmas: bool,
    #[serde(default)]
    algorithm_type: Option<String>,
    #[serde(default)]
    solver_order: Option<usize>,
    #[serde(default)]
    variance_type: Option<String>,
}

#[derive(Deserialize)]
struct Autoencoder {
    in_channels: usize,
    latent_channels: usize,
    block_out_channels: Vec<usize>,
    layers_per_block: usize,
    norm_num_groups: usize,
    #[serde(default = "yes")]
    mid_block_add_attention: bool,
    #[serde(default = "yes")]
    use_quant_conv: bool,
    #[serde(default = "sd_scale")]
    scaling_factor: f64,
    #[serde(default)]
    shift_factor: Option<f64>,
}

fn yes() -> bool {
    true
}

/// Latent scale of the Stable Diffusion autoencoders, whose older files do not name it.
fn sd_scale() -> f64 {
    0.18215
}

/// Steps where the user says nothing; diffusers' own default for this pipeline.
const STEPS: usize = 50;
/// Guidance where the user says nothing; diffusers' own default for this pipeline.
const CFG_SCALE: f64 = 4.0;

pub(super) fn recognise(folder: &Path) -> Result<Recognised> {
    let index: Index = read_json(folder.join("model_index.json"))?;
    let fault = |reason: String| Error::NotAModel { path: folder.to_owned(), reason };
    let unknown = |found: Unknown| fault(found.to_string());
    if index.class != "DiTPipeline" {
        return Err(fault(format!("pipeline `{}`, expected `DiTPipeline`", index.class)));
    }
    let transformer: Transformer = read_json(folder.join("transformer/config.json"))?;
    let scheduler: Scheduler = read_json(folder.join("scheduler/scheduler_config.json"))?;
    let expected = [
        ("norm_type", &transformer.norm_type, "ada_norm_zero"),
        ("activation_fn", &transformer.activation_fn, "gelu-approximate"),
    ];
    for (name, found, expected) in expected {
        if let Some(found) = found
            && found != expected
        {
            return Err(fault(format!("{name} is `{found}`, expected `{expected}`")));
        }
    }
    let (vae, vae_source) = autoencoder(&folder.join("vae"))?;
    let checkpoint = Checkpoint::open(weights_file(&folder.join("transformer")))?;
    let per_block = convert::embedder_per_block(&checkpoint)?;
    let config = ModelConfig {
        net: DitConfig { embedder_per_block: per_block, ..net(&transformer) }.into(),
        process: Process {
            schedule: schedule(&scheduler).map_err(unknown)?,
            prediction: prediction(&scheduler).map_err(unknown)?,
            time: TimeInput::Timestep,
        },
        vae: Some(vae),
        defaults: defaults(&scheduler).map_err(unknown)?,
        labels: labels(index.id2label, transformer.num_embeds_ada_norm),
    };
    Ok(Recognised {
        kind: "diffusers DiTPipeline".into(),
        config,
        net: Source::new(checkpoint, convert::dit_diffusers(per_block)),
        vae: Some(vae_source),
    })
}

/// The autoencoder in a folder of its own, with its `config.json`.
pub(super) fn autoencoder(folder: &Path) -> Result<(VaeConfig, Source)> {
    let vae: Autoencoder = read_json(folder.join("config.json"))?;
    let checkpoint = Checkpoint::open(weights_file(folder))?;
    let layout = convert::autoencoder(&checkpoint, vae.block_out_channels.len());
    let config = VaeConfig {
        channels: vae.in_channels,
        latent_channels: vae.latent_channels,
        widths: vae.block_out_channels,
        blocks_per_level: vae.layers_per_block,
        groups: vae.norm_num_groups,
        attention: vae.mid_block_add_attention,
        quant: vae.use_quant_conv,
        scale: vae.scaling_factor,
        shift: vae.shift_factor.unwrap_or(0.0),
    };
    Ok((config, Source::new(checkpoint, layout)))
}

/// The weights of a part: a shard index, or the single file under its usual or its fp16 name.
fn weights_file(part: &Path) -> std::path::PathBuf {
    [
        "diffusion_pytorch_model.safetensors.index.json",
        "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.fp16.safetensors",
        "diffusion_pytorch_model.bin",
    ]
    .iter()
    .map(|name| part.join(name))
    .find(|path| path.exists())
    .unwrap_or_else(|| part.join("diffusion_pytorch_model.safetensors"))
}

/// The port differs from the original DiT in two places: the frequencies of the time code, and ε of the
/// second norm.
fn net(t: &Transformer) -> DitConfig {
    let hidden = t.num_attention_heads * t.attention_head_dim;
    DitConfig {
        channels: t.in_channels,
        size: [t.sample_size; 2],
        patch: t.patch_size,
        classes: t.num_embeds_ada_norm,
        learned_variance: t.out_channels.is_some_and(|out| out == 2 * t.in_channels),
        time: TimeCode::Sinusoidal { channels: 256, frequency_shift: 1.0 },
        norm: Norm::Layer { epsilon: 1e-6, mlp_epsilon: t.norm_eps },
        ..DitConfig::dit(hidden, t.num_layers, t.num_attention_heads)
    }
}

/// A value of a configuration that has no counterpart here.
#[derive(Debug, thiserror::Error)]
enum Unknown {
    #[error("{key} `{value}` is not known")]
    Value { key: &'static str, value: String },
    #[error("scheduler: {0}")]
    Sampler(#[from] GridError),
}

impl Unknown {
    fn value(key: &'static str, value: &str) -> Self {
        Self::Value { key, value: value.to_owned() }
    }
}

fn schedule(s: &Scheduler) -> Result<NoiseSchedule, Unknown> {
    let (steps, zero_snr) = (s.num_train_timesteps, s.rescale_betas_zero_snr);
    let (first, last) = (s.beta_start, s.beta_end);
    match s.beta_schedule.as_str() {
        "linear" => Ok(NoiseSchedule::Linear { steps, first, last, zero_snr }),
        "scaled_linear" => Ok(NoiseSchedule::ScaledLinear { steps, first, last, zero_snr }),
        "squaredcos_cap_v2" => Ok(NoiseSchedule::SquaredCosine { steps, zero_snr }),
        other => Err(Unknown::value("beta_schedule", other)),
    }
}

fn prediction(s: &Scheduler) -> Result<Prediction, Unknown> {
    match s.prediction_type.as_deref().unwrap_or("epsilon") {
        "epsilon" => Ok(Prediction::Noise),
        "v_prediction" => Ok(Prediction::Velocity),
        "sample" => Ok(Prediction::Clean),
        other => Err(Unknown::value("prediction_type", other)),
    }
}

fn defaults(s: &Scheduler) -> Result<Defaults, Unknown> {
    let mut sampler: Sampler = s.class.parse()?;
    match &mut sampler {
        Sampler::DpmPp2m if s.algorithm_type.as_deref() == Some("sde-dpmsolver++") => {
            sampler = Sampler::DpmPp2mSde;
        }
        Sampler::DpmPp2m if s.solver_order == Some(3) => sampler = Sampler::DpmPp3m,
        Sampler::Ddpm { variance } if s.variance_type.as_deref() == Some("fixed_large") => {
            *variance = Variance::Large;
        }
        _ => (),
    }
    let spacing = match s.timestep_spacing.as_deref() {
        _ if s.use_karras_sigmas => Some(Spacing::Karras { rho: 7.0 }),
        _ if s.use_exponential_sigmas => Some(Spacing::Exponential),
        Some("leading") => Some(Spacing::Leading { offset: s.steps_offset }),
        Some("trailing") => Some(Spacing::Trailing),
        Some("linspace") => Some(Spacing::Linspace),
        None => None,
        Some(other) => return Err(Unknown::value("timestep_spacing", other)),
    };
    Ok(Defaults {
        sampler,
        spacing,
        steps: STEPS,
        cfg_scale: CFG_SCALE,
        cfg_channels: GuidedChannels::All,
        cfg_interval: None,
    })
}

fn labels(names: BTreeMap<usize, String>, classes: usize) -> Labels {
    let mut labels = vec![String::new(); if names.is_empty() { 0 } else { classes }];
    for (id, name) in names {
        if let Some(label) = labels.get_mut(id) {
            *label = name;
        }
    }
    Labels(labels)
}
