//! Checkpoint files of the original DiT, MP-DiT, PixArt, Z-Image, Lumina Image 2.0, FLUX.2 and Stable Diffusion 3 code.
//!
//! Sizes are read from the tensors. What the tensors do not tell, above all the number of heads, comes
//! from a `config.json` beside the file, from the arguments stored in a training checkpoint, or from the
//! published sizes.

mod flows;

use std::path::Path;

use pyrograph_engine::diffusion::{
    GuidedChannels, NoiseSchedule, Prediction, Process, Sampler, Spacing, TimeInput,
};
use pyrograph_engine::layers::{ModulationConfig, TimeCode};
use pyrograph_engine::nets::{DitConfig, History, NetConfig, Points, STEP_LIMIT, StudentConfig};
use pyrograph_weights::{Checkpoint, Foreign, convert};
use serde::Deserialize;

use super::autoencoder::{self, Found, Latents};
use super::{ModelConfig, Parts, Recognised, Source, pixart, read_json};
use crate::error::{Error, Result};
use crate::hooks::Notice;
use crate::labels::Labels;
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
    interpolation_scale: Option<f64>,
    axes_dims: Option<Vec<usize>>,
    is_distilled: Option<bool>,
    rope_theta: Option<f64>,
}

/// A checkpoint of this kind, while its sizes are found out.
struct Original<'a> {
    path: &'a Path,
    checkpoint: Checkpoint,
    hints: Hints,
}

pub(super) fn recognise(path: &Path, elsewhere: Parts<'_>) -> Result<Recognised> {
    let checkpoint = Checkpoint::open(path)?;
    let hints = match path.with_file_name("config.json") {
        beside if beside.is_file() => read_json(beside)?,
        _ => Hints::default(),
    };
    let foreign = pyrograph_weights::recognise(&checkpoint);
    let found = Original { path, checkpoint, hints };
    let mut recognised = found.recognise(foreign)?;
    if let Some(latents) = recognised.latents {
        recognised.add_parts(path, latents, elsewhere)?;
    }
    Ok(recognised)
}

/// A name that only a transformer of diffusers has, and what that is.
const OF_PIPELINES: [(&str, &str); 6] = [
    ("proj_out_2.weight", "DiT"),
    ("adaln_single.linear.weight", "PixArt"),
    ("all_x_embedder.2-1.weight", "Z-Image"),
    ("time_caption_embed.caption_embedder.0.weight", "Lumina Image 2.0"),
    ("double_stream_modulation_img.linear.weight", "FLUX.2"),
    ("time_text_embed.text_embedder.linear_1.weight", "Stable Diffusion 3"),
];

/// Where the files of whole models keep an autoencoder, and text encoders.
const AUTOENCODERS: [&str; 2] = ["first_stage_model", "vae"];
const TEXT_ENCODERS: [&str; 3] = ["text_encoders", "cond_stage_model", "conditioner"];

impl Recognised {
    /// What the file of a whole model holds beside the network.
    fn add_parts(&mut self, path: &Path, latents: Latents, elsewhere: Parts<'_>) -> Result<()> {
        let parts = [&AUTOENCODERS[..], &TEXT_ENCODERS].concat();
        for (part, checkpoint) in Checkpoint::open_parts(path, &parts)? {
            if TEXT_ENCODERS.contains(&part) {
                if elsewhere.text_encoder.is_none() {
                    let (file, part) = (path.to_owned(), part.to_owned());
                    self.notices.push(Notice::NoTokenizer { file, part });
                }
            } else if elsewhere.vae.is_none() && self.vae.is_none() {
                let Found { config, source, notice } =
                    autoencoder::lone(checkpoint, Some(latents))?;
                (self.config.vae, self.vae) = (Some(config), Some(source));
                self.notices.extend(notice);
            }
        }
        Ok(())
    }
}

