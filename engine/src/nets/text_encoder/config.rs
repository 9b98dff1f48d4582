//! Shape of a text encoder, as data.

use serde::{Deserialize, Serialize};

use crate::layers::Activation;
use crate::nets::ConfigError;

/// Largest number of anything.
const LIMIT: usize = 1 << 20;

/// Everything that determines a [`TextEncoder`](super::TextEncoder) but its weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextEncoderConfig {
    /// Rows of the table of tokens.
    pub vocabulary: usize,
    /// Width of a token.
    pub hidden: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads.
    pub heads: usize,
    /// Heads of keys and values, each shared by as many of queries (Ainslie et al. 2023); `None` for one each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_heads: Option<usize>,
    /// Width of a head.
    pub head: usize,
    /// RMS norms of the heads of queries and keys.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub head_norm: bool,
    /// Inner width of the feed-forward layers.
    pub inner: usize,
    /// Activation of the feed-forward layers.
    pub activation: Activation,
    /// What is activated is multiplied by a second projection (GLU, Shazeer 2020).
    pub gated: bool,
    /// How the tokens know their places.
    pub places: Places,
    /// Tokens see only those before them.
    pub causal: bool,
    /// Layer norms and biases, as in CLIP; otherwise RMS norms and none.
    pub bias: bool,
    /// ε of the norms.
    pub epsilon: f64,
    /// RMS norms also behind the attention and behind the feed-forward layer (Gemma 2).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sandwich: bool,
    /// The factors of the norms are stored less 1.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub centred: bool,
    /// Tokens come in multiplied by the root of `hidden`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub scaled: bool,
    /// What is not usual of the scores.
    #[serde(default, skip_serializing_if = "Scores::is_usual")]
    pub scores: Scores,
    /// Width of a text as one vector, which is projected from its last token; `None` without a projection.
    #[serde(default)]
    pub projection: Option<usize>,
    /// The states are those of the stream behind so many blocks each, in rising order, side by side and without a norm;
    /// none for that behind the last block and norm.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub behind: Vec<usize>,
}

/// Scores of attention, where they are not `q · k / √d` of all tokens (Gemma 2, Gemma Team 2024).
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scores {
    /// The `d`; `None` for the width of a head.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub divisor: Option<f64>,
    /// See [`AttentionSpec::softcap`](crate::ops::AttentionSpec::softcap).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub softcap: Option<f64>,
    /// In the first block and every second one behind it, a token sees as many before it, itself among them, and no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<usize>,
}

impl Scores {
    fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

/// How the tokens of a text know their places.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Places {
    /// By a learned vector for each of so many places.
    Learned(usize),
    /// By a learned number for each head and each bucket of distances, added to the scores of all blocks, which are not
    /// scaled.
    Relative {
        /// Buckets, half of them for each direction.
        buckets: usize,
        /// Distance from which on all fall into the last bucket.
        farthest: usize,
    },
    /// By angles that queries and keys turn by, see [`Rope`](crate::layers::Rope); halves of a head are pairs.
    Rotary {
        /// See [`Rope::theta`](crate::layers::Rope::theta).
        theta: f64,
    },
}

impl TextEncoderConfig {
    /// An encoder of such blocks of so many heads, in the manner of T5 without its places.
    pub fn new(vocabulary: usize, hidden: usize, depth: usize, heads: usize) -> Self {
        Self {
            vocabulary,
            hidden,
            depth,
            heads,
            key_heads: None,
            head: hidden / heads.max(1),
            head_norm: false,
            inner: 4 * hidden,
            activation: Activation::Relu,
            gated: false,
            places: Places::Rotary { theta: 1e4 },
            causal: false,
            bias: false,
            epsilon: 1e-6,
            sandwich: false,
            centred: false,
            scaled: false,
            scores: Scores::default(),
            projection: None,
            behind: Vec::new(),
        }
    }

    /// Whether there can be such an encoder.
    ///
    /// # Errors
    /// The first number that is out of range.
    pub fn check(&self) -> Result<(), ConfigError> {
        let (places, farthest) = match self.places {
            Places::Learned(places) => (places, 1),
            Places::Relative { buckets, farthest } => (buckets, farthest),
            Places::Rotary { .. } => (1, 1),
        };
        let counts = [
            ("vocabulary", self.vocabulary, LIMIT),
            ("hidden", self.hidden, 1 << 16),
            ("depth", self.depth, 1 << 10),
            ("heads", self.heads, 1 << 10),
            ("heads of keys", self.key_heads(), self.heads),
            ("width of a head", self.head, 1 << 12),
            ("inner width", self.inner, 1 << 18),
            ("places of a text", places, LIMIT),
            ("farthest distance", farthest, LIMIT),
            ("width of the projection", self.projection.unwrap_or(1), 1 << 16),
            ("window of the attention", self.scores.window.unwrap_or(1), LIMIT),
        ];
        for (name, value, limit) in counts {
            if !(1..=limit).contains(&value) {
                return Err(ConfigError::value(name, value, format!("1 to {limit}")));
            }
        }
        self.check_scores()?;
        let rises = self.behind.windows(2).all(|pair| pair[0] < pair[1]);
        if !rises || self.behind.last().is_some_and(|last| *last > self.depth) {
            let expected = format!("rising, up to {} blocks", self.depth);
            return Err(ConfigError::value("blocks", format!("{:?}", self.behind), expected));
        }
        if !self.heads.is_multiple_of(self.key_heads()) {
            let expected = format!("a divisor of {} heads", self.heads);
            return Err(ConfigError::value("heads of keys", self.key_heads(), expected));
        }
        match self.places {
            Places::Rotary { .. } if !self.head.is_multiple_of(2) => {
                Err(ConfigError::value("width of a head", self.head, "even, for rotary places"))
            }
            Places::Rotary { theta } if !(theta > 1.0 && theta.is_finite()) => {
                Err(ConfigError::value("theta of the places", theta, "finite and above 1"))
            }
            Places::Relative { buckets, farthest }
                if buckets % 4 != 0 || farthest <= buckets / 4 =>
            {
                let expected = format!("a multiple of 4, a quarter of it below {farthest}");
                Err(ConfigError::value("buckets", buckets, expected))
            }
            _ if !(self.epsilon > 0.0 && self.epsilon < 1.0) => {
                Err(ConfigError::value("epsilon", self.epsilon, "within (0, 1)"))
            }
            _ => Ok(()),
        }
    }

    fn check_scores(&self) -> Result<(), ConfigError> {
        let Scores { divisor, softcap, window } = self.scores;
        for (name, value) in [("divisor of the scores", divisor), ("cap of the scores", softcap)] {
            if let Some(value) = value.filter(|value| !(*value > 0.0 && value.is_finite())) {
                return Err(ConfigError::value(name, value, "finite and above 0"));
            }
        }
        if let Some(window) = window.filter(|_| !self.causal) {
            let expected = "none where tokens see those behind them";
            return Err(ConfigError::value("window of the attention", window, expected));
        }
        for (name, on) in [("sandwich", self.sandwich), ("centred", self.centred)] {
            if on && self.bias {
                return Err(ConfigError::value(name, true, "false of layer norms"));
            }
        }
        Ok(())
    }

    /// Width of the states of a text.
    pub fn width(&self) -> usize {
        self.hidden * self.behind.len().max(1)
    }

    pub(super) fn key_heads(&self) -> usize {
        self.key_heads.unwrap_or(self.heads)
    }
}
