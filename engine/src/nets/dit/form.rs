//! What blocks are made of, and how image and text come together, as data.

use serde::{Deserialize, Serialize};

use super::config::DitConfig;
use crate::layers::Rope;
use crate::nets::ConfigError;

/// Normalisation of the input of each branch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Norm {
    /// None: magnitudes are preserved by other means.
    None,
    /// Layer norm without learned parameters.
    Layer {
        /// ε of the attention branches and of the head.
        epsilon: f64,
        /// ε of the MLP branches; the diffusers port of DiT has 1e-5 here and 1e-6 above.
        mlp_epsilon: f64,
    },
    /// RMS norms with learned factors before each branch and behind it, and a layer norm without any in the head (Z-Image).
    Sandwich {
        /// ε of the RMS norms.
        epsilon: f64,
        /// ε of the head's layer norm.
        head_epsilon: f64,
    },
    /// RMS norms with learned factors before each branch and in the head (MiniT2I).
    Rms {
        /// ε of all.
        epsilon: f64,
    },
}

impl Norm {
    /// Whether those of branches have learned factors.
    pub(super) fn has_gains(self) -> bool {
        matches!(self, Self::Sandwich { .. } | Self::Rms { .. })
    }
}

/// What attention and MLPs have that those of DiT have not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Branches {
    /// Heads of keys and values, each shared by as many of queries (Ainslie et al. 2023); `None` for one each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_heads: Option<usize>,
    /// ε of learned RMS norms of the heads of queries and keys; `None` without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_norm: Option<f64>,
    /// What the MLP activates is multiplied by a second projection (GLU, Shazeer 2020).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gated: bool,
    /// Layers have no biases, whatever the others have.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unbiased: bool,
    /// Those of MLPs have none.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unbiased_mlp: bool,
}

impl Branches {
    pub(super) fn is_plain(&self) -> bool {
        *self == Self::default()
    }
}

/// Rotary positions of the tokens of images and texts, on axes that both share.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Placing {
    /// The axes.
    pub rope: Rope,
    /// That of the rows of an image; its columns are on the next.
    pub rows: usize,
    /// That of a text.
    pub text: usize,
    /// Where the first token of a text stands on it.
    pub first: usize,
    /// Images stand behind the text on its axis, at the first free place; otherwise at 0.
    pub behind: bool,
    /// A text has one axis for itself, of the width of a head, in place of that of the image's (MiniT2I).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub own: bool,
}

/// Text that a network reads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextConfig {
    /// Width of the encoder's tokens.
    pub width: usize,
    /// Width of a text as one vector, which acts like a class; `None` where there is none.
    #[serde(default)]
    pub pooled: Option<usize>,
    /// How the image attends to the text.
    pub attention: TextAttention,
    /// How its tokens come to the width of the blocks.
    #[serde(default, skip_serializing_if = "TextEntry::is_mlp")]
    pub entry: TextEntry,
    /// The last blocks of a network of joint attention that have the same layers for text and image.
    #[serde(default, skip_serializing_if = "is_none")]
    pub shared: usize,
    /// In those, attention and MLP have one input and one gate, and what both make is added (Wang & Komatsuzaki 2021).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub parallel: bool,
    /// The last block of a network of joint attention sees the text, which goes no further (SD3).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub closing: bool,
    /// So many first blocks have a second attention, of the image to itself, beside the joint one (SD3.5-medium).
    #[serde(default, skip_serializing_if = "is_none")]
    pub dual: usize,
    /// Blocks that the image goes through for itself before, and as many for the text, which no noise level acts on (Lumina
    /// Image 2.0, Qin et al. 2025).
    #[serde(default, skip_serializing_if = "is_none")]
    pub refiners: usize,
    /// Further ones that the text alone goes through (MiniT2I).
    #[serde(default, skip_serializing_if = "is_none")]
    pub alone: usize,
    /// A text is filled up to so many tokens before its entry, with a learned one that is attended to; where it has none, it is
    /// that alone (MiniT2I).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<usize>,
    /// Image and text are each filled up to a multiple of this with learned tokens, which are attended to (Z-Image).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multiple: Option<usize>,
}

