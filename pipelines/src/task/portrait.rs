//! Portraits of a person.

use std::sync::Arc;

use burn::tensor::{Device, Int, Tensor};
use pyrograph_engine::nets::{Conditioning, Sight};
use pyrograph_engine::portrait::CellMask;
use pyrograph_engine::read;
use serde::Serialize;

use super::{Task, Told};
use crate::branches::Branches;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::portrait::{self, PortraitConfig};
use crate::request::{Picture, Request, expect, latent};

/// What a portrait is made from.
#[derive(Debug, Clone)]
pub struct Portrait {
    /// Who it shows.
    pub profile: Arc<Picture>,
    /// Whose light and pose it has.
    pub reference: Arc<Picture>,
    /// Determines what is hidden of the reference.
    pub seed: u64,
    /// Share of the reference that is hidden, 0 to 1; without, as much as in training.
    pub hidden: Option<f64>,
    /// See [`Sight::still`].
    pub still: bool,
}

/// Which parts of two pictures show the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Matches {
    /// Rows and columns of the cells that are matched, those of both pictures.
    pub grid: [usize; 2],
    /// After each block, for each cell of the reference the number of that of the profile, row by row.
    pub levels: Vec<Vec<usize>>,
}

impl Portrait {
    /// Whether both are made from the same.
    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.profile, &other.profile)
            && Arc::ptr_eq(&self.reference, &other.reference)
            && self.seed == other.seed
            && self.hidden == other.hidden
            && self.still == other.still
    }
}

/// Portraits of a person, from a profile and a reference (IC-Portrait, Yang et al. 2025).
#[derive(Debug, Clone)]
pub struct PortraitTask {
    model: Model,
    branches: Branches<PortraitConfig>,
    /// Of one portrait, but for its pictures.
    told: Conditioning,
    device: Device,
}

impl PortraitTask {
    /// Portraits by the branches of a model, which may be in training.
    ///
    /// # Errors
    /// A few-step student.
    pub(crate) fn new(
        model: &Model,
        branches: Branches<PortraitConfig>,
        device: &Device,
    ) -> Result<Self> {
        let told = portrait::told(model, &branches.config.prompt, device)?;
        Ok(Self { model: model.clone(), branches, told, device: device.clone() })
    }

    /// # Errors
    /// Branches that have only learnt to find matches.
    pub(crate) fn check_trained(&self) -> Result<()> {
        match self.branches.config.branches.appearance {
            Some(_) => Ok(()),
            None => {
                let reason = "the branches find matches so far: train those of the appearance, too";
                Err(Error::Config { reason: reason.into() })
            }
        }
    }

    /// A picture as the model makes them, `[1, channels, height, width]`.
    fn read(&self, picture: &Picture, size: [usize; 2]) -> Result<Tensor<4>> {
        let vae = self.model.vae.as_ref();
        let (_, latent) = picture.read(size, &self.device, |pixels| latent(vae, pixels))?;
        let [height, width] = size.map(|side| side / vae.map_or(1, |vae| vae.config().factor()));
        let channels = self.model.net.trunk().config().channels;
        expect("the picture", latent, [1, channels, height, width])
    }

    /// What the branches see of two pictures, as the portrait says.
    fn sight(&self, profile: Tensor<4>, reference: Tensor<4>, asked: &Portrait) -> Sight {
        let mask = self.branches.config.mask(self.model.vae.is_some());
        let mask = CellMask { ratio: asked.hidden.unwrap_or(mask.ratio), ..mask };
        let quiet = self.model.config.process.quiet();
        let sight = Sight::new(profile, mask.apply(reference, &[asked.seed]), quiet);
        Sight { still: asked.still, ..sight }
    }

    /// What the network is told of what the branches see.
    fn steered(&self, sight: &Sight) -> Conditioning {
        let (net, patch) = (self.model.net.trunk(), self.branches.config.patch);
        self.branches.net.told(net, sight, self.told.clone(), patch)
    }

