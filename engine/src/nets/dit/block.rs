//! A block of the trunk, and the head behind the last.

use burn::module::{Module, Param};
use burn::tensor::{FloatDType, Tensor};

use super::condition::Embedder;
use super::config::DitConfig;
use super::form::{Norm, TextAttention};
use super::patches::{Affine, BlockMode};
use super::stream::Context;
use crate::layers::attention::{Side, joint_attention};
use crate::layers::dense::DenseConfig;
use crate::layers::{
    Attend, Attention, AttentionConfig, CrossAttention, Dense, Fresh, Init, Mlp, Modulated,
    Modulation, ModulationConfig,
};
use crate::ops::{self, AttentionSpec, Rotary, RowNorm};

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
    /// A second attention of the image to itself.
    pub second: Option<Attention>,
    /// Factors of the norms of the branches.
    pub norms: Option<Norms>,
    #[module(skip)]
    norm: Norm,
    #[module(skip)]
    balance: Option<f64>,
    /// Attention and MLP have one input, and are added as one branch.
    parallel: bool,
}

/// Factors of the RMS norms of both branches, each `[hidden]`.
#[derive(Module, Debug)]
pub struct Norms {
    /// Before the attention.
    pub before_attention: Param<Tensor<1>>,
    /// Behind it, where norms are around branches.
    pub after_attention: Option<Param<Tensor<1>>>,
    /// Before the MLP.
    pub before_mlp: Param<Tensor<1>>,
    /// Behind it, likewise.
    pub after_mlp: Option<Param<Tensor<1>>>,
}

/// What a block does to the tokens of a text.
#[derive(Module, Debug)]
pub struct TextLayers {
    /// Modulation of both branches.
    pub modulation: Modulation,
    /// Attention branch.
    pub attention: Attention,
    /// MLP branch; none in a block behind which the text is not seen.
    pub mlp: Option<Mlp>,
    /// Factors of the norms of the branches.
    pub norms: Option<Norms>,
}

/// What a block sees beside its tokens.
#[derive(Debug)]
pub struct Condition<'a> {
    /// `[batch, 1 | tokens, hidden]`, already activated; or the parts, where one projection serves all blocks.
    pub modulation: Tensor<3>,
    /// What the block's modulation makes of that, `[batch, 1, parts]`, where it is known already.
    pub parts: Option<Tensor<3>>,
    /// That of the text, where it is another than the image's: `[batch, 1, parts]`.
    pub of_text: Option<Tensor<3>>,
    /// The text, which joint attention changes.
    pub context: Option<&'a mut Context>,
    /// Positions of the tokens and of the text.
    pub rotary: [Option<&'a Rotary>; 2],
}

impl From<Tensor<3>> for Condition<'_> {
    /// Without a text and positions.
    fn from(modulation: Tensor<3>) -> Self {
        Self { modulation, parts: None, of_text: None, context: None, rotary: [None; 2] }
    }
}

/// Modulated projection to the values of a patch.
#[derive(Module, Debug)]
pub struct Head {
    /// Modulation of the tokens.
    pub modulation: Modulation,
    /// `[hidden, kernel · kernel · out_channels]`.
    pub out: Dense,
    /// Factors of the norm, `[hidden]`.
    pub gain: Option<Param<Tensor<1>>>,
    #[module(skip)]
    norm: Norm,
}

impl DitConfig {
    fn attention(&self) -> AttentionConfig {
        let config = AttentionConfig::new(self.hidden, self.heads);
        let cosine = self.magnitude.cosine_attention;
        AttentionConfig {
            spec: AttentionSpec { cosine, key_heads: self.key_heads(), ..config.spec },
            norm: self.branches.head_norm,
            renormalized: self.magnitude.renormalized_attention,
            ..config
        }
    }

    /// Describes a layer of a branch.
    fn branch_dense(&self, inputs: usize, outputs: usize) -> DenseConfig {
        let dense = self.dense(inputs, outputs);
        DenseConfig { bias: dense.bias && !self.branches.unbiased, ..dense }
    }

