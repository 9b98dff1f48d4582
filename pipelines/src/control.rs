//! Branches that see a picture which controls those that a model makes (ControlNet, Zhang et al. 2023).

use std::path::PathBuf;

use burn::tensor::Device;
use pyrograph_engine::nets::{Control, DitConfig};
use pyrograph_engine::portrait::conditions::ControlKind;
use serde::{Deserialize, Serialize};

use crate::branches::{BranchConfig, Branches};

/// What determines a branch that sees a picture, but its weights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlConfig {
    /// What of a picture it sees.
    pub kind: ControlKind,
    /// Blocks: copies of the network's first ones.
    pub depth: usize,
    /// Fingerprint of the network that it was trained with, the only one that it goes with.
    pub base: String,
    /// Patch size at which it sees, the only one that it steers.
    pub patch: usize,
}

/// A branch of a request.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlBranch {
    /// Its folder, as `train control` makes it for one model, or that of the run.
    Folder(PathBuf),
    /// One that [is open](crate::Pipeline::control) already.
    #[serde(skip)]
    Open(Branches<ControlConfig>),
}

impl BranchConfig for ControlConfig {
    type Net = Control;
    const FAMILY: &'static str = "control";

    fn base(&self) -> &str {
        &self.base
    }

    fn patch(&self) -> usize {
        self.patch
    }

    fn check(&self, net: &DitConfig) -> Result<(), String> {
        net.check_branches()?;
        match (1..=net.depth).contains(&self.depth) {
            true => Ok(()),
            false => Err(format!("{} blocks, expected 1 to {}", self.depth, net.depth)),
        }
    }

    fn fresh(&self, net: &DitConfig, device: &Device) -> Control {
        Control::fresh(net, self.depth, device)
    }
}
