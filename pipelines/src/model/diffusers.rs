//! Folders written by `save_pretrained` of a pipeline of diffusers.

use std::collections::BTreeMap;
use std::path::Path;

use pyrograph_engine::diffusion::{GuidedChannels, Prediction, Shifting, Spacing, TimeInput};
use pyrograph_engine::layers::TimeCode;
use pyrograph_engine::nets::{DitConfig, Norm};
use pyrograph_weights::{Checkpoint, convert};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::autoencoder::Latents;
use super::folders::weights_file;
use super::scheduler::{self, Scheduler};
use super::text::{TextInput, TextSource};
use super::{
    ModelConfig, Parts, Recognised, Source, autoencoder, flux2, lumina2, pixart, read_json, sd3,
    z_image,
};
use crate::error::{Error, Result};
use crate::labels::Labels;
use crate::settings::Defaults;

#[derive(Deserialize)]
struct Index {
    #[serde(rename = "_class_name")]
    class: String,
    #[serde(default)]
    id2label: BTreeMap<usize, String>,
    #[serde(default)]
    is_distilled: bool,
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
    #[serde(default = "yes")]
    attention_bias: bool,
    #[serde(default)]
    norm_elementwise_affine: bool,
}

fn norm_eps() -> f64 {
    1e-5
}

fn yes() -> bool {
    true
}

/// The class that reads texts by several encoders.
const SD3: &str = "StableDiffusion3Pipeline";
/// Steps where the user says nothing; diffusers' own default for this pipeline.
const STEPS: usize = 50;
/// Most classes with a name.
const MAX_LABELS: usize = 1 << 20;
/// Guidance where the user says nothing; diffusers' own default for this pipeline.
const CFG_SCALE: f64 = 4.0;

/// What the configuration of a network says.
pub(super) struct Network {
    pub(super) net: DitConfig,
    pub(super) labels: Labels,
    /// How it reads texts, if it does, but for the encoder.
    pub(super) input: Option<TextInput>,
    pub(super) steps: usize,
    pub(super) cfg_scale: f64,
    pub(super) cfg_normalized: bool,
    /// How it sees latents, where the file of an autoencoder does not tell.
    pub(super) latents: Option<Latents>,
    /// How its flow goes, if it must have one.
    pub(super) flow: Option<Flow>,
    pub(super) weights: Weights,
}

/// How a family takes the weights of a network, and what they tell of it.
type Weights = fn(DitConfig, Checkpoint) -> Result<(DitConfig, Source)>;

impl Network {
    /// One that reads texts, in so many steps with this guidance.
    pub(super) fn of_texts(
        net: DitConfig,
        input: TextInput,
        (steps, cfg_scale): (usize, f64),
        weights: Weights,
    ) -> Self {
        Self {
            net,
            labels: Labels::default(),
            input: Some(input),
            steps,
            cfg_scale,
            cfg_normalized: false,
            latents: None,
            flow: None,
            weights,
        }
    }
}

/// A rectified flow whose pipeline chooses the steps itself, from pure noise in equal ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    /// From noise to data in time and velocity.
    Backward,
    /// The same with times of 0 to 1; where they are shifted by the size of the image, diffusers takes it that there are as
    /// many tokens as channels.
    Lumina2 { channels: usize },
    /// From data to noise; where times are shifted by the size of the image, as in FLUX.2.
    Flux2,
}

impl Flow {
    /// What the scheduler says, for this flow.
    pub(super) fn of(self, scheduler: &mut Scheduler) -> Result<(), String> {
        let process = &mut scheduler.process;
        if process.prediction != Prediction::Flow {
            return Err(
                "a scheduler of another process than the rectified flow of this model".into()
            );
        }
        match self {
            Self::Backward => {
                (process.prediction, process.time) = (Prediction::Backflow, TimeInput::Countdown);
            }
            Self::Lumina2 { channels } => {
                *process = process.of_image(channels, 1);
                (process.prediction, process.time) = (Prediction::Backflow, TimeInput::Share);
            }
            Self::Flux2 => {
                process.shifting = process.shifting.map(|_| Shifting::Flux2);
            }
        }
        scheduler.spacing.get_or_insert(Spacing::Trailing);
        Ok(())
    }
}

