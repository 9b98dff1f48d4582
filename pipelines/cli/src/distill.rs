//! `pyrograph distill`: a few-step student of a model.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use indicatif::{HumanBytes, HumanDuration};
use pyrograph::engine::diffusion::{Sampler, parse_sampler};
use pyrograph::engine::nets::Points;
use pyrograph::pipeline::Pipeline;
use pyrograph::task::{ClassTask, PromptTask, TextTask};
use pyrograph::train::{Run, RunFolder, TrainConfig, check_student};
use pyrograph::trajectories::{Recorder, Trajectories, TrajectorySpec};
use pyrograph::weights::check_writable;
use pyrograph::{Error, OpenOptions, model};

use crate::common::{Common, interrupted, prompts, whole};
use crate::train::{RunArgs, follow, path_setting, warn_of_decay};

/// Largest number of anything.
const MOST: usize = u32::MAX as usize;
/// Steps of the teacher, as in the paper.
const TEACHER_STEPS: usize = 25;

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Distill {
    #[command(subcommand)]
    part: Option<Part>,
    /// The teacher: bundle, diffusers folder, checkpoint file, or the name of a shipped model
    #[arg(long, short, required_unless_present = "resume")]
    model: Option<PathBuf>,
    /// Folder of the run, with the trajectories in `trajectories` and the student in `model`
    #[arg(long, short, required_unless_present = "resume")]
    output: Option<PathBuf>,
    #[command(flatten)]
    recording: Recording,
    #[command(flatten)]
    student: StudentArgs,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Subcommand)]
enum Part {
    /// Record the teacher's trajectories only
    Record(Record),
    /// Train a student on recorded trajectories only
    Train(Train),
    /// Measure how far a student strays from its teacher's trajectories
    Compare(Compare),
}

#[derive(Args)]
struct Record {
    /// The teacher: bundle, diffusers folder, checkpoint file, or the name of a shipped model
    #[arg(long, short)]
    model: PathBuf,
    /// Folder of the trajectories; those that it holds already are kept
    #[arg(long, short)]
    output: PathBuf,
    #[command(flatten)]
    recording: Recording,
    /// Record only the I-th of N parts, counted from 0, as one of N workers on the same folder
    #[arg(long, value_name = "I/N", value_parser = parse_worker, default_value = "0/1")]
    worker: [usize; 2],
}

#[derive(Args)]
struct Train {
    /// Folder of the trajectories
    #[arg(long, required_unless_present = "resume")]
    trajectories: Option<PathBuf>,
    /// The teacher that they were recorded from
    #[arg(long, short, required_unless_present = "resume")]
    model: Option<PathBuf>,
    /// Folder of the run: settings, checkpoints, log, samples and the student
    #[arg(long, short, required_unless_present = "resume")]
    output: Option<PathBuf>,
    #[command(flatten)]
    student: StudentArgs,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Args)]
struct Compare {
    /// Folder of trajectories that the student has not seen: recorded with another --first-seed
    #[arg(long)]
    trajectories: PathBuf,
    /// The student
    #[arg(long, short)]
    model: PathBuf,
    /// Trajectories per network call
    #[arg(long, default_value_t = 32, value_parser = whole(1, MOST))]
    batch_size: usize,
}

#[derive(Args)]
struct Recording {
    /// Number of trajectories [default: 4096]
    #[arg(long, short = 'n', value_parser = whole(1, MOST))]
    count: Option<usize>,
    /// Sampling steps of the teacher [default: 25]
    #[arg(long, value_parser = whole(1, MOST))]
    teacher_steps: Option<usize>,
    /// Points per trajectory, evenly over its steps: the most steps of a student [default: 4]
    #[arg(long, value_parser = whole(1, MOST))]
    points: Option<usize>,
    /// Steps after which points are recorded, such as 10,15,20,25, instead of evenly
    #[arg(long, value_delimiter = ',', conflicts_with = "points")]
    at: Vec<usize>,
    /// Record the noisy states instead of the teacher's estimates of the image
    #[arg(long)]
    states: bool,
    /// Text file with a prompt in every line, of a teacher that reads texts; they are asked for in turn, as classes are
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,
    /// Guidance scale of the teacher, 1 is none [default: the teacher's]
    #[arg(long)]
    cfg_scale: Option<f64>,
    /// Deterministic solver of the teacher [default: the teacher's, or ddim if that is random]
    #[arg(long)]
    sampler: Option<String>,
    #[command(flatten)]
    patches: crate::patches::Patches,
    /// Seed of the noise of the first trajectory; that of trajectory i is higher by i [default: 0]
    #[arg(long)]
    first_seed: Option<u64>,
    /// Trajectories per network call [default: 32]
    #[arg(long, value_parser = whole(1, MOST))]
    batch_size: Option<usize>,
    /// Trajectories per file [default: 256]
    #[arg(long, value_parser = whole(1, MOST))]
    shard: Option<usize>,
}

