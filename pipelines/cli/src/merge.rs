//! `pyrograph merge`.

use std::path::PathBuf;

use anyhow::bail;
use burn::tensor::Device;
use clap::Args;
use pyrograph::merge::merge;
use pyrograph::model;
use pyrograph::weights::FloatDtype;

use crate::common::Common;

#[derive(Args)]
pub(crate) struct Merge {
    /// Models of one shape, from the same start: bundles, or names of shipped models
    #[arg(num_args = 2.., required = true)]
    models: Vec<PathBuf>,
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
    let shares = match args.shares.as_slice() {
        [] => vec![1.0; args.models.len()],
        shares if shares.len() == args.models.len() => shares.to_vec(),
        shares => bail!("{} shares of {} models", shares.len(), args.models.len()),
    };
    model::check_save(&args.output, args.overwrite)?;
    let models = args.models.iter().zip(shares);
    let models = models.map(|(model, share)| Ok((common.find(model)?, share)));
    let model = merge(&models.collect::<anyhow::Result<Vec<_>>>()?, &Device::flex())?;
    model.save(&args.output, model.manifest()?, args.dtype, args.overwrite)?;
    common.say(&format!("wrote {}", args.output.display()));
    Ok(())
}
