//! `pyrograph flexify`.

use std::path::PathBuf;

use burn::tensor::Device;
use clap::Args;
use pyrograph::engine::nets::{Flexible, Net, Sharing, flexify};
use pyrograph::model;
use pyrograph::weights::FloatDtype;

use crate::common::Common;

#[derive(Args)]
pub(crate) struct Flexify {
    /// Bundle, diffusers folder or checkpoint file
    input: PathBuf,
    /// Folder of the new bundle
    #[arg(long, short)]
    output: PathBuf,
    /// Further patch sizes, separated by commas, such as 4,8 [default: twice the model's own]
    #[arg(long, value_delimiter = ',')]
    patches: Vec<usize>,
    /// Keep the model as it is and give every further size low-rank adapters of this rank; without, all
    /// sizes share all weights
    #[arg(long, value_name = "RANK")]
    adapters: Option<usize>,
    /// Patch size at which shared embeddings are kept [default: the largest of the further ones up to 4
    /// times the model's own]
    #[arg(long, conflicts_with = "adapters")]
    underlying: Option<usize>,
    /// Place patches by their corners instead of their centres
    #[arg(long)]
    corners: bool,
    /// Autoencoder for a checkpoint that comes without one: a diffusers `vae` folder, or a model with one
    #[arg(long)]
    vae: Option<PathBuf>,
    /// Type of the weights on disk: f32, f16 or bf16
    #[arg(long, default_value = "f16")]
    dtype: FloatDtype,
    /// Replace the output
    #[arg(long)]
    overwrite: bool,
}

/// Largest underlying patch size chosen by default, in native patches.
const LARGEST_UNDERLYING: usize = 4;

pub(crate) fn run(args: &Flexify, common: &Common) -> anyhow::Result<()> {
    let input = model::find(&args.input)?;
    let mut recognised = model::recognise(&input)?;
    if let Some(vae) = &args.vae {
        recognised = recognised.with_vae(vae)?;
    }
    let notify = &mut |notice| common.tell(&notice);
    let mut model = recognised.load(FloatDtype::F32, &Device::flex(), notify)?;
    let native = model.config.net.dit.patch;
    let mut patches = args.patches.clone();
    if patches.is_empty() {
        patches.push(2 * native);
    }
    patches.sort_unstable();
    let sharing = match (args.adapters, args.underlying) {
        (Some(rank), _) => Sharing::Adapters { rank },
        (None, Some(underlying)) => Sharing::Kernels { underlying },
        (None, None) => {
            let within = patches.iter().copied().filter(|&p| p <= LARGEST_UNDERLYING * native);
            Sharing::Kernels { underlying: within.max().unwrap_or(2 * native) }
        }
    };
    let flexible = Flexible { patches, sharing, corners: args.corners };
    let Net::Dit(net) = model.net else {
        anyhow::bail!("a few-step student gets no further patch sizes: flexify its teacher");
    };
    let net = flexify(net, flexible, 0)?;
    model.config.net.dit = net.config().clone();
    model.net = net.into();
    let config = &model.config.net.dit;
    common.say(&format!(
        "patch sizes {:?}, {} parameters; train the new ones with `train class --init {}`",
        config.patches(),
        config.parameters(),
        args.output.display(),
    ));
    model.save(&args.output, model.manifest()?, args.dtype, args.overwrite)?;
    common.say(&format!("wrote {}", args.output.display()));
    Ok(())
}
