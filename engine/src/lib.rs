//! Diffusion transformers on [burn]: networks, samplers and training.

mod algebra;
pub mod device;
pub mod diffusion;
pub mod error;
pub mod ops;
pub mod layers;
pub mod metrics;
pub mod nets;
pub mod process;
pub mod random;
pub mod selfcheck;
#[cfg(test)]
mod testing;
pub mod train;

pub use error::{Error, Result};
