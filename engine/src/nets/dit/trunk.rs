//! From a noisy image and a condition to the network's output.

use std::borrow::Cow;

use burn::module::{Module, Param};
use burn::tensor::{Device, FloatDType, Tensor};

use super::block::{DitBlock, Head};
use super::condition::{Conditioning, Embedder};
use super::config::DitConfig;
use super::pass::Pass;
use super::patches::{Ends, Mode};
use super::stacked::Stacked;
use super::stream::{Caption, Common, Refiners};
use crate::layers::dense::DenseConfig;
use crate::layers::mappers::Quantize;
use crate::layers::patch::{patchify, unpatchify};
use crate::layers::resize::{resize_embedding, resize_projection};
use crate::layers::{Attend, Dense, Fresh, Init, KvCache, Position};
use crate::ops;

/// A diffusion transformer.
#[derive(Module, Debug)]
pub struct Dit {
    /// `[kernel · kernel · channels (+ 1), hidden]`, input ordered row, column, channel; see
    /// [`DitConfig::kernel`] and [`DitConfig::bottleneck`].
    pub patch: Dense,
    /// `[bottleneck, hidden]`, where patches come through one.
    pub widen: Option<Dense>,
    /// Embedding of noise level and class for the head, and for all blocks without their own.
    pub embedder: Embedder,
    /// The blocks, first to last.
    pub blocks: Vec<DitBlock>,
    /// From tokens to pixels.
    pub head: Head,
    /// One per further patch size.
    pub modes: Vec<Mode>,
    /// `[hidden, parts]`: the modulation of all blocks before their own numbers (adaLN-single), or as it is.
    pub single: Option<Dense>,
    /// What modulates the texts of all blocks, and all blocks with the same layers for text and image.
    pub common: Option<Common>,
    /// From the tokens of a text to those that the blocks see.
    pub caption: Option<Caption>,
    /// What image and text go through before they see each other.
    pub refiners: Option<Refiners>,
    /// `[side · side, hidden]`: positions, row by row.
    pub table: Option<Param<Tensor<2>>>,
    position: Tensor<3>,
    kernel: usize,
    #[module(skip)]
    pub(super) stacked: Option<Stacked>,
    #[module(skip)]
    pub(super) config: DitConfig,
}

/// Sees the residual stream after each block, `[batch, tokens, hidden]` with the tokens of the panels, and of a text that goes
/// through the same layers, behind those of the image, and returns what the next one works on.
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
            widen: self.bottleneck.map(|width| self.dense(width, self.hidden).init(init)),
            embedder: self.init_embedder(init),
            blocks: (0..self.depth).map(|i| self.init_block(i, init)).collect(),
            head: self.init_head(self.kernel(), init),
            modes: self.init_modes(init),
            single: self.init_single(init),
            common: self.init_common(init),
            caption: self.init_caption(init),
            refiners: self.init_refiners(init),
            table: self.table.map(|side| {
                let fresh = Fresh::Normal(0.02);
                init.param(fresh, [side * side, self.hidden]).set_require_grad(false)
            }),
            position: self.positions(self.size, self.patch, [0.0; 2], init.device),
            kernel: self.kernel(),
            stacked: None,
            config: self.clone(),
        }
    }

    /// Layer from patches of this size.
    pub(super) fn init_embedding(&self, patch: usize, init: &Init<'_>) -> Dense {
        let inputs = patch * patch * self.channels;
        if let Some(width) = self.bottleneck {
            return DenseConfig { bias: false, ..self.dense(inputs, width) }.init(init);
        }
        let dense = self.dense(inputs, self.hidden);
        DenseConfig { ones: !self.bias && !self.homogeneous, ..dense }.init(init)
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
        if self.position == Position::Absent {
            return Tensor::zeros([1; 3], device);
        }
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
            if self.config.first_shared() == Some(i) {
                tokens = pass.joined(tokens);
            }
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
        let [_, all, _] = tokens.dims();
        match all == counts[0] {
            true => Encoded { tokens, condition },
            false => Encoded {
                tokens: tokens.narrow(1, 0, counts[0]),
                condition: condition.narrow(1, 0, 1),
            },
        }
    }

    /// What the network has of its own at a patch size that is not the native one.
    pub(super) fn mode(&self, patch: usize) -> Option<&Mode> {
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
    pub(super) fn embed_at(&self, x: Tensor<4>, patch: usize, origin: [f64; 2]) -> Tensor<3> {
        let [_, _, height, width] = x.dims();
        let x = x.cast(self.dtype());
        let mode = self.mode(patch);
        let embedding = match mode.and_then(|mode| mode.ends.as_ref()) {
            Some(own) => Cow::Borrowed(&own.patch),
            None if patch == self.kernel => Cow::Borrowed(&self.patch),
            None => Cow::Owned(resize_embedding(&self.patch, self.kernel, patch)),
        };
        let mut tokens = embedding.forward(patchify(x, patch));
        if let Some(widen) = &self.widen {
            tokens = widen.forward(tokens); // [batch, tokens, hidden]
        }
        if let Some(mode) = mode {
            tokens = tokens + mode.token.val().unsqueeze();
        }
        if let (Some(table), Some(side)) = (&self.table, self.config.table) {
            let table = table.val().cast(FloatDType::from(tokens.dtype()));
            tokens = tokens + middle(table, side, self.config.grid([height, width], patch));
        }
        if self.config.position == Position::Absent {
            return tokens;
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

    /// The network with other layers at its ends and other patch sizes.
    pub(super) fn with_modes(
        mut self,
        patch: Dense,
        out: Dense,
        modes: Vec<Mode>,
        config: DitConfig,
    ) -> Self {
        (self.patch, self.head.out, self.modes) = (patch, out, modes);
        let device = self.head.out.weight.lazy_device();
        self.position = config.positions(config.size, config.patch, [0.0; 2], &device);
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
        self.widen = self.widen.map(Dense::folded);
        self.embedder = self.embedder.folded();
        self.blocks = self.blocks.into_iter().map(DitBlock::folded).collect();
        self.head = self.head.folded();
        self.single = self.single.map(Dense::folded);
        self.common = self.common.map(Common::folded);
        self.caption = self.caption.map(Caption::folded);
        self.refiners = self.refiners.map(Refiners::folded);
        self.stacked = Stacked::of(&mut self.blocks);
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

/// The middle of a square table, `[1, rows · columns, hidden]`.
fn middle(table: Tensor<2>, side: usize, [rows, columns]: [usize; 2]) -> Tensor<3> {
    let [_, hidden] = table.dims();
    let [top, left] = [rows, columns].map(|count| (side - count) / 2);
    let table: Tensor<3> = table.reshape([side, side, hidden]);
    let part = table.narrow(0, top, rows).narrow(1, left, columns);
    part.reshape([1, rows * columns, hidden])
}
