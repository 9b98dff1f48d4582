//! Whether a description can be a model's: its numbers, also against its weights.

use std::path::Path;

use pyrograph_engine::denoisers;
use pyrograph_engine::nets::{DitConfig, TextConfig, TextEncoderConfig};
use pyrograph_weights::Checkpoint;

use super::text::ClipInput;
use super::{ModelConfig, Recognised};
use crate::error::{Error, Result};

/// Numbers that the table of positions of any network may have. A larger one must be in proportion to the weights.
const SMALL_TABLE: usize = 1 << 23;

/// Checks the numbers of a description, also against the weights: a few bytes can ask for any network.
pub(super) fn check(path: &Path, recognised: &Recognised) -> Result<()> {
    check_numbers(path, &recognised.config)?;
    check_trunk(path, &recognised.config.net.dit, &recognised.net.checkpoint)
}

/// Checks the numbers of a description.
pub(super) fn check_numbers(path: &Path, config: &ModelConfig) -> Result<()> {
    let fault = |reason: String| Error::NotAModel { path: path.to_owned(), reason };
    let ModelConfig { net, process, vae, .. } = config;
    net.check().map_err(|error| fault(error.to_string()))?;
    denoisers::check(process, &net.dit).map_err(|error| fault(error.to_string()))?;
    if let Some(vae) = vae {
        vae.check().map_err(|error| fault(error.to_string()))?;
    }
    check_text(config).map_err(fault)
}

/// Checks that a text encoder is of the width that the network reads.
pub(super) fn check_text(config: &ModelConfig) -> Result<(), String> {
    let encoder = config.text.as_ref().and_then(|input| input.encoder.as_ref());
    let clips = config.text.as_ref().map_or(&[][..], |input| &input.clips);
    let length = config.net.dit.text.as_ref().and_then(|text| text.length);
    if config.text.as_ref().is_some_and(|input| input.absent) && length.is_none() {
        return Err("no text in place of the empty one, for texts that have no length".into());
    }
    if let (Some(text), false) = (&config.net.dit.text, clips.is_empty()) {
        return check_clips(text, encoder, clips);
    }
    match (&config.net.dit.text, encoder) {
        (_, None) => Ok(()),
        (Some(text), Some(encoder)) if text.width == encoder.width() => match text.pooled {
            Some(pooled) if pooled != encoder.width() => {
                let hidden = encoder.width();
                Err(format!(
                    "a text as one vector of width {pooled}, the mean of the encoder's has {hidden}"
                ))
            }
            _ => Ok(()),
        },
        (Some(text), Some(encoder)) => Err(format!(
            "a text encoder of width {}, the network reads {}",
            encoder.width(),
            text.width
        )),
        (None, Some(_)) => Err("a text encoder, but a network that reads no text".into()),
    }
}

/// The same with encoders of CLIP.
fn check_clips(
    text: &TextConfig,
    encoder: Option<&TextEncoderConfig>,
    clips: &[ClipInput],
) -> Result<(), String> {
    let width = encoder.map_or(text.width, TextEncoderConfig::width);
    let all: usize = clips.iter().map(|clip| clip.encoder.width()).sum();
    let vectors = clips.iter().map(|clip| clip.encoder.projection.unwrap_or(clip.encoder.hidden));
    let pooled: usize = vectors.sum();
    match (width == text.width && all <= width, Some(pooled) == text.pooled) {
        (true, true) => Ok(()),
        (false, _) => Err(format!(
            "text encoders of widths {width} and, those of CLIP together, {all}, the network reads {}",
            text.width
        )),
        (_, false) => Err(format!(
            "texts as vectors of {pooled} numbers together, the network reads {}",
            text.pooled.unwrap_or(0)
        )),
    }
}

/// Checks that a network is no larger than its weights can fill.
fn check_trunk(path: &Path, net: &DitConfig, stored: &Checkpoint) -> Result<()> {
    let fault = |reason: String| Error::NotAModel { path: path.to_owned(), reason };
    let (depth, tensors) = (net.depth, stored.tensors().len());
    if depth > tensors {
        return Err(fault(format!("depth is {depth}, the weights are {tensors} tensors")));
    }
    let [height, width] = net.size.map(|side| side / net.patch);
    let table = height.saturating_mul(width).saturating_mul(net.hidden);
    let most = stored.elements().saturating_mul(4).max(SMALL_TABLE);
    match table > most {
        true => Err(fault(format!(
            "a table of {height} x {width} positions of width {}, expected at most {most} numbers \
             beside the {} weights",
            net.hidden,
            stored.elements()
        ))),
        false => Ok(()),
    }
}
