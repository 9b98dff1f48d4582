//! The diffusion transformer: one trunk for DiT (Peebles & Xie 2023) and MP-DiT (Bill et al. 2025), with one or
//! several patch sizes (FlexiDiT, Anagnostidis et al. 2025).

mod block;
mod classes;
mod condition;
mod config;
mod cost;
mod flexify;
mod form;
mod pass;
mod patches;
mod stacked;
mod stream;
#[cfg(test)]
mod tests;
mod trunk;

pub use block::{Condition, DitBlock, Head, Norms, TextLayers};
pub use condition::{Conditioning, Embedder, Panel, Text};
pub use config::{DitConfig, Flexible, Sharing};
pub use flexify::{flexify, refine};
pub use form::{Branches, Norm, Placing, TextAttention, TextConfig, TextEntry};
pub use patches::{Affine, BlockAdapters, BlockMode, Ends, Mode};
pub use stream::{Caption, Common, Context, Fill, Refiners};
pub use trunk::{AfterBlock, Dit};
pub(crate) use trunk::{Call, Encoded};
