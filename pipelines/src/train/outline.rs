//! What a run knows of its finished model from the start.

use pyrograph_engine::nets::{Net, Vae};

use crate::model::{Model, ModelConfig};

/// The finished model but for its network's weights.
pub(super) struct Outline {
    pub(super) config: ModelConfig,
    pub(super) vae: Option<Vae>,
}

impl Outline {
    /// The model of a network.
    pub(super) fn with(&self, net: Net) -> Model {
        Model { net, vae: self.vae.clone(), config: self.config.clone() }
    }
}
