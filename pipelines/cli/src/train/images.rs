//! Runs on images: `pyrograph train class`, `text` and `lora`.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use pyrograph::data::Annotation;
use pyrograph::train::{Condition, Run, RunFolder, TrainConfig, check_model};

use super::{LARGEST, RunArgs, follow, path_setting, print_settings, read, warn_of_decay};
use crate::common::{Common, counted, whole};

#[derive(Args)]
pub(crate) struct Class {
    /// Folder with one sub-folder of images per class, or with a metadata.jsonl, metadata.csv or dataset.json
    #[arg(long, short, required_unless_present_any = ["resume", "config", "help_settings"])]
    data: Option<PathBuf>,
    /// Folder of the run: settings, checkpoints, log, samples and the model [default: runs/class]
    #[arg(long, short)]
    output: Option<PathBuf>,
    /// Model to start from; classes of the same names are kept, others are added
    #[arg(long, value_name = "MODEL")]
    init: Option<PathBuf>,
    #[command(flatten)]
    run: RunArgs,
    /// Explain every setting of --config and --set
    #[arg(long)]
    help_settings: bool,
}

/// What reads captions.
#[derive(Args)]
struct Reader {
    /// What reads the captions, where no model does: the folder of a T5 or CLIP encoder, a file of T5's, or a model of texts
    #[arg(long, value_name = "PATH")]
    text_encoder: Option<PathBuf>,
    /// Folder of its tokenizer, where that is not with the encoder, or in `tokenizer` beside it
    #[arg(long, value_name = "FOLDER", requires = "text_encoder")]
    tokenizer: Option<PathBuf>,
}

impl Reader {
    /// Overrides of the settings of a run on this data.
    fn overrides(&self, data: &Option<PathBuf>, common: &Common) -> anyhow::Result<Vec<String>> {
        let encoder = self.text_encoder.as_deref().map(|path| common.find(path)).transpose()?;
        let tokenizer = &self.tokenizer;
        path_settings(&[("data", data), ("text_encoder", &encoder), ("tokenizer", tokenizer)])
    }
}

#[derive(Args)]
pub(crate) struct Text {
    /// Folder of images with a .txt file of captions beside each, one in a line, or with a metadata.jsonl or metadata.csv
    /// that has a column `text`
    #[arg(long, short, required_unless_present_any = ["resume", "config", "help_settings"])]
    data: Option<PathBuf>,
    /// Folder of the run: settings, checkpoints, log, samples and the model [default: runs/text]
    #[arg(long, short)]
    output: Option<PathBuf>,
    /// Model to start from, whose text encoder reads the captions if it has one
    #[arg(long, value_name = "MODEL")]
    init: Option<PathBuf>,
    #[command(flatten)]
    reader: Reader,
    #[command(flatten)]
    run: RunArgs,
    /// Explain every setting of --config and --set
    #[arg(long)]
    help_settings: bool,
}

#[derive(Args)]
pub(crate) struct Lora {
    /// The model: bundle, diffusers folder, checkpoint file, or the name of a shipped model
    #[arg(long, short, required_unless_present_any = ["resume", "config", "help_settings"])]
    model: Option<PathBuf>,
    /// Folder of images, with captions for a model that reads texts, or with classes: see `train text` and `train class`
    #[arg(long, short, required_unless_present_any = ["resume", "config", "help_settings"])]
    data: Option<PathBuf>,
    /// Folder of the run: settings, checkpoints, log, samples and lora.safetensors [default: runs/lora]
    #[arg(long, short)]
    output: Option<PathBuf>,
    /// Rank of the matrices [default: 16]
    #[arg(long, value_parser = whole(1, LARGEST))]
    rank: Option<usize>,
    #[command(flatten)]
    reader: Reader,
    #[command(flatten)]
    run: RunArgs,
    /// Explain every setting of --config and --set
    #[arg(long)]
    help_settings: bool,
}

