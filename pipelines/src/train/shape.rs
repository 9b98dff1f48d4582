//! Shape and variant of a network to train.

use pyrograph_engine::layers::{Magnitude, ModulationConfig};
use pyrograph_engine::nets::{DitConfig, Flexible, TextAttention, TextConfig};
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
    /// Each patch predicts a square of twice its side; these are blended.
    pub overlap: bool,
    /// The mean of a caption's states acts like a class beside them.
    pub pooled: bool,
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

/// What a network to train is told beside the noise level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// One of so many classes.
    Classes(usize),
    /// A text, by states of this width.
    Text(usize),
}

impl Condition {
    fn of(net: &DitConfig) -> Self {
        match &net.text {
            Some(text) => Self::Text(text.width),
            None => Self::Classes(net.classes),
        }
    }
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

/// All of them.
const KINDS: [Kind; 7] = [
    Kind::MpDit,
    Kind::Dit,
    Kind::LadderA,
    Kind::LadderB,
    Kind::LadderC,
    Kind::LadderD,
    Kind::LadderE,
];

impl Default for ModelShape {
    fn default() -> Self {
        Self {
            kind: Kind::MpDit,
            size: [64, 64],
            patch: 8,
            overlap: false,
            pooled: false,
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
    /// The shape of a model's network, whose latent cells are `factor` pixels wide.
    pub(super) fn of(net: &DitConfig, factor: usize) -> Self {
        let plain = |kind| Self {
            kind,
            size: net.size.map(|side| side * factor),
            patch: net.patch,
            overlap: net.overlap,
            pooled: net.pools(),
            hidden: net.hidden,
            depth: net.depth,
            heads: net.heads,
            flexible: net.flexible.clone(),
            modulation: None,
            magnitude: None,
        };
        let built = |shape: &Self| shape.net(net.channels, net.size, Condition::of(net));
        let known = KINDS.into_iter().map(plain).find(|shape| built(shape) == *net);
        known.unwrap_or_else(|| Self {
            modulation: Some(net.modulation),
            magnitude: Some(net.magnitude),
            ..plain(if net.bias { Kind::Dit } else { Kind::MpDit })
        })
    }

    /// The first field in which this differs from `other`, with both values.
    pub(super) fn difference(&self, other: &Self) -> Option<[String; 3]> {
        let fields = |shape: &Self| toml::Table::try_from(shape).expect("a shape serialises");
        let (ours, theirs) = (fields(self), fields(other));
        let text = |table: &toml::Table, key: &str| {
            table.get(key).map_or("none".into(), ToString::to_string)
        };
        let mut keys = ours.keys().chain(theirs.keys());
        let key = keys.find(|key| ours.get(*key) != theirs.get(*key))?;
        Some([format!("model.{key}"), text(&ours, key), text(&theirs, key)])
    }

    /// The network for images with `channels` channels of `size`, `[height, width]`.
    pub(super) fn net(&self, channels: usize, size: [usize; 2], told: Condition) -> DitConfig {
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
        let (classes, text) = match told {
            Condition::Classes(classes) => (classes, None),
            Condition::Text(width) => {
                let pooled = self.pooled.then_some(width);
                (0, Some(TextConfig { pooled, ..TextConfig::new(width, TextAttention::Cross) }))
            }
        };
        DitConfig {
            channels,
            size,
            patch: self.patch,
            overlap: self.overlap,
            classes,
            text,
            learned_variance: false,
            modulation: self.modulation.unwrap_or(base.modulation),
            magnitude: self.magnitude.unwrap_or(base.magnitude),
            flexible: self.flexible.clone(),
            ..base
        }
    }
}
