//! A pass of tokens through the blocks of a network.

use burn::tensor::Tensor;

use super::block::{Condition, DitBlock};
use super::condition::{Conditioning, Embedder};
use super::patches::{BlockAdapters, BlockMode, Mode};
use super::stream::{Context, Places};
use super::trunk::Dit;
use crate::layers::{Attend, KvCache};
use crate::ops::AttentionBias;

/// A pass of tokens through blocks: what all of these see.
pub(super) struct Pass<'a> {
    pub(super) net: &'a Dit,
    pub(super) time: Tensor<1>,
    pub(super) told: &'a Conditioning,
    /// Tokens of the image and of each panel.
    pub(super) counts: Vec<usize>,
    /// Of the image, or of every token, for the head.
    pub(super) condition: Tensor<3>,
    /// The condition as blocks without an embedder of their own take it.
    pub(super) shared: Tensor<3>,
    /// Of each block what its modulation makes of that, where all are made at once.
    parts: Option<Vec<Tensor<3>>>,
    /// That of the text, and of the blocks that text and image share, where these are others.
    common: Option<[Tensor<3>; 2]>,
    pub(super) context: Option<Context>,
    places: Option<Places>,
    /// Whether the text is among the tokens, and what of it is not seen then.
    is_joined: bool,
    bias: Option<AttentionBias>,
    pub(super) mode: Option<&'a Mode>,
    /// In place of those of the mode, one per block.
    pub(super) adapters: Option<&'a [BlockAdapters]>,
}

impl Pass<'_> {
    /// Through the block that stands at place `i`, or a copy of it.
    pub(super) fn through(
        &mut self,
        i: usize,
        block: &DitBlock,
        tokens: Tensor<3>,
        attend: Attend<'_>,
    ) -> Tensor<3> {
        let modulation = match &block.embedder {
            Some(own) => self.net.condition(own, &self.time, self.told, &self.counts),
            None => self.shared.clone(),
        };
        let mode = self.mode.map_or(BlockMode::default(), |mode| mode.block(i));
        let mode = match self.adapters {
            Some(own) => BlockMode { adapters: Some(&own[i]), ..mode },
            None => mode,
        };
        let rotary = match (&self.places, self.is_joined) {
            (None, _) => [None; 2],
            (Some(places), false) => [&places.image, &places.text].map(Some),
            (Some(places), true) => [Some(&places.all), None],
        };
        let attend = match (attend, &self.bias) {
            (Attend::Full, Some(bias)) => Attend::Biased(bias),
            (_, Some(_)) => panic!("a text among the tokens keeps no cache"),
            (attend, None) => attend,
        };
        let of_text = self.common.as_ref().map(|[text, _]| text.clone());
        let context = self.context.as_mut();
        // Not of a copy, which may have learnt something else.
        let is_own = self.net.blocks.get(i).is_some_and(|own| std::ptr::eq(own, block));
        let parts = self.parts.as_ref().filter(|_| is_own).map(|parts| parts[i].clone());
        let condition = Condition { modulation, parts, of_text, context, rotary };
        block.forward(tokens, condition, attend, mode)
    }

    /// The tokens with those of the text behind them.
    pub(super) fn joined(&mut self, tokens: Tensor<3>) -> Tensor<3> {
        let context = self.context.take().expect("a network of joint attention reads a text");
        self.is_joined = true;
        self.bias = context.bias;
        if let Some([_, both]) = self.common.take() {
            self.shared = both;
            self.parts = None;
        }
        let [batch, text, _] = context.tokens.dims();
        let [_, rows, width] = self.shared.dims();
        if rows > 1 {
            let of_image = self.shared.clone().narrow(1, 0, 1).expand([batch, text, width]);
            self.shared = Tensor::cat(vec![self.shared.clone(), of_image], 1);
            self.parts = None;
        }
        Tensor::cat(vec![tokens, context.tokens], 1)
    }
}

