//! Images of given classes.

use burn::tensor::Device;

use super::{Conditioning, Task};
use crate::error::{Error, Result};
use crate::labels::Labels;
use crate::model::ModelConfig;

/// Images of given classes, by their ids.
#[derive(Debug, Clone)]
pub struct ClassTask {
    classes: usize,
    labels: Labels,
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

    fn of(config: &ModelConfig, _device: &Device) -> Result<Self> {
        Ok(Self { classes: config.net.classes, labels: config.labels.clone() })
    }

    fn check(&self, prompts: &[usize]) -> Result<()> {
        match prompts.iter().find(|&&class| class >= self.classes) {
            Some(&class) => Err(Error::ClassRange { class, classes: self.classes }),
            None => Ok(()),
        }
    }

    fn encode(&self, prompts: &[usize]) -> Result<Conditioning> {
        Ok(Conditioning(prompts.to_vec()))
    }

    /// The class after the last one.
    fn null(&self, images: usize) -> Conditioning {
        Conditioning(vec![self.classes; images])
    }
}
