//! Training images: a folder with one sub-folder per class, or with a `metadata.jsonl`.

mod dataset;
mod files;
mod latents;
mod order;
mod pixels;

pub use dataset::Dataset;
pub(crate) use latents::Encoder;
pub use order::Order;
pub use pixels::Background;