impl Dit {
    /// The tokens before the first block, `[batch, tokens with those of panels, hidden]`, and what all blocks see.
    pub(super) fn enter<'a>(
        &'a self,
        x: Tensor<4>,
        time: Tensor<1>,
        told: &'a Conditioning,
        patch: usize,
    ) -> (Tensor<3>, Pass<'a>) {
        let (mode, device) = (self.mode(patch), x.device());
        let images = std::iter::once((&x, [0.0; 2]));
        let images: Vec<_> =
            images.chain(told.panels.iter().map(|panel| (&panel.image, panel.origin))).collect();
        let embedded = images.iter().map(|(x, origin)| self.embed_at((*x).clone(), patch, *origin));
        let parts: Vec<Tensor<3>> = embedded.collect();
        let mut counts: Vec<usize> = parts.iter().map(|part| part.dims()[1]).collect();
        let held = counts.iter().sum::<usize>();
        let tokens = self.filled_up(side_by_side(parts));
        let fill = tokens.dims()[1] - held;
        *counts.last_mut().expect("an image") += if told.panels.is_empty() { 0 } else { fill };
        let condition = self.condition(&self.embedder, &time, told, &counts);
        let mut context = self.context(told, held + fill);
        let (seen, text) = match &context {
            Some(context) => (context.seen.as_slice(), context.tokens.dims()[1]),
            None => (&[][..], 0),
        };
        let images: Vec<_> = images.into_iter().map(|(x, origin)| (side(x), origin)).collect();
        let places = self.config.places(&images, patch, (seen, text), &device);
        let common = self.common.as_ref().map(|common| {
            let of_image = condition.clone().narrow(1, 0, 1);
            [common.text.forward(of_image), common.shared.forward(condition.clone())]
        });
        let (condition, shared) = self.for_head_and_blocks(condition);
        let tokens = self.refined(tokens, &shared, &mut context, places.as_ref());
        let stacked = self.stacked.as_ref();
        let parts = stacked.and_then(|stacked| stacked.forward(&self.blocks, &shared));
        let pass = Pass {
            net: self,
            time,
            told,
            counts,
            condition,
            shared,
            parts,
            common,
            context,
            places,
            is_joined: false,
            bias: None,
            mode,
            adapters: None,
        };
        (tokens, pass)
    }

    /// The condition as the head takes it, and as blocks do.
    fn for_head_and_blocks(&self, condition: Tensor<3>) -> (Tensor<3>, Tensor<3>) {
        let activated = |x: &Tensor<3>| self.config.embedder_activation().forward(x.clone());
        match &self.single {
            Some(dense) if self.common.is_some() => (condition.clone(), dense.forward(condition)),
            Some(dense) => (condition.clone(), dense.forward(activated(&condition))),
            None if self.config.modulation.unactivated => (activated(&condition), condition),
            None => (condition.clone(), condition),
        }
    }

    /// Keys and values of the tokens of an image and its panels, block by block, for [`Conditioning::seen`]; the layers have
    /// these adapters, one per block.
    pub(crate) fn seen_with(
        &self,
        adapters: &[BlockAdapters],
        x: Tensor<4>,
        time: Tensor<1>,
        told: &Conditioning,
        patch: usize,
    ) -> Vec<KvCache> {
        let (mut tokens, pass) = self.enter(x, time, told, patch);
        let mut pass = Pass { adapters: Some(adapters), ..pass };
        let mut seen = vec![KvCache::default(); self.blocks.len()];
        for (i, (block, cache)) in self.blocks.iter().zip(&mut seen).enumerate() {
            tokens = pass.through(i, block, tokens, Attend::Cached { cache, keep: true });
        }
        seen
    }

    /// The tokens of the image and the panels before the first block, and after each of `blocks`, which stand in place
    /// of the network's first ones: each `[batch, tokens, hidden]`.
    pub(crate) fn states_of(
        &self,
        blocks: &[DitBlock],
        x: Tensor<4>,
        time: Tensor<1>,
        told: &Conditioning,
        patch: usize,
    ) -> Vec<Tensor<3>> {
        let (tokens, mut pass) = self.enter(x, time, told, patch);
        let mut states = vec![tokens];
        for (i, block) in blocks.iter().enumerate() {
            let before = states[i].clone();
            states.push(pass.through(i, block, before, Attend::Full));
        }
        states
    }

    /// The condition of the image, `[batch, 1, hidden]`; with panels that of every token, of which
    /// the image and the panels have `counts`.
    fn condition(
        &self,
        embedder: &Embedder,
        time: &Tensor<1>,
        told: &Conditioning,
        counts: &[usize],
    ) -> Tensor<3> {
        let image = embedder.forward(time.clone(), told);
        if told.panels.is_empty() {
            return image;
        }
        let [batch, _, hidden] = image.dims();
        let of_panel = |panel: &super::Panel| embedder.forward(time.full_like(panel.time), told);
        let all = std::iter::once(image).chain(told.panels.iter().map(of_panel));
        side_by_side(
            all.zip(counts).map(|(one, &count)| one.expand([batch, count, hidden])).collect(),
        )
    }
}

/// Tokens of several sources in order, each `[batch, tokens, hidden]`.
fn side_by_side(mut parts: Vec<Tensor<3>>) -> Tensor<3> {
    match parts.len() {
        1 => parts.remove(0),
        _ => Tensor::cat(parts, 1),
    }
}

/// Height and width of an image.
fn side(x: &Tensor<4>) -> [usize; 2] {
    let [_, _, height, width] = x.dims();
    [height, width]
}