/// The pipeline in a folder, with what it has of the parts that are not elsewhere.
pub(super) fn recognise(folder: &Path, elsewhere: Parts<'_>) -> Result<Recognised> {
    let Index { class, id2label, is_distilled } = read_json(folder.join("model_index.json"))?;
    let fault = |reason: String| Error::NotAModel { path: folder.to_owned(), reason };
    let network = network(folder, &class, id2label, is_distilled)?;
    let Network {
        net,
        labels,
        mut input,
        steps,
        cfg_scale,
        cfg_normalized,
        latents,
        flow,
        weights,
    } = network;
    // Numbers before the weights, which need not be there for them to be wrong.
    net.check().map_err(|error| fault(error.to_string()))?;
    let mut scheduler = scheduler::read(
        read_json(folder.join("scheduler/scheduler_config.json"))?,
        net.learned_variance,
    )
    .map_err(|found| fault(found.to_string()))?;
    match flow {
        Some(flow) => flow.of(&mut scheduler).map_err(fault)?,
        None if scheduler.process.shifting.is_some() => {
            return Err(fault(
                "use_dynamic_shifting is true, which this pipeline cannot use".into(),
            ));
        }
        None => (),
    }
    let Scheduler { process, sampler, spacing, notices } = scheduler;
    process.check().map_err(|error| fault(error.to_string()))?;
    let vae = Some(folder.join("vae")).filter(|vae| elsewhere.vae.is_none() && vae.exists());
    let (vae, vae_source) = vae.map(|vae| autoencoder::folder(&vae)).transpose()?.unzip();
    let (net, source) =
        weights(net, Checkpoint::open(weights_file(&folder.join("transformer"))?)?)?;
    let (text, clips) = match input.as_mut().filter(|_| elsewhere.text_encoder.is_none()) {
        Some(input) => encoders(folder, class == SD3, input)?,
        None => (None, Vec::new()),
    };
    let config = ModelConfig {
        net: net.into(),
        process,
        vae,
        defaults: Defaults {
            sampler,
            spacing,
            steps,
            cfg_scale,
            cfg_channels: GuidedChannels::All,
            cfg_interval: None,
            cfg_normalized,
        },
        labels,
        text: input,
    };
    let (kind, vae) = (format!("diffusers {class}"), vae_source);
    Ok(Recognised { kind, config, net: source, vae, text, clips, latents, notices })
}

/// Refuses what is left of the configuration of a class whose keys are all read, but for what diffusers notes.
pub(super) fn no_others(rest: &Map<String, Value>, class: &str) -> Result<(), String> {
    match rest.keys().find(|key| !key.starts_with('_')) {
        Some(key) => Err(format!("{key} is not a key of {class}")),
        None => Ok(()),
    }
}

/// Refuses another number of channels that come out than of those that go in.
pub(super) fn as_many(out: Option<usize>, channels: usize) -> Result<(), String> {
    match out.filter(|out| *out != channels) {
        Some(out) => Err(format!("out_channels is {out}, expected in_channels, {channels}")),
        None => Ok(()),
    }
}

