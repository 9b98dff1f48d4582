//! Encoders of text: T5 (Raffel et al. 2020), the text half of CLIP (Radford et al. 2021), language models whose states
//! are read (Qwen3, Yang et al. 2025; Gemma 2, Gemma Team 2024), and their kind.

mod config;

use burn::module::{Module, Param};
use burn::tensor::{Bool, Device, FloatDType, Int, Tensor, TensorData};

pub use config::{Places, Scores, TextEncoderConfig};

use crate::layers::dense::DenseConfig;
use crate::layers::{Activation, Attend, Attention, AttentionConfig, Dense, Fresh, Init, Rope};
use crate::ops::{AttentionBias, AttentionSpec, Pairs, Rotary};

/// A text encoder.
#[derive(Module, Debug)]
pub struct TextEncoder {
    /// `[vocabulary, hidden]`.
    pub tokens: Param<Tensor<2>>,
    /// `[places, hidden]`, or `[buckets, heads]`; none of rotary places.
    pub places: Option<Param<Tensor<2>>>,
    /// The blocks, first to last.
    pub blocks: Vec<TextBlock>,
    /// After the last block.
    pub norm: TextNorm,
    /// `[hidden, projection]`.
    pub projection: Option<Dense>,
    #[module(skip)]
    config: TextEncoderConfig,
}

/// Attention and a feed-forward layer, each after a norm and added to what came in.
#[derive(Module, Debug)]
pub struct TextBlock {
    /// Before the attention.
    pub first: TextNorm,
    /// Of the tokens to each other.
    pub attention: Attention,
    /// Before the feed-forward layer.
    pub second: TextNorm,
    /// `[hidden, inner]`: what is activated.
    pub up: Dense,
    /// `[hidden, inner]`: what that is multiplied by.
    pub gate: Option<Dense>,
    /// `[inner, hidden]`.
    pub down: Dense,
    /// Behind the attention and behind the feed-forward layer.
    pub behind: Option<[TextNorm; 2]>,
    #[module(skip)]
    activation: Activation,
    /// It sees the window alone.
    windowed: bool,
}

/// A layer norm, or an RMS norm without a bias.
#[derive(Module, Debug)]
pub struct TextNorm {
    /// `[hidden]`.
    pub gain: Param<Tensor<1>>,
    /// `[hidden]`.
    pub bias: Option<Param<Tensor<1>>>,
    epsilon: f64,
    centred: bool,
}

/// Texts on their way through the blocks.
#[derive(Debug, Clone)]
pub struct TextStream {
    /// `[batch, tokens, hidden]`, in f32.
    x: Tensor<3>,
    /// What acts on the scores of blocks, and on those of blocks with a window.
    biases: [Option<AttentionBias>; 2],
    rotary: Option<Rotary>,
    /// Blocks passed.
    passed: usize,
    /// Blocks behind which it is kept.
    kept_behind: Vec<usize>,
    kept: Vec<Tensor<3>>,
}

/// What an encoder makes of texts, in f32.
#[derive(Debug, Clone)]
pub struct TextStates {
    /// After all blocks and the last norm, `[batch, tokens, hidden]`.
    pub last: Tensor<3>,
    /// The stream behind as many blocks as were asked for, without a norm, each `[batch, tokens, hidden]`.
    pub kept: Vec<Tensor<3>>,
}

impl TextEncoderConfig {
    /// Makes the network with the fresh weights of a seed.
    ///
    /// # Panics
    /// If [`TextEncoderConfig::check`] finds a fault.
    pub fn init(&self, seed: u64, device: &Device) -> TextEncoder {
        if let Err(fault) = self.check() {
            panic!("{fault}");
        }
        let init = &Init::new(seed, device);
        let blocks = (0..self.depth).map(|i| self.init_block(i, init)).collect();
        self.around(blocks, init)
    }

    /// The network without its blocks, for blocks that come one by one; see [`TextEncoderConfig::init`].
    ///
    /// # Panics
    /// As there.
    pub fn init_ends(&self, seed: u64, device: &Device) -> TextEncoder {
        if let Err(fault) = self.check() {
            panic!("{fault}");
        }
        self.around(Vec::new(), &Init::new(seed, device))
    }

    /// The block at place `i`, with the fresh weights of a seed of its own.
    pub fn init_block_alone(&self, i: usize, seed: u64, device: &Device) -> TextBlock {
        self.init_block(i, &Init::new(seed, device))
    }

