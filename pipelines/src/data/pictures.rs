//! The pixels of a data set.

use std::hash::{Hash, Hasher};

use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::image::{Drawn, to_tensor};

/// What transparent pixels are laid on: one of these colours, chosen per draw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Background(pub Vec<[u8; 3]>);

impl Default for Background {
    fn default() -> Self {
        Self(vec![[255; 3]])
    }
}

/// Images in memory, of one size.
#[derive(Debug, Clone)]
pub struct Pictures {
    /// `[height, width]`.
    pub(super) size: [usize; 2],
    /// Straight RGBA, one after the other.
    pub(super) pixels: Vec<u8>,
    pub(super) background: Background,
}

impl Pictures {
    /// Number of images.
    pub(super) fn len(&self) -> usize {
        self.pixels.len() / (self.size[0] * self.size[1] * 4).max(1)
    }

    /// A number that changes with the pixels, the size or the background.
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = std::hash::DefaultHasher::new();
        (&self.size, &self.pixels, &self.background.0).hash(&mut hasher);
        hasher.finish()
    }

    /// Images with pixels in [-1, 1], `[batch, 3, height, width]`.
    ///
    /// `flips` mirrors an image, `colours` chooses its background, modulo their number.
    pub fn batch(
        &self,
        indices: &[usize],
        flips: &[bool],
        colours: &[usize],
        device: &Device,
    ) -> Tensor<4> {
        let plane = self.size[0] * self.size[1];
        let drawn =
            indices.iter().zip(flips).zip(colours).map(|((&index, &flip), &colour)| Drawn {
                rgba: &self.pixels[index * plane * 4..(index + 1) * plane * 4],
                background: self.background.0[colour % self.background.0.len()],
                flip,
            });
        to_tensor(drawn, self.size, device)
    }
}
