//! Autoencoders in folders and files of their own.

use std::path::Path;

use pyrograph_engine::nets::VaeConfig;
use pyrograph_engine::nets::vae::TinyBlocks;
use pyrograph_weights::{Checkpoint, Layout, convert};
use serde::Deserialize;

use super::folders::{self, weights_file};
use super::{Recognised, Source, read_json, recognise};
use crate::error::{Error, Result};
use crate::hooks::Notice;

/// An autoencoder on disk.
pub(super) struct Found {
    pub config: VaeConfig,
    pub source: Source,
    /// What was taken for granted.
    pub notice: Option<Notice>,
}

/// How the networks of a family see latents, which the file of an autoencoder alone does not tell.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Latents {
    /// `(latent − shift) · scale`.
    Scaled { scale: f64, shift: f64 },
    /// Squares of cells, see [`VaeConfig::squares`].
    Squares { epsilon: f64 },
}

/// Latents of the Stable Diffusion autoencoders, whose older files do not name their scale.
const STABLE_DIFFUSION: Latents = Latents::Scaled { scale: SD_SCALE, shift: 0.0 };
const SD_SCALE: f64 = 0.18215;

/// The autoencoder in a folder of its own or a file without a configuration, or in that of a pipeline or a model; `latents`
/// are those of the network that it is for.
pub(super) fn find(path: &Path, latents: Option<Latents>) -> Result<Found> {
    match place(path)? {
        (Some(config), source) => Ok(Found { config, source, notice: None }),
        (None, source) => lone(source.checkpoint, latents),
    }
}

/// Fingerprint of the weights that [`find`] finds.
pub(super) fn fingerprint(path: &Path) -> Result<String> {
    Ok(place(path)?.1.checkpoint.fingerprint())
}

/// Its weights, and its configuration if there is one.
fn place(path: &Path) -> Result<(Option<VaeConfig>, Source)> {
    if !path.exists() {
        return Err(Error::NoModel { path: path.to_owned() });
    }
    if let Some(place) = folders::autoencoder(path)? {
        let (config, source) = folder(&place)?;
        return Ok((Some(config), source));
    }
    let model = recognise(path);
    if path.is_file()
        && model.is_err()
        && let Ok(checkpoint) = Checkpoint::open(path)
        && convert::is_autoencoder(&checkpoint)
    {
        return Ok((None, Source::new(checkpoint, Layout::native())));
    }
    let Recognised { config, vae, .. } = model?;
    match config.vae.zip(vae) {
        Some((config, source)) => Ok((Some(config), source)),
        None => Err(fault(path, "it has no autoencoder")),
    }
}

fn fault(path: &Path, reason: impl Into<String>) -> Error {
    Error::Autoencoder { path: path.to_owned(), reason: reason.into() }
}

/// The class of an autoencoder, which decides what else its configuration holds.
#[derive(Deserialize)]
struct Kind {
    #[serde(rename = "_class_name")]
    class: Option<String>,
}

#[derive(Deserialize)]
struct Kl {
    in_channels: usize,
    out_channels: Option<usize>,
    latent_channels: usize,
    block_out_channels: Vec<usize>,
    act_fn: Option<String>,
    latents_mean: Option<Vec<f64>>,
    latents_std: Option<Vec<f64>>,
    layers_per_block: usize,
    norm_num_groups: usize,
    #[serde(default = "yes")]
    mid_block_add_attention: bool,
    #[serde(default = "yes")]
    use_quant_conv: bool,
    #[serde(default = "yes")]
    use_post_quant_conv: bool,
    #[serde(default = "sd_scale")]
    scaling_factor: f64,
    #[serde(default)]
    shift_factor: Option<f64>,
    batch_norm_eps: Option<f64>,
    patch_size: Option<[usize; 2]>,
    decoder_block_out_channels: Option<Vec<usize>>,
}

/// Of an AutoencoderTiny; what is not there is as in TAESD.
#[derive(Deserialize)]
#[serde(default)]
struct Tiny {
    in_channels: usize,
    out_channels: usize,
    latent_channels: usize,
    encoder_block_out_channels: Vec<usize>,
    decoder_block_out_channels: Vec<usize>,
    num_encoder_blocks: Vec<usize>,
    num_decoder_blocks: Vec<usize>,
    act_fn: String,
    upsample_fn: String,
    upsampling_scaling_factor: usize,
    scaling_factor: f64,
    shift_factor: Option<f64>,
}

