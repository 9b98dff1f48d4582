//! Image and text on their way to each other: how a text comes in, what both are filled up with, blocks that each goes
//! through for itself, and where all tokens stand.

use burn::module::{Module, Param};
use burn::tensor::{Bool, Device, FloatDType, Tensor, TensorData};

use super::block::{Condition, DitBlock};
use super::condition::Conditioning;
use super::config::DitConfig;
use super::form::{Placing, TextEntry};
use super::patches::BlockMode;
use super::trunk::Dit;
use crate::layers::dense::DenseConfig;
use crate::layers::{Activation, Attend, Dense, Fresh, Init, Rope};
use crate::ops::{self, AttentionBias, Rotary, RowNorm};

/// From the tokens of a text to those that the blocks see.
#[derive(Module, Debug)]
pub struct Caption {
    /// Factors of the RMS norm before, `[width]`.
    pub norm: Option<Param<Tensor<1>>>,
    /// `[width, hidden]`.
    pub up: Dense,
    /// `[hidden, hidden]`, behind an activation.
    pub down: Option<Dense>,
    #[module(skip)]
    activation: Activation,
    epsilon: f64,
}

/// Blocks that image and text go through, each for itself, before they see each other; and tokens that fill both up.
#[derive(Module, Debug)]
pub struct Refiners {
    /// Of the image.
    pub image: Vec<DitBlock>,
    /// Of the text.
    pub text: Vec<DitBlock>,
    /// See [`TextConfig::multiple`](super::TextConfig::multiple) and [`TextConfig::length`](super::TextConfig::length).
    pub fill: Option<Fill>,
}

/// Tokens that fill up image and text.
#[derive(Module, Debug)]
pub struct Fill {
    /// That of an image, `[hidden]`, if it is filled up.
    pub image: Option<Param<Tensor<1>>>,
    /// That of a text, `[hidden]`, or before its entry `[width]`.
    pub text: Param<Tensor<1>>,
}

/// Projections of the condition that serve all blocks beside that for images, each `[condition, parts]`.
#[derive(Module, Debug)]
pub struct Common {
    /// For texts.
    pub text: Dense,
    /// For the tokens of blocks with the same layers for text and image.
    pub shared: Dense,
}

/// A text as the blocks see it.
#[derive(Debug, Clone)]
pub struct Context {
    /// `[batch, tokens, hidden]`.
    pub tokens: Tensor<3>,
    /// Tokens of each text that are seen, those that fill it up included.
    pub seen: Vec<usize>,
    /// What is not seen among the keys of the attention that sees the text.
    pub bias: Option<AttentionBias>,
}

/// Rotary positions.
#[derive(Debug)]
pub(super) struct Places {
    /// Of the tokens of images and what fills them up.
    pub(super) image: Rotary,
    /// Of those of the text.
    pub(super) text: Rotary,
    /// Of both, in this order.
    pub(super) all: Rotary,
}

impl Caption {
    fn forward(&self, tokens: Tensor<3>) -> Tensor<3> {
        let mut x = tokens.cast(self.up.dtype());
        if let Some(gain) = &self.norm {
            let [batch, _, width] = x.dims();
            let gain = gain.val().cast(self.up.dtype()).unsqueeze::<3>().expand([batch, 1, width]);
            x = ops::modulate(x, Some(RowNorm::Rms(self.epsilon)), [Some(gain), None, None]);
        }
        match &self.down {
            Some(down) => down.forward(self.up.activated(x, Some(self.activation))),
            None => self.up.forward(x),
        }
    }

    pub(super) fn folded(mut self) -> Self {
        self.up = self.up.folded();
        self.down = self.down.map(Dense::folded);
        self
    }
}

impl Refiners {
    pub(super) fn folded(self) -> Self {
        let folded = |blocks: Vec<DitBlock>| blocks.into_iter().map(DitBlock::folded).collect();
        Self { image: folded(self.image), text: folded(self.text), ..self }
    }
}

impl Common {
    pub(super) fn folded(self) -> Self {
        Self { text: self.text.folded(), shared: self.shared.folded() }
    }
}

impl DitConfig {
    pub(super) fn init_common(&self, init: &Init<'_>) -> Option<Common> {
        let [_, condition] = self.condition_widths();
        let dense = |branches: f64| {
            let parts = branches * self.modulation.width(true) * self.hidden as f64;
            let dense = self.dense(condition, parts as usize);
            dense.with_free_weights(Fresh::Constant(0.0)).init(init)
        };
        let shared = if self.is_parallel() { 1.0 } else { 2.0 };
        self.modulation.common.then(|| Common { text: dense(2.0), shared: dense(shared) })
    }

    pub(super) fn init_caption(&self, init: &Init<'_>) -> Option<Caption> {
        let text = self.text.as_ref()?;
        let second = || self.dense(self.hidden, self.hidden).init(init);
        let up = self.dense(text.width, self.hidden);
        let bias = up.bias && text.entry != TextEntry::Unbiased;
        Some(Caption {
            norm: match text.entry {
                TextEntry::Normed(_) => Some(init.param(Fresh::Constant(1.0), [text.width])),
                _ => None,
            },
            up: DenseConfig { bias, ..up }.init(init),
            down: (text.entry == TextEntry::Mlp).then(second),
            activation: self.activation,
            epsilon: if let TextEntry::Normed(epsilon) = text.entry { epsilon } else { 0.0 },
        })
    }

