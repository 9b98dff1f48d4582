//! Configuration of a training run.

use std::path::PathBuf;

use burn::tensor::Device;
use pyrograph_engine::denoisers;
use pyrograph_engine::diffusion::{
    NoiseSchedule, Prediction, Process, Sampler, Spacing, TimeInput,
};
use pyrograph_engine::nets::DitConfig;
use pyrograph_engine::ops;
use pyrograph_engine::train::{
    Average, Decay, LearningRate, Precision, Rule, TrainerConfig, WIDTH_LIMIT, Weighting,
};
use serde::{Deserialize, Serialize};

use super::control::ControlShape;
use super::lora::LoraShape;
use super::perceptual::PerceptualShape;
use super::shape::{Condition, ModelShape};
use super::student::{Adversarial, StudentShape};
use super::table;
use crate::data::{Annotation, Augment, Background, Reading};
use crate::error::{Error, Result};
use crate::model::text::TextInput;
use crate::model::{ModelConfig, recognise};
use crate::settings::Defaults;

/// A training run: what to train, on what, for how long.
///
/// Every field has a default, so that a file names only what differs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Network.
    pub model: ModelShape,
    /// Folder of the training images; of a run on trajectories, none.
    pub data: Option<PathBuf>,
    /// Folder of the trajectories that a student learns from.
    pub trajectories: Option<PathBuf>,
    /// Diffusion process to learn.
    pub process: Process,
    /// Folder or bundle with an autoencoder; trains in its latent space instead of on pixels.
    pub vae: Option<PathBuf>,
    /// Text encoder, by its folder or file, or a model with one; trains on the captions of the images instead of on their
    /// classes.
    pub text_encoder: Option<PathBuf>,
    /// Folder of the encoder's tokenizer, if it is not with the encoder.
    pub tokenizer: Option<PathBuf>,
    /// How captions are read.
    pub captions: CaptionShape,
    /// Steps of the run.
    pub steps: u64,
    /// Images per step.
    pub batch: usize,
    /// Parts into which a batch is split; the CPU computes them side by side, a GPU one after the other to
    /// save memory.
    pub micro_batches: usize,
    /// Type in which linear layers multiply; bf16 is mixed precision, on a CPU that has it.
    pub precision: Precision,
    /// Share of labels replaced by the null class, or of captions by the empty text.
    pub label_dropout: f64,
    /// Mirrors half of the images.
    pub flip: bool,
    /// Varies the places and sizes of the images; not of latents.
    pub augment: Augment,
    /// What transparent images are laid on.
    pub background: Background,
    /// Leaves damaged images out instead of refusing their folder.
    pub skip_damaged: bool,
    /// How much errors count at each noise level.
    pub weighting: Weighting,
    /// A pull towards pictures that look right, beside the squared error.
    pub perceptual: Option<PerceptualShape>,
    /// Learning rate.
    pub learning_rate: LearningRate,
    /// How gradients change the weights; heads that judge a student are always changed by AdamW.
    pub optimizer: Rule,
    /// Decay of the moments of AdamW.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Largest norm of the gradients; 0 is no limit.
    pub clip: f64,
    /// Averages of the weights; the first is the one that is sampled and exported.
    pub averages: Vec<Average>,
    /// Model whose weights the run starts from, in place of fresh ones.
    pub init: Option<PathBuf>,
    /// Patch sizes over the run, one entry after the other; without any, every batch has the native size or,
    /// of a flexible model, one of those that are trained.
    pub patches: Vec<PatchPhase>,
    /// The LoRA to make of the model that the run starts from, in place of another model.
    pub lora: Option<LoraShape>,
    /// The branches to make that steer the model that the run starts from.
    pub control: Option<ControlShape>,
    /// The few-step student to make of the model that the run starts from.
    pub student: Option<StudentShape>,
    /// What judges the student's images beside.
    pub adversarial: Option<Adversarial>,
    /// Determines initial weights, order of the data, noise, dropout and flips; below 2^63.
    pub seed: u64,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    /// Steps between sample grids; 0 is never.
    pub sample_every: u64,
    /// Texts that sample grids show; without any, some of the captions.
    pub sample_prompts: Vec<String>,
    /// Steps between stored averages for post-hoc reconstruction; 0 is never.
    pub snapshot_every: u64,
    /// Steps between lines of the log.
    pub log_every: u64,
    /// Settings of the finished model, also used for sample grids.
    pub defaults: Defaults,
}

/// Peak of the learning rate of a LoRA.
const LORA_PEAK: f64 = 1e-3;

