//! Diffusion transformers on [burn]: networks, samplers and training.

pub mod denoisers;
pub mod device;
pub mod diffusion;
pub mod error;
pub mod layers;
pub mod metrics;
pub mod nets;
pub mod ops;
pub mod random;
pub mod selfcheck;
#[cfg(test)]
mod testing;
pub mod train;

pub use error::{Error, Result};
