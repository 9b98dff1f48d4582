//! Portraits of a person.

use std::sync::Arc;

use burn::tensor::{Device, Tensor};
use pyrograph_engine::nets::{Conditioning, Sight};
use pyrograph_engine::portrait::CellMask;

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
}

impl Portrait {
    /// Whether both are made from the same.
    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.profile, &other.profile)
            && Arc::ptr_eq(&self.reference, &other.reference)
            && self.seed == other.seed
            && self.hidden == other.hidden
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
    /// Portraits by the branches of a model.
    ///
    /// # Errors
    /// A few-step student, branches that have only learnt to find matches.
    pub(crate) fn new(
        model: &Model,
        branches: Branches<PortraitConfig>,
        device: &Device,
    ) -> Result<Self> {
        if branches.config.branches.appearance.is_none() {
            let reason = "the branches find matches so far: train those of the appearance, too";
            return Err(Error::Config { reason: reason.into() });
        }
        Self::of_any(model, branches, device)
    }

    /// The same while the branches are trained.
    pub(crate) fn of_any(
        model: &Model,
        branches: Branches<PortraitConfig>,
        device: &Device,
    ) -> Result<Self> {
        let told = portrait::told(model, &branches.config.prompt, device)?;
        Ok(Self { model: model.clone(), branches, told, device: device.clone() })
    }

    /// A picture as the model makes them, `[1, channels, height, width]`.
    fn read(&self, picture: &Picture, size: [usize; 2]) -> Result<Tensor<4>> {
        let vae = self.model.vae.as_ref();
        let (_, latent) = picture.read(size, &self.device, |pixels| latent(vae, pixels))?;
        let [height, width] = size.map(|side| side / vae.map_or(1, |vae| vae.config().factor()));
        let channels = self.model.net.trunk().config().channels;
        expect("the picture", latent, [1, channels, height, width])
    }

    /// What the network is told of what the branches see.
    fn steered(
        &self,
        profile: Tensor<4>,
        reference: Tensor<4>,
        (seed, hidden): (u64, Option<f64>),
    ) -> Conditioning {
        let mask = self.branches.config.mask(self.model.vae.is_some());
        let mask = CellMask { ratio: hidden.unwrap_or(mask.ratio), ..mask };
        let quiet = self.model.config.process.quiet();
        let sight = Sight::new(profile, mask.apply(reference, &[seed]), quiet);
        self.branches.net.told(
            self.model.net.trunk(),
            &sight,
            self.told.clone(),
            self.branches.config.patch,
        )
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
        let mut hidden = request.prompts.iter().filter_map(|prompt| prompt.hidden);
        match hidden.find(|hidden| !(0.0..=1.0).contains(hidden)) {
            Some(hidden) => {
                let (what, found) = ("the hidden share of the reference", hidden.to_string());
                Err(Error::Setting { what, found, expected: "0 to 1".into() })
            }
            None => Ok(()),
        }
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
        for Portrait { profile, reference, seed, hidden } in &different {
            let (profile, reference) = (self.read(profile, size)?, self.read(reference, size)?);
            shape = profile.dims();
            let nobody = Tensor::full(shape, black, &self.device);
            let chosen = (*seed, *hidden);
            told.push(self.steered(profile, reference.clone(), chosen));
            told.push(self.steered(nobody, reference, chosen));
        }
        let nothing = Tensor::full(shape, black, &self.device);
        told.push(self.steered(nothing.clone(), nothing, (0, None)));
        let table = told.into_iter().reduce(Conditioning::followed_by).ok_or(Error::NoPrompts)?;
        let nothing = vec![2 * different.len(); images.len()];
        let nobody = images.iter().map(|image| 2 * image + 1).collect();
        let images = images.iter().map(|image| 2 * image).collect();
        Ok(Told { table, images, weaker: vec![nobody, nothing] })
    }
}
