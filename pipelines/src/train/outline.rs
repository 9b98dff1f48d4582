//! What a run knows from the start.

use image::RgbImage;
use pyrograph_engine::nets::{Net, Vae};

use super::adopt::Adopted;
use super::identity::Sources;
use crate::model::{Model, ModelConfig, TextReader};

/// The finished model but for its network's weights, and what it is made from.
pub(super) struct Outline {
    pub(super) config: ModelConfig,
    pub(super) vae: Option<Vae>,
    pub(super) text: Option<TextReader>,
    /// What sample grids of a model of texts show.
    pub(super) prompts: Vec<String>,
    /// What those of branches are made from: a profile and a reference of each person, one after the other.
    pub(super) portraits: Vec<RgbImage>,
    pub(super) sources: Sources,
    /// Which of its classes come from the model that the run starts from.
    pub(super) adopted: Option<Adopted>,
}

impl Outline {
    /// That of a model of classes that is made from nothing.
    pub(super) fn new(config: ModelConfig, vae: Option<Vae>) -> Self {
        let (prompts, portraits) = (Vec::new(), Vec::new());
        let (text, adopted) = (None, None);
        Self { config, vae, text, prompts, portraits, sources: Sources::new(), adopted }
    }

    /// The model of a network.
    pub(super) fn with(&self, net: Net) -> Model {
        Model { net, vae: self.vae.clone(), text: self.text.clone(), config: self.config.clone() }
    }
}