/// What the configuration of a pipeline's network says.
fn network(
    folder: &Path,
    class: &str,
    id2label: BTreeMap<usize, String>,
    is_distilled: bool,
) -> Result<Network> {
    match class {
        "DiTPipeline" => dit(folder, id2label),
        "PixArtAlphaPipeline" => pixart::network(folder, pixart::ALPHA_TOKENS),
        "PixArtSigmaPipeline" => pixart::network(folder, pixart::SIGMA_TOKENS),
        "ZImagePipeline" => z_image::network(folder),
        "Lumina2Pipeline" => lumina2::network(folder),
        SD3 => sd3::network(folder),
        "Flux2KleinPipeline" => flux2::network(folder, is_distilled),
        _ => {
            let expected = "`DiTPipeline`, `PixArtAlphaPipeline`, `PixArtSigmaPipeline`, \
                `ZImagePipeline`, `Lumina2Pipeline`, `Flux2KleinPipeline` or `StableDiffusion3Pipeline`";
            Err(Error::NotAModel {
                path: folder.to_owned(),
                reason: format!("pipeline `{class}`, expected {expected}"),
            })
        }
    }
}

/// What reads the texts of a pipeline, and is described in `input`.
///
/// # Errors
/// Folders that are not there, and other networks in them.
pub(super) fn encoders(
    folder: &Path,
    is_sd3: bool,
    input: &mut TextInput,
) -> Result<(Option<TextSource>, Vec<TextSource>)> {
    let mut clips = Vec::new();
    for number in ["", "_2"].iter().filter(|_| is_sd3) {
        let (clip, described) = TextSource::recognise(folder, number)?.clip();
        clips.push(clip);
        input.clips.push(described);
    }
    // SD3 works without T5.
    if is_sd3 && !folder.join("text_encoder_3").is_dir() {
        return Ok((None, clips));
    }
    let own = TextSource::recognise(folder, if is_sd3 { "_3" } else { "" })?.reading(input);
    input.encoder = Some(own.encoder.config.clone());
    Ok((Some(own), clips))
}

/// That of a `DiTPipeline`.
fn dit(folder: &Path, names: BTreeMap<usize, String>) -> Result<Network> {
    let fault = |reason: String| Error::NotAModel { path: folder.to_owned(), reason };
    let transformer: Transformer = read_json(folder.join("transformer/config.json"))?;
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
    if !transformer.attention_bias || transformer.norm_elementwise_affine {
        let Transformer { attention_bias: bias, norm_elementwise_affine: affine, .. } = transformer;
        return Err(fault(format!(
            "attention_bias is {bias} and norm_elementwise_affine {affine}, expected true and false"
        )));
    }
    Ok(Network {
        net: net(&transformer),
        labels: labels(names, transformer.num_embeds_ada_norm),
        input: None,
        steps: STEPS,
        cfg_scale: CFG_SCALE,
        cfg_normalized: false,
        latents: None,
        flow: None,
        weights: |net, checkpoint| {
            let per_block = convert::embedder_per_block(&checkpoint)?;
            let net = DitConfig { embedder_per_block: per_block, ..net };
            Ok((net, Source::new(checkpoint, convert::dit_diffusers(per_block))))
        },
    })
}

/// The port differs from the original DiT in two places: the frequencies of the time code, and ε of the
/// second norm.
fn net(t: &Transformer) -> DitConfig {
    let hidden = t.num_attention_heads.saturating_mul(t.attention_head_dim);
    DitConfig {
        channels: t.in_channels,
        size: [t.sample_size; 2],
        patch: t.patch_size,
        classes: t.num_embeds_ada_norm,
        learned_variance: t
            .out_channels
            .is_some_and(|out| out.checked_sub(t.in_channels) == Some(t.in_channels)),
        time: TimeCode::Sinusoidal { channels: 256, frequency_shift: 1.0 },
        norm: Norm::Layer { epsilon: 1e-6, mlp_epsilon: t.norm_eps },
        ..DitConfig::dit(hidden, t.num_layers, t.num_attention_heads)
    }
}

fn labels(names: BTreeMap<usize, String>, classes: usize) -> Labels {
    // Classes behind the last with a name need no entry.
    let named = names.keys().next_back().map_or(0, |last| last.saturating_add(1)).min(classes);
    let mut labels = vec![String::new(); named.min(MAX_LABELS)];
    for (id, name) in names {
        if let Some(label) = labels.get_mut(id) {
            *label = name;
        }
    }
    Labels(labels)
}