    fn around(&self, blocks: Vec<TextBlock>, init: &Init<'_>) -> TextEncoder {
        let places = match self.places {
            Places::Learned(places) => Some([places, self.hidden]),
            Places::Relative { buckets, .. } => Some([buckets, self.heads]),
            Places::Rotary { .. } => None,
        };
        TextEncoder {
            tokens: init.param(Fresh::Normal(0.02), [self.vocabulary, self.hidden]),
            places: places.map(|shape| init.param(Fresh::Normal(0.02), shape)),
            blocks,
            norm: self.init_norm(init),
            projection: self.projection.map(|width| {
                DenseConfig { bias: false, ..self.dense(self.hidden, width) }.init(init)
            }),
            config: self.clone(),
        }
    }

    fn dense(&self, inputs: usize, outputs: usize) -> DenseConfig {
        DenseConfig { bias: self.bias, ..DenseConfig::new(inputs, outputs, false) }
    }

    fn init_norm(&self, init: &Init<'_>) -> TextNorm {
        TextNorm {
            gain: init.param(Fresh::Constant(if self.centred { 0.0 } else { 1.0 }), [self.hidden]),
            bias: self.bias.then(|| init.param(Fresh::Constant(0.0), [self.hidden])),
            epsilon: self.epsilon,
            centred: self.centred,
        }
    }

    fn init_block(&self, i: usize, init: &Init<'_>) -> TextBlock {
        let Scores { divisor, softcap, window } = self.scores;
        let scale = match self.places {
            Places::Relative { .. } => Some(1.0),
            _ => divisor.map(|divisor| divisor.sqrt().recip()),
        };
        let (spec, key_heads) = (AttentionSpec::new(self.heads), self.key_heads());
        let attention = AttentionConfig {
            head: self.head,
            spec: AttentionSpec { scale, softcap, key_heads, ..spec },
            norm: self.head_norm.then_some(self.epsilon),
            ..AttentionConfig::new(self.hidden, self.heads)
        };
        TextBlock {
            first: self.init_norm(init),
            attention: attention.init(|inputs, outputs| self.dense(inputs, outputs), init),
            second: self.init_norm(init),
            up: self.dense(self.hidden, self.inner).init(init),
            gate: self.gated.then(|| self.dense(self.hidden, self.inner).init(init)),
            down: self.dense(self.inner, self.hidden).init(init),
            behind: self.sandwich.then(|| [(); 2].map(|()| self.init_norm(init))),
            activation: self.activation,
            windowed: window.is_some() && i.is_multiple_of(2),
        }
    }
}

/// The bucket of a distance from a query to a key (Raffel et al. 2020): small ones have one each, larger ones share one
/// with those of nearly their logarithm.
fn bucket(distance: isize, buckets: usize, farthest: usize) -> usize {
    let (half, steps) = (buckets / 2, distance.unsigned_abs());
    let exact = half / 2;
    let own = match steps < exact {
        true => steps,
        false => {
            let share = (steps as f64 / exact as f64).ln() / (farthest as f64 / exact as f64).ln();
            // Powers are met but for rounding.
            let beyond = (share * (half - exact) as f64 + 1e-9) as usize;
            (exact + beyond).min(half - 1)
        }
    };
    if distance > 0 { half + own } else { own }
}

impl TextNorm {
    /// # Shapes
    /// `[batch, tokens, hidden]` to the same
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let gain = self.gain.val().cast(FloatDType::F32).unsqueeze::<3>();
        let gain = if self.centred { gain + 1.0 } else { gain };
        let x = match &self.bias {
            Some(_) => x.clone() - x.mean_dim(2),
            None => x,
        };
        let scale = (x.clone().square().mean_dim(2) + self.epsilon).sqrt();
        let y = x / scale * gain;
        match &self.bias {
            Some(bias) => y + bias.val().cast(FloatDType::F32).unsqueeze::<3>(),
            None => y,
        }
    }
}

/// A layer on the stream, which stays in f32.
fn apply(dense: &Dense, x: &Tensor<3>, activation: Option<Activation>) -> Tensor<3> {
    dense.activated(x.clone().cast(dense.dtype()), activation).cast(FloatDType::F32)
}

impl TextStream {
    /// What the next block made of it.
    fn behind(mut self, x: Tensor<3>) -> Self {
        self.passed += 1;
        if self.kept_behind.contains(&self.passed) {
            self.kept.push(x.clone());
        }
        Self { x, ..self }
    }
}

impl TextBlock {
    /// The texts behind this block.
    pub fn forward(&self, stream: TextStream) -> TextStream {
        let TextStream { x, biases: [everywhere, within], rotary, .. } = &stream;
        let dtype = self.attention.qkv.dtype();
        let bias = if self.windowed { within } else { everywhere };
        let typed = bias
            .clone()
            .map(|bias| AttentionBias { added: bias.added.map(|added| added.cast(dtype)), ..bias });
        let attend = typed.as_ref().map_or(Attend::Full, Attend::Biased);
        let h = self.first.forward(x.clone()).cast(dtype);
        let seen = self.attention.adapted(h, rotary.as_ref(), attend, None);
        let x = x.clone() + self.leaving(0, seen.cast(FloatDType::F32));
        let h = self.second.forward(x.clone());
        let inner = apply(&self.up, &h, Some(self.activation));
        let inner = match &self.gate {
            Some(gate) => inner * apply(gate, &h, None),
            None => inner,
        };
        stream.behind(x + self.leaving(1, apply(&self.down, &inner, None)))
    }

