//! From a noisy image and a condition to the network's output.

use std::borrow::Cow;

use burn::module::Module;
use burn::tensor::{Bool, Device, FloatDType, Tensor};

use super::block::{Condition, DitBlock, Head};
use super::condition::{Conditioning, Context, Embedder};
use super::config::DitConfig;
use super::patches::{BlockAdapters, BlockMode, Ends, Mode};
use crate::layers::dense::{DenseConfig, Quantize};
use crate::layers::patch::{patchify, unpatchify};
use crate::layers::resize::{resize_embedding, resize_projection};
use crate::layers::{Attend, Dense, Fresh, Init, KvCache, Mlp};
use crate::ops::{self, AttentionBias};

/// A diffusion transformer.
#[derive(Module, Debug)]
pub struct Dit {
    /// `[kernel · kernel · channels (+ 1), hidden]`, input ordered row, column, channel; see
    /// [`DitConfig::kernel`].
    pub patch: Dense,
    /// Embedding of noise level and class for the head, and for all blocks without their own.
    pub embedder: Embedder,
    /// The blocks, first to last.
    pub blocks: Vec<DitBlock>,
    /// From tokens to pixels.
    pub head: Head,
    /// One per further patch size.
    pub modes: Vec<Mode>,
    /// `[hidden, parts]`: the modulation of all blocks before their own numbers (adaLN-single).
    pub single: Option<Dense>,
    /// `[text, hidden]` and `[hidden, hidden]`: from the tokens of a text to those that the blocks see.
    pub caption: Option<Mlp>,
    position: Tensor<3>,
    kernel: usize,
    #[module(skip)]
    pub(super) config: DitConfig,
}

/// Sees the residual stream after each block, `[batch, tokens, hidden]` with the tokens of the panels behind
/// those of the image, and returns what the next one works on.
pub type AfterBlock<'a> = &'a mut dyn FnMut(usize, Tensor<3>) -> Tensor<3>;

/// How the trunk is called.
pub(crate) struct Call<'a> {
    /// Side of the patches.
    pub(crate) patch: usize,
    /// Of the first blocks: they also attend to what these hold.
    pub(crate) caches: &'a mut [KvCache],
    /// Whether the caches take up the tokens of this call.
    pub(crate) keep: bool,
    /// See [`AfterBlock`].
    pub(crate) after_block: AfterBlock<'a>,
}

/// A pass of tokens through blocks: what all of these see.
struct Pass<'a> {
    net: &'a Dit,
    time: Tensor<1>,
    told: &'a Conditioning,
    /// Tokens of the image and of each panel.
    counts: Vec<usize>,
    /// Of the image, or of every token.
    condition: Tensor<3>,
    /// The condition as blocks without an embedder of their own take it.
    shared: Tensor<3>,
    context: Option<Context>,
    mode: Option<&'a Mode>,
    /// In place of those of the mode, one per block.
    adapters: Option<&'a [BlockAdapters]>,
}

impl Pass<'_> {
    /// Through the block that stands at place `i`, or a copy of it.
    fn through(
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
        let condition = Condition { modulation, context: self.context.as_mut() };
        block.forward(tokens, condition, attend, mode)
    }
}

/// What a head works on.
#[derive(Debug, Clone)]
pub(crate) struct Encoded {
    /// After all blocks, `[batch, tokens, hidden]`.
    pub(crate) tokens: Tensor<3>,
    /// The condition of the image for the head, `[batch, 1, hidden]`.
    pub(crate) condition: Tensor<3>,
}

impl DitConfig {
    /// Makes the network with the fresh weights of a seed; at this point its output is exactly zero.
    ///
    /// # Panics
    /// If [`DitConfig::check`] finds a fault.
    pub fn init(&self, seed: u64, device: &Device) -> Dit {
        let init = &Init::new(seed, device);
        if let Err(fault) = self.check() {
            panic!("{fault}");
        }
        self.init_from(init)
    }

    pub(crate) fn init_from(&self, init: &Init<'_>) -> Dit {
        Dit {
            patch: self.init_embedding(self.kernel(), init),
            embedder: self.init_embedder(init),
            blocks: (0..self.depth).map(|i| self.init_block(i, init)).collect(),
            head: self.init_head(self.kernel(), init),
            modes: self.init_modes(init),
            single: self.init_single(init),
            caption: self.init_caption(init),
            position: self.positions(self.size, self.patch, [0.0; 2], init.device),
            kernel: self.kernel(),
            config: self.clone(),
        }
    }

