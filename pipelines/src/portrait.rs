//! Branches that make portraits with a model (IC-Portrait, Yang et al. 2025).

use burn::tensor::Device;
use pyrograph_engine::nets::{Conditioning, DitConfig, IcPortrait, IcPortraitConfig, Net};
use pyrograph_engine::portrait::CellMask;
use serde::{Deserialize, Serialize};

use crate::branches::BranchConfig;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::request::Request;
use crate::task::{PromptTask, Task, TextTask};

/// What determines branches that make portraits, but their weights.
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

impl BranchConfig for PortraitConfig {
    type Net = IcPortrait;
    const FAMILY: &'static str = "portrait";

    fn base(&self) -> &str {
        &self.base
    }

    fn patch(&self) -> usize {
        self.patch
    }

    fn check(&self, net: &DitConfig) -> std::result::Result<(), String> {
        let Self { hidden, cell, .. } = self;
        match () {
            () if !(0.0..=1.0).contains(hidden) => {
                Err(format!("a share of {hidden} hidden, expected 0 to 1"))
            }
            () if *cell == 0 => Err("cells without a side".into()),
            () => self.branches.check(net),
        }
    }

    fn fresh(&self, net: &DitConfig, device: &Device) -> IcPortrait {
        IcPortrait::fresh(net, self.branches, device)
    }
}

impl PortraitConfig {
    /// What is hidden of references: black in pixels, nothing in latents.
    pub(crate) fn mask(&self, latents: bool) -> CellMask {
        let hidden = if latents { 0.0 } else { -1.0 };
        CellMask { ratio: self.hidden, cell: self.cell, hidden }
    }
}

/// What a model is told besides what branches see: the text of these, or no class.
///
/// # Errors
/// A student, a text that cannot be read, a text for a model of classes, a process without a level of least noise.
pub(crate) fn told(model: &Model, prompt: &str, device: &Device) -> Result<Conditioning> {
    let fault = |reason: String| Error::Config { reason };
    let Net::Dit(net) = &model.net else {
        return Err(fault("branches do not steer a few-step student".into()));
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