#[derive(Args)]
struct StudentArgs {
    /// Steps of the student [default: 4]
    #[arg(long, value_name = "STEPS")]
    student_steps: Option<usize>,
    /// Patch size of each step, such as 8,8,4,4 [default: the model's own]
    #[arg(long, value_delimiter = ',', value_name = "PATCH,..")]
    student_patches: Vec<usize>,
    /// Earlier points that a step sees; newest is plain step distillation [default: all]
    #[arg(long, value_parser = ["newest", "previous", "noise", "all"])]
    history: Option<String>,
    /// Blocks, from the first, that see them [default: a fifth of all]
    #[arg(long, value_name = "N")]
    history_layers: Option<usize>,
    /// One head for all steps
    #[arg(long)]
    shared_head: bool,
    /// Trained student of the same shape to go on from, instead of from the teacher
    #[arg(long, value_name = "MODEL")]
    init: Option<PathBuf>,
    /// Folder of real images: heads on the teacher's features judge the student's by these
    #[arg(long, value_name = "FOLDER")]
    adversarial: Option<PathBuf>,
}

impl StudentArgs {
    fn overrides(&self) -> anyhow::Result<Vec<String>> {
        let path = |key: &str, path: &Option<PathBuf>| {
            path.as_ref().map(|path| path_setting(key, path)).transpose()
        };
        let patches = (!self.student_patches.is_empty()).then_some(&self.student_patches);
        let own_heads = self.shared_head.then_some("student.own_heads=false".to_owned());
        let found = [
            self.student_steps.map(|steps| format!("student.steps={steps}")),
            patches.map(|patches| format!("student.patches={patches:?}")),
            self.history.as_ref().map(|history| format!("student.history={history}")),
            self.history_layers.map(|layers| format!("student.history_layers={layers}")),
            own_heads,
            path("student.init", &self.init)?,
            path("adversarial.data", &self.adversarial)?,
        ];
        Ok(found.into_iter().flatten().collect())
    }
}

pub(crate) fn run(args: &Distill, common: &Common) -> anyhow::Result<()> {
    match &args.part {
        Some(Part::Record(Record { model, output, recording, worker })) => {
            check_writable(output).map_err(Error::from)?;
            let model = common.find(model)?;
            match model::recognise(&model)?.config.text {
                None => only_record::<ClassTask>(&model, output, recording, *worker, common),
                Some(_) => only_record::<TextTask>(&model, output, recording, *worker, common),
            }
        }
        Some(Part::Train(Train { trajectories, model, output, student, run })) => {
            let started = Started::new(model.as_deref(), output.as_deref(), student, run, common)?;
            let Started { output, mut config, stored, .. } = started;
            if let Some(trajectories) = trajectories {
                config.trajectories = Some(trajectories.clone());
            }
            config.check_paths()?;
            let folder = RunFolder::open(&output, run.is_resumed())?;
            warn_of_decay(stored.as_ref(), &config, common);
            train(folder, config, common)
        }
        Some(Part::Compare(Compare { trajectories, model, batch_size })) => {
            compare(&common.find(model)?, trajectories, *batch_size, common)
        }
        None => {
            let (model, output) = (args.model.as_deref(), args.output.as_deref());
            let started = Started::new(model, output, &args.student, &args.run, common)?;
            match model::recognise(&started.model)?.config.text {
                None => both::<ClassTask>(args, started, common),
                Some(_) => both::<TextTask>(args, started, common),
            }
        }
    }
}

