//! Folders of MiniT2I, which makes pixels of texts without an autoencoder. There is no class of diffusers for it, and no index of
//! its parts.

use std::path::Path;

use pyrograph_engine::diffusion::{
    GuidedChannels, NoiseSchedule, Prediction, Process, Sampler, Spacing, TimeInput,
};
use pyrograph_engine::layers::{Activation, ModulationConfig, Position, Rope};
use pyrograph_engine::nets::{
    Branches, DitConfig, Norm, Placing, TextAttention, TextConfig, TextEntry,
};
use pyrograph_engine::ops::Pairs;
use pyrograph_weights::{Checkpoint, convert};
use serde::Deserialize;
use serde_json::Value;

use super::diffusers::{encoders, no_others};
use super::folders::weights_file;
use super::text::{Template, TextInput};
use super::{ModelConfig, Parts, Recognised, Source, read_json};
use crate::error::{Error, Result};
use crate::labels::Labels;
use crate::settings::Defaults;

/// The class of its network.
const CLASS: &str = "MiniT2IMMJiTModel";

#[derive(Deserialize)]
struct Class {
    #[serde(rename = "_class_name")]
    name: Option<String>,
}

#[derive(Deserialize)]
struct Transformer {
    image_size: usize,
    patch_size: usize,
    in_channels: usize,
    txt_input_size: usize,
    hidden_size: usize,
    txt_hidden_size: usize,
    cond_vec_size: usize,
    depth_double: usize,
    txt_preamble_depth: usize,
    num_heads: usize,
    head_dim: usize,
    mlp_ratio: f64,
    pca_channels: usize,
    prompt_length: usize,
    #[serde(rename = "n_T")]
    steps: usize,
    prediction: String,
    sampler: String,
    cfg_channels: usize,
    cfg_interval: [f64; 2],
    /// Where its encoder is from.
    #[serde(rename = "llm")]
    _encoder: Option<Value>,
    #[serde(flatten)]
    rest: serde_json::Map<String, Value>,
}

#[derive(Deserialize)]
struct Scheduler {
    num_inference_steps: Option<usize>,
    /// How times are drawn in training.
    #[serde(rename = "train_t_schedule")]
    _schedule: Option<Value>,
    #[serde(rename = "t_lognorm_mu")]
    _mean: Option<Value>,
    #[serde(rename = "t_lognorm_sigma")]
    _std: Option<Value>,
    #[serde(flatten)]
    rest: serde_json::Map<String, Value>,
}

/// ε of all norms.
const EPSILON: f64 = 1e-6;
/// Base of its positions.
const THETA: f64 = 1e4;
/// The inner width of its MLPs is rounded up to a multiple of this.
const MULTIPLE: usize = 8;
/// Standard deviation of the noise, of pixels from -1 to 1.
const NOISE: f64 = 2.0;
/// Least time that is left of the flow to an estimate.
const LEAST: f64 = 0.05;
/// Guidance where the user says nothing; that of its authors' pipeline.
const CFG_SCALE: f64 = 6.0;

/// Whether such a model is in a folder.
pub(super) fn is_in(folder: &Path) -> bool {
    let class = read_json::<Class>(folder.join("transformer/config.json"));
    class.is_ok_and(|class| class.name.as_deref() == Some(CLASS))
}

