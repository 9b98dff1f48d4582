//! What a run knows from the start.

use pyrograph_engine::nets::{Net, Vae};

use super::adopt::Adopted;
use super::identity::Sources;
use crate::model::{Model, ModelConfig};

/// The finished model but for its network's weights, and what it is made from.
pub(super) struct Outline {
    pub(super) config: ModelConfig,
    pub(super) vae: Option<Vae>,
    pub(super) sources: Sources,
    /// Which of its classes come from the model that the run starts from.
    pub(super) adopted: Option<Adopted>,
}

impl Outline {
    /// The model of a network.
    pub(super) fn with(&self, net: Net) -> Model {
        Model { net, vae: self.vae.clone(), text: None, config: self.config.clone() }
    }
}