/// How a model reads captions, and prompts later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CaptionShape {
    /// Most tokens of a caption; the rest is cut off.
    pub tokens: usize,
    /// They are [cleaned](crate::prompt::clean).
    pub clean: bool,
}

impl Default for CaptionShape {
    fn default() -> Self {
        Self { tokens: 120, clean: false }
    }
}

/// A part of a run and the patch sizes of its batches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PatchPhase {
    /// First step after it.
    pub until: u64,
    /// Patch size and its share of the batches.
    pub shares: Vec<(usize, f64)>,
}

impl Default for TrainConfig {
    /// The recipe of the shipped model, for small images with patches of many pixels.
    ///
    /// The network predicts the clean image: noise has as many values per token as a patch has pixels,
    /// images far fewer. Its error has the same weight at every level; weights that grow towards low noise
    /// made the large steps of magnitude-preserving training diverge. Sampling ends where training ends.
    fn default() -> Self {
        Self {
            model: ModelShape::default(),
            data: None,
            trajectories: None,
            process: process(),
            vae: None,
            text_encoder: None,
            tokenizer: None,
            captions: CaptionShape::default(),
            steps: 2000,
            batch: 16,
            micro_batches: 2,
            precision: Precision::F32,
            label_dropout: 0.1,
            flip: false,
            augment: Augment::default(),
            background: Background::default(),
            skip_damaged: false,
            weighting: Weighting::Output,
            perceptual: None,
            learning_rate: LearningRate {
                peak: 0.03,
                warmup: 100,
                decay: Decay::InverseSqrt { start: 500 },
            },
            optimizer: Rule::AdamW,
            betas: [0.9, 0.99],
            epsilon: 1e-8,
            weight_decay: 0.0,
            clip: 1.0,
            averages: vec![Average::Power(0.10), Average::Power(0.05)],
            init: None,
            patches: Vec::new(),
            lora: None,
            control: None,
            student: None,
            adversarial: None,
            seed: 0,
            checkpoint_every: 250,
            sample_every: 500,
            sample_prompts: Vec::new(),
            snapshot_every: 0,
            log_every: 10,
            defaults: Defaults {
                sampler: Sampler::DpmPp2m,
                spacing: Some(Spacing::Karras { rho: 7.0 }),
                steps: 20,
                cfg_scale: 1.6,
                cfg_channels: Default::default(),
                cfg_interval: None,
                cfg_normalized: false,
            },
        }
    }
}

/// See [`TrainConfig::default`].
fn process() -> Process {
    let schedule = NoiseSchedule::Edm {
        sigma_min: 0.15,
        sigma_max: 40.0,
        rho: 7.0,
        log_mean: 0.4,
        log_std: 0.9,
    };
    Process::new(schedule, Prediction::Clean, TimeInput::LogSigma)
}

impl TrainConfig {
    /// The recipe of a student of the model at `teacher`.
    ///
    /// The averages are short, so that the teacher's weights leave them soon.
    ///
    /// # Errors
    /// If there is no model.
    pub fn distilling(teacher: PathBuf) -> Result<Self> {
        let base = Self {
            steps: 4000,
            betas: [0.9, 0.999],
            averages: vec![Average::Power(0.05)],
            student: Some(StudentShape::default()),
            ..Self::default()
        };
        // The texts are in the trajectories.
        Ok(Self { text_encoder: None, ..base.starting_from(teacher)? })
    }

    /// The recipe of a LoRA of the model at `model`.
    ///
    /// # Errors
    /// If there is no model.
    pub fn tuning(self, model: PathBuf) -> Result<Self> {
        let mut base = self.starting_from(model)?;
        base.learning_rate.peak = LORA_PEAK;
        base.averages = vec![Average::Power(0.05)];
        Ok(Self { lora: Some(LoraShape::default()), ..base })
    }

    /// The recipe of branches that steer the model at `model`.
    ///
    /// # Errors
    /// If there is no model.
    pub fn steering(self, model: PathBuf) -> Result<Self> {
        let base = self.starting_from(model)?;
        let averages = vec![Average::Power(0.05)];
        Ok(Self { control: Some(ControlShape::default()), averages, ..base })
    }

