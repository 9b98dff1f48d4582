//! Training: the optimiser, averages of weights, and the objectives.

pub mod adversarial;
pub mod ema;
pub mod objective;
pub mod optimizer;
pub mod params;
pub mod trainer;

pub use ema::{Average, Snapshot, reconstruction_weights};
pub use objective::{Batch, Denoising, Past, StudentBatch, Target, regression, step_errors};
pub use optimizer::{AdamW, Decay, LearningRate};
pub use trainer::{Precision, Trainer, TrainerConfig};