    pub(super) fn init_refiners(&self, init: &Init<'_>) -> Option<Refiners> {
        let text = self.text.as_ref()?;
        let blocks = |count: usize, is_modulated| {
            (0..count).map(|_| self.init_plain_block(is_modulated, init)).collect()
        };
        let token = |width: usize| init.param(Fresh::Normal(0.02), [width]);
        let fill = match (text.length, text.multiple) {
            (Some(_), _) => Some(Fill { image: None, text: token(text.width) }),
            (None, Some(_)) => {
                Some(Fill { image: Some(token(self.hidden)), text: token(self.hidden) })
            }
            (None, None) => None,
        };
        (text.refiners + text.alone > 0 || fill.is_some()).then(|| Refiners {
            image: blocks(text.refiners, true),
            text: blocks(text.refiners + text.alone, false),
            fill,
        })
    }

    /// Tokens that are seen of a text of so many.
    pub(super) fn seen(&self, tokens: usize) -> usize {
        match self.text.as_ref().and_then(|text| text.length) {
            Some(length) => tokens.max(length),
            None => tokens + self.missing(tokens),
        }
    }

    /// Tokens that fill up so many.
    pub(super) fn missing(&self, tokens: usize) -> usize {
        let multiple = self.text.as_ref().and_then(|text| text.multiple).unwrap_or(1);
        tokens.next_multiple_of(multiple) - tokens
    }

    /// Where tokens stand: those of images of these sizes at these origins and what fills them up, and those of texts, so
    /// many, of which `seen` are seen.
    pub(super) fn places(
        &self,
        images: &[([usize; 2], [f64; 2])],
        patch: usize,
        (seen, text): (&[usize], usize),
        device: &Device,
    ) -> Option<Places> {
        let placing = self.placing.as_ref()?;
        let is_one = seen.windows(2).all(|pair| pair[0] == pair[1]);
        let variants = match placing.behind && !is_one {
            true => seen.to_vec(),
            false => vec![seen.first().copied().unwrap_or(0)],
        };
        let count =
            images.iter().map(|(size, _)| self.grid(*size, patch)).map(|[r, c]| r * c).sum();
        let nowhere = vec![0.0; placing.rope.axes.len()];
        let mut positions = Vec::new();
        for seen in &variants {
            let behind = if placing.behind { (placing.first + seen) as f64 } else { 0.0 };
            for (size, origin) in images {
                positions.extend(self.image_places(placing, *size, patch, *origin).map(
                    |mut at| {
                        at[placing.text] += behind;
                        at
                    },
                ));
            }
            positions.extend(vec![nowhere.clone(); self.missing(count)]);
            positions.extend((0..text).map(|token| {
                let mut at = nowhere.clone();
                at[placing.text] = (placing.first + token) as f64;
                at
            }));
        }
        let tokens = positions.len() / variants.len();
        Some(Places::new(placing, &positions, [variants.len(), tokens, text], device))
    }

    /// Rows and columns of the tokens of an image, at 0 on all other axes.
    fn image_places(
        &self,
        placing: &Placing,
        size: [usize; 2],
        patch: usize,
        origin: [f64; 2],
    ) -> impl Iterator<Item = Vec<f64>> {
        let [start, step] = self.coordinates(size, patch, origin);
        let [rows, columns] = self.grid(size, patch);
        let (axes, first) = (placing.rope.axes.len(), placing.rows);
        (0..rows * columns).map(move |token| {
            let mut at = vec![0.0; axes];
            for (axis, index) in [token / columns, token % columns].into_iter().enumerate() {
                at[first + axis] = start[axis] + step[axis] * index as f64;
            }
            at
        })
    }
}

impl Places {
    fn new(
        placing: &Placing,
        positions: &[Vec<f64>],
        [variants, tokens, text]: [usize; 3],
        device: &Device,
    ) -> Self {
        let Rotary { cos, sin, pairs } = match placing.own {
            false => placing.rope.table(positions, device),
            true => {
                let (image, text) = positions.split_at(tokens - text);
                let own =
                    Rope { axes: vec![placing.rope.axes.iter().sum()], ..placing.rope.clone() };
                let text: Vec<[f64; 1]> = text.iter().map(|at| [at[placing.text]]).collect();
                let parts = [placing.rope.table(image, device), own.table(&text, device)];
                let both = |of: fn(&Rotary) -> &Tensor<3>| {
                    Tensor::cat(parts.iter().map(|part| of(part).clone()).collect(), 1)
                };
                Rotary { cos: both(|x| &x.cos), sin: both(|x| &x.sin), pairs: parts[0].pairs }
            }
        };
        let [_, _, half] = cos.dims();
        let [cos, sin] = [cos, sin].map(|table| table.reshape([variants, tokens, half]));
        let part = |first: usize, count: usize| {
            let [cos, sin] = [&cos, &sin].map(|table| table.clone().narrow(1, first, count));
            Rotary { cos, sin, pairs }
        };
        Self {
            image: part(0, tokens - text),
            text: part(tokens - text, text),
            all: part(0, tokens),
        }
    }
}