    /// The same run on a model's weights: its shape, process and defaults are the model's, and the learning rate is
    /// 1e-4, or a hundred times that for a magnitude-preserving model, whose weights are of unit size.
    ///
    /// # Errors
    /// If there is no model.
    pub fn starting_from(mut self, model: PathBuf) -> Result<Self> {
        let config = recognise(&model)?.config;
        config.check_trained()?;
        let (net, factor) = (&config.net.dit, config.vae.as_ref().map_or(1, |vae| vae.factor()));
        self.learning_rate = LearningRate { peak: peak(net), warmup: 100, decay: Decay::Cosine {} };
        self.model = ModelShape::of(net, factor);
        (self.process, self.defaults) = (config.process, config.defaults);
        if config.vae.is_some() && self.vae.is_none() {
            self.vae = Some(model.clone());
        }
        if let Some(TextInput { tokens, clean, encoder, .. }) = config.text {
            self.captions = CaptionShape { tokens, clean };
            if encoder.is_some() && self.text_encoder.is_none() {
                self.text_encoder = Some(model.clone());
            }
        }
        self.init = Some(model);
        Ok(self)
    }

    /// What the run learns of its images beside their pixels.
    pub fn annotation(&self) -> Annotation {
        match self.text_encoder {
            // People, whatever the model is told.
            Some(_) if self.control.as_ref().is_none_or(|own| own.kind.is_some()) => {
                Annotation::Captions
            }
            _ => Annotation::Classes,
        }
    }

    /// Whether something is trained that is beside a model, which stays as it is.
    pub(super) fn keeps_model(&self) -> bool {
        self.lora.is_some() || self.control.is_some()
    }

    /// Refuses settings of the network and the process that are not those of the model that the run starts from,
    /// whose latent cells are `factor` pixels wide. How often a level of noise is seen in training is the run's own choice.
    pub(super) fn check_start(&self, model: &ModelConfig, factor: usize) -> Result<()> {
        let difference = self.model.difference(&ModelShape::of(&model.net.dit, factor));
        let difference = difference.or_else(|| {
            let text = |process: &Process| serde_json::json!(process).to_string();
            let schedule = model.process.schedule.clone().trained_as(&self.process.schedule);
            let theirs = Process { schedule, ..model.process.clone() };
            (self.process != theirs).then(|| ["process".into(), text(&self.process), text(&theirs)])
        });
        let difference = difference.or_else(|| {
            let TextInput { tokens, clean, .. } = *model.text.as_ref()?;
            let theirs = CaptionShape { tokens, clean };
            let text = |shape: CaptionShape| serde_json::json!(shape).to_string();
            (self.captions != theirs)
                .then(|| ["captions".into(), text(self.captions), text(theirs)])
        });
        match difference {
            None => Ok(()),
            Some([key, ours, theirs]) => Err(Error::Config {
                reason: format!("{key} is {ours}, the model that the run starts from has {theirs}"),
            }),
        }
    }

    /// Refuses settings that training on the trajectories of a model does not read.
    pub(super) fn check_unread(&self, model: &ModelConfig) -> Result<()> {
        let plain = Self::default();
        let images = self.adversarial.is_some();
        let unread = [
            ("data", self.data.is_some()),
            ("label_dropout", self.label_dropout != plain.label_dropout),
            ("patches", self.patches != plain.patches),
            ("defaults", self.defaults != model.defaults),
            ("process", self.process != model.process),
            ("weighting", self.weighting != plain.weighting),
            ("perceptual", self.perceptual.is_some()),
            ("text_encoder", self.text_encoder.is_some()),
            ("tokenizer", self.tokenizer.is_some()),
            ("lora", self.lora.is_some()),
            ("control", self.control.is_some()),
            ("sample_prompts", !self.sample_prompts.is_empty() && model.text.is_none()),
            ("flip", self.flip != plain.flip && !images),
            ("augment", !self.augment.is_nothing() && !images),
            ("background", self.background != plain.background && !images),
            ("skip_damaged", self.skip_damaged && !images),
        ];
        match unread.into_iter().find(|(_, set)| *set) {
            None => Ok(()),
            Some((key, _)) => {
                let reason = format!("{key} is set, a student of trajectories does not read it");
                Err(Error::Config { reason })
            }
        }
    }

    /// Refuses a type of products that a device does not train in.
    pub(super) fn check_precision(&self, device: &Device) -> Result<()> {
        if self.precision == Precision::Bf16 && !ops::mixes(device) {
            let reason = "precision is bf16, in which this device does not train: set f32";
            return Err(Error::Config { reason: reason.into() });
        }
        Ok(())
    }

