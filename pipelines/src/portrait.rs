//! Branches that make portraits with a model, and their folder (IC-Portrait, Yang et al. 2025).

use std::path::Path;

use burn::tensor::{Device, Tensor};
use pyrograph_engine::nets::{
    Conditioning, Dit, DitConfig, IcPortrait, IcPortraitConfig, Net, Sight,
};
use pyrograph_engine::portrait::CellMask;
use pyrograph_weights::{Bundle, FloatDtype, Manifest, Part, read_manifest, save_bundle};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::model::{self, Model};
use crate::request::Request;
use crate::task::{PromptTask, Task, TextTask};

/// Value of `family` in the `model.json` of branches.
const FAMILY: &str = "portrait";
/// Name of their part in the bundle.
const PART: &str = "branches";

/// What determines branches but their weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortraitConfig {
    /// The networks.
    pub branches: IcPortraitConfig,
    /// Fingerprint of the network that they were trained with, the only one that they go with.
    pub base: String,
    /// Patch size at which they see.
    pub patch: usize,
    /// Share of the cells of a reference that are hidden, 0 to 1.
    pub hidden: f64,
    /// Side of a cell, in pixels or latent cells.
    pub cell: usize,
    /// What a model of texts is told of every portrait.
    pub prompt: String,
}

/// Branches on a device; a clone shares their weights.
#[derive(Debug, Clone)]
pub struct Branches {
    /// The networks.
    pub net: IcPortrait,
    /// Description.
    pub config: PortraitConfig,
    /// Of the weights, in hexadecimal; of branches in training, nothing.
    pub(crate) fingerprint: String,
}

impl PortraitConfig {
    /// That of the branches in a folder, or in that of a run, for a network of this fingerprint; the weights are not read.
    ///
    /// # Errors
    /// No such folder, a broken one, one for another network.
    pub(crate) fn read(path: &Path, net: &DitConfig, base: &str) -> Result<Self> {
        if !path.exists() {
            return Err(Error::NoModel { path: path.to_owned() });
        }
        let path = &model::resolved(path)?;
        let not = |reason: String| Error::NotAModel { path: path.clone(), reason };
        let manifest = read_manifest(path)?;
        if manifest.family != FAMILY {
            return Err(not(format!("family `{}`, expected {FAMILY}", manifest.family)));
        }
        let config: Self = serde_json::from_value(manifest.config)
            .map_err(|source| Error::Json { path: path.join("model.json"), source })?;
        if config.base != base {
            let (found, expected) = (config.base, base);
            return Err(not(format!("made for the network {found}, this one is {expected}")));
        }
        config.check(net).map_err(not)?;
        Ok(config)
    }

    /// Says what cannot be.
    fn check(&self, net: &DitConfig) -> std::result::Result<(), String> {
        let (blocks, patches) = (net.depth, net.patches());
        let Self { branches, patch, hidden, cell, .. } = self;
        match () {
            () if !(1..=blocks).contains(&branches.depth) => {
                Err(format!("branches of {} blocks, expected 1 to {blocks}", branches.depth))
            }
            () if !patches.contains(patch) => {
                Err(format!("branches at patch size {patch}, the model has {patches:?}"))
            }
            () if !(0.0..=1.0).contains(hidden) => {
                Err(format!("a share of {hidden} hidden, expected 0 to 1"))
            }
            () if *cell == 0 => Err("cells without a side".into()),
            () => Ok(()),
        }
    }

    /// What is hidden of references: black in pixels, nothing in latents.
    pub(crate) fn mask(&self, latents: bool) -> CellMask {
        let hidden = if latents { 0.0 } else { -1.0 };
        CellMask { ratio: self.hidden, cell: self.cell, hidden }
    }
}

impl Branches {
    /// Branches in training.
    pub(crate) fn new(net: IcPortrait, config: PortraitConfig) -> Self {
        Self { net, config, fingerprint: String::new() }
    }

    /// Those of a folder, for the network `net` of this fingerprint.
    ///
    /// # Errors
    /// As of [`PortraitConfig::read`], and broken weights.
    pub(crate) fn open(path: &Path, net: &Dit, base: &str, device: &Device) -> Result<Self> {
        let config = PortraitConfig::read(path, net.config(), base)?;
        let bundle = Bundle::open(model::resolved(path)?)?;
        bundle.verify(PART)?;
        let fresh = IcPortrait::new(net, config.branches, device);
        let fingerprint = bundle.checkpoint(PART)?.fingerprint();
        let (net, _) = bundle.load(PART, fresh, FloatDtype::F32, device)?;
        Ok(Self { net, config, fingerprint })
    }

    /// Writes their folder, which appears whole or not at all.
    ///
    /// # Errors
    /// A disk that refuses.
    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        let manifest = Manifest::new(FAMILY, &self.config)?;
        let parts = vec![(PART, Part::module(&self.net))];
        Ok(save_bundle(path, manifest, parts, FloatDtype::F16, true)?)
    }

    /// What they see of a profile and a reference, `[1, channels, height, width]` each, as the model makes images, a part
    /// of the second hidden by a seed.
    pub(crate) fn sight(
        &self,
        model: &Model,
        profile: Tensor<4>,
        reference: Tensor<4>,
        seed: u64,
    ) -> Sight {
        let mask = self.config.mask(model.vae.is_some());
        Sight::new(profile, mask.apply(reference, &[seed]), model.config.process.quiet())
    }
}

/// What a model is told of a portrait besides the pictures: the text of its branches, or no class.
///
/// # Errors
/// A student, a text that cannot be read, a text for a model of classes, a process without a level of least noise.
pub(crate) fn told(model: &Model, prompt: &str, device: &Device) -> Result<Conditioning> {
    let fault = |reason: String| Error::Config { reason };
    let Net::Dit(net) = &model.net else {
        return Err(fault("a few-step student makes no portraits".into()));
    };
    let (config, process) = (net.config(), &model.config.process);
    model.config.check_trained()?;
    if !process.quiet().1.is_finite() {
        return Err(fault(
            "the process has no level of least noise, at which pictures are seen".into(),
        ));
    }
    match config.classes {
        0 => {
            let task = TextTask::of(model, device)?;
            let factor = model.vae.as_ref().map_or(1, |vae| vae.config().factor());
            let request = Request::new([prompt.to_owned()]);
            task.check(&request)?;
            Ok(task.told(&request, config.size.map(|side| side * factor))?.some(&[0]))
        }
        classes if prompt.is_empty() => Ok(Conditioning::classes(&[classes], device)),
        _ => Err(fault(format!("the text {prompt:?} for portraits, the model is told classes"))),
    }
}
