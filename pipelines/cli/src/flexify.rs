//! `pyrograph flexify`.

use std::path::PathBuf;

use anyhow::bail;
use burn::tensor::Device;
use clap::Args;
use pyrograph::engine::nets::{DitConfig, Flexible, Net, Sharing, flexify, refine};
use pyrograph::model::{self, Model, Parts};
use pyrograph::task::{ClassTask, PromptTask, TextTask};
use pyrograph::train::{OwnPictures, OwnProgress};
use pyrograph::weights::FloatDtype;

use crate::common::{Common, interrupted, prompts};

#[derive(Args)]
pub(crate) struct Flexify {
    /// Bundle, diffusers folder or checkpoint file
    input: PathBuf,
    /// Folder of the new bundle
    #[arg(long, short)]
    output: PathBuf,
    /// Further patch sizes, separated by commas, such as 4,8 [default: twice the largest that the model has]
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
    /// Smaller patch size to have as the model's own, whose present one becomes a further one; it is to be trained
    /// on images by `pyrograph train .. --init`
    #[arg(long, value_name = "PATCH", conflicts_with_all = ["patches", "adapters", "underlying", "distill", "corners"])]
    native: Option<usize>,
    /// Train the new sizes for so many steps on the model's own output, on pictures that it makes; without,
    /// they are to be trained on images by `pyrograph train .. --init`
    #[arg(long, value_name = "STEPS")]
    distill: Option<u64>,
    /// Pictures that the model makes for --distill
    #[arg(long, value_name = "N", default_value_t = 512, requires = "distill")]
    pictures: usize,
    /// Text file with a prompt in every line, for --distill of a model that reads texts: what its pictures show
    #[arg(long, value_name = "FILE", requires = "distill")]
    prompt_file: Option<PathBuf>,
    /// Place patches by their corners instead of their centres
    #[arg(long)]
    corners: bool,
    /// Autoencoder for a checkpoint that comes without one: a diffusers `vae` folder, a file, or a model with one
    #[arg(long)]
    vae: Option<PathBuf>,
    /// Type of the weights on disk: f32, f16 or bf16
    #[arg(long, default_value = "f16")]
    dtype: FloatDtype,
    /// Replace the output
    #[arg(long)]
    overwrite: bool,
}

/// The sizes that a model gets.
enum New {
    Native(usize),
    Further(Flexible),
}

/// Largest underlying patch size chosen by default, in native patches.
const LARGEST_UNDERLYING: usize = 4;

/// What sizes share, for people.
fn describe(sharing: Sharing) -> String {
    match sharing {
        Sharing::Adapters { rank } => format!("the trunk with adapters of rank {rank}"),
        Sharing::Kernels { underlying } => format!("everything, kept at patches of {underlying}"),
    }
}

impl Flexify {
    /// What the network is to have.
    fn flexible(&self, net: &DitConfig) -> anyhow::Result<Flexible> {
        let native = net.patch;
        let old = net.flexible.as_ref();
        let known = net.patches();
        let largest = known.last().copied().unwrap_or(native);
        let mut patches = self.patches.clone();
        if patches.is_empty() {
            patches.push(2 * largest);
        }
        if let Some(patch) = patches.iter().find(|patch| known.contains(patch)) {
            bail!("patch size {patch}, the model has {known:?} already");
        }
        patches.extend(old.iter().flat_map(|old| &old.patches));
        patches.sort_unstable();
        let asked = match (self.adapters, self.underlying) {
            (Some(rank), _) => Some(Sharing::Adapters { rank }),
            (None, Some(underlying)) => Some(Sharing::Kernels { underlying }),
            (None, None) => None,
        };
        let within = patches.iter().copied().filter(|&p| p <= LARGEST_UNDERLYING * native);
        let underlying = within.max().unwrap_or(2 * native);
        let sharing = match (asked, old) {
            (None, None) => Sharing::Kernels { underlying },
            (Some(asked), Some(old)) if asked != old.sharing => {
                let [asked, has] = [asked, old.sharing].map(describe);
                bail!("{asked} asked for, the model's sizes share {has}");
            }
            (Some(sharing), _) => sharing,
            (None, Some(old)) => old.sharing,
        };
        let corners = old.map_or(self.corners, |old| old.corners);
        if self.corners && !corners {
            bail!("corners, the model's patches are placed by their centres");
        }
        Ok(Flexible { patches, sharing, corners })
    }
}