impl Original<'_> {
    fn recognise(self, foreign: Option<Foreign>) -> Result<Recognised> {
        match foreign {
            Some(Foreign::DitOriginal) => self.dit(),
            Some(Foreign::MpDit) => self.mp_dit(),
            Some(Foreign::PixArtOriginal) => self.pixart(),
            Some(Foreign::ZImageOriginal) => self.z_image(),
            Some(Foreign::Lumina2Original) => self.lumina2(),
            Some(Foreign::Sd3Original) => self.sd3(),
            Some(Foreign::Flux2Original) => self.flux2(),
            Some(Foreign::AutoencoderKl | Foreign::AutoencoderCompVis) => {
                Err(self.fault("an autoencoder alone".into()))
            }
            _ => Err(self.fault(self.of_pipeline())),
        }
    }

    /// What it is if it is no model.
    fn of_pipeline(&self) -> String {
        let holds = |(name, _): &&(&str, &str)| self.checkpoint.tensors().contains_key(*name);
        match OF_PIPELINES.iter().find(holds) {
            Some((_, kind)) => format!(
                "the transformer of diffusers' {kind} alone: open the folder of its pipeline, where the scheduler is"
            ),
            None => "the names of its tensors belong to no known model".into(),
        }
    }

    fn fault(&self, reason: String) -> Error {
        Error::NotAModel { path: self.path.to_owned(), reason }
    }

    fn dit(self) -> Result<Recognised> {
        let [hidden, channels, patch, _] = self.shape("x_embedder.proj.weight")?;
        let [rows, _] = self.shape("y_embedder.embedding_table.weight")?;
        let [out, _] = self.shape("final_layer.linear.weight")?;
        let depth = self.depth();
        let student = self.student(patch, depth);
        let net = DitConfig {
            channels,
            size: self.size(patch)?,
            patch,
            classes: rows.saturating_sub(1),
            learned_variance: out == 2 * patch * patch * channels,
            ..DitConfig::dit(hidden, depth, self.heads(hidden, depth)?)
        };
        let mut defaults = defaults();
        // The original code keeps the fourth channel as it is.
        defaults.cfg_channels = GuidedChannels::First(3);
        let (kind, steps) = match &student {
            None => ("original DiT checkpoint", 1),
            Some(student) => {
                let steps = student.steps();
                defaults = Defaults::student(steps, Spacing::Timesteps(student.times.clone()));
                ("original ARD checkpoint", steps)
            }
        };
        Ok(Recognised {
            text: None,
            clips: Vec::new(),
            kind: kind.into(),
            config: config(NetConfig { dit: net, student }, defaults),
            net: Source::new(self.checkpoint, convert::dit_original(steps)),
            vae: None,
            latents: None,
            notices: Vec::new(),
        })
    }

    /// The steps of a student of the ARD code, which has a head for each, on the teacher's estimates of the
    /// clean image. How many blocks see its history is not in the file; the published number is 6.
    fn student(&self, patch: usize, depth: usize) -> Option<StudentConfig> {
        let holds = |step: &usize| {
            self.checkpoint.tensors().contains_key(&format!("final_layer{step}.linear.weight"))
        };
        let steps = (2..=STEP_LIMIT).take_while(holds).last()?;
        Some(StudentConfig {
            times: StudentConfig::even_times(steps, LAST_TIMESTEP),
            patches: vec![patch; steps],
            history: History::All,
            history_layers: self.hints.history_layers.unwrap_or(HISTORY_LAYERS.min(depth)),
            own_heads: true,
            points: Points::Estimates,
        })
    }

    fn mp_dit(self) -> Result<Recognised> {
        let [hidden, inputs] = self.shape("x_embedder.weight")?;
        let [rows, _] = self.shape("y_embedder.embedding.weight")?;
        let [out, _] = self.shape("final_layer.linear.weight")?;
        let depth = self.depth();
        let modulation = self.modulation(hidden);
        // The head has two outputs per input value, the patches one constant more.
        if inputs < 2 || out != 2 * (inputs - 1) {
            let expected = 2 * inputs.saturating_sub(1);
            return Err(self.fault(format!("{out} outputs per token, expected {expected}")));
        }
        let [_, tokens, _] = self.shape("pos_embed")?;
        let (patch, channels) = self.patch(inputs - 1, tokens)?;
        let net = DitConfig {
            channels,
            size: self.size(patch)?,
            patch,
            classes: rows.saturating_sub(1),
            learned_variance: true,
            time: TimeCode::Fourier { channels: 256, unit_variance: false },
            modulation,
            ..DitConfig::mp_dit(hidden, depth, self.heads(hidden, depth)?)
        };
        let [scale, shift, gate, rotation] =
            [modulation.scale, modulation.shift, modulation.gate, modulation.rotation];
        Ok(Recognised {
            text: None,
            clips: Vec::new(),
            kind: "MP-DiT checkpoint".into(),
            config: config(net.into(), defaults()),
            net: Source::new(self.checkpoint, convert::mp_dit(scale, shift, gate, rotation)),
            vae: None,
            latents: None,
            notices: Vec::new(),
        })
    }

    /// PixArt's files do not tell the size of its images, which is in their names, nor the unit of their positions.
    fn pixart(self) -> Result<Recognised> {
        for (part, what) in [(".q_norm.", "normalised queries"), (".sr.", "compressed keys")] {
            if let Some(name) = self.checkpoint.tensors().keys().find(|name| name.contains(part)) {
                return Err(
                    self.fault(format!("`{name}` belongs to {what}, which are not known here"))
                );
            }
        }
        let [hidden, channels, patch, _] = self.shape("x_embedder.proj.weight")?;
        let [_, width] = self.shape("y_embedder.y_proj.fc1.weight")?;
        let [tokens, _] = self.shape("y_embedder.y_embedding")?;
        let [out, _] = self.shape("final_layer.linear.weight")?;
        let (depth, sized) =
            (self.depth(), self.checkpoint.tensors().contains_key("csize_embedder.mlp.0.weight"));
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let named =
            PIXART_SIZES.iter().find(|(part, _)| name.contains(part)).map(|(_, side)| *side);
        let side = self.hints.input_size.or(named).filter(|side| (patch..=LENGTH).contains(side));
        let side = side.ok_or_else(|| {
            self.fault("the size of its images is neither in the file nor in its name: put a config.json with \
                 `input_size`, in latent cells, beside it".into())
        })?;
        // For α, positions are never less than one apart.
        let least = if tokens == pixart::ALPHA_TOKENS { 1.0 } else { 0.0 };
        let scale = self
            .hints
            .interpolation_scale
            .unwrap_or((side as f64 / pixart::BASE as f64).max(least));
        let net = DitConfig {
            channels,
            size: [side; 2],
            patch,
            learned_variance: out == 2 * patch * patch * channels,
            span: Some((side / patch) as f64 / scale),
            sized,
            ..pixart::net(hidden, depth, self.heads(hidden, depth)?, width)
        };
        let defaults = Defaults {
            sampler: Sampler::DpmPp2m,
            spacing: Some(Spacing::Linspace),
            steps: pixart::STEPS,
            cfg_scale: pixart::CFG_SCALE,
            ..defaults()
        };
        let config = config(net.into(), defaults);
        Ok(Recognised {
            kind: "original PixArt checkpoint".into(),
            config: ModelConfig { text: Some(pixart::reads(side, tokens)), ..config },
            net: Source::new(self.checkpoint, convert::pixart_original()),
            vae: None,
            text: None,
            clips: Vec::new(),
            latents: None,
            notices: Vec::new(),
        })
    }

    fn shape<const D: usize>(&self, name: &str) -> Result<[usize; D]> {
        let info = self.checkpoint.tensors().get(name);
        let shape = &info.ok_or_else(|| self.fault(format!("no tensor `{name}`")))?.shape;
        if shape.iter().any(|length| *length > LENGTH) {
            return Err(self.fault(format!(
                "`{name}` has shape {shape:?}, expected lengths of at most {LENGTH}"
            )));
        }
        shape.as_slice().try_into().map_err(|_| {
            self.fault(format!("`{name}` has shape {shape:?}, expected {D} dimensions"))
        })
    }

    fn depth(&self) -> usize {
        self.blocks("blocks.")
    }

    /// How many blocks there are with names that begin like this.
    fn blocks(&self, start: &str) -> usize {
        let index = |name: &String| name.strip_prefix(start)?.split('.').next()?.parse().ok();
        let names = self.checkpoint.tensors().keys();
        names.filter_map(index).max().map_or(0, |last: usize| last.saturating_add(1))
    }

    fn size(&self, patch: usize) -> Result<[usize; 2]> {
        if let Some(size) = self.hints.input_size {
            return match size <= LENGTH {
                true => Ok([size; 2]),
                false => {
                    Err(self.fault(format!("input_size is {size}, expected at most {LENGTH}")))
                }
            };
        }
        let [_, tokens, _] = self.shape("pos_embed")?;
        let side = tokens.isqrt();
        match side * side == tokens {
            true => Ok([side * patch; 2]),
            false => Err(self.fault(format!("{tokens} positions, expected a square number"))),
        }
    }

    /// Patch size and channels from the values per patch; a patch of the usual size with the fewest
    /// channels, unless the size of the input is known.
    fn patch(&self, values: usize, tokens: usize) -> Result<(usize, usize)> {
        let known = self.hints.input_size.map(|size| size / tokens.isqrt().max(1));
        let fits =
            |patch: &usize| (1..=LENGTH).contains(patch) && values.is_multiple_of(patch * patch);
        let fits_latent = |patch: &usize| values == patch * patch * 4;
        known
            .filter(fits)
            .or_else(|| [2, 4, 8, 16].into_iter().find(fits_latent))
            .or_else(|| [8, 4, 2, 1].into_iter().find(fits))
            .map(|patch| (patch, values / (patch * patch)))
            .ok_or_else(|| self.fault(format!("{values} values per patch fit no patch size")))
    }

    fn heads(&self, hidden: usize, depth: usize) -> Result<usize> {
        let named = self
            .checkpoint
            .metadata()
            .get("args.model")
            .and_then(|model| model.split(['-', '/']).nth(1).map(str::to_owned))
            .and_then(|size| DitConfig::preset(&size))
            .filter(|(width, blocks, _)| (*width, *blocks) == (hidden, depth));
        let published = ["XS", "S", "B", "L", "XL"]
            .into_iter()
            .filter_map(DitConfig::preset)
            .find(|(width, ..)| *width == hidden);
        match (self.hints.num_heads, named.or(published)) {
            (Some(heads), _) => Ok(heads),
            (None, Some((.., heads))) => Ok(heads),
            (None, None) => Err(self.fault(format!(
                "the number of attention heads of a model of width {hidden} is not in the file: put a \
                 config.json with `num_heads` beside it"
            ))),
        }
    }

    /// The switches, from the hints or from the shapes: a rotation predicts half as many values.
    fn modulation(&self, hidden: usize) -> ModulationConfig {
        let mut parts = Vec::new();
        while let Ok([out, _]) =
            self.shape(&format!("blocks.0.mod1.mods.{}.net.1.weight", parts.len()))
        {
            parts.push(out);
        }
        let full = parts.iter().filter(|&&out| out == hidden).count();
        let gate = self.checkpoint.tensors().contains_key("blocks.0.gate1.net.1.weight");
        ModulationConfig {
            scale: self.hints.scale.unwrap_or(full > 0),
            shift: self.hints.shift.unwrap_or(full > 1),
            rotation: self.hints.rotation.unwrap_or(parts.len() > full),
            gate: self.hints.gate.unwrap_or(gate),
            ..ModulationConfig::ROTATION_SCALE
        }
    }
}

