//! How models read texts.

use std::path::Path;

use burn::tensor::Device;
use pyrograph_engine::nets::TextEncoderConfig;
use pyrograph_weights::Part;
use serde::{Deserialize, Serialize};

use super::Source;
use super::reader::TextReader;
use super::text_encoder::TextEncoderSource;
use crate::error::{Error, Result};
use crate::hooks::Notice;
use crate::tokenizer::Tokenizer;

/// How a model reads texts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextInput {
    /// The encoder, if the model has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoder: Option<TextEncoderConfig>,
    /// Most tokens of a text; the rest is cut off.
    pub tokens: usize,
    /// Texts are [cleaned](crate::prompt::clean), as its captions were.
    pub clean: bool,
    /// It was trained at the sizes of PixArt for square images of so many latent cells a side; images of other sizes are
    /// made at the nearest of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sizes: Option<usize>,
}

/// Key of the tokenizer in the texts beside an encoder's weights in a bundle.
const TOKENIZER: &str = "tokenizer";

/// The encoder at `path`, or in the pipeline there.
pub(super) fn encoder(path: &Path) -> Result<TextEncoderSource> {
    let inner = path.join("text_encoder");
    TextEncoderSource::recognise(if inner.is_dir() { &inner } else { path })
}

/// What reads texts before it is loaded.
#[derive(Debug)]
pub struct TextSource {
    /// From texts to tokens.
    pub tokenizer: Tokenizer,
    /// From tokens to states.
    pub encoder: TextEncoderSource,
}

impl TextSource {
    /// The folders `tokenizer` and `text_encoder` of a pipeline of diffusers.
    pub(super) fn recognise(folder: &Path) -> Result<Self> {
        let part = |name: &str| {
            let part = folder.join(name);
            let reason = format!("no folder {name}, which a model of texts needs");
            let missing = || Error::NotAModel { path: folder.to_owned(), reason };
            part.is_dir().then_some(part).ok_or_else(missing)
        };
        Ok(Self {
            tokenizer: Tokenizer::open(&part("tokenizer")?)?,
            encoder: TextEncoderSource::recognise(&part("text_encoder")?)?,
        })
    }

    /// An encoder in a folder of its own, with its tokenizer there or beside it, in the folder of a pipeline, or in a file;
    /// the tokenizer can be elsewhere.
    pub(super) fn find(path: &Path, tokenizer: Option<&Path>) -> Result<Self> {
        if !path.exists() {
            return Err(Error::NoModel { path: path.to_owned() });
        }
        let own = match (tokenizer, path.join("text_encoder").is_dir()) {
            (Some(tokenizer), _) => tokenizer.to_owned(),
            (None, true) => path.join("tokenizer"),
            (None, false) => {
                let beside = path.with_file_name("tokenizer");
                if beside.is_dir() { beside } else { path.to_owned() }
            }
        };
        Ok(Self { encoder: encoder(path)?, tokenizer: Tokenizer::open(&own)? })
    }

    /// A part of a bundle, which holds both.
    pub(super) fn sealed(path: &Path, config: &TextEncoderConfig, source: Source) -> Result<Self> {
        let tokenizer = Tokenizer::stored(path, source.checkpoint.metadata().get(TOKENIZER))?;
        let encoder = TextEncoderSource::checked(path, config.clone(), source, None)?;
        Ok(Self { tokenizer, encoder })
    }

    /// On its way to a bundle.
    pub(super) fn part(&self) -> Result<Part<'_>> {
        let Source { checkpoint, layout, .. } = &self.encoder.source;
        let fresh = self.encoder.config.init(0, &Device::flex());
        Ok(Part::stored(fresh, checkpoint, layout)?.with_text(TOKENIZER, self.tokenizer.text()?))
    }

    /// Makes it ready to work on `device`.
    pub(super) fn open(
        self,
        device: &Device,
        notify: &mut dyn FnMut(Notice),
    ) -> Result<TextReader> {
        TextReader::open(self, device, notify)
    }
}