    /// What a branch made, behind its norm.
    fn leaving(&self, branch: usize, x: Tensor<3>) -> Tensor<3> {
        match &self.behind {
            Some(norms) => norms[branch].forward(x),
            None => x,
        }
    }

    fn folded(mut self) -> Self {
        self.attention = self.attention.folded();
        self.up = self.up.folded();
        self.gate = self.gate.map(Dense::folded);
        self.down = self.down.folded();
        self
    }
}

impl TextEncoder {
    /// What the network was made from.
    pub fn config(&self) -> &TextEncoderConfig {
        &self.config
    }

    /// The states of texts of one length; the stream is kept behind so many blocks each, in rising order.
    ///
    /// # Shapes
    /// `ids`: so many texts of so many tokens, `padding`: `[batch, tokens]`, `true` where no token sees one
    ///
    /// # Panics
    /// For no texts or some of different lengths, a token that is not in the vocabulary, and more tokens than there are
    /// learned places.
    pub fn forward(
        &self,
        ids: &[Vec<usize>],
        padding: Option<Tensor<2, Bool>>,
        keep: &[usize],
    ) -> TextStates {
        let stream = self.behind_all(self.begin(ids, padding, keep));
        TextStates { last: self.norm.forward(stream.x), kept: stream.kept }
    }

    /// Texts before the first block; see [`TextEncoder::forward`].
    ///
    /// # Panics
    /// As there.
    pub fn enter(&self, ids: &[Vec<usize>], padding: Option<Tensor<2, Bool>>) -> TextStream {
        self.begin(ids, padding, &self.config.behind)
    }

    fn begin(
        &self,
        ids: &[Vec<usize>],
        padding: Option<Tensor<2, Bool>>,
        keep: &[usize],
    ) -> TextStream {
        let tokens = ids.first().expect("a text").len();
        let (x, rotary) = (self.embed(ids), self.rotary(tokens));
        // None of a text that fits into it.
        let window = self.config.scores.window.filter(|window| *window < tokens);
        let everywhere = self.bias(tokens, padding.clone(), None);
        let within = match window {
            Some(_) => self.bias(tokens, padding, window),
            None => everywhere.clone(),
        };
        let kept = keep.first().filter(|first| **first == 0).map(|_| x.clone());
        let (kept, kept_behind) = (kept.into_iter().collect(), keep.to_vec());
        TextStream { x, biases: [everywhere, within], rotary, passed: 0, kept_behind, kept }
    }

    fn rotary(&self, tokens: usize) -> Option<Rotary> {
        let Places::Rotary { theta } = self.config.places else { return None };
        let rope = Rope { axes: vec![self.config.head], theta, pairs: Pairs::Halves };
        let places: Vec<[f64; 1]> = (0..tokens).map(|place| [place as f64]).collect();
        Some(rope.table(&places, &self.norm.gain.lazy_device()))
    }

    /// The states of texts behind the last block, `[batch, tokens, width]`.
    pub fn leave(&self, stream: TextStream) -> Tensor<3> {
        match stream.kept.is_empty() {
            true => self.norm.forward(stream.x),
            false => Tensor::cat(stream.kept, 2),
        }
    }

    /// The same, and each text as one vector, see [`TextEncoder::pooled`].
    pub fn leave_pooled(&self, stream: TextStream, ends: &[usize]) -> (Tensor<3>, Tensor<2>) {
        let pooled = self.pooled(&self.norm.forward(stream.x.clone()), ends);
        (self.leave(stream), pooled)
    }

    /// Texts of one length behind all blocks; see [`TextEncoder::forward`].
    ///
    /// # Panics
    /// As there.
    pub fn through(&self, ids: &[Vec<usize>], padding: Option<Tensor<2, Bool>>) -> TextStream {
        self.behind_all(self.enter(ids, padding))
    }

    fn behind_all(&self, stream: TextStream) -> TextStream {
        self.blocks.iter().fold(stream, |stream, block| block.forward(stream))
    }

    /// The states of texts of one length, `[batch, tokens, width]`: those that [`TextEncoderConfig::behind`] names.
    ///
    /// # Panics
    /// As [`TextEncoder::forward`].
    pub fn states(&self, ids: &[Vec<usize>], padding: Option<Tensor<2, Bool>>) -> Tensor<3> {
        self.leave(self.through(ids, padding))
    }