    /// How images are read for the run.
    pub fn reading(&self) -> Reading<'static> {
        Reading {
            size: self.model.size,
            annotation: self.annotation(),
            columns: Vec::new(),
            background: self.background.clone(),
            skip_damaged: self.skip_damaged,
            observe: None,
        }
    }

    /// Says what is out of range.
    pub(super) fn check(&self) -> Result<()> {
        if let Some(reason) = table::out_of_range(&self.table()?) {
            return Err(Error::Config { reason });
        }
        if let Some(average) = self.averages.iter().find(|average| !average.is_possible()) {
            let reason = match average {
                Average::Decay(decay) => {
                    format!("an average of decay {decay}, expected 0 to below 1")
                }
                Average::Power(width) => {
                    format!("an average of width {width}, expected above 0 to below {WIDTH_LIMIT}")
                }
            };
            return Err(Error::Config { reason });
        }
        let bad = [
            (
                self.optimizer == Rule::Muon && self.lora.is_some(),
                "optimizer is muon, which is for whole matrices: a LoRA has none, set adamw",
            ),
            (self.averages.is_empty(), "averages is empty, expected at least one"),
            (
                self.micro_batches == 0 || !self.batch.is_multiple_of(self.micro_batches.max(1)),
                "micro_batches must divide batch",
            ),
            (self.background.0.is_empty(), "background is empty, expected at least one colour"),
            (self.augment.scale[0] > self.augment.scale[1], "augment.scale is from large to small"),
            (
                self.vae.is_some() && !self.augment.is_nothing(),
                "augment is set, training on latents does not read it",
            ),
        ];
        match bad.into_iter().find(|(bad, _)| *bad) {
            Some((_, reason)) => Err(Error::Config { reason: reason.into() }),
            None => Ok(()),
        }
    }

    /// The network for images with `channels` channels of `size`, `[height, width]`.
    ///
    /// # Errors
    /// Numbers that do not fit together, or a network that the process does not go with.
    pub fn net(&self, channels: usize, size: [usize; 2], told: Condition) -> Result<DitConfig> {
        let net = self.model.net(channels, size, told);
        let fault = |reason: String| Error::Config { reason };
        net.check().map_err(|error| fault(error.to_string()))?;
        denoisers::check(&self.process, &net).map_err(|error| fault(error.to_string()))?;
        Ok(net)
    }

    /// The patch size of a step; `draw`, in [0, 1), chooses among several.
    pub(super) fn patch(&self, net: &DitConfig, step: u64, draw: f64) -> usize {
        let phase = self.patches.iter().find(|phase| step < phase.until).or(self.patches.last());
        let shares = match phase {
            Some(phase) => phase.shares.clone(),
            None => trained_patches(net).into_iter().map(|patch| (patch, 1.0)).collect(),
        };
        let total: f64 = shares.iter().map(|(_, share)| share).sum();
        let mut left = draw * total;
        let chosen = shares.iter().find(|(_, share)| {
            left -= share;
            left < 0.0
        });
        chosen.or(shares.last()).expect("a phase has patch sizes").0
    }

    /// Says which of the patch sizes over the run are not possible.
    pub(super) fn check_patches(&self, net: &DitConfig) -> Result<()> {
        let trained = trained_patches(net);
        let fault = |reason: String| Err(Error::Config { reason });
        let mut previous = 0;
        for phase in &self.patches {
            if phase.until <= previous {
                return fault(format!("patches until step {}, after {previous}", phase.until));
            }
            previous = phase.until;
            let total: f64 = phase.shares.iter().map(|(_, share)| share).sum();
            let possible = phase.shares.iter().all(|(_, share)| *share >= 0.0);
            if !(total > 0.0 && total.is_finite() && possible) {
                return fault(format!("shares of patch sizes {:?}", phase.shares));
            }
            for (patch, _) in &phase.shares {
                if !trained.contains(patch) {
                    return fault(format!("patch size {patch}, the model trains {trained:?}"));
                }
            }
        }
        Ok(())
    }

    /// Settings of the trainer.
    pub fn trainer(&self, net: &DitConfig) -> TrainerConfig {
        TrainerConfig {
            steps: self.steps,
            learning_rate: self.learning_rate,
            optimizer: self.optimizer,
            betas: self.betas,
            epsilon: self.epsilon,
            weight_decay: self.weight_decay,
            clip: (self.clip > 0.0).then_some(self.clip),
            averages: self.averages.clone(),
            // What stays as it is stays so to the bit.
            forced_normalization: net.magnitude.forced_normalization && !self.keeps_model(),
            precision: self.precision,
        }
    }
}

/// The peak of the learning rate on the weights of a model that was trained.
pub(super) fn peak(net: &DitConfig) -> f64 {
    if net.magnitude.normalized_weights { 1e-2 } else { 1e-4 }
}

/// The patch sizes that training changes: with adapters, all but the native one.
pub(super) fn trained_patches(net: &DitConfig) -> Vec<usize> {
    let frozen = net.adapter_rank().map(|_| net.patch);
    net.patches().into_iter().filter(|patch| Some(*patch) != frozen).collect()
}
