//! Kinds of models: what they are asked, and what their networks are told of it.

mod class;
mod portrait;
mod text;

pub use class::ClassTask;
pub use portrait::{Matches, Portrait, PortraitTask};
pub use text::TextTask;

use std::ops::Range;

use burn::tensor::{Device, Tensor};
use pyrograph_engine::nets::Conditioning;

use crate::error::Result;
use crate::metadata::Asked;
use crate::model::Model;
use crate::request::Request;
use crate::settings::Settings;

/// A kind of model.
pub trait Task: Send + Sync + Sized {
    /// What one image is asked by.
    type Prompt: Clone + Send + Sync;

    /// Finds out, before any work, whether the model knows what it is asked.
    ///
    /// # Errors
    /// A prompt that it does not know, a setting that would change nothing.
    fn check(&self, request: &Request<Self::Prompt>) -> Result<()>;

    /// Parts of the condition that have a guidance scale of their own.
    fn scales(&self) -> usize {
        1
    }

    /// The size that images are made at, `[height, width]` in latent cells, where it is not the one asked for; `size` is
    /// the latter, in pixels.
    fn made_at(&self, size: [usize; 2], settings: &Settings) -> Option<[usize; 2]> {
        let _ = (size, settings);
        None
    }

    /// Tokens of the longest text that the network is told; 0 where it is told none.
    ///
    /// # Errors
    /// A text that cannot be read.
    fn text_tokens(&self, request: &Request<Self::Prompt>) -> Result<usize> {
        let _ = request;
        Ok(0)
    }

    /// What the network is told of a request that was checked, for images made at `size`, `[height, width]` in pixels.
    ///
    /// # Errors
    /// A device that fails, files that can no longer be read.
    fn told(&self, request: &Request<Self::Prompt>, size: [usize; 2]) -> Result<Told>;
}

/// A kind of model that needs nothing beside it, and is asked by what a picture can keep.
pub trait PromptTask: Task + Clone {
    /// The task of a model, with what it needs on `device`.
    ///
    /// # Errors
    /// A model of another kind.
    fn of(model: &Model, device: &Device) -> Result<Self>;

    /// Prompts as a picture keeps them.
    fn asked(prompts: Vec<Self::Prompt>) -> Asked;

    /// The prompts of a picture, if they are of this kind.
    fn prompts(asked: &Asked) -> Option<Vec<Self::Prompt>>;
}

/// What a network is told of all images of a request.
#[derive(Debug, Clone)]
pub struct Told {
    /// Different ones.
    pub table: Conditioning,
    /// Entry of each image.
    pub images: Vec<usize>,
    /// Entries of what guidance goes away from, of each image: one less told after the other, the last ones nothing.
    pub weaker: Vec<Vec<usize>>,
}

impl Told {
    /// The same with what stands for a person, `[1, hidden]`, on the images, and on nothing that guidance goes away from.
    pub(crate) fn with_token(self, token: &Tensor<2>) -> Self {
        let Conditioning { class, text, .. } = &self.table;
        let count = match (class, text) {
            (Some(ids), _) => ids.dims()[0],
            (None, Some(text)) => text.tokens.dims()[0],
            (None, None) => return self,
        };
        let [_, hidden] = token.dims();
        let with = |token: Tensor<2>| Conditioning {
            token: Some(token.expand([count, hidden])),
            ..self.table.clone()
        };
        // Where a person is asked for and nothing else, both are one entry so far.
        let table = with(token.clone()).followed_by(with(token.zeros_like()));
        let apart = |entries: &Vec<usize>| entries.iter().map(|entry| count + entry).collect();
        Self { table, images: self.images.clone(), weaker: self.weaker.iter().map(apart).collect() }
    }

    /// Of some of the images.
    pub(crate) fn of(&self, images: Range<usize>) -> Conditioning {
        self.table.select(&self.images[images])
    }

    /// Of the images of these numbers.
    pub(crate) fn some(&self, images: &[usize]) -> Conditioning {
        let entries: Vec<usize> = images.iter().map(|&image| self.images[image]).collect();
        self.table.select(&entries)
    }

    /// What guidance of some of the images goes away from: all that is less told, or the last alone.
    pub(crate) fn weaker(&self, images: Range<usize>, all: bool) -> Vec<Conditioning> {
        let last = self.weaker.len() - 1;
        let layers = &self.weaker[if all { 0 } else { last }..];
        layers.iter().map(|entries| self.table.select(&entries[images.clone()])).collect()
    }

    /// What the images of these numbers are told where they are told nothing.
    pub(crate) fn null(&self, images: &[usize]) -> Conditioning {
        let last = &self.weaker[self.weaker.len() - 1];
        let entries: Vec<usize> = images.iter().map(|&image| last[image]).collect();
        self.table.select(&entries)
    }
}
