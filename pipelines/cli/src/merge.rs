//! `pyrograph merge`.

use std::path::{Path, PathBuf};

use anyhow::bail;
use burn::tensor::Device;
use clap::Args;
use pyrograph::merge::{merge, merge_adapters};
use pyrograph::model::{self, Model};
use pyrograph::weights::FloatDtype;

use crate::common::{Common, Weighted, parse_weighted};

#[derive(Args)]
pub(crate) struct Merge {
    /// Models of one shape, from the same start, or one model and its LoRAs: bundles, folders, or names of shipped models
    #[arg(required = true)]
    models: Vec<PathBuf>,
    /// LoRA file or folder to add to the weights of the one model, with its weight after a colon [default: 1]; can be given
    /// several times
    #[arg(long, value_name = "FILE[:WEIGHT]", value_parser = parse_weighted, conflicts_with = "shares")]
    lora: Vec<Weighted>,
    /// Share of each model, separated by commas [default: all alike]
    #[arg(long, value_delimiter = ',', value_name = "SHARE,..")]
    shares: Vec<f64>,
    /// Folder of the new bundle
    #[arg(long, short)]
    output: PathBuf,
    /// Type of the weights on disk: f32, f16 or bf16
    #[arg(long, default_value = "f16")]
    dtype: FloatDtype,
    /// Replace the output
    #[arg(long)]
    overwrite: bool,
}

pub(crate) fn run(args: &Merge, common: &Common) -> anyhow::Result<()> {
    match (args.models.as_slice(), args.lora.is_empty()) {
        ([_], true) => bail!("one model: name others, or a LoRA with --lora"),
        ([model], false) => return with_adapters(model, args, common),
        (_, false) => bail!("--lora, and {} models: merge them first", args.models.len()),
        (_, true) => (),
    }
    let shares = match args.shares.as_slice() {
        [] => vec![1.0; args.models.len()],
        shares if shares.len() == args.models.len() => shares.to_vec(),
        shares => bail!("{} shares of {} models", shares.len(), args.models.len()),
    };
    model::check_save(&args.output, args.overwrite)?;
    let models = args.models.iter().zip(shares);
    let models = models.map(|(model, share)| Ok((common.find(model)?, share)));
    let model = merge(&models.collect::<anyhow::Result<Vec<_>>>()?, &Device::flex())?;
    save(&model, args, common)
}

fn with_adapters(model: &Path, args: &Merge, common: &Common) -> anyhow::Result<()> {
    model::check_save(&args.output, args.overwrite)?;
    if let Some(lora) = args.lora.iter().find(|lora| !lora.file.exists()) {
        bail!("{}: there is no such LoRA", lora.file.display());
    }
    let notify = &mut |notice| common.tell(&notice);
    let device = Device::flex();
    let recognised = model::recognise(&common.find(model)?)?;
    let model = recognised.load(FloatDtype::F32, &device, notify)?;
    let adapters: Vec<_> = args.lora.iter().map(|lora| (lora.file.clone(), lora.weight)).collect();
    let model = merge_adapters(model, &adapters, &device, notify)?;
    save(&model, args, common)
}

fn save(model: &Model, args: &Merge, common: &Common) -> anyhow::Result<()> {
    model.save(&args.output, model.manifest()?, args.dtype, args.overwrite)?;
    common.say(&format!("wrote {}", args.output.display()));
    Ok(())
}
