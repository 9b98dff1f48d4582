//! What to make, and how.

use std::path::PathBuf;

use burn::tensor::{Device, Tensor};
use image::RgbImage;
use image::buffer::ConvertBuffer;
use pyrograph_engine::diffusion::{GuidedChannels, Sampler, Spacing};
use pyrograph_engine::nets::Vae;
use serde::{Deserialize, Serialize};

use crate::control::ControlBranch;
use crate::decode::decode;
use crate::error::{Error, Result};
use crate::image::picture_tensor;
use crate::patches::PatchPlan;
use crate::settings::{Defaults, GuidanceSettings, Settings};

/// What to make, and how: an image per prompt. What is `None` is left to the model.
///
/// The same type is behind the command line, the settings inside pictures and an application's own calls:
///
/// ```
/// use pyrograph::Request;
///
/// let request: Request<usize> = serde_json::from_str(r#"{ "prompts": [3, 5], "seed": 7, "steps": 30 }"#)?;
/// let same = Request { seed: 7, steps: Some(30), ..Request::new([3, 5]) };
/// assert_eq!(serde_json::to_string(&request)?, serde_json::to_string(&same)?);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Request<P> {
    /// One per image: a class id, or a text.
    pub prompts: Vec<P>,
    /// What guidance goes away from, in place of no class or no text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub negative: Option<P>,
    /// Texts are put in lower case and trimmed, but not [cleaned](crate::prompt::clean).
    #[serde(skip_serializing_if = "is_false")]
    pub raw_prompt: bool,
    /// Most tokens of a text, the rest of which is cut off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<usize>,
    /// Image `i` uses the noise of seed `seed + i`.
    pub seed: u64,
    /// `[height, width]` in pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<[usize; 2]>,
    /// Images are made at this size, also by a model that has sizes of its own, and makes others of the nearest of them.
    #[serde(skip_serializing_if = "is_false")]
    pub exact_size: bool,
    /// Sampling steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// Solver.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampler: Option<Sampler>,
    /// Placement of the steps. With a sampler and no placement, it is the sampler's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spacing: Option<Spacing>,
    /// Guidance.
    pub guidance: Guidance,
    /// Patch sizes over the steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patches: Option<PatchPlan>,
    /// Picture to start from, in place of noise alone (SDEdit, Meng et al. 2022).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub picture: Option<StartPicture>,
    /// Where to make something new, in white, and where to keep the picture, in black.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask: Option<Picture>,
    /// Pictures that control the images; what several add is summed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub controls: Vec<Controlled>,
    /// Replaces the noise of the seed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub noise: Option<Noise>,
    /// Images per network call; does not change the images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<usize>,
    /// Latent cells per side of a tile when decoding; larger images are tiled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vae_tile: Option<usize>,
    /// Steps from one preview to the next; without, there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previews: Option<usize>,
}

/// Whether a field is left out.
pub(crate) fn is_false(flag: &bool) -> bool {
    !flag
}

/// Classifier-free guidance, or autoguidance where the pipeline has a guide model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Guidance {
    /// Extrapolation factor; 1 is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale: Option<f64>,
    /// See [`GuidanceSettings::light`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub light: Option<f64>,
    /// Channels that are guided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channels: Option<GuidedChannels>,
    /// See [`GuidanceSettings::interval`]; [`Guidance::EVERYWHERE`] is everywhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<[f64; 2]>,
    /// See [`GuidanceSettings::rescale`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rescale: Option<f64>,
    /// See [`GuidanceSettings::normalized`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub normalized: Option<bool>,
}

impl Guidance {
    /// The interval of all noise levels.
    pub const EVERYWHERE: [f64; 2] = [0.0, f64::MAX];
}

/// Picture that a run starts from.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StartPicture {
    /// Cut and resized to the size of the images.
    #[serde(flatten)]
    pub picture: Picture,
    /// Share of the steps that are taken, rounded down, 0 to 1; without, 0.75. The picture gets the noise of where they
    /// begin, and comes back as it is where there are none. With a mask, a run of all steps begins with noise alone. A
    /// student takes the picture for its own first prediction instead, and has no strength.
    pub strength: Option<f64>,
}