    fn init_attention(&self, init: &Init<'_>) -> Attention {
        self.attention().init(|inputs, outputs| self.branch_dense(inputs, outputs), init)
    }

    fn init_mlp(&self, init: &Init<'_>) -> Mlp {
        let dense = |inputs, outputs| {
            let dense = self.branch_dense(inputs, outputs);
            DenseConfig { bias: dense.bias && !self.branches.unbiased_mlp, ..dense }
        };
        let up = dense(self.hidden, self.inner() * if self.branches.gated { 2 } else { 1 });
        Mlp::new(up, dense(self.inner(), self.hidden), self.activation, init)
    }

    fn init_norms(&self, init: &Init<'_>) -> Option<Norms> {
        let gain = || init.param(Fresh::Constant(1.0), [self.hidden]);
        let behind = || matches!(self.norm, Norm::Sandwich { .. }).then(gain);
        self.norm.has_gains().then(|| Norms {
            before_attention: gain(),
            after_attention: behind(),
            before_mlp: gain(),
            after_mlp: behind(),
        })
    }

    /// Those of the text, which goes no further than a closing block.
    fn init_text(&self, closing: bool, init: &Init<'_>) -> TextLayers {
        let modulation = match closing {
            true => self.init_modulation(1, false, self.modulation, init),
            false => self.init_modulation(2, true, self.modulation, init),
        };
        let mut attention = self.init_attention(init);
        attention.out = attention.out.filter(|_| !closing);
        let mlp = (!closing).then(|| self.init_mlp(init));
        TextLayers { modulation, attention, mlp, norms: self.init_norms(init) }
    }

    fn init_modulation(
        &self,
        branches: usize,
        gated: bool,
        config: ModulationConfig,
        init: &Init<'_>,
    ) -> Modulation {
        let [_, condition] = self.condition_widths();
        let dense = |inputs, outputs| self.dense(inputs, outputs);
        Modulation::new([condition, self.hidden], branches, gated, config, dense, init)
    }

    /// A block that reads no text, which the condition acts on or not.
    pub(super) fn init_plain_block(&self, is_modulated: bool, init: &Init<'_>) -> DitBlock {
        let modulation = if is_modulated { self.modulation } else { ModulationConfig::NONE };
        let modulation = self.init_modulation(2, true, modulation, init);
        let (attention, mlp) = (self.init_attention(init), self.init_mlp(init));
        DitBlock {
            embedder: None,
            modulation,
            attention,
            mlp,
            cross: None,
            text: None,
            second: None,
            norms: self.init_norms(init),
            norm: self.norm,
            balance: self.magnitude.residual.balance(self.depth),
            parallel: false,
        }
    }

    pub(super) fn init_block(&self, index: usize, init: &Init<'_>) -> DitBlock {
        let embedder = (self.embedder_per_block && index > 0).then(|| self.init_embedder(init));
        let plain = self.init_plain_block(true, init);
        let kind = self.text.as_ref().map(|text| text.attention);
        let is_shared = self.first_shared().is_some_and(|first| index >= first);
        let cross = || {
            let dense = |inputs, outputs| self.branch_dense(inputs, outputs);
            self.attention().init_cross(self.hidden, dense, init)
        };
        let closes = self.text.as_ref().is_some_and(|text| text.closing) && index + 1 == self.depth;
        let text = || self.init_text(closes, init);
        let parallel = is_shared && self.is_parallel();
        let is_dual = self.text.as_ref().is_some_and(|text| index < text.dual);
        let modulation = match (parallel, is_dual) {
            (true, _) => self.init_modulation(1, true, self.modulation, init),
            (_, true) => self.init_modulation(3, true, self.modulation, init),
            _ => plain.modulation,
        };
        DitBlock {
            embedder,
            modulation,
            parallel,
            second: is_dual.then(|| self.init_attention(init)),
            cross: (kind == Some(TextAttention::Cross)).then(cross),
            text: (kind == Some(TextAttention::Joint) && !is_shared).then(text),
            ..plain
        }
    }

