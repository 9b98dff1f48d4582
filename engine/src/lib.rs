//! Diffusion transformers on [burn]: networks, samplers and training.

mod algebra;
pub mod check;
pub mod device;
pub mod diffusion;
pub mod error;
pub mod kernels;
pub mod layers;
pub mod metrics;
pub mod nets;
pub mod process;
#[cfg(test)]
mod testing;
pub mod train;

pub use error::{Error, Result};