/// A picture that controls all images of a request, through a branch.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Controlled {
    /// The branch.
    pub branch: ControlBranch,
    /// Cut and resized to the size of the images.
    #[serde(flatten)]
    pub picture: Picture,
    /// Whether the picture is what the branch sees, such as outlines, and not one whose outlines are to be found.
    #[serde(default)]
    pub ready: bool,
    /// Factor on all that the branch adds; 0 is as if it were not there.
    pub scale: f64,
    /// Shares of the steps after which it begins and ends to act, 0 to 1.
    pub steps: [f64; 2],
}

/// A picture, as a file or in memory; what is in memory is not serialised.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[expect(clippy::large_enum_variant, reason = "a request has one")]
pub enum Picture {
    /// PNG, JPEG or WebP; transparent parts become white.
    File(PathBuf),
    /// Pixels.
    #[serde(skip)]
    Pixels(RgbImage),
    /// In the model's own space, such as the latents of an earlier run, `[1, channels, height, width]`; as a mask, with
    /// one channel from 0 to 1.
    #[serde(skip)]
    Latent(Tensor<4>),
}

impl Picture {
    /// Its pixels, cut and resized to `size`, `[1, 3, height, width]` in [-1, 1], and what `convert` makes of them; of a
    /// picture in the model's own space that alone.
    pub(crate) fn read(
        &self,
        size: [usize; 2],
        device: &Device,
        convert: impl FnOnce(Tensor<4>) -> Tensor<4>,
    ) -> Result<(Option<Tensor<4>>, Tensor<4>)> {
        let pixels = match self {
            Self::File(path) => picture_tensor(&decode(path)?, size, device),
            Self::Pixels(pixels) => picture_tensor(&pixels.convert(), size, device),
            Self::Latent(latent) => return Ok((None, latent.clone().to_device(device))),
        };
        Ok((Some(pixels.clone()), convert(pixels)))
    }
}

/// What an autoencoder makes of pixels, as the network sees it; without one, the pixels.
pub(crate) fn latent(vae: Option<&Vae>, pixels: Tensor<4>) -> Tensor<4> {
    match vae {
        Some(vae) => vae.scale(vae.encode(pixels).mean),
        None => pixels,
    }
}

/// Refuses a tensor of another shape.
pub(crate) fn expect(
    what: &'static str,
    tensor: Tensor<4>,
    expected: [usize; 4],
) -> Result<Tensor<4>> {
    match tensor.dims() {
        found if found == expected => Ok(tensor),
        found => Err(Error::Shape { what, expected, found }),
    }
}

/// Noise from N(0, 1), `[images, channels, height, width]`; in memory it is not serialised.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[expect(clippy::large_enum_variant, reason = "a request has one")]
pub enum Noise {
    /// The tensor `noise` of a safetensors file.
    File(PathBuf),
    /// Of such a tensor what comes from one of its images on.
    Part {
        /// The file.
        file: PathBuf,
        /// Number of the image, from 0.
        first: usize,
    },
    /// Values.
    #[serde(skip)]
    Values(Tensor<4>),
}

/// Most images of a request.
pub const MAX_IMAGES: usize = 1_000_000;

/// Images per network call, where nothing is said.
const BATCH: usize = 8;
/// Latent cells per side of a tile, where nothing is said.
pub(crate) const VAE_TILE: usize = 64;

impl<P> Default for Request<P> {
    fn default() -> Self {
        Self::new([])
    }
}

impl<P> Request<P> {
    /// An image per prompt, with everything else left to the model, from seed 0.
    pub fn new(prompts: impl IntoIterator<Item = P>) -> Self {
        Self {
            prompts: prompts.into_iter().collect(),
            negative: None,
            raw_prompt: false,
            tokens: None,
            seed: 0,
            size: None,
            exact_size: false,
            steps: None,
            sampler: None,
            spacing: None,
            guidance: Guidance::default(),
            patches: None,
            picture: None,
            mask: None,
            controls: Vec::new(),
            noise: None,
            batch: None,
            vae_tile: None,
            previews: None,
        }
    }

    /// An image per prompt with complete settings.
    pub fn with(prompts: impl IntoIterator<Item = P>, settings: &Settings) -> Self {
        let GuidanceSettings { scale, light, channels, interval, rescale, normalized } =
            settings.guidance.clone();
        Self {
            seed: settings.seed,
            size: settings.size,
            exact_size: settings.exact_size,
            raw_prompt: settings.raw_prompt,
            tokens: settings.tokens,
            steps: Some(settings.steps),
            sampler: Some(settings.sampler.clone()),
            spacing: settings.spacing.clone(),
            guidance: Guidance {
                scale: Some(scale),
                light,
                channels: Some(channels),
                interval: interval.or(Some(Guidance::EVERYWHERE)),
                rescale: Some(rescale),
                normalized: Some(normalized),
            },
            patches: settings.patches.clone(),
            batch: Some(settings.batch),
            vae_tile: Some(settings.vae_tile),
            ..Self::new(prompts)
        }
    }

