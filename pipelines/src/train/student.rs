//! Settings of few-step students.

use std::path::PathBuf;

use pyrograph_engine::nets::History;
use serde::{Deserialize, Serialize};

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
