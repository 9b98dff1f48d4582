//! Settings of few-step students.

use std::path::PathBuf;

use pyrograph_engine::nets::History;
use pyrograph_engine::train::{Average, Decay, LearningRate};
use serde::{Deserialize, Serialize};

use super::TrainConfig;
use crate::error::Result;
use crate::model::recognise;

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
