//! Networks.

pub mod adapter;
pub mod config;
pub mod discriminator;
pub mod dit;
pub mod features;
pub mod flexify;
pub mod modes;
pub mod student;
pub mod vae;

pub use adapter::{Adaptable, Adapter};
pub use config::{DitConfig, Norm};
pub use discriminator::Discriminator;
pub use dit::{Dit, DitBlock, Embedder};
pub use features::{EfficientNetLite0, FoldedEfficientNet, FoldedInception, Inception};
pub use flexify::flexify;
pub use modes::{BlockMode, Flexible, Mode, Sharing};
pub use student::{History, Memory, Points, Student, distillable};
pub use vae::{Vae, VaeConfig};
