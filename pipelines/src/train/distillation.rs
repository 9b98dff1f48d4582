//! Few-step students that learn from the trajectories of their teacher.

use std::path::Path;

use burn::tensor::Device;
use pyrograph_engine::diffusion::{Grid, Level, Spacing, TimeInput};
use pyrograph_engine::nets::{Dit, Net, NetConfig, Points, Student, StudentConfig};
use pyrograph_engine::train::adversarial::{Features, adversarial_regression};
use pyrograph_engine::train::{StudentBatch, Trainer, regression};
use pyrograph_weights::FloatDtype;

use super::checkpoint::Whole;
use super::config::TrainConfig;
use super::critic::{Critic, real_images};
use super::identity::Sources;
use super::learner::Computed;
use super::outline::Outline;
use super::samples;
use super::streams::Streams;
use super::student::StudentShape;
use crate::data::{Dataset, Encoder, Reads};
use crate::differences::{differences, in_words};
use crate::error::{Error, Result};
use crate::model::{Model, ModelConfig, recognise};
use crate::settings::Defaults;
use crate::trajectories::{Trajectories, TrajectorySpec};

/// One block of this many sees the history of a student: 6 of 28 in the paper.
const HISTORY_SHARE: usize = 5;

/// A student that learns from trajectories.
pub(super) struct StudentLearner {
    pub(super) trainer: Trainer<Student>,
    pub(super) trajectories: Trajectories,
    /// Numbers of the recorded points that the steps predict.
    picks: Vec<usize>,
    pub(super) critic: Option<Critic>,
}

/// What a student is going to be, known before there are trajectories.
struct Plan {
    /// Numbers of the recorded points that the steps predict.
    picks: Vec<usize>,
    grid: Grid,
    steps: StudentConfig,
    /// Where its steps are when it samples.
    spacing: Spacing,
    /// What judges its images.
    real: Option<Dataset>,
}

/// Checks, before anything is recorded, that trajectories like `spec` can make the student of these settings.
///
/// # Errors
/// No teacher, or another than the one of the trajectories; a student that does not fit either; images for an
/// adversarial stage that do not; what the device or its memory cannot follow.
pub fn check_student(config: &TrainConfig, spec: &TrajectorySpec, device: &Device) -> Result<()> {
    config.check()?;
    config.check_precision(device)?;
    let (path, _) = asked(config)?;
    Plan::new(config, spec, &recognise(path)?.config, device).map(drop)
}

/// The teacher and the student of a run.
fn asked(config: &TrainConfig) -> Result<(&Path, &StudentShape)> {
    let none = || {
        let reason = "trajectories need `init`, their teacher, and `student`".into();
        Error::Config { reason }
    };
    config.init.as_deref().zip(config.student.as_ref()).ok_or_else(none)
}

impl Plan {
    fn new(
        config: &TrainConfig,
        spec: &TrajectorySpec,
        teacher: &ModelConfig,
        device: &Device,
    ) -> Result<Self> {
        let fault = |reason: String| Error::Config { reason };
        let (_, shape) = asked(config)?;
        teacher.check_trained()?;
        let factor = teacher.vae.as_ref().map_or(1, |vae| vae.factor());
        config.check_start(teacher, factor)?;
        config.check_unread(teacher)?;
        config.check_memory(&teacher.net.dit, device)?;
        let picks = spec.picks(shape.steps).map_err(|error| fault(error.to_string()))?;
        let grid = teacher.grid(&spec.settings)?;
        let levels = input_levels(&grid, spec, &picks);
        let (steps, spacing) = steps(shape, &levels, spec.points, teacher);
        steps.check(&teacher.net.dit).map_err(|error| fault(error.to_string()))?;
        let expected = NetConfig { dit: teacher.net.dit.clone(), student: Some(steps.clone()) };
        if let Some(path) = &shape.init {
            let found = recognise(path)?.config.net;
            if let Some(words) = in_words(&differences(&found, &expected)) {
                let path = path.display();
                return Err(fault(format!("{path} is another student than asked for: {words}")));
            }
        }
        let real = config.adversarial.as_ref();
        let real = real.map(|adversarial| real_images(config, adversarial, teacher)).transpose()?;
        Ok(Self { picks, grid, steps, spacing, real })
    }
}

