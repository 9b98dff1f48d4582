//! A block of the trunk, and the head behind the last.

use burn::module::Module;
use burn::tensor::Tensor;

use super::condition::Embedder;
use super::config::{DitConfig, Norm};
use super::patches::{Affine, BlockMode};
use crate::layers::{Attend, Attention, Dense, Init, Mlp, Modulated, Modulation};

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
    pub(super) fn init_block(&self, index: usize, init: &Init<'_>) -> DitBlock {
        let dense = |inputs, outputs| self.dense(inputs, outputs);
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
                dense(self.hidden, self.inner()),
                dense(self.inner(), self.hidden),
                self.activation,
                init,
            ),
            norm: self.norm,
            balance: self.magnitude.residual.balance(self.depth),
        }
    }

    /// Projection to patches of this size, with its modulation.
    pub(crate) fn init_head(&self, patch: usize, init: &Init<'_>) -> Head {
        let dense = |inputs, outputs| self.dense(inputs, outputs);
        Head {
            modulation: Modulation::new(self.hidden, 1, false, self.modulation, dense, init),
            out: self.init_projection(patch, init),
            norm: self.norm,
        }
    }
}

impl DitBlock {
    /// # Shapes
    /// `x`: `[batch, tokens, hidden]`, `condition`: `[batch, 1 | tokens, hidden]`, already activated, output:
    /// `[batch, tokens, hidden]`
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
        let branch = attention.input(x.clone(), self.norm.epsilon(false)); // [batch, tokens, hidden]
        let branch =
            self.attention.adapted(branch, attend, adapters.map(|own| [&own.qkv, &own.out]));
        let x = attention.join(x, branch, self.balance);
        let branch = mlp.input(x.clone(), self.norm.epsilon(true));
        let branch = self.mlp.adapted(branch, adapters.map(|own| [&own.up, &own.down]));
        mlp.join(x, branch, self.balance) // [batch, tokens, hidden]
    }

    pub(super) fn folded(mut self) -> Self {
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
    pub(super) fn modulate(
        &self,
        x: Tensor<3>,
        condition: Tensor<3>,
        norm: Option<&Affine>,
    ) -> Tensor<3> {
        let modulated = self.modulation.forward(condition).remove(0);
        let modulated = match norm {
            Some(norm) => norm.before(modulated),
            None => modulated,
        };
        modulated.input(x, self.norm.epsilon(false))
    }

    pub(crate) fn folded(mut self) -> Self {
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