    /// Complete settings, with `defaults` where the request says nothing.
    pub fn settings(&self, defaults: &Defaults) -> Settings {
        let spacing = match (&self.sampler, &self.spacing) {
            (None, None) => defaults.spacing.clone(),
            (_, spacing) => spacing.clone(),
        };
        let Guidance { scale, light, channels, interval, rescale, normalized } = self.guidance;
        Settings {
            seed: self.seed,
            steps: self.steps.unwrap_or(defaults.steps),
            sampler: self.sampler.clone().unwrap_or_else(|| defaults.sampler.clone()),
            spacing,
            guidance: GuidanceSettings {
                scale: scale.unwrap_or(defaults.cfg_scale),
                light,
                channels: channels.unwrap_or(defaults.cfg_channels),
                interval: interval
                    .or(defaults.cfg_interval)
                    .filter(|interval| *interval != Guidance::EVERYWHERE),
                rescale: rescale.unwrap_or(0.0),
                normalized: normalized.unwrap_or(defaults.cfg_normalized),
            },
            size: self.size,
            exact_size: self.exact_size,
            raw_prompt: self.raw_prompt,
            tokens: self.tokens,
            batch: self.batch.unwrap_or(BATCH),
            vae_tile: self.vae_tile.unwrap_or(VAE_TILE),
            patches: self.patches.clone(),
        }
    }
}

impl Defaults {
    /// Complete settings with these defaults.
    pub fn settings(&self, seed: u64) -> Settings {
        Request::<()> { seed, ..Request::new([]) }.settings(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaults() -> Defaults {
        Defaults {
            sampler: Sampler::DpmPp2m,
            spacing: Some(Spacing::Karras { rho: 7.0 }),
            steps: 20,
            cfg_scale: 1.6,
            cfg_channels: GuidedChannels::First(3),
            cfg_interval: Some([0.1, 2.0]),
            cfg_normalized: true,
        }
    }

    #[test]
    fn what_is_left_open_is_the_models() {
        let settings = Request::<usize>::new([1]).settings(&defaults());
        let GuidanceSettings { scale, light, channels, interval, rescale, normalized } =
            settings.guidance.clone();
        assert_eq!((settings.steps, scale, light, rescale, normalized), (20, 1.6, None, 0.0, true));
        assert_eq!((channels, interval), (GuidedChannels::First(3), Some([0.1, 2.0])));
        assert_eq!(settings.spacing, Some(Spacing::Karras { rho: 7.0 }));
        // Complete settings stay what they are, whatever the model.
        let other = Defaults { steps: 3, ..Defaults::student(4, Spacing::Linspace) };
        assert_eq!(Request::with([1], &settings).settings(&other), settings);
        assert_eq!(Request::with([1], &other.settings(7)).settings(&defaults()), other.settings(7));
        // A sampler does not take over the placement of another.
        let heun =
            Request { sampler: Some(Sampler::Heun { churn: None }), ..Request::<usize>::new([]) };
        assert_eq!(heun.settings(&defaults()).spacing, None);
    }

    #[test]
    fn requests_in_json() {
        let text = r#"{
            "prompts": ["a"], "guidance": { "scale": 2 }, "sampler": { "ddim": { "eta": 0.5 } },
            "picture": { "file": "a.png", "strength": 0.5 }, "mask": { "file": "m.png" }
        }"#;
        let request: Request<String> = serde_json::from_str(text).expect("a request");
        assert_eq!(request.guidance.scale, Some(2.0));
        assert_eq!(request.sampler, Some(Sampler::Ddim { eta: 0.5 }));
        let again = serde_json::to_value(&request).expect("JSON");
        assert_eq!(again["picture"], serde_json::json!({ "file": "a.png", "strength": 0.5 }));
        for wrong in [r#"{ "step": 3 }"#, r#"{ "guidance": { "cfg": 3 } }"#, r#"{ "mask": {} }"#] {
            assert!(serde_json::from_str::<Request<String>>(wrong).is_err(), "{wrong}");
        }
    }
}
