//! `pyrograph portrait fit`.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use clap::Args;
use pyrograph::error::Error;
use pyrograph::faces::Faces;
use pyrograph::fit::{FitEvent, FitOptions, Person, Photos, fit};
use pyrograph::image::check_folder_of;
use pyrograph::metadata::Asked;
use pyrograph::model::{self, ModelConfig};
use pyrograph::task::{ClassTask, PromptTask, TextTask};

use crate::common::{Common, counted, interrupted, whole};
use crate::interrupt;

#[derive(Args)]
pub(crate) struct Fit {
    /// Folder of photos of one person, 5 to 20 in different light and poses
    #[arg(long, value_name = "FOLDER")]
    photos: PathBuf,
    /// The photos show more than the head: the largest face in each is found and cut out
    #[arg(long)]
    find_faces: bool,
    /// The model that learns: bundle, diffusers folder, checkpoint file, or the name of a shipped model
    #[arg(long, short)]
    model: PathBuf,
    /// Class of people, for a model of several classes
    #[arg(long, conflicts_with = "prompt")]
    class: Option<String>,
    /// What a model of texts is told of any person [default: portrait of a person]
    #[arg(long)]
    prompt: Option<String>,
    /// The file to write, which alone keeps something of the person
    #[arg(long, short)]
    output: PathBuf,
    /// Replace the output
    #[arg(long)]
    overwrite: bool,
    /// Steps [default: 200]
    #[arg(long, value_parser = whole(1, 1_000_000))]
    steps: Option<usize>,
    /// Rank of the LoRA [default: 8]
    #[arg(long, value_parser = whole(1, 4096))]
    rank: Option<usize>,
    /// Photos per step [default: 4]
    #[arg(long, value_parser = whole(1, 4096))]
    batch: Option<usize>,
    /// Peak learning rate [default: 0.001]
    #[arg(long)]
    lr: Option<f64>,
    /// How much the model's own pictures count, which keep it as it is; 0 is not at all [default: 1]
    #[arg(long)]
    prior: Option<f64>,
    /// How many of those are made [default: 32]
    #[arg(long, value_parser = whole(1, 4096))]
    prior_images: Option<usize>,
    /// States of the second half of the steps that are judged by four pictures each: the one whose faces are most like those
    /// of the photos is kept [default: 1, the last]
    #[arg(long, value_name = "N", value_parser = whole(1, 100))]
    best_of: Option<usize>,
    /// Seed of all that is random
    #[arg(long, default_value = "0", value_parser = whole(0, i64::MAX as usize))]
    seed: usize,
}

/// What a model of texts is told of a person.
const PERSON: &str = "portrait of a person";

impl Fit {
    fn options(&self) -> FitOptions {
        let plain = FitOptions::default();
        FitOptions {
            rank: self.rank.unwrap_or(plain.rank),
            steps: self.steps.map_or(plain.steps, |steps| steps as u64),
            batch: self.batch.unwrap_or(plain.batch),
            learning_rate: self.lr.unwrap_or(plain.learning_rate),
            prior: self.prior.unwrap_or(plain.prior),
            prior_images: self.prior_images.unwrap_or(plain.prior_images),
            states: self.best_of.map_or(plain.states, |states| states as u64),
            seed: self.seed as u64,
        }
    }
}

pub(super) fn run(args: &Fit, common: &Common) -> anyhow::Result<()> {
    check_folder_of(&args.output)?;
    if args.output.exists() && !args.overwrite {
        bail!("{} exists: replace it with --overwrite", args.output.display());
    }
    let path = common.find(&args.model)?;
    let config = model::recognise(&path)?.config;
    config.check_trained()?;
    match config.net.dit.classes {
        0 => learn::<TextTask>(args, &path, &config, common),
        _ => learn::<ClassTask>(args, &path, &config, common),
    }
}

/// What a model is told of any person: a text, or its class of people, which is its only one where none is named.
pub(crate) fn person_prompt<T: PromptTask>(
    config: &ModelConfig,
    class: Option<&str>,
    prompt: Option<&str>,
) -> anyhow::Result<T::Prompt> {
    let asked = match (config.net.dit.classes, class, prompt) {
        (0, Some(_), _) => bail!("--class: the model is told texts, name one with --prompt"),
        (0, None, prompt) => Asked::Texts(vec![prompt.unwrap_or(PERSON).to_owned()]),
        (_, _, Some(_)) => bail!("--prompt: the model is told classes"),
        (classes, Some(name), None) => Asked::Classes(vec![config.labels.find(name, classes)?]),
        (1, None, None) => Asked::Classes(vec![0]),
        (classes, None, None) => {
            bail!("the model has {classes} classes: name that of people with --class")
        }
    };
    let prompts = T::prompts(&asked).unwrap_or_default();
    prompts.into_iter().next().context("the model is told something else")
}

fn learn<T: PromptTask>(
    args: &Fit,
    path: &Path,
    config: &ModelConfig,
    common: &Common,
) -> anyhow::Result<()> {
    let prompt = person_prompt::<T>(config, args.class.as_deref(), args.prompt.as_deref())?;
    let opened = common.open()?;
    let faces = Faces::open(&opened.device)?;
    let photos = photos(args, config, &faces, common)?;
    let options = args.options();
    let started = Instant::now();
    let bar = common.progress_bar(options.steps, "{bar:30} {pos}/{len}, {eta} left  {msg}");
    let observe = &mut |event: FitEvent| -> ControlFlow<()> {
        match event {
            FitEvent::Prior(step, all) => {
                bar.set_message(format!("the model's own pictures, step {step} of {all}"));
            }
            FitEvent::Step(step, loss) => {
                bar.set_position(step);
                bar.set_message(format!("loss {loss:.4}"));
            }
            FitEvent::Judging => bar.set_message("judging pictures"),
            FitEvent::Judged(step, apart) => bar.suspend(|| {
                common.say(&format!("after {step} steps {apart:.2} from the photos"));
            }),
        }
        interrupted()
    };
    let person: Result<Person, Error> =
        fit::<T>(path, prompt, (&photos, &faces), &options, &opened.device, observe);
    bar.finish_and_clear();
    let person = person?;
    let _saved = interrupt::hold();
    person.save(&args.output).with_context(|| args.output.display().to_string())?;
    common.say(&format!(
        "{} parameters from {} in {:.1} s: {}",
        person.parameters(),
        counted(photos.len(), "photo", "photos"),
        started.elapsed().as_secs_f64(),
        args.output.display()
    ));
    Ok(())
}

/// The photos, as squares if faces are to be found; what is of no use is told.
fn photos(
    args: &Fit,
    config: &ModelConfig,
    faces: &Faces,
    common: &Common,
) -> anyhow::Result<Vec<image::RgbImage>> {
    let factor = config.vae.as_ref().map_or(1, |vae| vae.factor());
    let [height, width] = config.net.dit.size.map(|side| side * factor);
    ensure!(
        height == width || !args.find_faces,
        "--find-faces: the model makes images of {width}x{height}, not squares"
    );
    let photos = Photos::read(&args.photos, args.find_faces.then_some((faces, height)))?;
    for (path, reason) in &photos.left_out {
        common.say(&format!("warning: {} is left out: {reason}", path.display()));
    }
    Ok(photos.pictures)
}