    /// Layer from patches of this size.
    pub(super) fn init_embedding(&self, patch: usize, init: &Init<'_>) -> Dense {
        let dense = self.dense(patch * patch * self.channels, self.hidden);
        DenseConfig { ones: !self.bias, ..dense }.init(init)
    }

    /// Layer to what patches of this size predict, at first zero.
    pub(super) fn init_projection(&self, patch: usize, init: &Init<'_>) -> Dense {
        let dense = self
            .dense(self.hidden, self.window(patch).pow(2) * self.out_channels())
            .with_free_weights(Fresh::Constant(0.0));
        let gain = self.magnitude.normalized_weights.then_some(0.0);
        DenseConfig { gain, ..dense }.init(init)
    }

    /// Positions of the tokens of an image, `[1, tokens, hidden]`, whose first pixel stands at `origin` on the
    /// canvas.
    pub(super) fn positions(
        &self,
        size: [usize; 2],
        patch: usize,
        origin: [f64; 2],
        device: &Device,
    ) -> Tensor<3> {
        let coordinates = self.coordinates(size, patch, origin);
        self.position.table(self.grid(size, patch), coordinates, self.hidden, device)
    }
}

impl Dit {
    /// What the network was made from.
    pub fn config(&self) -> &DitConfig {
        &self.config
    }

    /// The network's raw output, in f32; what it means is the business of
    /// [`Prediction`](crate::diffusion::Prediction).
    ///
    /// `time` is in the unit the network was trained with, `patch` is one of [`DitConfig::patches`].
    ///
    /// # Shapes
    /// `x`: `[batch, channels, height, width]`, `time`: `[batch]`, output:
    /// `[batch, out_channels, height, width]`
    ///
    /// # Panics
    /// If the network has no such patch size, or it does not divide height and width, or the condition has
    /// parts that the network does not take, or lacks one that it needs.
    pub fn forward(
        &self,
        x: Tensor<4>,
        time: Tensor<1>,
        told: &Conditioning,
        patch: usize,
    ) -> Tensor<4> {
        self.forward_with(x, time, told, patch, &mut |_, tokens| tokens)
    }

    /// [`Dit::forward`] with a look at the residual stream, and a hand in it, after each block.
    pub fn forward_with(
        &self,
        x: Tensor<4>,
        time: Tensor<1>,
        told: &Conditioning,
        patch: usize,
        after_block: AfterBlock<'_>,
    ) -> Tensor<4> {
        let [_, _, height, width] = x.dims();
        let call = Call { patch, caches: &mut [], keep: false, after_block };
        let encoded = self.encode(x, time, told, call);
        self.decode(encoded, [height, width], patch, None)
    }

    /// The image's tokens after all blocks, and its condition.
    pub(crate) fn encode(
        &self,
        x: Tensor<4>,
        time: Tensor<1>,
        told: &Conditioning,
        call: Call<'_>,
    ) -> Encoded {
        let Call { patch, caches, keep, after_block } = call;
        let (mut tokens, mut pass) = self.enter(x, time, told, patch);
        let steered = |tokens: Tensor<3>, at: usize| match told.control.get(at) {
            Some(control) => tokens + control.clone().cast(self.dtype()),
            None => tokens,
        };
        tokens = steered(tokens, 0);
        for (i, block) in self.blocks.iter().enumerate() {
            let attend = match (caches.get_mut(i), told.seen.get(i)) {
                (Some(cache), None) => Attend::Cached { cache, keep },
                (None, Some(seen)) => Attend::Seen(seen),
                (None, None) => Attend::Full,
                (Some(_), Some(_)) => panic!("a call with a history has tokens to see, too"),
            };
            let after = steered(pass.through(i, block, tokens, attend), i + 1);
            tokens = after_block(i, after);
        }
        let Pass { condition, counts, .. } = pass;
        match told.panels.is_empty() {
            true => Encoded { tokens, condition },
            false => Encoded {
                tokens: tokens.narrow(1, 0, counts[0]),
                condition: condition.narrow(1, 0, 1),
            },
        }
    }