impl TextConfig {
    /// A text of this width without a pooled one, of the kind of PixArt and of MM-DiT.
    pub fn new(width: usize, attention: TextAttention) -> Self {
        Self {
            width,
            pooled: None,
            attention,
            entry: TextEntry::Mlp,
            shared: 0,
            parallel: false,
            closing: false,
            dual: 0,
            refiners: 0,
            alone: 0,
            length: None,
            multiple: None,
        }
    }
}

fn is_none(count: &usize) -> bool {
    *count == 0
}

/// How the tokens of a text come to the width of the blocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum TextEntry {
    /// Through two layers with the activation of the MLPs between them.
    #[default]
    Mlp,
    /// Through one layer.
    Linear,
    /// Through one layer without biases, whatever the others have.
    Unbiased,
    /// Through an RMS norm with this ε and one layer.
    Normed(f64),
}

impl TextEntry {
    fn is_mlp(&self) -> bool {
        *self == Self::Mlp
    }
}

/// How the tokens of an image attend to those of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum TextAttention {
    /// To a text that stays as it is, between self-attention and MLP (PixArt-α, Chen et al. 2023).
    Cross,
    /// To a text that attends to the image in turn, with layers of its own in every block (MM-DiT, Esser et al.
    /// 2024).
    Joint,
}

impl DitConfig {
    /// Whether it is told a text as one vector, too.
    pub fn pools(&self) -> bool {
        self.text.as_ref().is_some_and(|text| text.pooled.is_some())
    }

    /// Whether image and text are attended to jointly.
    pub(crate) fn is_joint(&self) -> bool {
        self.text.as_ref().is_some_and(|text| text.attention == TextAttention::Joint)
    }

    /// The first block that has the same layers for text and image, of a network that has such blocks.
    pub fn first_shared(&self) -> Option<usize> {
        let shared = self.text.as_ref().map_or(0, |text| text.shared);
        (shared > 0).then(|| self.depth.saturating_sub(shared))
    }

    /// Whether blocks with the same layers for text and image add attention and MLP of one input.
    pub(super) fn is_parallel(&self) -> bool {
        self.text.as_ref().is_some_and(|text| text.parallel)
    }

    /// Whether the network can make images or latents of this size.
    ///
    /// # Errors
    /// A side that is longer than the table of positions.
    pub fn check_size(&self, size: [usize; 2]) -> Result<(), ConfigError> {
        let Some(side) = self.table else { return Ok(()) };
        let most = side.saturating_mul(self.patch);
        match size.into_iter().max().filter(|longest| *longest > most) {
            Some(longest) => {
                Err(ConfigError::value("side of a latent", longest, format!("at most {most}")))
            }
            None => Ok(()),
        }
    }

    /// Says why no branches can be copied from its blocks, where that is so.
    ///
    /// # Errors
    /// Blocks that have the same layers for text and image, positions that are no function of the place.
    pub fn check_branches(&self) -> Result<(), String> {
        match (self.first_shared(), self.table) {
            (None, None) => Ok(()),
            (Some(_), _) => {
                Err("branches of a network whose blocks hold image and text as one".into())
            }
            (_, Some(_)) => Err("branches of a network with a table of positions".into()),
        }
    }

    pub(super) fn key_heads(&self) -> usize {
        self.branches.key_heads.unwrap_or(self.heads)
    }

