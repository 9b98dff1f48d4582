//! Runs that teach branches to steer a model, which itself stays as it is.

mod pictures;
mod portraits;

use std::path::PathBuf;

use pyrograph_engine::nets::{Appearance, IcPortraitConfig};
use pyrograph_engine::portrait::conditions::ControlKind;
use serde::{Deserialize, Serialize};

pub(super) use pictures::Beside;
pub(super) use portraits::PortraitLearner;

use super::config::TrainConfig;
use crate::branches;
use crate::error::{Error, Result};
use crate::model::Recognised;
use crate::portrait::PortraitConfig;

/// Branches to train.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ControlShape {
    /// What of a picture they see (ControlNet, Zhang et al. 2023); without, they make portraits of people (IC-Portrait, Yang
    /// et al. 2025).
    pub kind: Option<ControlKind>,
    /// Folder of pictures that were drawn to control, each under the name of its image.
    pub pictures: Option<PathBuf>,
    /// Portraits: folder of branches that find matches, which stay as they are while those of the appearance are trained;
    /// without, the first are trained.
    pub matching: Option<PathBuf>,
    /// Portraits: rank of adapters through which the model attends to the pictures, in place of a branch of the appearance;
    /// with `matching`, to the profile moved, too.
    pub in_context: Option<usize>,
    /// Blocks of a branch.
    pub depth: usize,
    /// Whether branches start with fresh weights, in place of the model's: shows what those are worth.
    pub fresh: bool,
    /// Portraits: whether the model itself sees the profile, too.
    pub panel: bool,
    /// Portraits: share of a reference that is hidden.
    pub hidden: f64,
    /// Portraits: side of the cells that are hidden, in pixels or latent cells.
    pub cell: usize,
    /// Portraits: share of the examples whose profile is black.
    pub profile_dropout: f64,
    /// Portraits: share of the examples whose reference is hidden as a whole.
    pub reference_dropout: f64,
    /// Portraits: what a model of texts is told of every picture.
    pub prompt: String,
}

impl Default for ControlShape {
    fn default() -> Self {
        Self {
            kind: None,
            pictures: None,
            matching: None,
            in_context: None,
            depth: 3,
            fresh: false,
            panel: false,
            hidden: 0.8,
            cell: 1,
            profile_dropout: 0.1,
            reference_dropout: 0.1,
            prompt: String::new(),
        }
    }
}

impl ControlShape {
    /// Refuses settings that such a run does not read, a start from nothing, and what does not go with the model `init`,
    /// before any image is read.
    pub(super) fn check(&self, config: &TrainConfig, init: Option<&Recognised>) -> Result<()> {
        let fault = |reason: String| Err(Error::Config { reason });
        if let Some(key) = self.unread(config) {
            let what =
                self.kind.map_or("branches that make portraits", |_| "a branch of this kind");
            return fault(format!("{key} is set, training {what} does not read it"));
        }
        match (self.kind, &self.pictures) {
            (Some(ControlKind::Picture), None) => {
                return fault("control.kind is picture, and there is no control.pictures".into());
            }
            (kind, Some(_)) if kind != Some(ControlKind::Picture) => {
                return fault(
                    "control.pictures is set, only branches of the kind picture see any".into(),
                );
            }
            _ => (),
        }
        let Some(init) = init else {
            return fault("control is set, and there is no init, the model to steer".into());
        };
        let (net, depth) = (&init.config.net.dit, self.depth);
        net.check_branches().map_err(|reason| Error::Config { reason })?;
        let has_branch = self.kind.is_some() || self.branches().matching.is_some();
        if has_branch && !(1..=net.depth).contains(&depth) {
            return fault(format!("control.depth is {depth}, expected 1 to {}", net.depth));
        }
        if net.classes > 0 && !self.prompt.is_empty() {
            return fault(format!(
                "control.prompt is {:?}, the model is told classes",
                self.prompt
            ));
        }
        if self.kind.is_none() {
            self.branches().check(net).map_err(|reason| Error::Config { reason })?;
        }
        let Some(path) = &self.matching else { return Ok(()) };
        let base = init.net.checkpoint.fingerprint();
        let learnt = branches::read::<PortraitConfig>(path, net, &base)?.branches.matching;
        match learnt {
            Some(learnt) if learnt == depth => Ok(()),
            Some(learnt) => {
                fault(format!("control.depth is {depth}, {} has {learnt}", path.display()))
            }
            None => fault(format!("{} finds no matches", path.display())),
        }
    }

    /// Branches that make portraits.
    fn branches(&self) -> IcPortraitConfig {
        let in_context = self.in_context.map(|rank| Appearance::InContext { rank });
        let branch = self.matching.as_ref().map(|_| Appearance::Branch);
        let matches = self.matching.is_some() || self.in_context.is_none();
        IcPortraitConfig {
            matching: matches.then_some(self.depth),
            appearance: in_context.or(branch),
            panel: self.panel,
        }
    }

    /// The first setting that is set and not read.
    fn unread(&self, config: &TrainConfig) -> Option<&'static str> {
        let (plain, own) = (TrainConfig::default(), Self::default());
        let portraits = self.kind.is_none();
        let unread = [
            ("lora", config.lora.is_some()),
            ("patches", config.patches != plain.patches),
            ("snapshot_every", config.snapshot_every > 0),
            ("label_dropout", portraits && config.label_dropout != plain.label_dropout),
            ("flip", portraits && config.flip),
            ("sample_prompts", portraits && !config.sample_prompts.is_empty()),
            ("control.matching", !portraits && self.matching.is_some()),
            ("control.in_context", !portraits && self.in_context.is_some()),
            (
                "control.depth",
                self.in_context.is_some() && self.matching.is_none() && self.depth != own.depth,
            ),
            ("control.fresh", self.in_context.is_some() && self.fresh),
            ("control.panel", !portraits && self.panel),
            ("control.hidden", !portraits && self.hidden != own.hidden),
            ("control.cell", !portraits && self.cell != own.cell),
            ("control.profile_dropout", !portraits && self.profile_dropout != own.profile_dropout),
            (
                "control.reference_dropout",
                !portraits && self.reference_dropout != own.reference_dropout,
            ),
            ("control.prompt", !portraits && !self.prompt.is_empty()),
        ];
        unread.into_iter().find(|(_, set)| *set).map(|(key, _)| key)
    }
}