impl Default for Tiny {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            latent_channels: 4,
            encoder_block_out_channels: vec![64; 4],
            decoder_block_out_channels: vec![64; 4],
            num_encoder_blocks: vec![1, 3, 3, 3],
            num_decoder_blocks: vec![3, 3, 3, 1],
            act_fn: "relu".into(),
            upsample_fn: "nearest".into(),
            upsampling_scaling_factor: 2,
            scaling_factor: 1.0,
            shift_factor: None,
        }
    }
}

fn yes() -> bool {
    true
}

fn sd_scale() -> f64 {
    SD_SCALE
}

impl Kl {
    /// That of FLUX.2, whose latents are normalised by statistics of squares of cells.
    fn flux2(mut self) -> Result<VaeConfig, String> {
        if self.patch_size != Some([2, 2]) {
            return Err(format!("patch_size is {:?}, expected [2, 2]", self.patch_size));
        }
        if let Some(found) =
            self.decoder_block_out_channels.take().filter(|own| *own != self.block_out_channels)
        {
            let expected = &self.block_out_channels;
            return Err(format!(
                "decoder_block_out_channels are {found:?}, expected those of the encoder, {expected:?}"
            ));
        }
        let epsilon = self.batch_norm_eps.ok_or("no batch_norm_eps")?;
        let plain = Self { scaling_factor: 1.0, shift_factor: None, ..self }.config()?;
        Ok(VaeConfig { squares: Some(epsilon), ..plain })
    }

    /// What the network here cannot do is refused by name.
    fn config(self) -> Result<VaeConfig, String> {
        let out = self.out_channels.unwrap_or(self.in_channels);
        let (before, after) = (self.use_quant_conv, self.use_post_quant_conv);
        match self.act_fn.as_deref() {
            Some(found) if found != "silu" => {
                return Err(format!("act_fn is `{found}`, expected `silu`"));
            }
            _ if out != self.in_channels => {
                let channels = self.in_channels;
                return Err(format!("out_channels is {out}, expected in_channels, {channels}"));
            }
            _ if before != after => {
                return Err(format!(
                    "use_quant_conv is {before}, use_post_quant_conv {after}, expected the same"
                ));
            }
            _ if self.latents_mean.is_some() || self.latents_std.is_some() => {
                return Err(
                    "latents_mean and latents_std are set, expected scaling_factor alone".into()
                );
            }
            _ => {}
        }
        Ok(VaeConfig {
            channels: self.in_channels,
            latent_channels: self.latent_channels,
            widths: self.block_out_channels,
            blocks_per_level: self.layers_per_block,
            groups: self.norm_num_groups,
            attention: self.mid_block_add_attention,
            quant: self.use_quant_conv,
            scale: self.scaling_factor,
            shift: self.shift_factor.unwrap_or(0.0),
            squares: None,
            tiny: None,
        })
    }
}

impl Tiny {
    /// What the network here cannot do is refused by name.
    fn config(self) -> Result<VaeConfig, String> {
        for (name, found, expected) in
            [("act_fn", &self.act_fn, "relu"), ("upsample_fn", &self.upsample_fn, "nearest")]
        {
            if found != expected {
                return Err(format!("{name} is `{found}`, expected `{expected}`"));
            }
        }
        if self.upsampling_scaling_factor != 2 {
            let found = self.upsampling_scaling_factor;
            return Err(format!("upsampling_scaling_factor is {found}, expected 2"));
        }
        if self.out_channels != self.in_channels {
            let (out, channels) = (self.out_channels, self.in_channels);
            return Err(format!("out_channels is {out}, expected in_channels, {channels}"));
        }
        let mut widths = self.decoder_block_out_channels;
        widths.reverse();
        if widths != self.encoder_block_out_channels {
            let encoder = self.encoder_block_out_channels;
            return Err(format!(
                "encoder_block_out_channels are {encoder:?}, those of the decoder {widths:?} from the finest, expected the same"
            ));
        }
        let mut decoder = self.num_decoder_blocks;
        decoder.reverse();
        Ok(VaeConfig {
            channels: self.in_channels,
            latent_channels: self.latent_channels,
            widths,
            blocks_per_level: 0,
            groups: 0,
            attention: false,
            quant: false,
            scale: self.scaling_factor,
            shift: self.shift_factor.unwrap_or(0.0),
            squares: None,
            tiny: Some(TinyBlocks { encoder: self.num_encoder_blocks, decoder }),
        })
    }
}

