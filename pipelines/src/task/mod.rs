//! Kinds of models: what they are asked, and what their networks are told of it.

mod class;

pub use class::ClassTask;

use burn::tensor::Device;
use pyrograph_engine::nets::Conditioning;

use crate::error::Result;
use crate::model::ModelConfig;

/// A kind of model.
pub trait Task: Send + Sync + Sized {
    /// What one image is asked by.
    type Prompt: Clone + Send + Sync;

    /// The task of a model, with what it needs on `device`.
    ///
    /// # Errors
    /// A model of another kind.
    fn of(config: &ModelConfig, device: &Device) -> Result<Self>;

    /// Finds out, before any work, whether the model knows these prompts.
    ///
    /// # Errors
    /// A prompt that it does not know.
    fn check(&self, prompts: &[Self::Prompt]) -> Result<()>;

    /// What the network is told of prompts that were checked, one entry per image.
    ///
    /// # Errors
    /// A device that fails.
    fn encode(&self, prompts: &[Self::Prompt]) -> Result<Conditioning>;

    /// What it is told without a prompt, for guidance.
    fn null(&self, images: usize) -> Conditioning;
}