impl StudentLearner {
    /// A student with its teacher's weights, or those of a student that was trained before, in a run that goes on
    /// from `resumed`; the latents of real images are kept in `folder`.
    ///
    /// # Errors
    /// Those of [`check_student`], a checkpoint of another run, and files that cannot be read.
    pub(super) fn new(
        folder: &Path,
        config: &TrainConfig,
        trajectories: Trajectories,
        resumed: Option<&Whole>,
        device: &Device,
    ) -> Result<(Self, Outline)> {
        let fault = |reason: String| Error::Config { reason };
        let (path, shape) = asked(config)?;
        let spec = &trajectories.spec().clone();
        let (teacher, outline) = teacher(path, spec, device)?;
        let Outline { config: model, vae, text, mut sources, .. } = outline;
        let Plan { picks, grid, steps, spacing, real } = Plan::new(config, spec, &model, device)?;
        let student = match &shape.init {
            None => {
                Student::new(teacher.clone(), steps).map_err(|error| fault(error.to_string()))?
            }
            Some(path) => trained(path, &mut sources, device)?,
        };
        if let Some(real) = &real {
            sources.insert("adversarial.data".to_owned(), real.identity());
        }
        if let Some(whole) = resumed {
            whole.check(config, &sources)?;
        }
        let size = trajectories.told_size(&model);
        let reads = text.as_ref().zip(model.text.as_ref());
        let pooled = model.net.dit.pools();
        let reads = reads.map(|(reader, input)| Reads { reader, input, size, pooled });
        let critic = match (&config.adversarial, real) {
            (Some(adversarial), Some(real)) => {
                let fingerprint = spec.teacher.clone();
                let encoder = vae.clone().map(|vae| Encoder { vae, fingerprint });
                let real =
                    real.for_training(config.flip, config.augment, encoder, folder, device)?;
                let real = match reads {
                    Some(reads) => real.for_texts(reads, folder)?,
                    None => real,
                };
                let cleanest = &grid.steps[grid.steps.len() - 1][0];
                let features = Features::new(teacher, &model.process, cleanest);
                Some(Critic::new(config, adversarial, features, real, device))
            }
            _ => None,
        };
        let trajectories = match reads {
            Some(reads) => trajectories.for_texts(reads, Some(folder))?,
            None => trajectories,
        };
        let prompts = match config.sample_prompts.is_empty() {
            true => samples::spread(&spec.prompts),
            false => config.sample_prompts.clone(),
        };
        let model = ModelConfig {
            net: (&student).into(),
            defaults: Defaults::student(shape.steps, spacing),
            ..model
        };
        let trainer = Trainer::new(student, config.trainer(&model.net.dit));
        let learner = Self { trainer, trajectories, picks, critic };
        Ok((learner, Outline { text, prompts, sources, ..Outline::new(model, vae) }))
    }

    /// Computes a step on trajectories of these numbers, for the student and for the heads that judge.
    ///
    /// # Errors
    /// Trajectories that can no longer be read.
    pub(super) fn compute(
        &self,
        indices: &[usize],
        streams: Streams,
        config: &TrainConfig,
        device: &Device,
    ) -> Result<Computed> {
        let Self { trainer, trajectories, picks, critic } = self;
        let parts = indices.chunks(config.batch / config.micro_batches);
        let read = |part: &[usize]| Ok(trajectories.batch(part, picks, device)?.autodiff());
        let batches: Vec<StudentBatch> = parts.map(read).collect::<Result<_>>()?;
        let Some(critic) = critic else {
            let (own, _) =
                trainer.gradients(batches.len(), |net, i| (regression(net, &batches[i]), ()));
            return Ok(Computed { own, critic: None });
        };
        let judge = critic.judge();
        let pulled = |net: &Student, i: usize| adversarial_regression(net, &batches[i], judge);
        let (own, made) = trainer.gradients(batches.len(), pulled);
        let heads = critic.gradients(&batches, &made, streams, device);
        Ok(Computed { own, critic: Some(heads) })
    }
}