#[derive(Args)]
pub(crate) struct Control {
    /// The model: bundle, diffusers folder, checkpoint file, or the name of a shipped model
    #[arg(long, short, required_unless_present_any = ["resume", "config", "help_settings"])]
    model: Option<PathBuf>,
    /// Folder of images, with classes or captions as the model has; of branches that make portraits, one sub-folder for each
    /// person, of two or more pictures
    #[arg(long, short, required_unless_present_any = ["resume", "config", "help_settings"])]
    data: Option<PathBuf>,
    /// Folder of the run: settings, checkpoints, log, samples and the branches [default: runs/control]
    #[arg(long, short)]
    output: Option<PathBuf>,
    /// What a branch sees of a picture: edges, luminance, tile (colours in coarse cells), picture (one of --pictures)
    /// [default: branches that make portraits]
    #[arg(long, value_parser = ["edges", "luminance", "tile", "picture"])]
    kind: Option<String>,
    /// Folder of pictures that were drawn to control the images, each under the name of its image
    #[arg(long, value_name = "FOLDER")]
    pictures: Option<PathBuf>,
    /// Branches that find matches, from an earlier run: those of the appearance are trained beside them [default: the first
    /// are trained]
    #[arg(long, value_name = "FOLDER")]
    matching: Option<PathBuf>,
    /// In place of a branch of the appearance, adapters of this rank, through which the model attends to both pictures, and
    /// with --matching to the profile moved to its matches, too
    #[arg(long, value_name = "RANK")]
    in_context: Option<usize>,
    #[command(flatten)]
    run: RunArgs,
    /// Explain every setting of --config and --set
    #[arg(long)]
    help_settings: bool,
}

/// A run on images, as it is asked for.
struct OnImages<'a> {
    kind: Kind,
    /// The folder of the run, if it is named.
    output: Option<&'a Path>,
    init: Option<&'a Path>,
    run: &'a RunArgs,
    /// Overrides from options of this kind of run.
    further: Vec<String>,
}

/// What a run on images makes.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Class,
    Text,
    Lora,
    Control,
}

impl Kind {
    /// Where a run is that is not told.
    fn folder(self) -> &'static str {
        match self {
            Self::Class => "runs/class",
            Self::Text => "runs/text",
            Self::Lora => "runs/lora",
            Self::Control => "runs/control",
        }
    }
}

impl OnImages<'_> {
    /// The settings of the run: of one that goes on, those that it has `stored`.
    fn settings(
        &self,
        stored: Option<&TrainConfig>,
        common: &Common,
    ) -> anyhow::Result<TrainConfig> {
        let settle = |base: &TrainConfig| self.run.settle(base, self.further.clone());
        let init = |config: &mut TrainConfig| -> anyhow::Result<()> {
            let init = self.init.map(Path::to_owned).or(config.init.take());
            config.init = init.map(|model| common.find(&model)).transpose()?;
            Ok(())
        };
        if let Some(stored) = stored {
            let mut config = settle(stored)?;
            init(&mut config)?;
            return Ok(config);
        }
        // What the model that it starts from has to say comes before what is typed.
        let mut config = settle(&TrainConfig::default())?;
        init(&mut config)?;
        match config.init.clone() {
            Some(model) => {
                let (vae, text_encoder) = (config.vae, config.text_encoder);
                let base = TrainConfig { vae, text_encoder, ..TrainConfig::default() };
                let base = match self.kind {
                    Kind::Lora => base.tuning(model.clone())?,
                    Kind::Control => base.steering(model.clone())?,
                    Kind::Class | Kind::Text => base.starting_from(model.clone())?,
                };
                config = settle(&base)?;
                config.init = Some(model);
            }
            // With an autoencoder, its channels have a say.
            None if config.vae.is_none() => {
                config.net(3, config.model.size, Condition::Classes(1))?;
            }
            None => (),
        }
        Ok(config)
    }

    fn start(&self, common: &Common) -> anyhow::Result<()> {
        let run = self.run;
        let output = &run.folder(self.output)?.unwrap_or_else(|| self.kind.folder().into());
        let stored = run.stored(output)?;
        let config = self.settings(stored.as_ref(), common)?;
        let annotation = config.annotation();
        let of_branches = config.control.is_some();
        match (self.kind, annotation, &config.lora) {
            (Kind::Control, ..) if !of_branches && stored.is_some() => {
                bail!("{}: the run makes no branches", output.display())
            }
            (Kind::Control, ..) if !of_branches => bail!("no model: name one with --model"),
            (Kind::Class | Kind::Text | Kind::Lora, ..) if of_branches => {
                bail!("control is set: train branches with `pyrograph train control`")
            }
            (Kind::Text, Annotation::Classes, _) => {
                bail!("no text encoder: name one with --text-encoder")
            }
            (Kind::Class, Annotation::Captions, _) => {
                bail!("text_encoder is set: train a model of texts with `pyrograph train text`")
            }
            (Kind::Class | Kind::Text, _, Some(_)) => {
                bail!("lora is set: train one with `pyrograph train lora`")
            }
            (Kind::Lora, _, None) if stored.is_some() => {
                bail!("{}: the run makes a model, no LoRA", output.display())
            }
            (Kind::Lora, _, None) => bail!("no model: name one with --model"),
            _ => (),
        }
        let data = config.data.clone().context("no folder of images: name one with --data")?;
        config.check_paths()?;
        let resume = run.is_resumed();
        RunFolder::check(output, resume)?;
        let opened = common.open()?;
        check_model(&config, &opened.device)?;
        let data = read(&data, config.reading(), common)?;
        let images = counted(data.len(), "image", "images");
        common.say(&match annotation {
            Annotation::Classes => {
                format!("{images} in {}", counted(data.classes().len(), "class", "classes"))
            }
            Annotation::Captions => {
                format!("{images} with {}", counted(data.captions().len(), "caption", "captions"))
            }
        });
        warn_of_decay(stored.as_ref(), &config, common);
        let folder = RunFolder::open(output, resume)?;
        let mut run = Run::in_folder(folder, config, data.into(), &opened.device)?;
        follow(&mut run, common)
    }
}

