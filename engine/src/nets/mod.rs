//! Networks.

pub mod config;
pub mod dit;
pub mod vae;

pub use config::{DitConfig, Norm};
pub use dit::{Dit, DitBlock, Embedder};
pub use vae::{Vae, VaeConfig};
