//! The settings of a run on their way to its files.

use std::path::PathBuf;

use super::config::TrainConfig;
use crate::error::{Error, Result};

impl TrainConfig {
    /// As TOML.
    ///
    /// # Errors
    /// A whole number above 2^63 - 1, or a path that is not UTF-8, which TOML does not have.
    pub(super) fn table(&self) -> Result<toml::Table> {
        let fault = |error: toml::ser::Error| Error::Config { reason: error.to_string() };
        toml::Table::try_from(self).map_err(fault)
    }

    /// As a readable TOML text, with absolute paths, so that it means the same in every folder.
    ///
    /// # Errors
    /// Numbers and paths that TOML does not have.
    pub(super) fn text(&self) -> Result<String> {
        let mut config = self.clone();
        for path in config.paths() {
            if let Ok(absolute) = std::path::absolute(&*path) {
                *path = absolute;
            }
        }
        let text = toml::to_string(&config.table()?);
        text.map_err(|error| Error::Config { reason: error.to_string() })
    }

    /// Every path.
    fn paths(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let Self { data, trajectories, vae, text_encoder, tokenizer, .. } = self;
        let Self { init, student, adversarial, perceptual, control, .. } = self;
        let student = student.as_mut().and_then(|student| student.init.as_mut());
        let real = adversarial.as_mut().map(|adversarial| &mut adversarial.data);
        let own = [data, trajectories, vae, text_encoder, tokenizer, init].into_iter().flatten();
        let classifier = perceptual.as_mut().and_then(|perceptual| perceptual.net.as_mut());
        let steering = control.as_mut().map(|own| [&mut own.matching, &mut own.pictures]);
        let steering = steering.into_iter().flatten().flatten();
        own.chain(student).chain(real).chain(classifier).chain(steering)
    }

    /// Says, before any work, which path leads nowhere.
    ///
    /// # Errors
    /// The first that does.
    pub fn check_paths(&self) -> Result<()> {
        match self.clone().paths().find(|path| !path.exists()) {
            None => Ok(()),
            Some(path) => {
                let source = std::io::ErrorKind::NotFound.into();
                Err(Error::File { path: path.clone(), source })
            }
        }
    }

    /// The same without paths, which can lead to the same from elsewhere, and to something else from the same place.
    pub(super) fn without_paths(mut self) -> Self {
        (self.data, self.trajectories, self.vae, self.init) = (None, None, None, None);
        (self.text_encoder, self.tokenizer) = (None, None);
        if let Some(student) = &mut self.student {
            student.init = None;
        }
        if let Some(adversarial) = &mut self.adversarial {
            adversarial.data = PathBuf::new();
        }
        if let Some(control) = &mut self.control {
            (control.matching, control.pictures) = (None, None);
        }
        if let Some(perceptual) = &mut self.perceptual {
            perceptual.net = None;
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_survive_a_round_trip() {
        let full = "[student]\ninit = \"/a\"\n[adversarial]\ndata = \"/b c\"\n[[patches]]\nuntil = 3\n\
                    shares = [[8, 0.1]]\n";
        for text in ["", full, "data = \"/x\"\nvae = \"/y\"\nseed = 9223372036854775807"] {
            let config = TrainConfig::parse(text, &[]).expect("valid");
            let written = config.text().expect("a text");
            assert_eq!(TrainConfig::parse(&written, &[]).expect("parses"), config, "{written}");
        }
        let relative = TrainConfig { data: Some("a".into()), ..TrainConfig::default() };
        let written = relative.text().expect("a text");
        let read = TrainConfig::parse(&written, &[]).expect("parses");
        assert!(read.data.is_some_and(|path| path.is_absolute()), "{written}");
    }
}
