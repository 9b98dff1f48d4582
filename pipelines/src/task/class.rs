//! Images of given classes.

use burn::tensor::Device;
use pyrograph_engine::nets::Conditioning;

use super::{PromptTask, Task, Told};
use crate::error::{Error, Result};
use crate::labels::Labels;
use crate::metadata::Asked;
use crate::model::{Model, ModelConfig};
use crate::request::Request;

/// Images of given classes, by their ids.
#[derive(Debug, Clone)]
pub struct ClassTask {
    classes: usize,
    labels: Labels,
    device: Device,
}

impl ClassTask {
    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Their names.
    pub fn labels(&self) -> &Labels {
        &self.labels
    }
}

impl Task for ClassTask {
    type Prompt = usize;

    fn check(&self, request: &Request<usize>) -> Result<()> {
        let Request { prompts, negative, .. } = request;
        let of_texts =
            [("raw prompt", request.raw_prompt), ("tokens of a text", request.tokens.is_some())];
        for (what, given) in of_texts {
            if given {
                let (found, expected) = ("given".into(), "none for a model of classes".into());
                return Err(Error::Setting { what, found, expected });
            }
        }
        match prompts.iter().chain(negative).find(|&&class| class >= self.classes) {
            Some(&class) => Err(Error::ClassRange { class, classes: self.classes }),
            None => Ok(()),
        }
    }

    /// Guidance goes away from the class after the last one.
    fn told(&self, request: &Request<usize>, _: [usize; 2]) -> Result<Told> {
        let mut classes = request.prompts.clone();
        let images = (0..classes.len()).collect();
        let weaker = vec![vec![classes.len(); classes.len()]];
        classes.push(request.negative.unwrap_or(self.classes));
        Ok(Told { table: Conditioning::classes(&classes, &self.device), images, weaker })
    }
}

impl PromptTask for ClassTask {
    fn of(model: &Model, device: &Device) -> Result<Self> {
        let ModelConfig { net, labels, .. } = &model.config;
        let (classes, labels) = (net.dit.classes, labels.clone());
        model.config.check_classes()?;
        Ok(Self { classes, labels, device: device.clone() })
    }

    fn asked(prompts: Vec<usize>) -> Asked {
        Asked::Classes(prompts)
    }

    fn prompts(asked: &Asked) -> Option<Vec<usize>> {
        match asked {
            Asked::Classes(classes) => Some(classes.clone()),
            Asked::Texts(_) => None,
        }
    }
}

impl ModelConfig {
    /// What the network is told, for people.
    pub(super) fn told(&self) -> &'static str {
        match (self.net.dit.classes > 0, self.net.dit.text.is_some()) {
            (true, false) => "classes",
            (false, true) => "texts",
            (true, true) => "classes and texts",
            (false, false) => "nothing",
        }
    }

    /// Refuses a model that cannot be trained: that is asked by both classes and texts, or by nothing.
    ///
    /// # Errors
    /// [`Error::Task`].
    pub fn check_trained(&self) -> Result<()> {
        let found = match &self.text {
            Some(input) if !input.clips.is_empty() => "texts by several encoders",
            Some(input) if input.absent => "texts, or none at all",
            _ => self.told(),
        };
        match found {
            "classes" | "texts" => Ok(()),
            found => Err(Error::Task { found, expected: "classes or texts by one encoder" }),
        }
    }

    /// Refuses a model that is asked by anything but classes.
    ///
    /// # Errors
    /// [`Error::Task`].
    pub fn check_classes(&self) -> Result<()> {
        match self.told() {
            "classes" => Ok(()),
            found => Err(Error::Task { found, expected: "classes" }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pyrograph_engine::nets::{DitConfig, TextAttention, TextConfig};

    use crate::train::TrainConfig;

    #[test]
    fn models_of_other_tasks_are_refused() {
        let TrainConfig { process, defaults, .. } = TrainConfig::default();
        let labels = Labels::default();
        let net = DitConfig { classes: 3, ..DitConfig::dit(32, 1, 2) };
        let mut config = ModelConfig {
            net: net.clone().into(),
            process,
            vae: None,
            defaults,
            labels,
            text: None,
        };
        assert!(config.check_classes().is_ok());
        config.net = DitConfig { classes: 0, ..net.clone() }.into();
        assert!(matches!(config.check_classes(), Err(Error::Task { .. })));
        let text = Some(TextConfig::new(8, TextAttention::Cross));
        config.net = DitConfig { text, ..net }.into();
        assert!(matches!(config.check_classes(), Err(Error::Task { .. })));
    }
}