    /// What of the two pictures of a portrait shows the same, seen at the `size` of the model's pictures.
    ///
    /// # Errors
    /// Pictures that cannot be read, a share that is hidden out of range, branches that find no matches; a GPU
    /// that failed.
    pub(crate) fn matches(&self, asked: &Portrait, size: [usize; 2]) -> Result<Matches> {
        check_hidden(asked)?;
        if self.branches.net.matching.is_none() {
            return Err(Error::Config { reason: "the branches find no matches".into() });
        }
        let net = self.model.net.trunk();
        let (profile, reference) =
            (self.read(&asked.profile, size)?, self.read(&asked.reference, size)?);
        let sight = self.sight(profile, reference, asked);
        let patch = self.branches.config.patch;
        let found = self.branches.net.matches(net, &sight, &self.told, patch);
        let level = |own: Tensor<2, Int>| -> Result<Vec<usize>> {
            Ok(read::numbers(own.float())?.into_iter().map(|at| at as usize).collect())
        };
        let grid = net.config().size.map(|side| side / patch);
        Ok(Matches { grid, levels: found.into_iter().map(level).collect::<Result<_>>()? })
    }
}

/// # Errors
/// A share that is hidden out of range.
fn check_hidden(asked: &Portrait) -> Result<()> {
    match asked.hidden.filter(|hidden| !(0.0..=1.0).contains(hidden)) {
        Some(hidden) => {
            let (what, found) = ("the hidden share of the reference", hidden.to_string());
            Err(Error::Setting { what, found, expected: "0 to 1".into() })
        }
        None => Ok(()),
    }
}

impl Task for PortraitTask {
    type Prompt = Portrait;

    fn check(&self, request: &Request<Portrait>) -> Result<()> {
        let unread = [
            ("a negative prompt", request.negative.is_some()),
            ("raw prompt", request.raw_prompt),
            ("tokens of a text", request.tokens.is_some()),
            ("patch sizes", request.patches.is_some()),
            ("a picture that controls", !request.controls.is_empty()),
        ];
        if let Some((what, _)) = unread.into_iter().find(|(_, given)| *given) {
            let (found, expected) = ("given".into(), "none for portraits".into());
            return Err(Error::Setting { what, found, expected });
        }
        if self.branches.config.branches.matching.is_none()
            && request.prompts.iter().any(|prompt| prompt.still)
        {
            let what = "a profile that stays in its place";
            let expected = "branches that find matches".into();
            return Err(Error::Setting { what, found: "asked".into(), expected });
        }
        request.prompts.iter().try_for_each(check_hidden)
    }

    /// The person, and light and pose.
    fn scales(&self) -> usize {
        2
    }

    /// Guidance goes away from a portrait of nobody in that light and pose, and then from one of nobody, of whose light and
    /// pose nothing is known.
    fn told(&self, request: &Request<Portrait>, size: [usize; 2]) -> Result<Told> {
        let mut different: Vec<&Portrait> = Vec::new();
        let mut images = Vec::with_capacity(request.prompts.len());
        for prompt in &request.prompts {
            let known = different.iter().position(|other| other.is(prompt));
            images.push(known.unwrap_or(different.len()));
            different.extend(known.is_none().then_some(prompt));
        }
        let black = self.branches.config.mask(self.model.vae.is_some()).hidden;
        let mut told = Vec::with_capacity(2 * different.len() + 1);
        let mut shape = [0; 4];
        for asked in &different {
            let (profile, reference) =
                (self.read(&asked.profile, size)?, self.read(&asked.reference, size)?);
            shape = profile.dims();
            let nobody = Tensor::full(shape, black, &self.device);
            for profile in [profile, nobody] {
                told.push(self.steered(&self.sight(profile, reference.clone(), asked)));
            }
        }
        let nothing = Tensor::full(shape, black, &self.device);
        let quiet = self.model.config.process.quiet();
        told.push(self.steered(&Sight::new(nothing.clone(), nothing, quiet)));
        let table = told.into_iter().reduce(Conditioning::followed_by).ok_or(Error::NoPrompts)?;
        let nothing = vec![2 * different.len(); images.len()];
        let nobody = images.iter().map(|image| 2 * image + 1).collect();
        let images = images.iter().map(|image| 2 * image).collect();
        Ok(Told { table, images, weaker: vec![nobody, nothing] })
    }
}
