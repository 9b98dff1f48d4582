//! A block of the trunk, and the head behind the last.

use burn::module::Module;
use burn::tensor::Tensor;

use super::condition::{Context, Embedder};
use super::config::{DitConfig, Norm, TextAttention};
use super::patches::{Affine, BlockMode};
use crate::layers::attention::{Side, joint_attention};
use crate::layers::{
    Attend, Attention, AttentionConfig, CrossAttention, Dense, Init, Mlp, Modulated, Modulation,
};
use crate::ops::{self, AttentionSpec};

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
    /// Attention to a text, between the two.
    pub cross: Option<CrossAttention>,
    /// Layers of the text, where it attends to the image in turn.
    pub text: Option<TextLayers>,
    #[module(skip)]
    norm: Norm,
    #[module(skip)]
    balance: Option<f64>,
}

/// What a block does to the tokens of a text.
#[derive(Module, Debug)]
pub struct TextLayers {
    /// Modulation of both branches.
    pub modulation: Modulation,
    /// Attention branch.
    pub attention: Attention,
    /// MLP branch.
    pub mlp: Mlp,
}

/// What a block sees beside its tokens.
#[derive(Debug)]
pub struct Condition<'a> {
    /// `[batch, 1 | tokens, hidden]`, already activated.
    pub modulation: Tensor<3>,
    /// The text, which joint attention changes.
    pub context: Option<&'a mut Context>,
}

impl From<Tensor<3>> for Condition<'_> {
    /// Without a text.
    fn from(modulation: Tensor<3>) -> Self {
        Self { modulation, context: None }
    }
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
    fn attention(&self) -> AttentionConfig {
        let config = AttentionConfig::new(self.hidden, self.heads);
        let cosine = self.magnitude.cosine_attention;
        AttentionConfig {
            spec: AttentionSpec { cosine, ..config.spec },
            renormalized: self.magnitude.renormalized_attention,
            ..config
        }
    }

    fn init_layers(&self, init: &Init<'_>) -> TextLayers {
        let dense = |inputs, outputs| self.dense(inputs, outputs);
        let (up, down) = (dense(self.hidden, self.inner()), dense(self.inner(), self.hidden));
        TextLayers {
            modulation: Modulation::new(self.hidden, 2, true, self.modulation, dense, init),
            attention: self.attention().init(dense, init),
            mlp: Mlp::new(up, down, self.activation, init),
        }
    }

    pub(super) fn init_block(&self, index: usize, init: &Init<'_>) -> DitBlock {
        let embedder = (self.embedder_per_block && index > 0).then(|| self.init_embedder(init));
        let TextLayers { modulation, attention, mlp } = self.init_layers(init);
        let kind = self.text.as_ref().map(|text| text.attention);
        let cross = || {
            let dense = |inputs, outputs| self.dense(inputs, outputs);
            self.attention().init_cross(self.hidden, dense, init)
        };
        DitBlock {
            embedder,
            modulation,
            attention,
            mlp,
            cross: (kind == Some(TextAttention::Cross)).then(cross),
            text: (kind == Some(TextAttention::Joint)).then(|| self.init_layers(init)),
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
    /// `[batch, tokens, hidden]` to the same
    ///
    /// # Panics
    /// If a block that reads text gets none, or another gets one; if joint attention gets a cache.
    pub fn forward<'a>(
        &self,
        x: Tensor<3>,
        condition: impl Into<Condition<'a>>,
        attend: Attend<'_>,
        mode: BlockMode<'_>,
    ) -> Tensor<3> {
        let Condition { modulation, context } = condition.into();
        let reads = self.cross.is_some() || self.text.is_some();
        assert_eq!(context.is_some(), reads, "a text, and a block that reads one");
        let [mut attention, mut mlp] = modulated(&self.modulation, modulation.clone());
        if let Some([first, second]) = mode.norms {
            (attention, mlp) = (first.before(attention), second.before(mlp));
        }
        let adapters = mode.adapters;
        let own = adapters.map(|own| [&own.qkv, &own.out]);
        let branch = attention.input(x.clone(), self.norm.epsilon(false)); // [batch, tokens, hidden]
        let (branch, context) = match (&self.text, context) {
            (Some(layers), Some(context)) => {
                assert!(matches!(attend, Attend::Full), "joint attention keeps no cache");
                let side = Side { layer: &self.attention, x: branch, rotary: None, adapters: own };
                // The text goes by the condition of the image, whose tokens come before those of panels.
                (self.joint(side, layers, modulation.narrow(1, 0, 1), context), None)
            }
            (_, context) => (self.attention.adapted(branch, None, attend, own), context),
        };
        let mut x = attention.join(x, branch, self.balance);
        if let (Some(cross), Some(context)) = (&self.cross, context) {
            let seen = cross.forward(x.clone(), context.tokens.clone(), context.bias.as_ref());
            x = ops::join(x, seen, None, self.balance);
        }
        let branch = mlp.input(x.clone(), self.norm.epsilon(true));
        let branch = self.mlp.adapted(branch, adapters.map(|own| [&own.up, &own.down]));
        mlp.join(x, branch, self.balance) // [batch, tokens, hidden]
    }

    /// The attention branch of the image, attended to jointly with the text, which is taken through the block.
    fn joint(
        &self,
        image: Side<'_>,
        layers: &TextLayers,
        modulation: Tensor<3>,
        context: &mut Context,
    ) -> Tensor<3> {
        let [attention, mlp] = modulated(&layers.modulation, modulation);
        let text = context.tokens.clone(); // [batch, text, hidden]
        let x = attention.input(text.clone(), self.norm.epsilon(false));
        let side = Side { layer: &layers.attention, x, rotary: None, adapters: None };
        let [image, branch] = joint_attention([image, side], context.bias.as_ref());
        let text = attention.join(text, branch, self.balance);
        let branch = layers.mlp.forward(mlp.input(text.clone(), self.norm.epsilon(true)));
        context.tokens = mlp.join(text, branch, self.balance);
        image // [batch, tokens, hidden]
    }

    pub(super) fn folded(self) -> Self {
        let Self { embedder, modulation, attention, mlp, cross, text, norm, balance } = self;
        Self {
            embedder: embedder.map(Embedder::folded),
            modulation: modulation.folded(),
            attention: attention.folded(),
            mlp: mlp.folded(),
            cross: cross.map(CrossAttention::folded),
            text: text.map(TextLayers::folded),
            norm,
            balance,
        }
    }
}

impl TextLayers {
    fn folded(self) -> Self {
        Self {
            modulation: self.modulation.folded(),
            attention: self.attention.folded(),
            mlp: self.mlp.folded(),
        }
    }
}

/// The modulation of both branches.
fn modulated(layer: &Modulation, condition: Tensor<3>) -> [Modulated; 2] {
    layer.forward(condition).try_into().expect("a block modulates two branches")
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
