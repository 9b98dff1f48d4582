//! `pyrograph convert`.

use std::path::PathBuf;

use burn::tensor::Device;
use clap::Args;
use pyrograph::model::{self, Parts};
use pyrograph::weights::FloatDtype;

use crate::common::Common;

#[derive(Args)]
pub(crate) struct Convert {
    /// Bundle, diffusers folder or checkpoint file
    input: PathBuf,
    /// Folder of the new bundle
    #[arg(long, short)]
    output: PathBuf,
    /// Autoencoder for a checkpoint that comes without one: a diffusers `vae` folder, a file, or a model with one
    #[arg(long)]
    vae: Option<PathBuf>,
    /// Text encoder for a checkpoint that comes without one: its folder, or that of a pipeline, or a file
    #[arg(long)]
    text_encoder: Option<PathBuf>,
    /// Folder of its tokenizer, where that is not with it
    #[arg(long, requires = "text_encoder")]
    tokenizer: Option<PathBuf>,
    /// Type of the weights on disk: f32, f16 or bf16
    #[arg(long, default_value = "f16")]
    dtype: FloatDtype,
    /// Licence of the weights, stored in the bundle
    #[arg(long)]
    licence: Option<String>,
    /// Where the weights come from, stored in the bundle
    #[arg(long)]
    source: Option<String>,
    /// Replace the output
    #[arg(long)]
    overwrite: bool,
}

pub(crate) fn run(args: &Convert, common: &Common) -> anyhow::Result<()> {
    let input = common.find(&args.input)?;
    model::check_save(&args.output, args.overwrite)?;
    let parts = Parts {
        vae: args.vae.as_deref(),
        text_encoder: args.text_encoder.as_deref(),
        tokenizer: args.tokenizer.as_deref(),
    };
    let recognised = model::recognise_with(&input, parts)?;
    common.say(&format!("{}: {}", input.display(), recognised.kind));
    let latents = recognised.config.net.dit.channels;
    if recognised.vae.is_none() && latents != 3 {
        common.say(&format!(
            "warning: no autoencoder for the {latents} channels of its latents: add one with --vae"
        ));
    }
    if recognised.config.text.is_some() && recognised.text.is_none() {
        common.say("warning: no text encoder: add one with --text-encoder");
    }
    // In the type of the output, so that an f16 bundle needs no f32 copy of the model.
    let model = recognised.load(args.dtype, &Device::flex(), &mut |notice| common.tell(&notice))?;
    let mut manifest = model.manifest()?;
    manifest.licence.clone_from(&args.licence);
    manifest.source.clone_from(&args.source);
    model.save(&args.output, manifest, args.dtype, args.overwrite)?;
    common.say(&format!("wrote {}", args.output.display()));
    Ok(())
}
