//! The diffusion transformer: one trunk for DiT (Peebles & Xie 2023) and MP-DiT (Bill et al. 2025).

use std::borrow::Cow;

use burn::module::Module;
use burn::tensor::{Device, FloatDType, Int, Tensor};

use super::config::{DitConfig, Norm};
use super::modes::{Affine, BlockMode, Ends, Mode};
use crate::layers::dense::{DenseConfig, Quantize};
use crate::layers::modulation::Modulated;
use crate::layers::patch::{patchify, unpatchify};
use crate::layers::resize::{resize_embedding, resize_projection};
use crate::layers::time::Table;
use crate::layers::{
    Attend, Attention, AttentionConfig, Dense, Fresh, Init, KvCache, Mlp, Modulation, TimeEmbedder,
};
use crate::ops::{self, AttentionSpec};

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
    /// Those of a student's steps after the first, where each has its own.
    pub later_heads: Vec<Head>,
    position: Tensor<3>,
    kernel: usize,
    #[module(skip)]
    pub(super) config: DitConfig,
}

/// From noise level and class to the condition vector.
#[derive(Module, Debug)]
pub struct Embedder {
    /// Embedding of the noise level.
    pub time: TimeEmbedder,
    /// `[classes + 1, hidden]`; the last row is the null class.
    pub label: Table,
}

/// Modulated attention and MLP, each added to the residual stream.
#[derive(Module, Debug)]
pub struct DitBlock {
    /// Replaces the network's embedder in this block.
    pub embedder: Option<Embedder>,
    /// Modulation of both branches.
    pub modulation: Modulation,
    /// Attention branch.
    pub attention: Attention,
    /// MLP branch.
    pub mlp: Mlp,
    #[module(skip)]
    norm: Norm,
    #[module(skip)]
    balance: Option<f64>,
}