pub(crate) fn run(args: &Flexify, common: &Common) -> anyhow::Result<()> {
    let input = common.find(&args.input)?;
    model::check_save(&args.output, args.overwrite)?;
    let recognised =
        model::recognise_with(&input, Parts { vae: args.vae.as_deref(), ..Parts::default() })?;
    recognised.config.check_trained()?;
    let reads_texts = recognised.config.text.is_some();
    match (reads_texts, args.distill, &args.prompt_file) {
        (true, Some(_), None) => {
            bail!("the model reads texts: name a file of prompts with --prompt-file")
        }
        (false, _, Some(_)) => bail!("--prompt-file, the model is told classes"),
        _ => (),
    }
    let prompts = args.prompt_file.as_deref().map(prompts).transpose()?.unwrap_or_default();
    let new = match args.native {
        Some(patch) => New::Native(patch),
        None => New::Further(args.flexible(&recognised.config.net.dit)?),
    };
    let device = match args.distill {
        Some(_) => common.open()?.device,
        None => Device::flex(),
    };
    let notify = &mut |notice| common.tell(&notice);
    let model = recognised.load(FloatDtype::F32, &device, notify)?;
    let model = match (args.distill, new) {
        (Some(steps), New::Further(flexible)) => {
            let own = OwnPictures { steps, pictures: args.pictures, seed: 0 };
            let classes: Vec<usize> = (0..model.config.net.dit.classes).collect();
            match reads_texts {
                false => distill::<ClassTask>(own, model, &classes, flexible, &device, common)?,
                true => distill::<TextTask>(own, model, &prompts, flexible, &device, common)?,
            }
        }
        (_, new) => extend(model, new)?,
    };
    let config = &model.config.net.dit;
    common.say(&format!("patch sizes {:?}, {} parameters", config.patches(), config.parameters(),));
    model.save(&args.output, model.manifest()?, args.dtype, args.overwrite)?;
    common.say(&format!("wrote {}", args.output.display()));
    if args.distill.is_none() {
        let (output, kind) = (args.output.display(), if reads_texts { "text" } else { "class" });
        common.say(&format!(
            "the new sizes are not trained: `pyrograph train {kind} --init {output}`, or flexify with --distill"
        ));
    }
    Ok(())
}

/// The model with sizes that are not trained.
fn extend(mut model: Model, new: New) -> anyhow::Result<Model> {
    let Net::Dit(net) = model.net else {
        bail!("a few-step student gets no other patch sizes: flexify its teacher");
    };
    let net = match new {
        New::Native(patch) => refine(net, patch)?,
        New::Further(flexible) => flexify(net, flexible, 0)?,
    };
    model.config.net.dit = net.config().clone();
    model.net = net.into();
    Ok(model)
}

/// The model with further sizes that it learned from itself.
fn distill<T: PromptTask>(
    own: OwnPictures,
    model: Model,
    prompts: &[T::Prompt],
    flexible: Flexible,
    device: &Device,
    common: &Common,
) -> anyhow::Result<Model> {
    let making = common.progress_bar(own.pictures as u64, "{bar:30} {pos}/{len} pictures made");
    let learning = common.progress_bar(own.steps, "{bar:30} step {pos}/{len}, {eta} left  {msg}");
    let taught = own.teach::<T>(model, prompts, flexible, device, &mut |progress| {
        match progress {
            OwnProgress::Made(done) => making.set_position(done as u64),
            OwnProgress::Step(step, loss) => {
                making.finish_and_clear();
                learning.set_position(step);
                if let Some(loss) = loss {
                    learning.set_message(format!("loss {loss:.4}"));
                }
            }
        }
        interrupted()
    })?;
    learning.finish_and_clear();
    Ok(taught)
}
