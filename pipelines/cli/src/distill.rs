//! `pyrograph distill`: a few-step student of a model.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;
use clap::{Args, Subcommand};
use indicatif::{HumanBytes, HumanDuration};
use pyrograph::engine::diffusion::{Sampler, parse_sampler};
use pyrograph::engine::metrics::Estimate;
use pyrograph::engine::nets::Points;
use pyrograph::train::{Run, TrainConfig};
use pyrograph::trajectories::{Recorder, Trajectories, TrajectorySpec};
use pyrograph::{ClassPipeline, Error, OpenOptions, model};

use crate::common::{Common, interrupted};
use crate::train::{RunArgs, follow};

/// Steps of the teacher, as in the paper.
const TEACHER_STEPS: usize = 25;

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Distill {
    #[command(subcommand)]
    part: Option<Part>,
    /// The teacher: bundle, diffusers folder, checkpoint file, or the name of a shipped model
    #[arg(long, short, required = true)]
    model: Option<PathBuf>,
    /// Folder of the run, with the trajectories in `trajectories` and the student in `model`
    #[arg(long, short, required = true)]
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
    #[arg(long)]
    trajectories: PathBuf,
    /// The teacher that they were recorded from
    #[arg(long, short)]
    model: PathBuf,
    /// Folder of the run: checkpoints, log, samples and the finished student
    #[arg(long, short)]
    output: PathBuf,
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
    #[arg(long, default_value_t = 32)]
    batch_size: usize,
}

