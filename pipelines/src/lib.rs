//! Class-conditional image generation with diffusion transformers.
//!
//! [`model::open`] opens what people have: a native bundle, a diffusers folder, or a checkpoint of the
//! original DiT or MP-DiT code. [`ClassPipeline`](pipeline::ClassPipeline) makes images from it, and
//! [`train`] makes new models from a folder of images.

pub mod adapter;
pub mod data;
pub mod error;
pub mod eval;
pub mod image;
pub mod labels;
pub mod merge;
pub mod metadata;
pub mod model;
pub mod patches;
pub mod pipeline;
pub mod plot;
pub mod settings;
pub mod train;
pub mod trajectories;

pub use error::{Error, Result};

/// The example of the README is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