    /// Projection to patches of this size, with its modulation.
    pub(crate) fn init_head(&self, patch: usize, init: &Init<'_>) -> Head {
        Head {
            modulation: {
                let own = ModulationConfig { common: false, ..self.modulation };
                self.init_modulation(1, false, own, init)
            },
            out: self.init_projection(patch, init),
            gain: matches!(self.norm, Norm::Rms { .. })
                .then(|| init.param(Fresh::Constant(1.0), [self.hidden])),
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
        let Condition { modulation, parts, of_text, context, rotary } = condition.into();
        let reads = self.cross.is_some() || self.text.is_some();
        assert_eq!(context.is_some(), reads, "a text, and a block that reads one");
        let mut parts = match parts {
            Some(parts) => self.modulation.apart(parts),
            None => self.modulation.forward(modulation.clone()),
        };
        if self.parallel {
            return self.in_parallel(x, parts.remove(0), rotary[0], attend, mode);
        }
        let third = self.second.as_ref().zip(parts.get(2).cloned());
        let third = third.map(|(layer, modulated)| {
            let input = modulated.input(x.clone(), self.norm.of_branch(false));
            (layer.adapted(input, rotary[0], Attend::Full, None), modulated)
        });
        let (mut attention, mut mlp) = (parts.remove(0), parts.remove(0));
        if let Some([first, second]) = mode.norms {
            (attention, mlp) = (first.before(attention), second.before(mlp));
        }
        if let Some(norms) = &self.norms {
            attention = scaled(&norms.before_attention, &x, attention);
            mlp = scaled(&norms.before_mlp, &x, mlp);
        }
        let adapters = mode.adapters;
        let own = adapters.map(|own| [&own.qkv, &own.out]);
        let branch = attention.input(x.clone(), self.norm.of_branch(false)); // [batch, tokens, hidden]
        let (branch, context) = match (&self.text, context) {
            (Some(layers), Some(context)) => {
                assert!(matches!(attend, Attend::Full), "joint attention keeps no cache");
                let side =
                    Side { layer: &self.attention, x: branch, rotary: rotary[0], adapters: own };
                // The text goes by the condition of the image, whose tokens come before those of panels.
                let of_text = of_text.unwrap_or_else(|| modulation.narrow(1, 0, 1));
                (self.joint(side, layers, of_text, context, rotary[1]), None)
            }
            (_, context) => (self.attention.adapted(branch, rotary[0], attend, own), context),
        };
        let branch = self.behind(branch, |norms| norms.after_attention.as_ref());
        let mut x = attention.join(x, branch, self.balance);
        if let Some((seen, modulated)) = third {
            x = modulated.join(x, seen, self.balance);
        }
        if let (Some(cross), Some(context)) = (&self.cross, context) {
            let seen = cross.forward(x.clone(), context.tokens.clone(), context.bias.as_ref());
            x = ops::join(x, seen, None, self.balance);
        }
        let branch = mlp.input(x.clone(), self.norm.of_branch(true));
        let branch = self.mlp.adapted(branch, adapters.map(|own| [&own.up, &own.down]));
        let branch = self.behind(branch, |norms| norms.after_mlp.as_ref());
        mlp.join(x, branch, self.balance) // [batch, tokens, hidden]
    }

    fn in_parallel(
        &self,
        x: Tensor<3>,
        mut both: Modulated,
        rotary: Option<&Rotary>,
        attend: Attend<'_>,
        mode: BlockMode<'_>,
    ) -> Tensor<3> {
        if let Some([first, _]) = mode.norms {
            both = first.before(both);
        }
        let adapters = mode.adapters;
        let input = both.input(x.clone(), self.norm.of_branch(false)); // [batch, tokens, hidden]
        let own = adapters.map(|own| [&own.qkv, &own.out]);
        let seen = self.attention.adapted(input.clone(), rotary, attend, own);
        let branch = seen + self.mlp.adapted(input, adapters.map(|own| [&own.up, &own.down]));
        both.join(x, branch, self.balance)
    }

    /// What a branch made, behind its norm, if it has one.
    fn behind(
        &self,
        branch: Tensor<3>,
        gain: impl Fn(&Norms) -> Option<&Param<Tensor<1>>>,
    ) -> Tensor<3> {
        let Some(gain) = self.norms.as_ref().and_then(gain) else { return branch };
        let scaled = scaled(gain, &branch, Modulated::default());
        scaled.input(branch, self.norm.of_branch(false))
    }

    /// The attention branch of the image, attended to jointly with the text, which is taken through the block.
    fn joint(
        &self,
        image: Side<'_>,
        layers: &TextLayers,
        modulation: Tensor<3>,
        context: &mut Context,
        rotary: Option<&Rotary>,
    ) -> Tensor<3> {
        let text = context.tokens.clone(); // [batch, text, hidden]
        let mut parts = layers.modulation.forward(modulation);
        if let Some(Norms { before_attention, before_mlp, .. }) = &layers.norms {
            let gains = [before_attention, before_mlp].into_iter();
            parts = parts.into_iter().zip(gains).map(|(p, gain)| scaled(gain, &text, p)).collect();
        }
        let attention = &parts[0];
        let x = attention.input(text.clone(), self.norm.of_branch(false));
        let side = Side { layer: &layers.attention, x, rotary, adapters: None };
        let [image, branch] = joint_attention([image, side], context.bias.as_ref());
        if let (Some(layer), Some(mlp)) = (&layers.mlp, parts.get(1)) {
            let text = attention.join(text, branch, self.balance);
            let branch = layer.forward(mlp.input(text.clone(), self.norm.of_branch(true)));
            context.tokens = mlp.join(text, branch, self.balance);
        }
        image // [batch, tokens, hidden]
    }

    pub(super) fn folded(self) -> Self {
        Self {
            embedder: self.embedder.map(Embedder::folded),
            modulation: self.modulation.folded(),
            attention: self.attention.folded(),
            mlp: self.mlp.folded(),
            cross: self.cross.map(CrossAttention::folded),
            text: self.text.map(TextLayers::folded),
            second: self.second.map(Attention::folded),
            ..self
        }
    }
}

impl TextLayers {
    fn folded(self) -> Self {
        Self {
            modulation: self.modulation.folded(),
            attention: self.attention.folded(),
            mlp: self.mlp.map(Mlp::folded),
            norms: self.norms,
        }
    }
}

/// Modulation after factors of a norm, for tokens `x`.
fn scaled(gain: &Param<Tensor<1>>, x: &Tensor<3>, then: Modulated) -> Modulated {
    Modulated::after_gain(gain.val().cast(FloatDType::from(x.dtype())), x.dims()[0], then)
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
        let modulated = match (norm, &self.gain) {
            (Some(norm), _) => norm.before(modulated),
            (None, Some(gain)) => scaled(gain, &x, modulated),
            (None, None) => modulated,
        };
        modulated.input(x, self.norm.of_head())
    }

    pub(crate) fn folded(mut self) -> Self {
        self.modulation = self.modulation.folded();
        self.out = self.out.folded();
        self
    }
}

impl Norm {
    /// Before the MLP, or before the attention.
    fn of_branch(self, mlp: bool) -> Option<RowNorm> {
        match self {
            Norm::None => None,
            Norm::Layer { mlp_epsilon, .. } if mlp => Some(RowNorm::Layer(mlp_epsilon)),
            Norm::Layer { epsilon, .. } => Some(RowNorm::Layer(epsilon)),
            Norm::Sandwich { epsilon, .. } | Norm::Rms { epsilon } => Some(RowNorm::Rms(epsilon)),
        }
    }

    /// Before the projection of the head.
    fn of_head(self) -> Option<RowNorm> {
        match self {
            Norm::None => None,
            Norm::Layer { epsilon, .. } | Norm::Sandwich { head_epsilon: epsilon, .. } => {
                Some(RowNorm::Layer(epsilon))
            }
            Norm::Rms { epsilon } => Some(RowNorm::Rms(epsilon)),
        }
    }
}