/// The teacher of trajectories, whose description is `spec`.
fn teacher(path: &Path, spec: &TrajectorySpec, device: &Device) -> Result<(Dit, Outline)> {
    let fault = |reason: String| Err(Error::Config { reason });
    let recognised = recognise(path)?;
    let found = recognised.net.checkpoint.fingerprint();
    if spec.teacher != found {
        return fault(format!(
            "the trajectories are those of a teacher with fingerprint {}, {} has {found}",
            spec.teacher,
            path.display()
        ));
    }
    let Model { net, vae, text, config, .. } =
        recognised.load(FloatDtype::F32, device, &mut |_| ())?;
    match net {
        Net::Dit(net) => {
            let sources = Sources::from([
                ("init".to_owned(), found.into()),
                ("trajectories".to_owned(), spec.identity()),
            ]);
            Ok((net, Outline { text, sources, ..Outline::new(config, vae) }))
        }
        Net::Student(net) => {
            let steps = net.config().steps();
            fault(format!("the teacher is a student of {steps} steps already"))
        }
    }
}

/// Where the teacher stood when the input of each step was recorded.
fn input_levels(grid: &Grid, spec: &TrajectorySpec, picks: &[usize]) -> Vec<Level> {
    let inputs = picks.iter().take(picks.len() - 1).map(|&pick| spec.after[pick]);
    std::iter::once(grid.steps[0][0])
        .chain(inputs.map(|taken| match spec.points {
            Points::Estimates => grid.steps[taken - 1][0],
            Points::States => grid.steps[taken - 1][1],
        }))
        .collect()
}

/// The steps of a student with inputs at `levels`, and the grid on which it samples.
fn steps(
    shape: &StudentShape,
    levels: &[Level],
    points: Points,
    teacher: &ModelConfig,
) -> (StudentConfig, Spacing) {
    let (times, spacing) = match teacher.process.time {
        TimeInput::Timestep => {
            let timesteps = StudentConfig::even_times(shape.steps, levels[0].timestep);
            (timesteps, Spacing::Timesteps(levels.iter().map(|level| level.timestep).collect()))
        }
        TimeInput::Countdown | TimeInput::Share => (
            levels.iter().map(|level| teacher.process.time_input(level)).collect(),
            Spacing::Timesteps(levels.iter().map(|level| level.timestep).collect()),
        ),
        TimeInput::LogSigma => (
            levels.iter().map(|level| teacher.process.time_input(level)).collect(),
            Spacing::Sigmas(levels.iter().map(Level::ve_sigma).collect()),
        ),
    };
    let net = &teacher.net.dit;
    let patches = match shape.patches.is_empty() {
        true => vec![net.patch; shape.steps],
        false => shape.patches.clone(),
    };
    let history_layers = shape.history_layers.unwrap_or(net.depth.div_ceil(HISTORY_SHARE));
    let StudentShape { history, own_heads, .. } = *shape;
    (StudentConfig { times, patches, history, history_layers, own_heads, points }, spacing)
}

/// The student at `path`, which is added to the `sources` of its run.
fn trained(path: &Path, sources: &mut Sources, device: &Device) -> Result<Student> {
    let recognised = recognise(path)?;
    sources.insert("student.init".to_owned(), recognised.net.checkpoint.fingerprint().into());
    match recognised.load(FloatDtype::F32, device, &mut |_| ())?.net {
        Net::Student(net) => Ok(net),
        Net::Dit(_) => {
            let reason = format!("{} is no few-step student", path.display());
            Err(Error::Config { reason })
        }
    }
}
