//! Runs that teach branches to make portraits, of pairs of pictures of people (IC-Portrait, Yang et al. 2025).

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Module;
use burn::tensor::Device;
use pyrograph_engine::nets::{Conditioning, IcPortrait, Sight, Steered};
use pyrograph_engine::random::Generator;
use pyrograph_engine::train::{Batch, Denoising, Gradients, Pairs, Target, Trainer};
use pyrograph_weights::FloatDtype;

use super::ControlShape;
use crate::branches::Branches;
use crate::data::{Annotation, Dataset};
use crate::error::{Error, Result};
use crate::eval::pictures;
use crate::model::Model;
use crate::portrait::{self, PortraitConfig};
use crate::train::checkpoint::Whole;
use crate::train::config::TrainConfig;
use crate::train::denoising::perceptual;
use crate::train::identity::Sources;
use crate::train::outline::Outline;
use crate::train::start::Ground;
use crate::train::streams::Streams;

impl ControlShape {
    /// Those that the run starts with.
    fn portraits(
        &self,
        model: &Model,
        base: String,
        sources: &mut Sources,
        seed: u64,
        device: &Device,
    ) -> Result<Branches<PortraitConfig>> {
        let net = model.net.trunk();
        let Self { hidden, cell, .. } = *self;
        let config = PortraitConfig {
            branches: self.branches(),
            base,
            patch: net.config().patch,
            hidden,
            cell,
            prompt: self.prompt.clone(),
        };
        let mut own = match self.fresh {
            true => IcPortrait::fresh(net.config(), config.branches, device),
            false => IcPortrait::new(net, config.branches, seed, device),
        };
        let Some(path) = &self.matching else { return Ok(Branches::new(own, config)) };
        let found: Branches<PortraitConfig> =
            Branches::open(path, net.config(), &config.base, device)?;
        sources.insert("control.matching".to_owned(), found.fingerprint.into());
        own.matching = found.net.matching;
        Ok(Branches::new(own, config))
    }
}

/// Which images show the same person, by its class.
struct People(Vec<Vec<usize>>);

impl People {
    /// # Errors
    /// A person of whom there is one picture.
    fn new(data: &Dataset) -> Result<Self> {
        let mut of: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        (0..data.len()).for_each(|image| of.entry(data.label(image)).or_default().push(image));
        let of: Vec<Vec<usize>> = of.into_values().collect();
        match of.iter().find(|images| images.len() < 2) {
            None => Ok(Self(of)),
            Some(images) => {
                let name = &data.classes()[data.label(images[0])];
                Err(Error::Config { reason: format!("one picture of `{name}`, a pair needs two") })
            }
        }
    }

    /// Another picture of the same person.
    fn partner(&self, person: usize, image: usize, random: &mut Generator) -> usize {
        let others: Vec<usize> =
            self.0[person].iter().copied().filter(|other| *other != image).collect();
        others[(random.uniform() * others.len() as f64) as usize]
    }

    /// Two pictures of some people, spread over all.
    fn shown(&self, count: usize) -> Vec<[usize; 2]> {
        let count = count.min(self.0.len());
        let person = |i: usize| &self.0[i * self.0.len() / count];
        (0..count).map(|i| [person(i)[0], person(i)[1]]).collect()
    }
}

/// Branches in training, and the people that they learn from.
pub(in crate::train) struct PortraitLearner {
    pub(in crate::train) trainer: Trainer<Steered<IcPortrait>>,
    pub(in crate::train) data: Dataset,
    people: People,
    pairs: Pairs,
    loss: Denoising,
    /// Of one picture, but for the pair.
    told: Conditioning,
    config: PortraitConfig,
}

/// People in a sample sheet.
const SHOWN: usize = 8;