fn only_record<T: PromptTask>(
    model: &Path,
    output: &Path,
    recording: &Recording,
    worker: [usize; 2],
    common: &Common,
) -> anyhow::Result<()> {
    let pipeline = teacher::<T>(model, common)?;
    let spec = recording.spec(&pipeline, None)?;
    record(&Recorder::new(output, &pipeline, spec, worker)?, output, common)
}

/// A training that was asked for.
struct Started {
    model: PathBuf,
    output: PathBuf,
    config: TrainConfig,
    /// Of the run that goes on, if one does.
    stored: Option<TrainConfig>,
}

impl Started {
    fn new(
        model: Option<&Path>,
        output: Option<&Path>,
        student: &StudentArgs,
        run: &RunArgs,
        common: &Common,
    ) -> anyhow::Result<Self> {
        let output = run.folder(output)?.context("no folder of the run: name one with --output")?;
        let stored = run.stored(&output)?;
        let teacher = stored.as_ref().and_then(|stored| stored.init.as_deref());
        let model = model.or(teacher).context("no teacher: name one with --model")?;
        let model = common.find(model)?;
        let base = match &stored {
            Some(stored) => TrainConfig { init: Some(model.clone()), ..stored.clone() },
            None => TrainConfig::distilling(model.clone())?,
        };
        let config = run.settle(&base, student.overrides()?)?;
        Ok(Self { model, output, config, stored })
    }
}

/// Records and trains in one folder.
fn both<T: PromptTask>(args: &Distill, started: Started, common: &Common) -> anyhow::Result<()> {
    let Started { model, output, mut config, stored } = started;
    config.check_paths()?;
    let resume = args.run.is_resumed();
    RunFolder::check(&output, resume)?;
    let trajectories = output.join("trajectories");
    config.trajectories = Some(trajectories.clone());

    let pipeline = teacher::<T>(&model, common)?;
    let recorded = match resume {
        true => TrajectorySpec::read(&trajectories)?,
        false => None,
    };
    let spec = args.recording.spec(&pipeline, recorded)?;
    Recorder::check(&trajectories, &pipeline, &spec)?;
    check_student(&config, &spec, &common.open()?.device)?;
    let folder = RunFolder::open(&output, resume)?;
    let recorder = Recorder::new(&trajectories, &pipeline, spec, [0, 1])?;
    if stored.is_none() {
        // After the recorder's, so that a run which goes on finds both.
        folder.keep(&config)?;
    }
    record(&recorder, &trajectories, common)?;
    drop(recorder);
    drop(pipeline);
    warn_of_decay(stored.as_ref(), &config, common);
    train(folder, config, common)
}

fn teacher<T: PromptTask>(model: &Path, common: &Common) -> anyhow::Result<Pipeline<T>> {
    let notify = |notice| common.tell(&notice);
    let mut options = OpenOptions::default();
    options.hooks.notify = Some(&notify);
    Ok(Pipeline::open_on(model, &common.open()?, &options)?)
}

/// Records what is missing.
fn record<T: PromptTask>(
    recorder: &Recorder<'_, T>,
    folder: &Path,
    common: &Common,
) -> anyhow::Result<()> {
    let estimate = recorder.estimate()?;
    common.say(&format!(
        "{} of {} trajectories to record in {}: {} on disk in all, about {}",
        estimate.trajectories,
        recorder.spec().count,
        folder.display(),
        HumanBytes(estimate.bytes),
        HumanDuration(Duration::from_secs(estimate.time.as_secs())),
    ));
    let bar = common.progress_bar(
        estimate.trajectories as u64,
        "{bar:30} {pos}/{len} trajectories, {elapsed} gone, {eta} left",
    );
    let flow = recorder.record(&mut |done| {
        bar.set_position(done as u64);
        interrupted()
    })?;
    bar.finish_and_clear();
    if flow.is_break() {
        return Err(Error::Cancelled.into());
    }
    Ok(())
}