/// Hides, of keys of which so many come before, those of each text that are not seen.
fn hidden(before: usize, seen: &[usize], tokens: usize, device: &Device) -> Option<AttentionBias> {
    if seen.iter().all(|seen| *seen == tokens) {
        return None;
    }
    let flags = |seen: &usize| {
        let seen = *seen;
        (0..before + tokens).map(move |key| key >= before + seen)
    };
    let flags: Vec<bool> = seen.iter().flat_map(flags).collect();
    Some(AttentionBias::hiding(flags, [seen.len(), before + tokens], device))
}

impl Dit {
    /// The text, for blocks that work on `tokens` of images.
    pub(super) fn context(&self, told: &Conditioning, tokens: usize) -> Option<Context> {
        let (caption, text) = match (&self.caption, &told.text) {
            (Some(caption), Some(text)) => (caption, text),
            (None, None) => return None,
            (Some(_), None) => panic!("a network that reads text is told none"),
            (None, Some(_)) => panic!("a network that reads no text is told one"),
        };
        let device = text.tokens.device();
        let [batch, longest, _] = text.tokens.dims();
        let lengths = text.lengths.clone().unwrap_or_else(|| vec![longest; batch]);
        let seen: Vec<usize> = lengths.iter().map(|length| self.config.seen(*length)).collect();
        let fill = self.refiners.as_ref().and_then(|refiners| refiners.fill.as_ref());
        let filled = |x| match fill {
            Some(fill) => filled(x, &fill.text.val(), &lengths, &seen),
            None => x,
        };
        let of_entry = self.config.text.as_ref().is_some_and(|text| text.length.is_some());
        let x = match of_entry {
            true => caption.forward(filled(text.tokens.clone())),
            false => filled(caption.forward(text.tokens.clone())),
        }; // [batch, text, hidden]
        let [_, held, _] = x.dims();
        let before = if self.config.is_joint() { tokens } else { 0 };
        Some(Context { tokens: x, bias: hidden(before, &seen, held, &device), seen })
    }

    /// The tokens of images with those that fill them up behind.
    pub(super) fn filled_up(&self, tokens: Tensor<3>) -> Tensor<3> {
        let [batch, count, hidden] = tokens.dims();
        let fill = self.refiners.as_ref().and_then(|refiners| refiners.fill.as_ref());
        let fill = fill.and_then(|fill| fill.image.as_ref());
        let (Some(fill), missing @ 1..) = (fill, self.config.missing(count)) else { return tokens };
        let token = fill.val().cast(FloatDType::from(tokens.dtype())).unsqueeze::<3>();
        Tensor::cat(vec![tokens, token.expand([batch, missing, hidden])], 1)
    }

    /// Image and text behind the blocks that each goes through for itself.
    pub(super) fn refined(
        &self,
        mut tokens: Tensor<3>,
        modulation: &Tensor<3>,
        context: &mut Option<Context>,
        places: Option<&Places>,
    ) -> Tensor<3> {
        let (Some(refiners), Some(context)) = (&self.refiners, context) else { return tokens };
        let through = |block: &DitBlock, x, rotary, attend| {
            let rotary = [rotary, None];
            let condition = Condition { rotary, ..Condition::from(modulation.clone()) };
            block.forward(x, condition, attend, BlockMode::default())
        };
        for block in &refiners.image {
            tokens = through(block, tokens, places.map(|places| &places.image), Attend::Full);
        }
        let [_, held, _] = context.tokens.dims();
        let bias = hidden(0, &context.seen, held, &tokens.device());
        for block in &refiners.text {
            let attend = bias.as_ref().map_or(Attend::Full, Attend::Biased);
            let rotary = places.map(|places| &places.text);
            context.tokens = through(block, context.tokens.clone(), rotary, attend);
        }
        tokens
    }
}

/// Texts with `fill` in place of what stands behind their ends, as long as the longest is seen.
fn filled(x: Tensor<3>, fill: &Tensor<1>, lengths: &[usize], seen: &[usize]) -> Tensor<3> {
    let (device, dtype) = (x.device(), FloatDType::from(x.dtype()));
    let [batch, given, hidden] = x.dims();
    let total = seen.iter().copied().max().unwrap_or(0);
    let x = match total > given {
        true => {
            let rest: Tensor<3> = Tensor::zeros([batch, total - given, hidden], &device);
            Tensor::cat(vec![x, rest.cast(dtype)], 1)
        }
        false => x.narrow(1, 0, total),
    };
    let behind: Vec<bool> =
        lengths.iter().flat_map(|&length| (0..total).map(move |i| i >= length)).collect();
    let behind = Tensor::<3, Bool>::from_data(TensorData::new(behind, [batch, total, 1]), &device);
    let fill = fill.clone().cast(dtype).unsqueeze::<3>().expand([batch, total, hidden]);
    x.mask_where(behind.expand([batch, total, hidden]), fill)
}

#[cfg(test)]
pub(super) mod tests;
