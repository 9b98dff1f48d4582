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
        assert!(matches!(of(&config), Err(Error::Task { .. })));
        let text = Some(TextConfig { width: 8, pooled: None, attention: TextAttention::Cross });
        config.net = DitConfig { text, ..net }.into();
        assert!(matches!(of(&config), Err(Error::Task { .. })));
    }
}