/// Modulated projection to the values of a patch.
#[derive(Module, Debug)]
pub struct Head {
    /// Modulation of the tokens.
    pub modulation: Modulation,
    /// `[hidden, kernel · kernel · out_channels]`.
    pub out: Dense,
    #[module(skip)]
    norm: Norm,
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
        Dit {
            patch: self.init_embedding(self.kernel(), init),
            embedder: self.init_embedder(init),
            blocks: (0..self.depth).map(|i| self.init_block(i, init)).collect(),
            head: self.init_head(self.kernel(), init),
            modes: self.init_modes(init),
            later_heads: self.init_later_heads(init),
            position: self.positions(self.size, self.patch, device),
            kernel: self.kernel(),
            config: self.clone(),
        }
    }

    /// Layer from patches of this size.
    pub(super) fn init_embedding(&self, patch: usize, init: &Init<'_>) -> Dense {
        let dense = self.dense(patch * patch * self.channels, self.hidden);
        DenseConfig { ones: !self.bias, ..dense }.init(init)
    }

    /// Layer to patches of this size, at first zero.
    pub(super) fn init_projection(&self, patch: usize, init: &Init<'_>) -> Dense {
        let dense = self
            .dense(self.hidden, patch * patch * self.out_channels())
            .with_free_weights(Fresh::Constant(0.0));
        let gain = self.magnitude.normalized_weights.then_some(0.0);
        DenseConfig { gain, ..dense }.init(init)
    }

    /// Projection to patches of this size, with its modulation.
    pub(super) fn init_head(&self, patch: usize, init: &Init<'_>) -> Head {
        let dense = |inputs, outputs| self.dense(inputs, outputs);
        Head {
            modulation: Modulation::new(self.hidden, 1, false, self.modulation, dense, init),
            out: self.init_projection(patch, init),
            norm: self.norm,
        }
    }

    /// Positions of the tokens of an image, `[1, tokens, hidden]`.
    pub(super) fn positions(&self, size: [usize; 2], patch: usize, device: &Device) -> Tensor<3> {
        let (grid, at) = (self.grid(size, patch), self.coordinates(patch));
        self.position.table(grid, at, self.hidden, device)
    }

    fn init_embedder(&self, init: &Init<'_>) -> Embedder {
        let dense = |inputs, outputs| self.dense(inputs, outputs);
        let (rows, preserved) = (self.classes + 1, self.magnitude.normalized_embeddings);
        let activation = self.embedder_activation();
        Embedder {
            time: TimeEmbedder::new(self.time, self.hidden, activation, dense, init),
            label: Table::new(rows, self.hidden, preserved, init),
        }
    }

    fn attention(&self) -> AttentionConfig {
        let config = AttentionConfig::new(self.hidden, self.heads);
        let cosine = self.magnitude.cosine_attention;
        AttentionConfig {
            spec: AttentionSpec { cosine, ..config.spec },
            renormalized: self.magnitude.renormalized_attention,
            ..config
        }
    }

    fn init_block(&self, index: usize, init: &Init<'_>) -> DitBlock {
        let dense = |inputs, outputs| self.dense(inputs, outputs);
        let inner = (self.hidden as f64 * self.mlp_ratio) as usize;
        DitBlock {
            embedder: (self.embedder_per_block && index > 0).then(|| self.init_embedder(init)),
            modulation: Modulation::new(self.hidden, 2, true, self.modulation, dense, init),
            attention: self.attention().init(dense, init),
            mlp: Mlp::new(
                dense(self.hidden, inner),
                dense(inner, self.hidden),
                self.activation,
                init,
            ),
            norm: self.norm,
            balance: self.magnitude.residual.balance(self.depth),
        }
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
    /// `time` is in the unit the network was trained with, `labels` are class ids, the null class being
    /// `classes`, `patch` is one of [`DitConfig::patches`].
    ///
    /// # Shapes
    /// `x`: `[batch, channels, height, width]`, `time` and `labels`: `[batch]`, output:
    /// `[batch, out_channels, height, width]`
    ///
    /// # Panics
    /// If the network has no such patch size, or it does not divide height and width.
    pub fn forward(
        &self,
        x: Tensor<4>,
        time: Tensor<1>,
        labels: Tensor<1, Int>,
        patch: usize,
    ) -> Tensor<4> {
        self.forward_observed(x, time, labels, patch, &mut |_, _| ())
    }

    /// [`Dit::forward`], showing the residual stream, `[batch, tokens, hidden]`, after each block to
    /// `observe`.
    pub fn forward_observed(
        &self,
        x: Tensor<4>,
        time: Tensor<1>,
        labels: Tensor<1, Int>,
        patch: usize,
        observe: &mut dyn FnMut(usize, &Tensor<3>),
    ) -> Tensor<4> {
        let [_, _, height, width] = x.dims();
        let [tokens, condition] = self.trunk(x, (time, labels), patch, (&mut [], false), observe);
        self.unembed(tokens, condition, [height, width], patch, None)
    }

    /// The tokens after all blocks, and the activated condition. The first blocks attend to what their
    /// caches in `caches` hold, too, and the tokens are added there if `keep`.
    pub(super) fn trunk(
        &self,
        x: Tensor<4>,
        (time, labels): (Tensor<1>, Tensor<1, Int>),
        patch: usize,
        (caches, keep): (&mut [KvCache], bool),
        observe: &mut dyn FnMut(usize, &Tensor<3>),
    ) -> [Tensor<3>; 2] {
        let condition = self.condition(&self.embedder, time.clone(), labels.clone());
        let mode = self.mode(patch);
        let mut tokens = self.embed(x, patch);
        for (i, block) in self.blocks.iter().enumerate() {
            let condition = match &block.embedder {
                Some(own) => self.condition(own, time.clone(), labels.clone()),
                None => condition.clone(),
            };
            let mode = mode.map_or(BlockMode::default(), |mode| mode.block(i));
            let attend = match caches.get_mut(i) {
                Some(cache) => Attend::Cached { cache, keep },
                None => Attend::Full,
            };
            tokens = block.forward(tokens, condition, attend, mode);
            observe(i, &tokens);
        }
        [tokens, condition]
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
        let [_, _, height, width] = x.dims();
        let x = x.cast(self.dtype());
        let mode = self.mode(patch);
        let embedding = match mode.and_then(|mode| mode.ends.as_ref()) {
            Some(own) => Cow::Borrowed(&own.patch),
            None if patch == self.kernel => Cow::Borrowed(&self.patch),
            None => Cow::Owned(resize_embedding(&self.patch, self.kernel, patch)),
        };
        let mut tokens = embedding.forward(patchify(x, patch));
        if let Some(mode) = mode {
            tokens = tokens + mode.token.val().unsqueeze();
        }
        let position = match [height, width] == self.config.size {
            true => mode.map_or(&self.position, |mode| &mode.position).clone(),
            false => self.config.positions([height, width], patch, &tokens.device()),
        };
        let position = position.cast(self.dtype()).expand(tokens.dims());
        self.config.magnitude.residual.sum(tokens, position)
    }

    /// The activated condition vector, `[batch, 1, hidden]`, from noise levels and labels, `[batch]`.
    pub(crate) fn condition(
        &self,
        embedder: &Embedder,
        time: Tensor<1>,
        labels: Tensor<1, Int>,
    ) -> Tensor<3> {
        let time = embedder.time.forward(time.cast(FloatDType::F32));
        let label = embedder.label.forward(labels).cast(self.dtype());
        let sum = self.config.magnitude.residual.sum(time, label);
        self.config.embedder_activation().forward(sum).unsqueeze_dim(1)
    }

    /// From tokens back to an image of `size`, by a head made for the patch size or the network's own.
    ///
    /// # Shapes
    /// `[batch, tokens, hidden]` to `[batch, out_channels, height, width]`
    pub(super) fn unembed(
        &self,
        tokens: Tensor<3>,
        condition: Tensor<3>,
        size: [usize; 2],
        patch: usize,
        head: Option<&Head>,
    ) -> Tensor<4> {
        let (modulation, out) = match head {
            Some(head) => (head, Cow::Borrowed(&head.out)),
            None => (&self.head, self.projection(patch)),
        };
        let norm = self.mode(patch).and_then(|mode| mode.norms.last());
        let values = out.forward(modulation.modulate(tokens, condition, norm));
        unpatchify(values.cast(FloatDType::F32), patch, self.config.grid(size, patch))
    }

    /// The projection to patches of this size.
    pub(super) fn projection(&self, patch: usize) -> Cow<'_, Dense> {
        match self.mode(patch).and_then(|mode| mode.ends.as_ref()) {
            Some(own) => Cow::Borrowed(&own.out),
            None if patch == self.kernel => Cow::Borrowed(&self.head.out),
            None => Cow::Owned(resize_projection(&self.head.out, self.kernel, patch)),
        }
    }

    /// The network as the student of another description, with heads of its later steps.
    pub(super) fn with_later_heads(self, later_heads: Vec<Head>, config: DitConfig) -> Self {
        Self { later_heads, config, ..self }
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
            out: resize_projection(&net.head.out, kernel, patch),
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
        self.later_heads = self.later_heads.into_iter().map(Head::folded).collect();
        self
    }

    /// [`Dit::folded`] with the weights of linear layers in 8 bits, from f16: each group of 32 inputs of an
    /// output has a scale. `None` but on the CPU.
    pub fn quantized(self) -> Option<Self> {
        let net = self.folded();
        ops::quantizes(&net.patch.weight.val()).then(|| net.map(&mut Quantize::default()))
    }
}