impl PortraitLearner {
    /// Fresh branches, or one beside those that find matches, in a run that goes on from `resumed`; latents are kept in
    /// `folder`.
    ///
    /// # Errors
    /// A configuration that does not fit the model or the checkpoint, a person of whom there is one picture.
    pub(in crate::train) fn new(
        folder: &Path,
        config: &TrainConfig,
        data: Dataset,
        resumed: Option<&Whole>,
        device: &Device,
    ) -> Result<(Self, Outline)> {
        let fault = |reason: &str| Error::Config { reason: reason.into() };
        let shape = config.control.as_ref().expect("a run of branches");
        let Ground { encoder, vae, mut sources, mut start } = Ground::new(config, &data, device)?;
        let text = start.reader(&mut sources, device)?;
        if data.annotation() != Annotation::Classes {
            return Err(fault("the images have captions, expected a folder for each person"));
        }
        let recognised = start.init.ok_or_else(|| fault("no model to steer"))?;
        let base = recognised.net.checkpoint.fingerprint();
        sources.insert("init".to_owned(), base.clone().into());
        let model = recognised.load(FloatDtype::F32, device, &mut |_| ())?;
        let model = Model { vae: vae.clone(), text: text.or(model.text), ..model };
        let branches = shape.portraits(&model, base, &mut sources, config.seed, device)?;
        let told = portrait::told(&model, &shape.prompt, device)?;
        let loss = Denoising {
            process: config.process.clone(),
            condition_dropout: 0.0,
            target: Target::Data,
            weighting: config.weighting,
            perceptual: perceptual(config, &mut sources, device)?,
        };
        if let Some(whole) = resumed {
            whole.check(config, &sources)?;
        }
        let people = People::new(&data)?;
        let data = data.for_training(false, config.augment, encoder, folder, device)?;
        let autodiff = device.clone().autodiff();
        let net = model.net.trunk().clone().fork(&autodiff);
        let steered = Steered::new(net, branches.net.newest().fork(&autodiff));
        let trainer = Trainer::new(steered, config.trainer(&model.config.net.dit));
        let shown = people.shown(SHOWN);
        let pairs = Pairs {
            mask: branches.config.mask(vae.is_some()),
            profile_dropout: shape.profile_dropout,
            reference_dropout: shape.reference_dropout,
        };
        let outline = Outline {
            text: model.text,
            sources,
            shown: pictures(&data, &shown.concat(), &Device::flex())?,
            ..Outline::new(model.config, vae)
        };
        let config = branches.config;
        Ok((Self { trainer, data, people, pairs, loss, told, config }, outline))
    }

    /// The gradients of a step on images of these numbers, each with another one of the same person.
    pub(in crate::train) fn gradients(
        &self,
        indices: &[usize],
        streams: Streams,
        config: &TrainConfig,
        device: &Device,
    ) -> Gradients {
        let parts: Vec<&[usize]> = indices.chunks(config.batch / config.micro_batches).collect();
        let (gradients, _) = self.trainer.gradients(config.micro_batches, |steered, i| {
            let mut random = streams.part(i as u64);
            let batch = self.batch(steered, parts[i], &mut random, device);
            (self.loss.loss(&steered.net, &batch, self.config.patch, &mut random), ())
        });
        gradients
    }

    fn batch(
        &self,
        steered: &Steered<IcPortrait>,
        targets: &[usize],
        random: &mut Generator,
        device: &Device,
    ) -> Batch {
        let partner = |&image: &usize| self.people.partner(self.data.label(image), image, random);
        let partners: Vec<usize> = targets.iter().map(partner).collect();
        let profile = self.data.batch(&partners, random, device).clean;
        let clean = self.data.batch(targets, random, device).clean;
        let sight = self.pairs.sight(profile, clean.clone(), &self.loss.process, random);
        let sight = Sight {
            profile: sight.profile.autodiff(),
            reference: sight.reference.autodiff(),
            ..sight
        };
        let told = self.told.select(&vec![0; targets.len()]);
        let told = steered.branches.told(&steered.net, &sight, told, self.config.patch);
        Batch { clean: clean.autodiff(), null: told.clone(), told }
    }

    /// The branches with the weights of average number `index`, off the autodiff device.
    pub(in crate::train) fn averaged(&self, index: usize) -> Branches<PortraitConfig> {
        Branches::new(self.trainer.averaged(index).branches, self.config.clone())
    }
}
