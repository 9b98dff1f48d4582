//! Training: the optimiser, averages of weights, and the objectives.

pub mod adversarial;
mod denoising;
pub mod ema;
pub mod optimizer;
mod pairs;
pub mod params;
mod perceptual;
pub mod trainer;
mod trajectory;

pub use denoising::{Batch, Denoising, Target, Weighting};
pub use ema::{Average, Reconstruction, Snapshot, WIDTH_LIMIT, reconstruct};
pub use optimizer::{Decay, LearningRate, Optimizer, Rule};
pub use pairs::Pairs;
pub use perceptual::Perceptual;
pub use trainer::{Gradients, Precision, StepReport, Trainer, TrainerConfig};
pub use trajectory::{Past, StudentBatch, regression, step_errors};
