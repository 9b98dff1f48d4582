//! Image generation with diffusion transformers.
//!
//! [`Pipeline::open`] opens what people have: a native bundle, a diffusers folder, or a checkpoint of the original DiT
//! or MP-DiT code; a [`Request`] says what to make of it. [`train`] makes new models from a folder of images.
//!
//! ```no_run
//! use std::ops::ControlFlow;
//! use pyrograph::{ClassPipeline, OpenOptions, Request};
//!
//! let pipeline = ClassPipeline::open("emoji-class", &OpenOptions::default())?;
//! let request = Request { seed: 7, ..Request::new([pipeline.class("cat")?, 3]) };
//! let generated = pipeline.generate(&request, &mut |progress| {
//!     eprintln!("step {} of {}", progress.step + 1, progress.steps);
//!     ControlFlow::Continue(())
//! })?;
//! for (i, image) in generated.images.iter().enumerate() {
//!     image.save(format!("{i}.png")).expect("a folder that can be written");
//! }
//! # Ok::<(), pyrograph::Error>(())
//! ```

pub mod adapter;
pub mod adherence;
pub mod branches;
pub mod control;
pub mod data;
mod decode;
pub mod device;
mod differences;
pub mod error;
pub mod eval;
pub mod faces;
pub mod fit;
mod health;
mod hooks;
pub mod image;
pub mod labels;
mod lock;
pub mod megaportrait;
pub mod memory;
pub mod merge;
pub mod metadata;
pub mod model;
pub mod patches;
pub mod pipeline;
pub mod plot;
pub mod portrait;
pub mod prompt;
pub mod request;
pub mod settings;
pub mod task;
pub mod text;
pub mod threads;
pub mod tokenizer;
pub mod train;
pub mod trajectories;

pub use device::{DeviceChoice, Hooks};
pub use error::{Error, Result};
pub use model::WeightType;
pub use pipeline::{
    ClassPipeline, Generated, Made, OpenOptions, Pipeline, PortraitPipeline, Progress, TextPipeline,
};
pub use request::{Controlled, Guidance, Noise, Picture, Request, StartPicture};

/// The crates that types of this one come from.
pub use {burn, pyrograph_engine as engine, pyrograph_weights as weights};

/// The example of the README is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