/// The autoencoder in a folder of diffusers, with its `config.json`.
pub(super) fn folder(folder: &Path) -> Result<(VaeConfig, Source)> {
    let path = folder.join("config.json");
    let Kind { class } = read_json(path.clone())?;
    let config = match class.as_deref() {
        None | Some("AutoencoderKL") => read_json::<Kl>(path)?.config(),
        Some("AutoencoderKLFlux2") => read_json::<Kl>(path)?.flux2(),
        Some("AutoencoderTiny") => read_json::<Tiny>(path)?.config(),
        Some(other) => Err(format!(
            "autoencoder `{other}`, expected `AutoencoderKL`, such as stabilityai/sd-vae-ft-mse, `AutoencoderKLFlux2` or `AutoencoderTiny`"
        )),
    };
    let config = config.map_err(|reason| fault(folder, reason))?;
    config.check().map_err(|reason| fault(folder, reason.to_string()))?;
    let checkpoint = Checkpoint::open(weights_file(folder)?)?;
    let layout = match &config.tiny {
        Some(TinyBlocks { encoder, decoder }) => convert::autoencoder_tiny(encoder, decoder),
        None => convert::autoencoder(&checkpoint, config.widths.len()),
    };
    Ok((config, Source::new(checkpoint, layout)))
}

/// Groups of the norms of every published AutoencoderKL.
const GROUPS: usize = 32;

/// An AutoencoderKL in a file without a configuration: what its tensors tell, and the usual scale of its latents.
pub(super) fn lone(checkpoint: Checkpoint, latents: Option<Latents>) -> Result<Found> {
    let has = |name: &str| checkpoint.tensors().contains_key(name);
    let sizes = |name: &str| {
        let found = checkpoint.tensors().get(name).map(|tensor| tensor.shape.clone());
        found
            .filter(|shape| shape.len() == 4)
            .ok_or_else(|| fault(checkpoint.path(), format!("no convolution `{name}`")))
    };
    let original = has("encoder.norm_out.weight");
    let block = |level: usize, block: usize| match original {
        true => format!("encoder.down.{level}.block.{block}.conv1.weight"),
        false => format!("encoder.down_blocks.{level}.resnets.{block}.conv1.weight"),
    };
    let levels = (0..).take_while(|level| has(&block(*level, 0))).count();
    let latent_channels = sizes("decoder.conv_in.weight")?[1];
    let has_squares = has("bn.running_mean");
    let (scale, shift, squares) = match latents
        .or((latent_channels == 4).then_some(STABLE_DIFFUSION))
    {
        Some(Latents::Scaled { scale, shift }) if !has_squares => (scale, shift, None),
        Some(Latents::Squares { epsilon }) if has_squares => (1.0, 0.0, Some(epsilon)),
        Some(_) => {
            let words = ["with", "without"];
            let [found, expected] = if has_squares { words } else { [words[1], words[0]] };
            return Err(fault(
                checkpoint.path(),
                format!(
                    "{found} statistics of its latents, the network is for one {expected} them"
                ),
            ));
        }
        None => {
            return Err(fault(
                checkpoint.path(),
                format!(
                    "latents of {latent_channels} channels, whose scale only a config.json tells"
                ),
            ));
        }
    };
    let config = VaeConfig {
        channels: sizes("encoder.conv_in.weight")?[1],
        latent_channels,
        widths: (0..levels).map(|level| Ok(sizes(&block(level, 0))?[0])).collect::<Result<_>>()?,
        blocks_per_level: (0..).take_while(|i| has(&block(0, *i))).count(),
        groups: GROUPS,
        attention: has("encoder.mid.attn_1.norm.weight")
            || has("encoder.mid_block.attentions.0.group_norm.weight"),
        quant: has("quant_conv.weight") || has("encoder.quant_conv.weight"),
        scale,
        shift,
        squares,
        tiny: None,
    };
    config.check().map_err(|reason| fault(checkpoint.path(), reason.to_string()))?;
    let layout = convert::autoencoder(&checkpoint, levels);
    let file = checkpoint.path().to_owned();
    // What the network is for is known; else it is a guess.
    let notice = latents.is_none().then_some(Notice::ScaleAssumed { file, scale });
    Ok(Found { config, source: Source::new(checkpoint, layout), notice })
}
