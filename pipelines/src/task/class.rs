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
        let fault = |found| Err(Error::Task { found, expected: "a class" });
        match (net.dit.classes, &net.dit.text) {
            (0, None) => fault("nothing"),
            (_, Some(_)) => fault("a text"),
            (classes, None) => Ok(Self { classes, labels: labels.clone(), device: device.clone() }),
        }
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
        let mut config =
            ModelConfig { net: net.clone().into(), process, vae: None, defaults, labels };
        let of = |config: &ModelConfig| ClassTask::of(config, &Device::flex());
        assert_eq!(of(&config).expect("three classes").classes(), 3);
        config.net = DitConfig { classes: 0, ..net.clone() }.into();
        assert!(matches!(of(&config), Err(Error::Task { found: "nothing", .. })));
        let text = Some(TextConfig { width: 8, pooled: None, attention: TextAttention::Cross });
        config.net = DitConfig { text, ..net }.into();
        assert!(matches!(of(&config), Err(Error::Task { found: "a text", .. })));
    }
}