impl Recording {
    /// What to record of a teacher: what was `recorded` before, or else the defaults, with what these options say.
    fn spec<T: PromptTask>(
        &self,
        pipeline: &Pipeline<T>,
        recorded: Option<TrajectorySpec>,
    ) -> anyhow::Result<TrajectorySpec> {
        let config = pipeline.config();
        let mut spec = match recorded {
            Some(spec) => spec,
            None => fresh(pipeline)?,
        };
        if let Some(file) = &self.prompt_file {
            if config.text.is_none() {
                bail!("--prompt-file, the teacher is told classes");
            }
            spec.prompts = prompts(file)?;
        }
        if spec.conditions() == 0 {
            bail!("the teacher reads texts: name a file of prompts with --prompt-file");
        }
        spec.teacher.clone_from(&pipeline.origin().weights);
        let settings = &mut spec.settings;
        if let Some(name) = &self.sampler {
            (settings.sampler, settings.spacing) = parse_sampler(name)?;
        }
        let steps = self.teacher_steps.unwrap_or(settings.steps);
        if self.at.is_empty() && (self.points, self.teacher_steps) != (None, None) {
            spec.after = TrajectorySpec::even(self.points.unwrap_or(spec.after.len()), steps);
        } else if !self.at.is_empty() {
            spec.after.clone_from(&self.at);
        }
        settings.steps = steps;
        settings.guidance.scale = self.cfg_scale.unwrap_or(settings.guidance.scale);
        settings.seed = self.first_seed.unwrap_or(settings.seed);
        settings.batch = self.batch_size.unwrap_or(settings.batch);
        let patches = self.patches.plan(&config.net.dit, config.net.dit.size, steps)?;
        settings.patches = patches.or(settings.patches.take());
        if self.states {
            spec.points = Points::States;
        }
        spec.count = self.count.unwrap_or(spec.count);
        spec.shard = self.shard.unwrap_or(spec.shard);
        Ok(spec)
    }
}

/// What is recorded of a teacher where nothing is said.
fn fresh<T: PromptTask>(pipeline: &Pipeline<T>) -> anyhow::Result<TrajectorySpec> {
    let mut settings = pipeline.config().defaults.settings(0);
    if !settings.sampler.is_deterministic() {
        (settings.sampler, settings.spacing) = (Sampler::Ddim { eta: 0.0 }, None);
    }
    (settings.steps, settings.batch) = (TEACHER_STEPS, 32);
    let [_, channels, height, width] = pipeline.latent_shape(1, None)?;
    Ok(TrajectorySpec {
        teacher: pipeline.origin().weights.clone(),
        settings,
        after: TrajectorySpec::even(4, TEACHER_STEPS),
        points: Points::Estimates,
        shape: [channels, height, width],
        classes: pipeline.config().net.dit.classes,
        prompts: Vec::new(),
        count: 4096,
        shard: 256,
    })
}

/// Trains a student on the trajectories that its settings name.
fn train(folder: RunFolder, config: TrainConfig, common: &Common) -> anyhow::Result<()> {
    let device = common.open()?.device;
    let set = config
        .trajectories
        .as_deref()
        .context("no trajectories: name a folder with --trajectories")?;
    let set = Trajectories::open(set)?;
    let mut run = Run::in_folder(folder, config, set.into(), &device)?;
    follow(&mut run, common)
}

fn compare(model: &Path, trajectories: &Path, batch: usize, common: &Common) -> anyhow::Result<()> {
    let device = common.open()?.device;
    let model = model::open(model, &device)?;
    let set = Trajectories::open(trajectories)?.of_model(&model)?;
    let student = model.net;
    let bar = common.progress_bar(set.spec().count as u64, "{bar:30} {pos}/{len} trajectories");
    let deviation = set.deviation(&student, batch, &device, &mut |done| {
        bar.set_position(done as u64);
        interrupted()
    })?;
    bar.finish_and_clear();
    if common.json {
        println!("{}", serde_json::to_string(&deviation)?);
        return Ok(());
    }
    println!("squared error of {} trajectories", deviation.trajectories);
    println!("step  from the teacher's points  from its own");
    for (i, (forced, own)) in deviation.forced.iter().zip(&deviation.own).enumerate() {
        println!("{:>4}  {:25}  {own:.5}", i + 1, format!("{forced:.5}"));
    }
    Ok(())
}

/// The part of one of several workers, such as `0/4`.
fn parse_worker(text: &str) -> anyhow::Result<[usize; 2]> {
    let numbers = text.split_once('/').map(|(i, n)| (i.trim().parse(), n.trim().parse()));
    match numbers {
        Some((Ok(i), Ok(n))) if i < n => Ok([i, n]),
        _ => bail!("`{text}`, expected I/N with I from 0 and below N"),
    }
}
