//! What a run knows from the start.

use image::RgbImage;
use pyrograph_engine::nets::{Net, Vae};

use super::adopt::Adopted;
use super::config::TrainConfig;
use super::control::Beside;
use super::identity::Sources;
use crate::data::Dataset;
use crate::error::Result;
use crate::model::{Model, ModelConfig, TextReader};

/// Most pictures that a branch sees in a sample sheet.
const CONTROLLED: usize = 8;

/// The finished model but for its network's weights, and what it is made from.
pub(super) struct Outline {
    pub(super) config: ModelConfig,
    pub(super) vae: Option<Vae>,
    pub(super) text: Option<TextReader>,
    /// What sample grids of a model of texts show.
    pub(super) prompts: Vec<String>,
    /// Pictures that those of branches are made from: what a branch sees, or a profile and a reference of each person, one
    /// after the other.
    pub(super) shown: Vec<RgbImage>,
    /// Classes of those that a branch sees, for a model of classes.
    pub(super) classes: Vec<usize>,
    pub(super) sources: Sources,
    /// Which of its classes come from the model that the run starts from.
    pub(super) adopted: Option<Adopted>,
}

impl Outline {
    /// That of a model of classes that is made from nothing.
    pub(super) fn new(config: ModelConfig, vae: Option<Vae>) -> Self {
        Self {
            config,
            vae,
            text: None,
            prompts: Vec::new(),
            shown: Vec::new(),
            classes: Vec::new(),
            sources: Sources::new(),
            adopted: None,
        }
    }

    /// The same for a branch that sees pictures beside the images.
    ///
    /// # Errors
    /// Pixels that are not finite.
    pub(super) fn beside(
        self,
        beside: &Beside,
        data: &Dataset,
        config: &TrainConfig,
    ) -> Result<Self> {
        let count = data.len().min(CONTROLLED);
        let numbers: Vec<usize> = (0..count).map(|i| i * data.len() / count).collect();
        let caption = |&image: &usize| data.captions()[data.label(image)].clone();
        let prompts = match (data.captions().is_empty(), config.sample_prompts.is_empty()) {
            (false, true) => numbers.iter().map(caption).collect(),
            _ => self.prompts,
        };
        let classes = numbers.iter().map(|&image| data.label(image)).collect();
        Ok(Self { shown: beside.shown(data, &numbers)?, prompts, classes, ..self })
    }

    /// The model of a network.
    pub(super) fn with(&self, net: Net) -> Model {
        let model = Model::new(net, self.vae.clone(), self.config.clone());
        Model { text: self.text.clone(), ..model }
    }
}
