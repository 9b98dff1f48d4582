//! Few-step students: their settings, and what their training starts from.

use std::path::PathBuf;

use burn::tensor::Device;
use pyrograph_engine::diffusion::TimeInput;
use pyrograph_engine::diffusion::{Level, Spacing};
use pyrograph_engine::nets::{Dit, History, Net, Points, Student, StudentConfig};
use pyrograph_engine::train::{Average, Decay, LearningRate};
use pyrograph_weights::FloatDtype;
use serde::{Deserialize, Serialize};

use super::TrainConfig;
use super::start::Start;
use crate::error::{Error, Result};
use crate::model::{Model, ModelConfig, recognise};
use crate::settings::Defaults;
use crate::trajectories::Trajectories;

/// One block of this many sees the history of a student: 6 of 28 in the paper.
const HISTORY_SHARE: usize = 5;

/// A few-step student (ARD, Kim et al. 2025).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StudentShape {
    /// Number of steps, 1 to 8; divides that of the recorded points.
    pub steps: usize,
    /// Patch size of each step; without any, the model's own.
    pub patches: Vec<usize>,
    /// Earlier points that a step sees.
    pub history: History,
    /// Blocks, from the first, that see them; without, a fifth of all.
    pub history_layers: Option<usize>,
    /// Each step has a head of its own.
    pub own_heads: bool,
    /// A trained student of this shape to go on from, instead of from the teacher.
    pub init: Option<PathBuf>,
}

impl Default for StudentShape {
    fn default() -> Self {
        Self {
            steps: 4,
            patches: Vec::new(),
            history: History::All,
            history_layers: None,
            own_heads: true,
            init: None,
        }
    }
}

/// The adversarial stage of a student (appendix of the paper).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adversarial {
    /// Real images, in a folder like that of the teacher's training.
    pub data: PathBuf,
    /// Steps in which the heads learn alone.
    #[serde(default = "Adversarial::warmup")]
    pub warmup: u64,
    /// Pull on the last head, as a multiple of that of the regression.
    #[serde(default = "Adversarial::weight")]
    pub weight: f64,
    /// Learning rate of the heads.
    #[serde(default = "Adversarial::learning_rate")]
    pub learning_rate: f64,
}

/// What the paper does, but for the length.
impl Adversarial {
    fn warmup() -> u64 {
        300
    }

    fn weight() -> f64 {
        10.0
    }

    fn learning_rate() -> f64 {
        1e-3
    }
}

impl TrainConfig {
    /// The recipe of a student of the model at `teacher`.
    ///
    /// The learning rate is the published one, and a hundred times that for a magnitude-preserving teacher,
    /// whose weights are of unit size. The averages are short, so that the teacher's weights leave them
    /// soon.
    ///
    /// # Errors
    /// If there is no model.
    pub fn distilling(teacher: PathBuf) -> Result<Self> {
        let preserved = recognise(&teacher)?.config.net.dit.magnitude.normalized_weights;
        let learning_rate = LearningRate {
            peak: if preserved { 1e-2 } else { 1e-4 },
            warmup: 100,
            decay: Decay::Cosine,
        };
        let base = Self {
            steps: 4000,
            learning_rate,
            betas: [0.9, 0.999],
            averages: vec![Average::Power(0.05)],
            student: Some(StudentShape::default()),
            ..Self::default()
        };
        base.starting_from(teacher)
    }
}

/// What the training of a student starts from.
pub(super) struct Beginning {
    pub(super) start: Start,
    /// Numbers of the recorded points that the steps predict.
    pub(super) picks: Vec<usize>,
    pub(super) teacher: Dit,
    /// The least noise at which the teacher was asked.
    pub(super) cleanest: Level,
}

/// The start of a student on its teacher's trajectories.
///
/// # Errors
/// No teacher, another than the one of the trajectories, a student that does not fit either.
pub(super) fn begin(
    config: &TrainConfig,
    set: &Trajectories,
    device: &Device,
) -> Result<Beginning> {
    let fault = |reason: String| Err(Error::Config { reason });
    let (Some(path), Some(shape)) = (&config.init, &config.student) else {
        return fault("trajectories need `init`, their teacher, and `student`".into());
    };
    let recognised = recognise(path)?;
    let (spec, found) = (set.spec(), recognised.net.checkpoint.fingerprint());
    if spec.teacher != found {
        return fault(format!(
            "the trajectories are those of a teacher with fingerprint {}, {} has {found}",
            spec.teacher,
            path.display()
        ));
    }
    let picks = spec.picks(shape.steps).map_err(|reason| Error::Config { reason })?;
    let Model { net, vae, config: teacher } =
        recognised.load(FloatDtype::F32, device, &mut |_| ())?;
    let net = match net {
        Net::Dit(net) => net,
        Net::Student(net) => {
            let steps = net.config().steps();
            return fault(format!("the teacher is a student of {steps} steps already"));
        }
    };

    // Where the teacher stood when the input of each step was recorded.
    let grid = spec.settings.grid(&teacher.process)?;
    let inputs = picks.iter().take(shape.steps - 1).map(|&pick| spec.after[pick]);
    let levels: Vec<Level> = std::iter::once(grid.steps[0][0])
        .chain(inputs.map(|taken| match spec.points {
            Points::Estimates => grid.steps[taken - 1][0],
            Points::States => grid.steps[taken - 1][1],
        }))
        .collect();
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
    let patches = match shape.patches.is_empty() {
        true => vec![teacher.net.dit.patch; shape.steps],
        false => shape.patches.clone(),
    };
    let steps = StudentConfig {
        times,
        patches,
        history: shape.history,
        history_layers: shape
            .history_layers
            .unwrap_or(teacher.net.dit.depth.div_ceil(HISTORY_SHARE)),
        own_heads: shape.own_heads,
        points: spec.points,
    };
    let fresh = Student::new(net.clone(), steps);
    let fresh = Net::from(fresh.map_err(|error| Error::Config { reason: error.to_string() })?);
    let student = match &shape.init {
        None => fresh,
        Some(path) => {
            let trained = crate::model::open(path, device)?.net;
            if trained.config() != fresh.config() {
                return fault(format!(
                    "{} is {:?}, asked for {:?}",
                    path.display(),
                    trained.config(),
                    fresh.config()
                ));
            }
            trained
        }
    };
    let model = ModelConfig {
        net: student.config(),
        defaults: Defaults::student(shape.steps, spacing),
        ..teacher
    };
    let cleanest = grid.steps[grid.steps.len() - 1][0];
    Ok(Beginning { start: Start { net: student, model, vae }, picks, teacher: net, cleanest })
}