    pub(super) fn check_form(&self) -> Result<(), ConfigError> {
        let key_heads = self.key_heads();
        if key_heads == 0 || !self.heads.is_multiple_of(key_heads) {
            let expected = format!("a divisor of {} heads", self.heads);
            return Err(ConfigError::value("heads of keys", key_heads, expected));
        }
        if let Some(placing) = &self.placing {
            self.check_placing(placing)?;
        }
        self.check_size(self.size)?;
        let Some(text) = &self.text else { return Ok(()) };
        for (name, width) in [("width of a text", text.width), ("pooled", text.pooled.unwrap_or(1))]
        {
            if width == 0 || width > LIMIT {
                return Err(ConfigError::value(name, width, "a positive number below 2^24"));
            }
        }
        if text.parallel && (text.shared == 0 || self.norm.has_gains()) {
            let expected =
                "false without blocks that text and image share, or with factors of norms";
            return Err(ConfigError::value("parallel", true, expected));
        }
        if !self.is_joint() && text.shared > 0 {
            let expected = "0 without joint attention";
            return Err(ConfigError::value("shared blocks", text.shared, expected));
        }
        if (text.closing || text.dual > 0) && (!self.is_joint() || text.shared > 0) {
            let expected = "joint attention without shared blocks";
            return Err(ConfigError::value("closing or dual blocks", text.dual, expected));
        }
        if text.dual > 0 && (self.modulation.single || self.modulation.common) {
            let expected = "0 where one projection serves all blocks";
            return Err(ConfigError::value("dual blocks", text.dual, expected));
        }
        self.check_counts(text)
    }

    fn check_counts(&self, text: &TextConfig) -> Result<(), ConfigError> {
        let most = [
            ("dual blocks", text.dual, self.depth),
            ("shared blocks", text.shared, self.depth),
            ("refiners", text.refiners, 1 << 10),
            ("refiners of texts", text.alone, 1 << 10),
            ("length of a text", text.length.unwrap_or(0), 1 << 16),
        ];
        for (name, count, most) in most {
            if count > most {
                return Err(ConfigError::value(name, count, format!("at most {most}")));
            }
        }
        if matches!(self.norm, Norm::Sandwich { .. })
            && self.is_joint()
            && self.first_shared() != Some(0)
        {
            let expected = format!("{}, where norms are around branches", self.depth);
            return Err(ConfigError::value("shared blocks", text.shared, expected));
        }
        match text.multiple {
            Some(multiple) if text.length.is_some() => {
                let expected = "none where texts have a length";
                Err(ConfigError::value("multiple of tokens", multiple, expected))
            }
            Some(multiple) if !(1..=1 << 12).contains(&multiple) => {
                Err(ConfigError::value("multiple of tokens", multiple, "1 to 4096"))
            }
            _ => Ok(()),
        }
    }

    fn check_placing(&self, placing: &Placing) -> Result<(), ConfigError> {
        let Placing { rope, rows, text, first, .. } = placing;
        let head = self.hidden / self.heads;
        let sum = rope.axes.iter().fold(0, |sum: usize, axis| sum.saturating_add(*axis));
        if rope.axes.iter().any(|axis| axis % 2 == 1) || sum != head {
            let expected = format!("even numbers whose sum is the width of a head, {head}");
            return Err(ConfigError::value("axes", format!("{:?}", rope.axes), expected));
        }
        if !(rope.theta > 1.0 && rope.theta.is_finite()) {
            return Err(ConfigError::value("theta", rope.theta, "finite and above 1"));
        }
        for (name, axis) in [("axis of columns", rows.saturating_add(1)), ("axis of texts", *text)]
        {
            if axis >= rope.axes.len() {
                let expected = format!("below {}", rope.axes.len());
                return Err(ConfigError::value(name, axis, expected));
            }
        }
        if placing.own && placing.behind {
            let expected = "false where texts have an axis of their own";
            return Err(ConfigError::value("images behind the text", true, expected));
        }
        match *first > LIMIT {
            true => Err(ConfigError::value("first place", first, format!("at most {LIMIT}"))),
            false => Ok(()),
        }
    }
}

/// Largest number of anything.
const LIMIT: usize = 1 << 24;
