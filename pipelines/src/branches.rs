//! Branches that steer a model, and their folder.

use std::path::Path;

use burn::module::Module;
use burn::tensor::Device;
use pyrograph_engine::nets::DitConfig;
use pyrograph_weights::{Bundle, FloatDtype, Manifest, Part, read_manifest, save_bundle};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::model;

/// Name of their part in the bundle.
const PART: &str = "branches";

/// What determines branches but their weights.
pub trait BranchConfig: Clone + Serialize + DeserializeOwned {
    /// The networks.
    type Net: Module;
    /// Value of `family` in the `model.json` of their folder.
    const FAMILY: &'static str;

    /// Fingerprint of the network that they were trained with, the only one that they go with.
    fn base(&self) -> &str;

    /// Patch size at which they see.
    fn patch(&self) -> usize;

    /// Says what else cannot be with a network.
    ///
    /// # Errors
    /// What it is.
    fn check(&self, net: &DitConfig) -> std::result::Result<(), String>;

    /// The networks with fresh weights.
    fn fresh(&self, net: &DitConfig, device: &Device) -> Self::Net;
}

/// Branches on a device; a clone shares their weights.
#[derive(Debug, Clone)]
pub struct Branches<C: BranchConfig> {
    /// The networks.
    pub net: C::Net,
    /// Description.
    pub config: C,
    /// Of the weights, in hexadecimal; of branches in training, nothing.
    pub(crate) fingerprint: String,
}

/// The description of the branches in a folder, or in that of a run, for a network of this fingerprint; the weights are not
/// read.
///
/// # Errors
/// No such folder, a broken one, one for another network.
pub(crate) fn read<C: BranchConfig>(path: &Path, net: &DitConfig, base: &str) -> Result<C> {
    if !path.exists() {
        return Err(Error::NoModel { path: path.to_owned() });
    }
    let path = &model::resolved(path)?;
    let not = |reason: String| Error::NotAModel { path: path.clone(), reason };
    if !path.join("model.json").is_file() {
        return Err(not("no branches, whose folder has a model.json".into()));
    }
    let manifest = read_manifest(path)?;
    if manifest.family != C::FAMILY {
        return Err(not(format!("family `{}`, expected {}", manifest.family, C::FAMILY)));
    }
    let config: C = serde_json::from_value(manifest.config)
        .map_err(|source| Error::Json { path: path.join("model.json"), source })?;
    if config.base() != base {
        let (found, expected) = (config.base(), base);
        return Err(not(format!("made for the network {found}, this one is {expected}")));
    }
    let (patch, patches) = (config.patch(), net.patches());
    if !patches.contains(&patch) {
        return Err(not(format!("branches at patch size {patch}, the model has {patches:?}")));
    }
    config.check(net).map_err(not)?;
    Ok(config)
}

/// Fingerprint of the weights of the branches in a folder, or in that of a run.
///
/// # Errors
/// No such folder, one without branches.
pub(crate) fn fingerprint(path: &Path) -> Result<String> {
    Ok(Bundle::open(model::resolved(path)?)?.checkpoint(PART)?.fingerprint())
}

impl<C: BranchConfig> Branches<C> {
    /// Branches in training.
    pub(crate) fn new(net: C::Net, config: C) -> Self {
        Self { net, config, fingerprint: String::new() }
    }

    /// Those of a folder, for a network of this fingerprint.
    ///
    /// # Errors
    /// As of [`read`], and broken weights.
    pub(crate) fn open(path: &Path, net: &DitConfig, base: &str, device: &Device) -> Result<Self> {
        let config: C = read(path, net, base)?;
        let bundle = Bundle::open(model::resolved(path)?)?;
        bundle.verify(PART)?;
        let fresh = config.fresh(net, device);
        let fingerprint = bundle.checkpoint(PART)?.fingerprint();
        let (net, _) = bundle.load(PART, fresh, FloatDtype::F32, device)?;
        Ok(Self { net, config, fingerprint })
    }

    /// Writes their folder, which appears whole or not at all.
    ///
    /// # Errors
    /// A disk that refuses.
    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        let manifest = Manifest::new(C::FAMILY, &self.config)?;
        let parts = vec![(PART, Part::module(&self.net))];
        Ok(save_bundle(path, manifest, parts, FloatDtype::F16, true)?)
    }
}