/// Overrides of settings that are paths.
fn path_settings(paths: &[(&str, &Option<PathBuf>)]) -> anyhow::Result<Vec<String>> {
    let given = paths.iter().filter_map(|(key, path)| Some((key, path.as_deref()?)));
    given.map(|(key, path)| path_setting(key, path)).collect()
}

pub(crate) fn class(args: &Class, common: &Common) -> anyhow::Result<()> {
    if args.help_settings {
        return print_settings();
    }
    let further = path_settings(&[("data", &args.data)])?;
    let (output, init) = (args.output.as_deref(), args.init.as_deref());
    OnImages { kind: Kind::Class, output, init, run: &args.run, further }.start(common)
}

pub(crate) fn text(args: &Text, common: &Common) -> anyhow::Result<()> {
    if args.help_settings {
        return print_settings();
    }
    let further = args.reader.overrides(&args.data, common)?;
    let (output, init) = (args.output.as_deref(), args.init.as_deref());
    OnImages { kind: Kind::Text, output, init, run: &args.run, further }.start(common)
}

pub(crate) fn control(args: &Control, common: &Common) -> anyhow::Result<()> {
    if args.help_settings {
        return print_settings();
    }
    let paths = [("data", &args.data), ("control.matching", &args.matching)];
    let mut further = path_settings(&[paths[0], paths[1], ("control.pictures", &args.pictures)])?;
    let drawn = args.pictures.is_some().then(|| "picture".to_owned());
    further.extend(args.kind.clone().or(drawn).map(|kind| format!("control.kind={kind}")));
    further.extend(args.in_context.map(|rank| format!("control.in_context={rank}")));
    let (output, init) = (args.output.as_deref(), args.model.as_deref());
    OnImages { kind: Kind::Control, output, init, run: &args.run, further }.start(common)
}

pub(crate) fn lora(args: &Lora, common: &Common) -> anyhow::Result<()> {
    if args.help_settings {
        return print_settings();
    }
    let mut further = args.reader.overrides(&args.data, common)?;
    further.extend(args.rank.map(|rank| format!("lora.rank={rank}")));
    let (output, init) = (args.output.as_deref(), args.model.as_deref());
    OnImages { kind: Kind::Lora, output, init, run: &args.run, further }.start(common)
}