#[derive(Args)]
struct Recording {
    /// Number of trajectories
    #[arg(long, short = 'n', default_value_t = 4096)]
    count: usize,
    /// Sampling steps of the teacher
    #[arg(long, default_value_t = TEACHER_STEPS)]
    teacher_steps: usize,
    /// Points per trajectory, evenly over its steps: the most steps of a student
    #[arg(long, default_value_t = 4)]
    points: usize,
    /// Steps after which points are recorded, such as 10,15,20,25, instead of evenly
    #[arg(long, value_delimiter = ',', conflicts_with = "points")]
    at: Vec<usize>,
    /// Record the noisy states instead of the teacher's estimates of the image
    #[arg(long)]
    states: bool,
    /// Guidance scale of the teacher, 1 is none [default: the teacher's]
    #[arg(long)]
    cfg_scale: Option<f64>,
    /// Deterministic solver of the teacher [default: the teacher's, or ddim if that is random]
    #[arg(long)]
    sampler: Option<String>,
    #[command(flatten)]
    patches: crate::patches::Patches,
    /// Seed of the noise of the first trajectory; that of trajectory i is higher by i
    #[arg(long, default_value_t = 0)]
    first_seed: u64,
    /// Trajectories per network call
    #[arg(long, default_value_t = 32)]
    batch_size: usize,
    /// Trajectories per file
    #[arg(long, default_value_t = 256)]
    shard: usize,
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
    fn overrides(&self) -> Vec<String> {
        let patches = (!self.student_patches.is_empty()).then_some(&self.student_patches);
        let own_heads = self.shared_head.then_some("student.own_heads=false".to_owned());
        [
            self.student_steps.map(|steps| format!("student.steps={steps}")),
            patches.map(|patches| format!("student.patches={patches:?}")),
            self.history.as_ref().map(|history| format!("student.history={history}")),
            self.history_layers.map(|layers| format!("student.history_layers={layers}")),
            own_heads,
            self.init.as_ref().map(|model| format!("student.init={}", model.display())),
            self.adversarial.as_ref().map(|data| format!("adversarial.data={}", data.display())),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

pub(crate) fn run(args: &Distill, common: &Common) -> anyhow::Result<()> {
    match &args.part {
        Some(Part::Record(Record { model, output, recording, worker })) => {
            record(&model::find(model)?, output, recording, None, *worker, common)
        }
        Some(Part::Train(Train { trajectories, model, output, student, run })) => {
            let config = settle(&model::find(model)?, student, run)?;
            train(trajectories, output, config, run.resume, common)
        }
        Some(Part::Compare(Compare { trajectories, model, batch_size })) => {
            compare(&model::find(model)?, trajectories, *batch_size, common)
        }
        None => {
            let (Some(model), Some(output)) = (&args.model, &args.output) else {
                unreachable!("both are required without a subcommand");
            };
            let (model, trajectories) = (model::find(model)?, output.join("trajectories"));
            let config = settle(&model, &args.student, &args.run)?;
            let student = config.student.as_ref().map(|student| student.steps);
            record(&model, &trajectories, &args.recording, student, [0, 1], common)?;
            train(&trajectories, output, config, args.run.resume, common)
        }
    }
}

/// The settings of a student.
fn settle(teacher: &Path, student: &StudentArgs, run: &RunArgs) -> anyhow::Result<TrainConfig> {
    let base = TrainConfig::distilling(teacher.to_owned())?;
    run.settle(&base, student.overrides())
}

/// Records trajectories, for a student of so many steps if that is known.
fn record(
    model: &Path,
    folder: &Path,
    args: &Recording,
    student: Option<usize>,
    worker: [usize; 2],
    common: &Common,
) -> anyhow::Result<()> {
    let notify = |notice| common.tell(&notice);
    let mut options = OpenOptions::default();
    options.hooks.notify = Some(&notify);
    let pipeline = ClassPipeline::open_on(model, &common.open()?, &options)?;
    let spec = spec(args, &pipeline)?;
    if let Some(steps) = student {
        spec.picks(steps).map_err(|error| Error::Config { reason: error.to_string() })?;
    }
    let recorder = Recorder::new(folder, &pipeline, spec, worker)?;
    let estimate = recorder.estimate()?;
    common.say(&format!(
        "{} of {} trajectories to record in {}: {} on disk in all, about {}",
        estimate.trajectories,
        args.count,
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

/// What to record of a teacher.
fn spec(args: &Recording, pipeline: &ClassPipeline) -> anyhow::Result<TrajectorySpec> {
    let config = pipeline.config();
    let steps = args.teacher_steps;
    let mut settings = config.defaults.settings(args.first_seed);
    if let Some(name) = &args.sampler {
        (settings.sampler, settings.spacing) = parse_sampler(name)?;
    } else if !settings.sampler.is_deterministic() {
        (settings.sampler, settings.spacing) = (Sampler::Ddim { eta: 0.0 }, None);
    }
    settings.steps = steps;
    settings.guidance.scale = args.cfg_scale.unwrap_or(settings.guidance.scale);
    settings.batch = args.batch_size.max(1);
    settings.patches = args.patches.plan(&config.net.dit, config.net.dit.size, steps)?;
    let [_, channels, height, width] = pipeline.latent_shape(1, None)?;
    Ok(TrajectorySpec {
        teacher: pipeline.origin().weights.clone(),
        settings,
        after: match args.at.as_slice() {
            [] => TrajectorySpec::even(args.points, steps),
            at => at.to_vec(),
        },
        points: if args.states { Points::States } else { Points::Estimates },
        shape: [channels, height, width],
        classes: pipeline.classes(),
        count: args.count,
        shard: args.shard,
    })
}

fn train(
    trajectories: &Path,
    output: &Path,
    config: TrainConfig,
    resume: bool,
    common: &Common,
) -> anyhow::Result<()> {
    let device = common.open()?.device;
    let set = Trajectories::open(trajectories)?;
    let mut run = Run::on_trajectories(output, config, set, resume, &device)?;
    follow(&mut run, common)
}

fn compare(model: &Path, trajectories: &Path, batch: usize, common: &Common) -> anyhow::Result<()> {
    let device = common.open()?.device;
    let set = Trajectories::open(trajectories)?;
    let student = model::open(model, &device)?.net;
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
        let text = |e: &Estimate| format!("{:.5} ± {:.5}", e.value, e.margin);
        println!("{:>4}  {:25}  {}", i + 1, text(forced), text(own));
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
