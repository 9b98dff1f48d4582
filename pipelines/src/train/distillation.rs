//! Few-step students that learn from the trajectories of their teacher.

use std::path::Path;

use burn::tensor::{Device, Tensor};
use pyrograph_engine::diffusion::{Grid, Level, Spacing, TimeInput};
use pyrograph_engine::nets::{Dit, Net, NetConfig, Points, Student, StudentConfig};
use pyrograph_engine::train::adversarial::{Features, adversarial_regression};
use pyrograph_engine::train::{StudentBatch, Trainer, regression};
use pyrograph_weights::FloatDtype;

use super::config::TrainConfig;
use super::critic::{Critic, real_images};
use super::outline::Outline;
use super::streams::Streams;
use super::student::StudentShape;
use crate::data::Encoder;
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

impl StudentLearner {
    /// A student with its teacher's weights, or those of a student that was trained before; the latents of real
    /// images are kept in `folder`.
    ///
    /// # Errors
    /// No teacher, another than the one of the trajectories, a student that does not fit either, images for an
    /// adversarial stage that do not.
    pub(super) fn new(
        folder: &Path,
        config: &TrainConfig,
        trajectories: Trajectories,
        device: &Device,
    ) -> Result<(Self, Outline)> {
        let fault = |reason: String| Error::Config { reason };
        let (Some(path), Some(shape)) = (&config.init, &config.student) else {
            return Err(fault("trajectories need `init`, their teacher, and `student`".into()));
        };
        let spec = trajectories.spec();
        let picks = spec.picks(shape.steps).map_err(|error| fault(error.to_string()))?;
        let (teacher, Outline { config: model, vae }) = teacher(path, spec, device)?;
        let grid = spec.settings.grid(&model.process)?;
        let levels = input_levels(&grid, spec, &picks);
        let (steps, spacing) = steps(shape, &levels, spec.points, &model);
        let student = student(teacher.clone(), steps, shape.init.as_deref(), device)?;

        let critic = match &config.adversarial {
            None => None,
            Some(adversarial) => {
                let real = real_images(config, adversarial, teacher.config().classes)?;
                let fingerprint = spec.teacher.clone();
                let encoder = vae.clone().map(|vae| Encoder { vae, fingerprint });
                let real = real.for_training(config.flip, encoder, folder, device)?;
                let cleanest = &grid.steps[grid.steps.len() - 1][0];
                let features = Features::new(teacher, &model.process, cleanest);
                Some(Critic::new(config, adversarial, features, real, device))
            }
        };
        let model = ModelConfig {
            net: (&student).into(),
            defaults: Defaults::student(shape.steps, spacing),
            ..model
        };
        let trainer = Trainer::new(student, config.trainer(&model.net.dit));
        let learner = Self { trainer, trajectories, picks, critic };
        Ok((learner, Outline { config: model, vae }))
    }

    /// Takes a step on trajectories of these numbers and returns its loss, `[1]`; the heads that judge take theirs.
    ///
    /// # Errors
    /// Trajectories that can no longer be read.
    pub(super) fn step(
        &mut self,
        indices: &[usize],
        streams: Streams,
        config: &TrainConfig,
        device: &Device,
    ) -> Result<Tensor<1>> {
        let Self { trainer, trajectories, picks, critic } = self;
        let parts = indices.chunks(config.batch / config.micro_batches);
        let read = |part: &[usize]| Ok(trajectories.batch(part, picks, device)?.autodiff());
        let batches: Vec<StudentBatch> = parts.map(read).collect::<Result<_>>()?;
        let Some(critic) = critic else {
            let (report, _) =
                trainer.step(batches.len(), |net, i| (regression(net, &batches[i]), ()));
            return Ok(report.loss);
        };
        let judge = critic.judge();
        let (report, made) =
            trainer.step(batches.len(), |net, i| adversarial_regression(net, &batches[i], judge));
        critic.learn(&batches, &made, streams, device);
        Ok(report.loss)
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
    let Model { net, vae, config } = recognised.load(FloatDtype::F32, device, &mut |_| ())?;
    match net {
        Net::Dit(net) => Ok((net, Outline { config, vae })),
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

/// A student of these steps with its teacher's weights, or those of the student at `trained`.
fn student(
    teacher: Dit,
    steps: StudentConfig,
    trained: Option<&Path>,
    device: &Device,
) -> Result<Student> {
    let fresh = Student::new(teacher, steps)
        .map_err(|error| Error::Config { reason: error.to_string() })?;
    let Some(path) = trained else {
        return Ok(fresh);
    };
    let expected = NetConfig::from(&fresh);
    match crate::model::open(path, device)?.net {
        Net::Student(net) if NetConfig::from(&net) == expected => Ok(net),
        net => {
            let (path, found) = (path.display(), net.config());
            let reason = format!("{path} is {found:?}, asked for {expected:?}");
            Err(Error::Config { reason })
        }
    }
}
