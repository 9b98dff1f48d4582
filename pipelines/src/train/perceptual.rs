//! A classifier that says which differences of pictures show.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use pyrograph_engine::train::Perceptual;
use pyrograph_weights::Checkpoint;
use serde::{Deserialize, Serialize};

use super::config::TrainConfig;
use crate::error::{Error, Result};
use crate::eval::efficient_net;
use crate::model;

/// The shipped classifier.
const SHIPPED: &str = "efficientnet-lite0/efficientnet_lite0.safetensors";

/// A pull of the estimated picture towards what looks like the true one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PerceptualShape {
    /// Weights of EfficientNet-Lite0; without, the shipped ones.
    pub net: Option<PathBuf>,
    /// Of the distance in its features, beside the loss.
    pub weight: f64,
    /// Share of noise `σ / (α + σ)` below which a picture counts.
    pub below: f64,
}

impl Default for PerceptualShape {
    fn default() -> Self {
        Self { net: None, weight: 1.0, below: 0.4 }
    }
}

impl PerceptualShape {
    fn path(&self) -> Result<PathBuf> {
        model::find(self.net.as_deref().unwrap_or(Path::new(SHIPPED)))
    }

    /// The term, and what its classifier is.
    ///
    /// # Errors
    /// A file of anything else than EfficientNet-Lite0.
    pub(super) fn open(&self, device: &Device) -> Result<(Perceptual, String)> {
        let file = Checkpoint::open(&self.path()?)?;
        let net = efficient_net(&file, device)?;
        Ok((Perceptual::new(net, self.weight, self.below), file.fingerprint()))
    }

    /// Refuses a run whose pictures a classifier cannot look at, or without one; `learns_itself` are adapters, which learn
    /// from the model itself.
    pub(super) fn check(&self, config: &TrainConfig, learns_itself: bool) -> Result<()> {
        let [height, width] = config.model.size;
        let reason = match () {
            () if config.vae.is_some() => "training on latents does not read it".into(),
            () if learns_itself => "a model with adapters learns from itself alone".into(),
            () if height % 2 + width % 2 > 0 => {
                format!("model.size is {height}x{width}, expected even sides")
            }
            () => return self.path().map(drop),
        };
        Err(Error::Config { reason: format!("perceptual is set, {reason}") })
    }
}
