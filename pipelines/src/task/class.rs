//! Images of given classes.

use burn::tensor::Device;
use pyrograph_engine::nets::Conditioning;

use super::Task;
use crate::error::{Error, Result};
use crate::labels::Labels;
use crate::model::ModelConfig;

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

    fn of(config: &ModelConfig, device: &Device) -> Result<Self> {
        let ModelConfig { net, labels, .. } = config;
        let (classes, labels) = (net.dit.classes, labels.clone());
        if classes == 0 || net.dit.text.is_some() {
            let text = if net.dit.text.is_some() { ", and reads text" } else { "" };
            let found = format!("{classes} classes{text}");
            return Err(Error::Task { task: "class", found, expected: "classes alone" });
        }
        Ok(Self { classes, labels, device: device.clone() })
    }

    fn check(&self, prompts: &[usize]) -> Result<()> {
        match prompts.iter().find(|&&class| class >= self.classes) {
            Some(&class) => Err(Error::ClassRange { class, classes: self.classes }),
            None => Ok(()),
        }
    }

    fn encode(&self, prompts: &[usize]) -> Result<Conditioning> {
        Ok(Conditioning::classes(prompts, &self.device))
    }

    /// The class after the last one.
    fn null(&self, images: usize) -> Conditioning {
        Conditioning::classes(&vec![self.classes; images], &self.device)
    }
}