/// Largest length of a dimension from which sizes are read.
const LENGTH: usize = 1 << 20;

/// Latent cells a side of square images, by a part of the names of PixArt's files.
const PIXART_SIZES: [(&str, usize); 4] = [("2K", 256), ("1024", 128), ("512", 64), ("256", 32)];

/// All were trained on the linear schedule of Ho et al. 2020 to predict noise and its variance.
fn config(net: NetConfig, defaults: Defaults) -> ModelConfig {
    let schedule = NoiseSchedule::Linear { steps: 1000, first: 1e-4, last: 0.02, zero_snr: false };
    let labels = match net.dit.classes {
        1000 => Labels(IMAGENET.lines().map(str::to_owned).collect()),
        _ => Labels::default(),
    };
    ModelConfig {
        text: None,
        net,
        process: Process::new(schedule, Prediction::Noise, TimeInput::Timestep),
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
const IMAGENET: &str = include_str!("../imagenet.txt");

fn defaults() -> Defaults {
    Defaults {
        sampler: Sampler::Ddim { eta: 0.0 },
        spacing: Some(Spacing::Leading { offset: 0 }),
        steps: 50,
        cfg_scale: 4.0,
        cfg_channels: Default::default(),
        cfg_interval: None,
        cfg_normalized: false,
    }
}
