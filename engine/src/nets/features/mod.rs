//! Classifiers whose features measure pictures.

pub(super) mod conv_norm;
mod efficientnet;
pub mod inception;

pub use efficientnet::{EfficientNetLite0, FoldedEfficientNet};
pub use inception::{FoldedInception, Inception, SIDE as INCEPTION_SIDE};