/// The model in a folder, with what it has of the parts that are not elsewhere.
pub(super) fn recognise(folder: &Path, elsewhere: Parts<'_>) -> Result<Recognised> {
    let path = folder.join("transformer/config.json");
    let transformer: Transformer = read_json(path.clone())?;
    let fault = |reason: String| Error::NotAModel { path: path.clone(), reason };
    let net = transformer.net().map_err(fault)?;
    // Numbers before the weights, which need not be there for them to be wrong.
    net.check().map_err(|error| fault(error.to_string()))?;
    let steps = scheduler(&folder.join("scheduler/scheduler_config.json"))?;
    let mut input = TextInput {
        template: Some(Template::Bare),
        absent: true,
        ..TextInput::new(transformer.prompt_length)
    };
    let text = match elsewhere.text_encoder {
        None => encoders(folder, false, &mut input)?.0,
        Some(_) => None,
    };
    // Noise of twice the standard deviation is that of a flow whose times are moved so far.
    let schedule = NoiseSchedule::RectifiedFlow { shift: NOISE };
    let prediction = Prediction::CleanFlow { noise: NOISE, least: LEAST };
    // No time reaches the output.
    let process = Process::new(schedule, prediction, TimeInput::Timestep);
    let defaults = Defaults {
        sampler: Sampler::Euler,
        spacing: Some(Spacing::Trailing),
        steps: steps.unwrap_or(transformer.steps),
        cfg_scale: CFG_SCALE,
        cfg_channels: GuidedChannels::All,
        cfg_interval: None,
        cfg_normalized: false,
    };
    let checkpoint = Checkpoint::open(weights_file(&folder.join("transformer"))?)?;
    Ok(Recognised {
        kind: "MiniT2I".into(),
        config: ModelConfig {
            net: net.into(),
            process,
            vae: None,
            defaults,
            labels: Labels::default(),
            text: Some(input),
        },
        net: Source::new(checkpoint, convert::minit2i()),
        vae: None,
        text,
        clips: Vec::new(),
        latents: None,
        notices: Vec::new(),
    })
}

/// Steps of a scheduler, if there is one.
fn scheduler(path: &Path) -> Result<Option<usize>> {
    if !path.is_file() {
        return Ok(None);
    }
    let scheduler: Scheduler = read_json(path.to_owned())?;
    let fault = |reason: String| Error::NotAModel { path: path.to_owned(), reason };
    no_others(&scheduler.rest, "MiniT2IFlowMatchScheduler").map_err(fault)?;
    Ok(scheduler.num_inference_steps)
}

impl Transformer {
    fn net(&self) -> Result<DitConfig, String> {
        no_others(&self.rest, CLASS)?;
        let hidden = self.hidden_size;
        let expected = |key: &str, found: String, expected: String| match found == expected {
            true => Ok(()),
            false => Err(format!("{key} is {found}, expected {expected}")),
        };
        expected("prediction", self.prediction.clone(), "x".into())?;
        expected("sampler", self.sampler.clone(), "euler".into())?;
        expected("cfg_interval", format!("{:?}", self.cfg_interval), "[0.0, 1.0]".into())?;
        let heads = self.num_heads.saturating_mul(self.head_dim);
        for (key, found, wanted) in [
            ("cfg_channels", self.cfg_channels, self.in_channels),
            ("txt_hidden_size", self.txt_hidden_size, hidden),
            ("num_heads times head_dim", heads, hidden),
        ] {
            expected(key, found.to_string(), wanted.to_string())?;
        }
        if self.steps == 0 {
            return Err("n_T is 0, expected 1 or more".into());
        }
        if !(self.mlp_ratio > 0.0 && self.mlp_ratio < 64.0) {
            return Err(format!("mlp_ratio is {}, expected within (0, 64)", self.mlp_ratio));
        }
        let inner = (hidden as f64 * self.mlp_ratio) as usize;
        let inner = inner.div_ceil(MULTIPLE).saturating_mul(MULTIPLE);
        let text = TextConfig {
            entry: TextEntry::Unbiased,
            alone: self.txt_preamble_depth,
            length: Some(self.prompt_length),
            ..TextConfig::new(self.txt_input_size, TextAttention::Joint)
        };
        let rope = Rope { axes: vec![self.head_dim / 2; 2], theta: THETA, pairs: Pairs::Halves };
        Ok(DitConfig {
            channels: self.in_channels,
            size: [self.image_size; 2],
            patch: self.patch_size,
            bottleneck: Some(self.pca_channels),
            // A little more, so that it is this one when it is rounded down.
            mlp_ratio: (inner as f64 + 0.5) / hidden.max(1) as f64,
            classes: 0,
            learned_variance: false,
            position: Position::Plain,
            norm: Norm::Rms { epsilon: EPSILON },
            modulation: ModulationConfig::NONE,
            activation: Activation::Silu,
            branches: Branches {
                head_norm: Some(EPSILON),
                gated: true,
                unbiased_mlp: true,
                ..Branches::default()
            },
            placing: Some(Placing { rope, rows: 0, text: 0, first: 0, behind: false, own: true }),
            condition: Some([self.cond_vec_size; 2]),
            text: Some(text),
            ..DitConfig::dit(hidden, self.depth_double, self.num_heads)
        })
    }
}
