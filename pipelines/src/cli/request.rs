//! What determines a generation, as its pictures keep it.

use std::path::{Path, PathBuf};

use anyhow::Context;
use pyrograph::metadata;
use pyrograph::pipeline::Compute;
use pyrograph::settings::Settings;
use serde::{Deserialize, Serialize};

use super::weight_type::WeightType;

/// Key of the request in a PNG.
const KEY: &str = "pyrograph";

#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Request {
    pub(super) version: String,
    pub(super) model: String,
    /// Fingerprint of the model's weights.
    pub(super) weights: String,
    pub(super) classes: Vec<usize>,
    pub(super) device: String,
    pub(super) dtype: WeightType,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) vae: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) guide: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) picture: Option<Picture>,
    /// What each image took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) compute: Option<Compute>,
    pub(super) settings: Settings,
}

/// What a run starts from.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Picture {
    pub(super) file: PathBuf,
    pub(super) strength: Option<f64>,
}

impl Request {
    /// That of an earlier picture.
    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        let chunks = metadata::read(path)?;
        let text = chunks
            .get(KEY)
            .with_context(|| format!("{} holds no pyrograph settings", path.display()))?;
        serde_json::from_str(text).with_context(|| format!("settings in {}", path.display()))
    }

    /// Keyword and text for a PNG.
    pub(super) fn text(&self) -> anyhow::Result<(String, String)> {
        Ok((KEY.to_owned(), serde_json::to_string(self)?))
    }
}
