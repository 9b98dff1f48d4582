//! The pixels of training images.

use std::hash::{Hash, Hasher};
use std::path::Path;

use burn::tensor::{Device, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::image::{Drawn, decode, fit, to_tensor};

/// What transparent pixels are laid on: one of these colours, chosen per draw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Background(pub Vec<[u8; 3]>);

impl Default for Background {
    fn default() -> Self {
        Self(vec![[255; 3]])
    }
}

/// Images in memory, resized to one size.
#[derive(Debug, Clone)]
pub(super) struct Pixels {
    size: [usize; 2],
    /// Straight RGBA, one after the other.
    rgba: Vec<u8>,
    background: Background,
}

impl Pixels {
    /// Reads files, each cut and resized to `size`, `[height, width]`.
    ///
    /// # Errors
    /// An image that cannot be decoded.
    pub(super) fn read<'a>(
        files: impl IntoParallelIterator<Item = &'a Path>,
        size: [usize; 2],
        background: Background,
    ) -> Result<Self> {
        let read = |path| Ok(fit(&decode(path)?, size));
        let images: Vec<Vec<u8>> = files.into_par_iter().map(read).collect::<Result<_>>()?;
        Ok(Self { size, rgba: images.concat(), background })
    }

    /// Number of images.
    pub(super) fn len(&self) -> usize {
        self.rgba.len() / (4 * self.size[0] * self.size[1])
    }

    /// A number that changes with the pixels, the size or the background.
    pub(super) fn fingerprint(&self) -> u64 {
        let mut hasher = std::hash::DefaultHasher::new();
        (&self.size, &self.rgba, &self.background.0).hash(&mut hasher);
        hasher.finish()
    }

    /// Images in [-1, 1], `[batch, 3, height, width]`.
    ///
    /// `flips` mirrors an image, `colours` chooses its background, modulo their number.
    pub(super) fn batch(
        &self,
        indices: &[usize],
        flips: &[bool],
        colours: &[usize],
        device: &Device,
    ) -> Tensor<4> {
        let plane = self.size[0] * self.size[1];
        let drawn =
            indices.iter().zip(flips).zip(colours).map(|((&index, &flip), &colour)| Drawn {
                rgba: &self.rgba[index * plane * 4..(index + 1) * plane * 4],
                background: self.background.0[colour % self.background.0.len()],
                flip,
            });
        to_tensor(drawn, self.size, device)
    }
}
