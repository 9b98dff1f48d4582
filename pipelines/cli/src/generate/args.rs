//! What was typed after `pyrograph generate class`.

use std::path::PathBuf;

use anyhow::Context;
use bytesize::ByteSize;
use clap::Args;
use pyrograph::WeightType;
use pyrograph::request::MAX_IMAGES;

use crate::common::{Weighted, parse_steps, parse_weighted, whole};

/// Options of images of any kind.
#[derive(Args)]
pub(crate) struct Images {
    /// Bundle, diffusers folder, checkpoint file, or the name of a shipped model
    #[arg(long, short)]
    pub(super) model: Option<PathBuf>,
    /// Autoencoder for a checkpoint that comes without one: a diffusers `vae` folder, a file, or a model with one
    #[arg(long)]
    pub(super) vae: Option<PathBuf>,
    /// LoRA file or folder to put on, with its weight after a colon [default: 1]; can be given several times
    #[arg(long, value_name = "FILE[:WEIGHT]", value_parser = parse_weighted)]
    pub(super) lora: Vec<Weighted>,
    /// Number of images [default: one for each that is asked for]
    #[arg(long, short = 'n', value_parser = whole(1, MAX_IMAGES))]
    pub(super) count: Option<usize>,
    /// Sampling steps [default: the model's]
    #[arg(long, value_parser = parse_steps)]
    pub(super) steps: Option<usize>,
    /// Guidance scale, 1 is none [default: the model's]
    #[arg(long, visible_aliases = ["guidance-scale", "guidance"])]
    pub(super) cfg_scale: Option<f64>,
    /// Noise levels LO,HI (as σ) between which guidance acts
    #[arg(long, value_parser = parse_interval)]
    pub(super) cfg_interval: Option<[f64; 2]>,
    /// Share of guidance rescaling, 0 to 1
    #[arg(long)]
    pub(super) cfg_rescale: Option<f64>,
    /// Whether each row of the guided prediction has the length of the unguided one's [default: the model's]
    #[arg(long, value_name = "BOOL")]
    pub(super) cfg_normalize: Option<bool>,
    /// Guide only the first N channels; 0 is all
    #[arg(long, value_parser = whole(0, usize::MAX))]
    pub(super) cfg_channels: Option<usize>,
    /// Weaker model to guide away from, instead of the absence of what is asked for
    #[arg(long)]
    pub(super) guide_model: Option<PathBuf>,
    /// Solver, such as ddim, euler, heun, dpmpp_2m; A1111 and diffusers names work too
    #[arg(long, visible_alias = "sampling-method")]
    pub(super) sampler: Option<String>,
    /// Placement of the steps: leading, trailing, linspace, karras, exponential
    #[arg(long)]
    pub(super) scheduler: Option<String>,
    /// Randomness of ddim, 0 to 1
    #[arg(long, value_name = "ETA")]
    pub(super) eta: Option<f64>,
    /// Noise that heun adds over the whole run (S_churn of Karras et al. 2022)
    #[arg(long, value_name = "AMOUNT")]
    pub(super) churn: Option<f64>,
    /// Explicit noise levels, highest first, separated by commas
    #[arg(long, value_delimiter = ',', conflicts_with_all = ["scheduler", "steps"])]
    pub(super) sigmas: Option<Vec<f64>>,
    /// Seed of the first image; image i has seed + i; -1 is random
    #[arg(long, short, default_value = "-1", allow_hyphen_values = true)]
    pub(super) seed: i128,
    /// Picture to start from, in place of noise alone
    #[arg(long, short = 'i', visible_alias = "init-img")]
    pub(super) init_image: Option<PathBuf>,
    /// Share of the steps taken from there, 0 to 1 [default: 0.75]
    #[arg(long)]
    pub(super) strength: Option<f64>,
    /// Picture that is white where to make something new, and black where to keep the one to start from
    #[arg(long)]
    pub(super) mask: Option<PathBuf>,
    /// Branch that `train control` made for the model, its folder or that of the run, with its weight after a colon
    /// [default: 1]; can be given several times
    #[arg(long, value_name = "BRANCH[:WEIGHT]", value_parser = parse_weighted, requires = "control_image")]
    pub(super) control: Vec<Weighted>,
    /// Picture that a branch sees, one for each in turn
    #[arg(long, value_name = "PICTURE")]
    pub(super) control_image: Vec<PathBuf>,
    /// Shares FROM,TO of the steps at which branches act [default: 0,1]
    #[arg(long, value_name = "FROM,TO", value_parser = parse_interval)]
    pub(super) control_steps: Option<[f64; 2]>,
    /// The pictures are what the branches see, such as outlines, not ones whose outlines are to be found
    #[arg(long)]
    pub(super) control_ready: bool,
    /// Width in pixels [default: the model's]
    #[arg(long, short = 'W', value_parser = whole(1, usize::MAX))]
    pub(super) width: Option<usize>,
    /// Height in pixels [default: the model's]
    #[arg(long, short = 'H', value_parser = whole(1, usize::MAX))]
    pub(super) height: Option<usize>,
    /// Output file; with `%03d`, `{seed}`, `{class}` or `{prompt}`, which are filled in, one for each image
    #[arg(long, short, default_value = "output.png")]
    pub(super) output: PathBuf,
    /// One picture with all images, with this many columns [default: square]
    #[arg(long, value_name = "COLUMNS", value_parser = whole(1, MAX_IMAGES))]
    pub(super) grid: Option<Option<usize>>,
    /// Write the estimate of the final images here every few steps
    #[arg(long)]
    pub(super) preview: Option<PathBuf>,
    /// Steps between previews [default: 5]
    #[arg(long, requires = "preview", value_parser = parse_steps)]
    pub(super) preview_interval: Option<usize>,
    #[command(flatten)]
    pub(super) patches: crate::patches::Patches,
    /// Show the result in the terminal
    #[arg(long, conflicts_with = "json")]
    pub(super) show: bool,
    /// Type of the weights: f32, f16, bf16, stored, as the file has them, or, on the CPU, int8 [default: stored for files of
    /// fewer than 16 bits on the CPU, else f32]
    #[arg(long)]
    pub(super) dtype: Option<WeightType>,
    /// Memory that model and work may take, such as 6GB or 800MiB: weights as they are stored that do not fit are read from the
    /// file at each step [default: what is free]
    #[arg(long, value_name = "SIZE")]
    pub(super) max_memory: Option<ByteSize>,
    /// Images per network call
    #[arg(long, value_parser = whole(1, MAX_IMAGES))]
    pub(super) batch_size: Option<usize>,
    /// Latent cells per tile when decoding
    #[arg(long, value_parser = whole(1, usize::MAX))]
    pub(super) vae_tile: Option<usize>,
    /// Safetensors file whose tensor `noise`, [images, channels, height, width], replaces the seed's
    #[arg(long)]
    pub(super) noise: Option<PathBuf>,
    /// Write `latents` and `trajectory` to this safetensors file
    #[arg(long)]
    pub(super) save_latents: Option<PathBuf>,
    /// Repeat the settings stored in a picture
    #[arg(long, conflicts_with = "count")]
    pub(super) from_metadata: Option<PathBuf>,
    /// Store no settings in the image
    #[arg(long)]
    pub(super) no_metadata: bool,
}

fn parse_interval(text: &str) -> anyhow::Result<[f64; 2]> {
    let numbers: Option<Vec<f64>> = text.split(',').map(|part| part.trim().parse().ok()).collect();
    let pair = numbers.and_then(|numbers| <[f64; 2]>::try_from(numbers).ok());
    pair.filter(|[low, high]| low <= high)
        .with_context(|| format!("`{text}`, expected LO,HI with LO up to HI"))
}
