//! Networks.

pub mod config;
pub mod discriminator;
pub mod dit;
pub mod efficientnet;
pub mod flexify;
pub mod inception;
pub mod modes;
pub mod student;
pub mod unit;
pub mod vae;

pub use config::{DitConfig, Norm};
pub use discriminator::Discriminator;
pub use dit::{Dit, DitBlock, Embedder};
pub use efficientnet::{EfficientNetLite0, FoldedEfficientNet};
pub use flexify::flexify;
pub use inception::{FoldedInception, Inception};
pub use modes::{BlockMode, Flexible, Mode, Sharing};
pub use student::{History, Memory, Points, Student, distillable};
pub use vae::{Vae, VaeConfig};