impl Embedder {
    fn folded(self) -> Self {
        Self { time: self.time.folded(), label: self.label.folded() }
    }
}

impl DitBlock {
    /// # Shapes
    /// `x`: `[batch, tokens, hidden]`, `condition`: `[batch, 1 | tokens, hidden]`, already activated
    pub fn forward(
        &self,
        x: Tensor<3>,
        condition: Tensor<3>,
        attend: Attend<'_>,
        mode: BlockMode<'_>,
    ) -> Tensor<3> {
        let [mut attention, mut mlp]: [Modulated; 2] =
            self.modulation.forward(condition).try_into().expect("a block modulates two branches");
        if let Some([first, second]) = mode.norms {
            (attention, mlp) = (first.before(attention), second.before(mlp));
        }
        let adapters = mode.adapters;
        let branch = attention.input(x.clone(), self.norm.epsilon(false));
        let branch =
            self.attention.adapted(branch, None, attend, adapters.map(|own| [&own.qkv, &own.out]));
        let x = attention.join(x, branch, self.balance);
        let branch = mlp.input(x.clone(), self.norm.epsilon(true));
        let branch = self.mlp.adapted(branch, adapters.map(|own| [&own.up, &own.down]));
        mlp.join(x, branch, self.balance)
    }

    fn folded(mut self) -> Self {
        self.embedder = self.embedder.map(Embedder::folded);
        self.modulation = self.modulation.folded();
        self.attention = self.attention.folded();
        self.mlp = self.mlp.folded();
        self
    }
}

impl Head {
    /// The input of the projection.
    ///
    /// # Shapes
    /// `x`: `[batch, tokens, hidden]`, `condition`: `[batch, 1 | tokens, hidden]`, output:
    /// `[batch, tokens, hidden]`
    fn modulate(&self, x: Tensor<3>, condition: Tensor<3>, norm: Option<&Affine>) -> Tensor<3> {
        let modulated = self.modulation.forward(condition).remove(0);
        let modulated = match norm {
            Some(norm) => norm.before(modulated),
            None => modulated,
        };
        modulated.input(x, self.norm.epsilon(false))
    }

    fn folded(mut self) -> Self {
        self.modulation = self.modulation.folded();
        self.out = self.out.folded();
        self
    }
}

impl Norm {
    /// The constant of the layer norm before the MLP, or before anything else.
    fn epsilon(self, mlp: bool) -> Option<f64> {
        match self {
            Norm::None => None,
            Norm::Layer { mlp_epsilon, .. } if mlp => Some(mlp_epsilon),
            Norm::Layer { epsilon, .. } => Some(epsilon),
        }
    }
}
