//! The diffusion transformer: one trunk for DiT (Peebles & Xie 2023) and MP-DiT (Bill et al. 2025).

use burn::module::Module;
use burn::tensor::{Device, FloatDType, Int, Tensor};

use super::config::{DitConfig, Norm};
use crate::layers::dense::DenseConfig;
use crate::layers::modulation::Modulated;
use crate::layers::patch::{patchify, unpatchify};
use crate::layers::time::Table;
use crate::layers::{Attend, Attention, Dense, Fresh, Init, Mlp, Modulation, TimeEmbedder};

/// A diffusion transformer.
#[derive(Module, Debug)]
pub struct Dit {
    /// `[patch · patch · channels (+ 1), hidden]`, input ordered row, column, channel.
    pub patch: Dense,
    /// Embedding of noise level and class for the head, and for all blocks without their own.
    pub embedder: Embedder,
    /// The blocks, first to last.
    pub blocks: Vec<DitBlock>,
    /// From tokens to pixels.
    pub head: Head,
    position: Tensor<3>,
    #[module(skip)]
    config: DitConfig,
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
    /// `[hidden, patch · patch · out_channels]`.
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
        let dense = |inputs, outputs| self.dense(inputs, outputs);
        let preserved = self.magnitude.normalized_weights;
        let pixels = self.patch * self.patch;
        let patch = DenseConfig { ones: !self.bias, ..dense(pixels * self.channels, self.hidden) };
        let head = DenseConfig {
            gain: preserved.then_some(0.0),
            ..dense(self.hidden, pixels * self.out_channels())
                .with_free_weights(Fresh::Constant(0.0))
        };
        Dit {
            patch: patch.init(init),
            embedder: self.init_embedder(init),
            blocks: (0..self.depth).map(|i| self.init_block(i, init)).collect(),
            head: Head {
                modulation: Modulation::new(self.hidden, 1, false, self.modulation, dense, init),
                out: head.init(init),
                norm: self.norm,
            },
            position: self.position.table(self.grid(self.size), self.hidden, device),
            config: self.clone(),
        }
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

    fn init_block(&self, index: usize, init: &Init<'_>) -> DitBlock {
        let dense = |inputs, outputs| self.dense(inputs, outputs);
        let inner = (self.hidden as f64 * self.mlp_ratio) as usize;
        DitBlock {
            embedder: (self.embedder_per_block && index > 0).then(|| self.init_embedder(init)),
            modulation: Modulation::new(self.hidden, 2, true, self.modulation, dense, init),
            attention: Attention::new(
                self.hidden,
                self.heads,
                self.magnitude.cosine_attention,
                self.magnitude.renormalized_attention,
                dense,
                init,
            ),
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
    /// `classes`.
    ///
    /// # Shapes
    /// `x`: `[batch, channels, height, width]`, `time` and `labels`: `[batch]`, output:
    /// `[batch, out_channels, height, width]`
    pub fn forward(&self, x: Tensor<4>, time: Tensor<1>, labels: Tensor<1, Int>) -> Tensor<4> {
        self.forward_observed(x, time, labels, &mut |_, _| ())
    }

    /// [`Dit::forward`], showing the residual stream, `[batch, tokens, hidden]`, after each block to
    /// `observe`.
    pub fn forward_observed(
        &self,
        x: Tensor<4>,
        time: Tensor<1>,
        labels: Tensor<1, Int>,
        observe: &mut dyn FnMut(usize, &Tensor<3>),
    ) -> Tensor<4> {
        let [_, _, height, width] = x.dims();
        let condition = self.condition(&self.embedder, time.clone(), labels.clone());
        let mut tokens = self.embed(x);
        for (i, block) in self.blocks.iter().enumerate() {
            let condition = match &block.embedder {
                Some(own) => self.condition(own, time.clone(), labels.clone()),
                None => condition.clone(),
            };
            tokens = block.forward(tokens, condition, Attend::Full);
            observe(i, &tokens);
        }
        self.unembed(tokens, condition, [height, width])
    }

    /// Patches with their positions.
    ///
    /// # Shapes
    /// `[batch, channels, height, width]` to `[batch, tokens, hidden]`
    pub fn embed(&self, x: Tensor<4>) -> Tensor<3> {
        let [_, _, height, width] = x.dims();
        let x = x.cast(self.dtype());
        let tokens = self.patch.forward(patchify(x, self.config.patch));
        let position = match [height, width] == self.config.size {
            true => self.position.clone(),
            false => {
                let grid = self.config.grid([height, width]);
                self.config.position.table(grid, self.config.hidden, &tokens.device())
            }
        };
        let position = position.cast(self.dtype()).expand(tokens.dims());
        self.config.magnitude.residual.sum(tokens, position)
    }

    /// The activated condition vector, `[batch, 1, hidden]`, from noise levels and labels, `[batch]`.
    fn condition(&self, embedder: &Embedder, time: Tensor<1>, labels: Tensor<1, Int>) -> Tensor<3> {
        let time = embedder.time.forward(time.cast(FloatDType::F32));
        let label = embedder.label.forward(labels).cast(self.dtype());
        let sum = self.config.magnitude.residual.sum(time, label);
        self.config.embedder_activation().forward(sum).unsqueeze_dim(1)
    }

    /// From tokens back to an image of `size`.
    ///
    /// # Shapes
    /// `[batch, tokens, hidden]` to `[batch, out_channels, height, width]`
    pub fn unembed(&self, tokens: Tensor<3>, condition: Tensor<3>, size: [usize; 2]) -> Tensor<4> {
        let values = self.head.forward(tokens, condition);
        unpatchify(values.cast(FloatDType::F32), self.config.patch, self.config.grid(size))
    }

    /// Type in which the network computes.
    pub fn dtype(&self) -> FloatDType {
        self.patch.dtype()
    }

    /// The same function with every weight normalisation done once: for inference.
    pub fn folded(mut self) -> Self {
        self.patch = self.patch.folded();
        self.embedder = self.embedder.folded();
        self.blocks = self.blocks.into_iter().map(DitBlock::folded).collect();
        self.head.modulation = self.head.modulation.folded();
        self.head.out = self.head.out.folded();
        self
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
    pub fn forward(&self, x: Tensor<3>, condition: Tensor<3>, attend: Attend<'_>) -> Tensor<3> {
        let [attention, mlp]: [Modulated; 2] =
            self.modulation.forward(condition).try_into().expect("a block modulates two branches");
        let branch = attention.input(x.clone(), self.norm.epsilon(false));
        let x = attention.join(x, self.attention.forward(branch, attend), self.balance);
        let branch = mlp.input(x.clone(), self.norm.epsilon(true));
        mlp.join(x, self.mlp.forward(branch), self.balance)
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
    /// # Shapes
    /// `x`: `[batch, tokens, hidden]`, `condition`: `[batch, 1 | tokens, hidden]`, output:
    /// `[batch, tokens, patch · patch · out_channels]`
    pub fn forward(&self, x: Tensor<3>, condition: Tensor<3>) -> Tensor<3> {
        let modulated = self.modulation.forward(condition).remove(0);
        self.out.forward(modulated.input(x, self.norm.epsilon(false)))
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