    fn embed(&self, ids: &[Vec<usize>]) -> Tensor<3> {
        let (batch, tokens) = (ids.len(), ids[0].len());
        assert!(ids.iter().all(|text| text.len() == tokens), "texts of one length");
        let vocabulary = self.config.vocabulary;
        let flat: Vec<i64> = ids.iter().flatten().map(|&id| id as i64).collect();
        if let Some(id) = flat.iter().find(|id| **id >= vocabulary as i64) {
            panic!("token {id} of a vocabulary of {vocabulary}");
        }
        let device = self.norm.gain.lazy_device();
        let ids = Tensor::<1, Int>::from_data(TensorData::new(flat, [batch * tokens]), &device);
        let x = self.tokens.val().select(0, ids).cast(FloatDType::F32);
        let x: Tensor<3> = x.reshape([batch, tokens, self.config.hidden]);
        let x = if self.config.scaled { x * (self.config.hidden as f64).sqrt() } else { x };
        match (self.config.places, &self.places) {
            (Places::Learned(places), Some(table)) => {
                assert!(tokens <= places, "{tokens} tokens, expected up to {places}");
                x + table.val().narrow(0, 0, tokens).cast(FloatDType::F32).unsqueeze::<3>()
            }
            _ => x,
        }
    }

    /// What acts on the scores of a block, which has such a window or none.
    fn bias(
        &self,
        tokens: usize,
        padding: Option<Tensor<2, Bool>>,
        window: Option<usize>,
    ) -> Option<AttentionBias> {
        let device = self.norm.gain.lazy_device();
        let pairs = || (0..tokens * tokens).map(|i| ((i / tokens) as isize, (i % tokens) as isize));
        let mut bias = padding.map(AttentionBias::hidden_keys);
        if self.config.causal {
            let far = window.map_or(isize::MAX, |window| window as isize);
            let hides = |(query, key)| key > query || query - key >= far;
            let later: Vec<bool> = pairs().map(hides).collect();
            let later = TensorData::new(later, [1, 1, tokens, tokens]);
            let later = Tensor::<4, Bool>::from_data(later, &device);
            let hidden = match bias.and_then(|bias| bias.hidden) {
                Some(padding) => {
                    let [batch, ..] = padding.dims();
                    let shape = [batch, 1, tokens, tokens];
                    padding.expand(shape).bool_or(later.expand(shape))
                }
                None => later,
            };
            bias = Some(AttentionBias::hidden(hidden));
        }
        if let (Places::Relative { buckets, farthest }, Some(table)) =
            (self.config.places, &self.places)
        {
            let ids: Vec<i64> =
                pairs().map(|(query, key)| bucket(key - query, buckets, farthest) as i64).collect();
            let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [tokens * tokens]), &device);
            let added = table.val().select(0, ids).cast(FloatDType::F32); // [queries · keys, heads]
            let added = added.swap_dims(0, 1).reshape([1, self.config.heads, tokens, tokens]);
            bias = Some(AttentionBias { added: Some(added), ..bias.unwrap_or_default() });
        }
        bias
    }

    /// Texts as one vector each: the last state of the token at the end of each, projected if there is a projection.
    ///
    /// # Shapes
    /// `last`: `[batch, tokens, hidden]`, `ends`: the place of that token in each text, output: `[batch, width]`
    pub fn pooled(&self, last: &Tensor<3>, ends: &[usize]) -> Tensor<2> {
        let [_, _, hidden] = last.dims();
        let rows = ends.iter().enumerate().map(|(image, &end)| {
            last.clone().narrow(0, image, 1).narrow(1, end, 1).reshape([1, 1, hidden])
        });
        let rows = Tensor::cat(rows.collect(), 0); // [batch, 1, hidden]
        let rows = self.projection.as_ref().map_or(rows.clone(), |dense| apply(dense, &rows, None));
        rows.squeeze_dim(1)
    }

    /// See [`Dit::folded`](super::Dit::folded).
    pub fn folded(mut self) -> Self {
        self.blocks = self.blocks.into_iter().map(TextBlock::folded).collect();
        self.projection = self.projection.map(Dense::folded);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_have_the_published_buckets() {
        let distances = [-200, -64, -20, -9, -8, -1, 0, 1, 7, 8, 16, 20, 64, 128];
        let expected = [15, 14, 10, 8, 8, 1, 0, 17, 23, 24, 26, 26, 30, 31];
        assert_eq!(distances.map(|distance| bucket(distance, 32, 128)), expected);
        // Without logarithms: a bucket more for each factor of √2 beyond 8.
        for distance in 8..400_isize {
            let square = (distance * distance) as u64;
            let beyond = (1..8).filter(|k| square >= 64 << k).count();
            assert_eq!(bucket(-distance, 32, 128), 8 + beyond, "{distance}");
        }
    }
}
