//! The diffusion transformer: one trunk for DiT (Peebles & Xie 2023) and MP-DiT (Bill et al. 2025), with one or
//! several patch sizes (FlexiDiT, Anagnostidis et al. 2025).

mod block;
mod classes;
mod condition;
mod config;
mod cost;
mod flexify;
mod patches;
#[cfg(test)]
mod tests;
mod trunk;

pub use block::{Condition, DitBlock, Head, TextLayers};
pub use condition::{Conditioning, Context, Embedder, Panel, Text};
pub use config::{DitConfig, Flexible, Norm, Sharing, TextAttention, TextConfig};
pub use flexify::flexify;
pub use patches::{Affine, BlockAdapters, BlockMode, Ends, Mode};
pub use trunk::{AfterBlock, Dit};
pub(crate) use trunk::{Call, Encoded};