    /// The tokens before the first block, `[batch, tokens with those of panels, hidden]`, and what all blocks see.
    fn enter<'a>(
        &'a self,
        x: Tensor<4>,
        time: Tensor<1>,
        told: &'a Conditioning,
        patch: usize,
    ) -> (Tensor<3>, Pass<'a>) {
        let mode = self.mode(patch);
        let image = self.embed(x, patch); // [batch, tokens, hidden]
        let panels = told.panels.iter();
        let panels = panels.map(|panel| self.embed_at(panel.image.clone(), patch, panel.origin));
        let parts: Vec<Tensor<3>> = std::iter::once(image).chain(panels).collect();
        let counts: Vec<usize> = parts.iter().map(|part| part.dims()[1]).collect();
        let condition = self.condition(&self.embedder, &time, told, &counts);
        let shared = match &self.single {
            Some(dense) => {
                dense.forward(self.config.embedder_activation().forward(condition.clone()))
            }
            None => condition.clone(),
        };
        let tokens = side_by_side(parts);
        let context = self.context(told, tokens.dims()[1]);
        let adapters = None;
        (tokens, Pass { net: self, time, told, counts, condition, shared, context, mode, adapters })
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
        let of_panel = |panel: &super::Panel| embedder.forward(time.full_like(panel.time), told);
        let all = std::iter::once(image).chain(told.panels.iter().map(of_panel));
        let [batch, hidden] = [time.dims()[0], self.config.hidden];
        side_by_side(
            all.zip(counts).map(|(one, &count)| one.expand([batch, count, hidden])).collect(),
        )
    }

    /// The text, for blocks that work on `tokens` of images.
    fn context(&self, told: &Conditioning, tokens: usize) -> Option<Context> {
        let (caption, text) = match (&self.caption, &told.text) {
            (Some(caption), Some(text)) => (caption, text),
            (None, None) => return None,
            (Some(_), None) => panic!("a network that reads text is told none"),
            (None, Some(_)) => panic!("a network that reads no text is told one"),
        };
        let hidden = text.padding.clone().map(|padding| match self.config.is_joint() {
            false => padding,
            true => {
                let [batch, _] = padding.dims();
                let seen = Tensor::<2, Bool>::full([batch, tokens], false, &padding.device());
                Tensor::cat(vec![seen, padding], 1) // [batch, tokens and those of the text]
            }
        });
        Some(Context {
            tokens: caption.forward(text.tokens.clone().cast(caption.up.dtype())),
            bias: hidden.map(AttentionBias::hidden_keys),
        })
    }

    /// What the network has of its own at a patch size that is not the native one.
    fn mode(&self, patch: usize) -> Option<&Mode> {
        let mode = self.modes.iter().find(|mode| mode.patch == patch);
        assert!(
            mode.is_some() || patch == self.config.patch,
            "no patch size {patch}, the network has {:?}",
            self.config.patches()
        );
        mode
    }

    /// Patches with their positions.
    ///
    /// # Shapes
    /// `[batch, channels, height, width]` to `[batch, tokens, hidden]`
    pub fn embed(&self, x: Tensor<4>, patch: usize) -> Tensor<3> {
        self.embed_at(x, patch, [0.0; 2])
    }

    /// [`Dit::embed`] of an image elsewhere on the canvas, see [`Panel::origin`](super::Panel::origin).
    fn embed_at(&self, x: Tensor<4>, patch: usize, origin: [f64; 2]) -> Tensor<3> {
        let [_, _, height, width] = x.dims();
        let x = x.cast(self.dtype());
        let mode = self.mode(patch);
        let embedding = match mode.and_then(|mode| mode.ends.as_ref()) {
            Some(own) => Cow::Borrowed(&own.patch),
            None if patch == self.kernel => Cow::Borrowed(&self.patch),
            None => Cow::Owned(resize_embedding(&self.patch, self.kernel, patch)),
        };
        let mut tokens = embedding.forward(patchify(x, patch)); // [batch, tokens, hidden]
        if let Some(mode) = mode {
            tokens = tokens + mode.token.val().unsqueeze();
        }
        let position = match ([height, width], origin) == (self.config.size, [0.0; 2]) {
            true => mode.map_or(&self.position, |mode| &mode.position).clone(),
            false => self.config.positions([height, width], patch, origin, &tokens.device()),
        };
        let position = position.cast(self.dtype()).expand(tokens.dims());
        self.config.magnitude.residual.sum(tokens, position)
    }

    /// From tokens back to an image of `size`, by a head made for the patch size or the network's own.
    ///
    /// # Shapes
    /// output: `[batch, out_channels, height, width]`
    pub(crate) fn decode(
        &self,
        encoded: Encoded,
        size: [usize; 2],
        patch: usize,
        head: Option<&Head>,
    ) -> Tensor<4> {
        let Encoded { tokens, condition } = encoded;
        let (modulation, out) = match head {
            Some(head) => (head, Cow::Borrowed(&head.out)),
            None => (&self.head, self.projection(patch)),
        };
        let norm = self.mode(patch).and_then(|mode| mode.norms.last());
        let values = out.forward(modulation.modulate(tokens, condition, norm)); // [batch, tokens, values]
        let image = if self.config.overlap { ops::overlap_add } else { unpatchify };
        image(values.cast(FloatDType::F32), patch, self.config.grid(size, patch))
    }

    /// The projection to what patches of this size predict.
    pub(crate) fn projection(&self, patch: usize) -> Cow<'_, Dense> {
        match self.mode(patch).and_then(|mode| mode.ends.as_ref()) {
            Some(own) => Cow::Borrowed(&own.out),
            None if patch == self.kernel => Cow::Borrowed(&self.head.out),
            None => Cow::Owned(self.resized_projection(patch)),
        }
    }

    /// The shared projection at another patch size.
    fn resized_projection(&self, patch: usize) -> Dense {
        let [from, to] = [self.kernel, patch].map(|side| self.config.window(side));
        resize_projection(&self.head.out, from, to)
    }

    /// The network with other layers at its ends and further patch sizes.
    pub(super) fn with_modes(
        mut self,
        patch: Dense,
        out: Dense,
        modes: Vec<Mode>,
        config: DitConfig,
    ) -> Self {
        (self.patch, self.head.out, self.modes) = (patch, out, modes);
        Self { kernel: config.kernel(), config, ..self }
    }

    /// The network with only that trained which belongs to one further patch size each: what the native
    /// size uses is frozen.
    pub fn freeze_native(self) -> Self {
        let modes = self.modes.clone();
        Self { modes, ..self.no_grad() }
    }

    /// Type in which the network computes.
    pub fn dtype(&self) -> FloatDType {
        self.patch.dtype()
    }

    /// The same function with every weight normalisation and resizing done once: for inference.
    pub fn folded(mut self) -> Self {
        let (kernel, native) = (self.kernel, self.config.patch);
        let ends = |patch: usize, net: &Self| Ends {
            patch: resize_embedding(&net.patch, kernel, patch),
            out: net.resized_projection(patch),
        };
        let modes = std::mem::take(&mut self.modes);
        self.modes =
            modes.into_iter().map(|mode| mode.folded(|patch| ends(patch, &self))).collect();
        if kernel != native {
            let Ends { patch, out } = ends(native, &self);
            (self.patch, self.head.out, self.kernel) = (patch, out, native);
        }
        self.patch = self.patch.folded();
        self.embedder = self.embedder.folded();
        self.blocks = self.blocks.into_iter().map(DitBlock::folded).collect();
        self.head = self.head.folded();
        self.single = self.single.map(Dense::folded);
        self.caption = self.caption.map(Mlp::folded);
        self
    }

    /// Whether [`Dit::quantized`] takes the network.
    pub(crate) fn quantizes(&self) -> bool {
        ops::quantizes(&self.patch.weight.val())
    }

    /// [`Dit::folded`] with the weights of linear layers in 8 bits, from f16: each group of 32 inputs of an
    /// output has a scale. `None` but on the CPU.
    pub fn quantized(self) -> Option<Self> {
        let net = self.folded();
        net.quantizes().then(|| net.map(&mut Quantize::default()))
    }
}

/// Tokens of several sources in order, each `[batch, tokens, hidden]`.
fn side_by_side(mut parts: Vec<Tensor<3>>) -> Tensor<3> {
    match parts.len() {
        1 => parts.remove(0),
        _ => Tensor::cat(parts, 1),
    }
}
