//! Shape and variant of a network to train.

use pyrograph_engine::layers::{Magnitude, ModulationConfig};
use pyrograph_engine::nets::{DitConfig, Flexible};
use serde::{Deserialize, Serialize};

/// Shape and variant of the network to train.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelShape {
    /// Base variant.
    pub kind: Kind,
    /// `[height, width]` of the training images in pixels.
    pub size: [usize; 2],
    /// Side of a patch, in pixels or latent cells.
    pub patch: usize,
    /// Width of a token.
    pub hidden: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads.
    pub heads: usize,
    /// Further patch sizes.
    pub flexible: Option<Flexible>,
    /// Replaces the variant's modulation.
    pub modulation: Option<ModulationConfig>,
    /// Replaces the variant's magnitude switches.
    pub magnitude: Option<Magnitude>,
}

/// A family of network configurations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The original DiT.
    Dit,
    /// MP-DiT with rotation and scale modulation.
    MpDit,
    /// Component ladder, step A: the baseline with layer norms.
    LadderA,
    /// Step B: cosine attention.
    LadderB,
    /// Step C: weight normalisation.
    LadderC,
    /// Step D: forced weight normalisation.
    LadderD,
    /// Step E: everything preserved, no layer norm.
    LadderE,
}

impl Default for ModelShape {
    fn default() -> Self {
        Self {
            kind: Kind::MpDit,
            size: [64, 64],
            patch: 8,
            hidden: 256,
            depth: 5,
            heads: 4,
            flexible: None,
            modulation: None,
            magnitude: None,
        }
    }
}

impl ModelShape {
    /// The network for `classes` classes of images with `channels` channels of `size`, `[height, width]`.
    pub(super) fn net(&self, channels: usize, size: [usize; 2], classes: usize) -> DitConfig {
        let Self { hidden, depth, heads, .. } = *self;
        let ladder =
            |step| DitConfig::ladder(step, hidden, depth, heads).expect("a step from A to E");
        let base = match self.kind {
            Kind::Dit => DitConfig::dit(hidden, depth, heads),
            Kind::MpDit => DitConfig::mp_dit(hidden, depth, heads),
            Kind::LadderA => ladder('A'),
            Kind::LadderB => ladder('B'),
            Kind::LadderC => ladder('C'),
            Kind::LadderD => ladder('D'),
            Kind::LadderE => ladder('E'),
        };
        DitConfig {
            channels,
            size,
            patch: self.patch,
            classes,
            learned_variance: false,
            modulation: self.modulation.unwrap_or(base.modulation),
            magnitude: self.magnitude.unwrap_or(base.magnitude),
            flexible: self.flexible.clone(),
            ..base
        }
    }
}
