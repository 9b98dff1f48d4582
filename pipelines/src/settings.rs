//! Settings of one generation run.

use pyrograph_engine::diffusion::Process;
use pyrograph_engine::diffusion::{Grid, GuidedChannels, Sampler, Spacing};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::patches::PatchPlan;
use crate::request::is_false;

/// How to make images, beyond which ones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Image `i` uses the noise of seed `seed + i`.
    pub seed: u64,
    /// Sampling steps.
    pub steps: usize,
    /// Solver.
    pub sampler: Sampler,
    /// Placement of the steps; `None` is the solver's own.
    pub spacing: Option<Spacing>,
    /// Guidance.
    pub guidance: GuidanceSettings,
    /// `[height, width]` in pixels; `None` is the model's own.
    pub size: Option<[usize; 2]>,
    /// See [`Request::exact_size`](crate::Request::exact_size).
    #[serde(default, skip_serializing_if = "is_false")]
    pub exact_size: bool,
    /// See [`Request::raw_prompt`](crate::Request::raw_prompt).
    #[serde(default, skip_serializing_if = "is_false")]
    pub raw_prompt: bool,
    /// Most tokens of a text; `None` is as many as the model learned from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<usize>,
    /// Images per network call; does not change the images.
    pub batch: usize,
    /// Latent cells per side of a tile when decoding; larger images are tiled.
    pub vae_tile: usize,
    /// Patch sizes over the steps; `None` is the model's own throughout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patches: Option<PatchPlan>,
}

impl Settings {
    /// The levels of all steps, from noise.
    ///
    /// # Errors
    /// Settings that do not go with the process.
    pub fn grid(&self, process: &Process) -> Result<Grid> {
        Ok(process.grid(&self.sampler, self.spacing.as_ref(), self.steps)?)
    }
}

/// Classifier-free guidance, or autoguidance when a guide model is given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuidanceSettings {
    /// Extrapolation factor; 1 is none. Of portraits, towards the person.
    pub scale: f64,
    /// Of portraits, the factor towards light and pose; `None` is the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub light: Option<f64>,
    /// Channels that are guided.
    pub channels: GuidedChannels,
    /// Noise levels, as variance-exploding σ, above the first and up to the second at which guidance
    /// acts; `None` is everywhere.
    pub interval: Option<[f64; 2]>,
    /// Share of the prediction rescaled to the conditional one's standard deviation, in [0, 1].
    pub rescale: f64,
    /// Whether each row of the guided prediction has the length of the conditional one's.
    #[serde(default, skip_serializing_if = "is_false")]
    pub normalized: bool,
}

impl Settings {
    /// Says what is out of range, for a model of so many channels.
    pub(crate) fn check(&self, channels: usize) -> Result<()> {
        if self.batch == 0 {
            return Err(at_least_one("images per network call"));
        }
        if self.vae_tile == 0 {
            return Err(at_least_one("latent cells per tile"));
        }
        if self.tokens == Some(0) {
            return Err(at_least_one("tokens of a text"));
        }
        self.guidance.check(channels)
    }
}

/// The error of a count that is 0.
pub(crate) fn at_least_one(what: &'static str) -> Error {
    Error::Setting { what, found: "0".into(), expected: "1 or more".into() }
}

impl GuidanceSettings {
    /// The factors of each part of a condition, the strongest first; one if all are the same.
    pub(crate) fn scales(&self) -> Vec<f64> {
        match self.light.filter(|light| *light != self.scale) {
            Some(light) => vec![self.scale, light],
            None => vec![self.scale],
        }
    }

    fn check(&self, channels: usize) -> Result<()> {
        let fault = |reason| Err(Error::Guidance { reason });
        let Self { scale, light, interval, rescale, .. } = self;
        let setting =
            |what, found: String, expected: String| Err(Error::Setting { what, found, expected });
        if !scale.is_finite() {
            return setting("cfg scale", scale.to_string(), "a finite number".into());
        }
        if let Some(light) = light.filter(|light| !light.is_finite()) {
            return setting(
                "cfg scale towards the light",
                light.to_string(),
                "a finite number".into(),
            );
        }
        if !(0.0..=1.0).contains(rescale) {
            return setting("cfg rescale", rescale.to_string(), "0 to 1".into());
        }
        if let GuidedChannels::First(count) = self.channels
            && !(1..=channels).contains(&count)
        {
            return setting("guided channels", count.to_string(), format!("1 to {channels}"));
        }
        match interval {
            None => Ok(()),
            Some([low, high]) if low <= high => Ok(()),
            Some([low, high]) => {
                fault(format!("cfg interval from {low} to {high}, expected the lower end first"))
            }
        }
    }
}

/// What a model would like where the user says nothing; part of its `model.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Defaults {
    /// Solver.
    pub sampler: Sampler,
    /// Placement of the steps.
    #[serde(default)]
    pub spacing: Option<Spacing>,
    /// Sampling steps.
    pub steps: usize,
    /// Guidance scale.
    pub cfg_scale: f64,
    /// Channels that are guided.
    #[serde(default)]
    pub cfg_channels: GuidedChannels,
    /// See [`GuidanceSettings::interval`].
    #[serde(default)]
    pub cfg_interval: Option<[f64; 2]>,
    /// See [`GuidanceSettings::normalized`].
    #[serde(default, skip_serializing_if = "is_false")]
    pub cfg_normalized: bool,
}

impl Defaults {
    /// Those of a student: its own steps, guidance being part of what it learned.
    pub fn student(steps: usize, spacing: Spacing) -> Self {
        Self {
            sampler: Sampler::Ddim { eta: 0.0 },
            spacing: Some(spacing),
            steps,
            cfg_scale: 1.0,
            cfg_channels: GuidedChannels::All,
            cfg_interval: None,
            cfg_normalized: false,
        }
    }
}
