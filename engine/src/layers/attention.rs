//! Multi-head attention layers.

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor};

use super::dense::{Dense, DenseConfig};
use super::init::{Fresh, Init};
use super::lora::Lora;
use crate::ops::magnitude::{in_f32, normalize};
use crate::ops::{self, AttentionBias, AttentionSpec, Packed, Rotary};

/// Self-attention with fused queries, keys and values; a side of joint attention.
#[derive(Module, Debug)]
pub struct Attention {
    /// Queries, keys and values: `[hidden, (heads + 2 · key_heads) · d]`.
    pub qkv: Dense,
    /// Output projection: `[heads · d, hidden]`; none of a side whose tokens are seen and go no further.
    pub out: Option<Dense>,
    /// Norms of the heads of queries and keys.
    pub norm: Option<HeadNorm>,
    #[module(skip)]
    spec: AttentionSpec,
    renormalized: bool,
}

/// Attention of tokens to those of a context.
#[derive(Module, Debug)]
pub struct CrossAttention {
    /// Queries: `[hidden, heads · d]`.
    pub q: Dense,
    /// Keys and values: `[context, 2 · key_heads · d]`.
    pub kv: Dense,
    /// Output projection: `[heads · d, hidden]`.
    pub out: Dense,
    #[module(skip)]
    spec: AttentionSpec,
}

/// Learned RMS norms of the heads of queries and keys; see [`ops::HeadNorm`].
#[derive(Module, Debug)]
pub struct HeadNorm {
    /// Factors on the queries of each head: `[d]`.
    pub query: Param<Tensor<1>>,
    /// Factors on the keys of each head: `[d]`.
    pub key: Param<Tensor<1>>,
    #[module(skip)]
    epsilon: f64,
}

/// How to make an [`Attention`] or a [`CrossAttention`].
#[derive(Debug, Clone)]
pub struct AttentionConfig {
    /// Width of the tokens.
    pub hidden: usize,
    /// Width of a head.
    pub head: usize,
    /// Heads and scores.
    pub spec: AttentionSpec,
    /// The constant of RMS norms of queries and keys, if there are any; of self-attention only.
    pub norm: Option<f64>,
    /// Whether the output of the heads is brought to the RMS of the tokens that come in; of self-attention only.
    pub renormalized: bool,
}

/// Which keys a query sees.
#[derive(Debug)]
pub enum Attend<'a> {
    /// All tokens see each other.
    Full,
    /// They do so with a bias or a mask.
    Biased(&'a AttentionBias),
    /// The tokens see each other and all that the cache holds.
    Cached {
        /// Tokens of earlier calls.
        cache: &'a mut KvCache,
        /// Whether the tokens are added to it.
        keep: bool,
    },
    /// The tokens see each other and all that it holds, which stays as it is.
    Seen(&'a KvCache),
}

/// Keys and values of the tokens that an attention layer has seen, those of each call as they are:
/// nothing is copied when more come.
#[derive(Debug, Clone, Default)]
pub struct KvCache {
    /// Each `[batch, tokens, 2 · key_heads · d]`.
    calls: Vec<Tensor<3>>,
}

/// Tokens between the two halves of an attention layer, [`Attention::project`] and [`Attention::finish`].
#[derive(Debug, Clone)]
pub struct Projected {
    /// Queries, keys and values, normalised and at their positions.
    pub packed: Packed,
    /// What the RMS of each token's output is brought back to, `[batch, tokens, 1]`, if it is.
    pub rms: Option<Tensor<3>>,
}

/// A side of a [`joint_attention`].
#[derive(Debug)]
pub struct Side<'a> {
    /// The layer of this side.
    pub layer: &'a Attention,
    /// Its tokens, `[batch, tokens, hidden]`.
    pub x: Tensor<3>,
    /// Their positions.
    pub rotary: Option<&'a Rotary>,
    /// Adapters of `qkv` and `out`.
    pub adapters: Option<[&'a Lora; 2]>,
}

impl AttentionConfig {
    /// `heads` heads that share the width of the tokens.
    pub fn new(hidden: usize, heads: usize) -> Self {
        let spec = AttentionSpec::new(heads);
        Self { hidden, head: hidden / heads, spec, norm: None, renormalized: false }
    }

    /// Self-attention; `projection` describes both matrices, with their sizes filled in here.
    pub fn init(
        &self,
        projection: impl Fn(usize, usize) -> DenseConfig,
        init: &Init<'_>,
    ) -> Attention {
        let AttentionSpec { heads, key_heads, .. } = self.spec;
        let gain = || init.param(Fresh::Constant(1.0), [self.head]);
        Attention {
            qkv: projection(self.hidden, (heads + 2 * key_heads) * self.head).init(init),
            out: Some(projection(heads * self.head, self.hidden).init(init)),
            norm: self.norm.map(|epsilon| HeadNorm { query: gain(), key: gain(), epsilon }),
            spec: self.spec,
            renormalized: self.renormalized,
        }
    }

    /// Attention to a context of this width.
    pub fn init_cross(
        &self,
        context: usize,
        projection: impl Fn(usize, usize) -> DenseConfig,
        init: &Init<'_>,
    ) -> CrossAttention {
        let AttentionSpec { heads, key_heads, .. } = self.spec;
        CrossAttention {
            q: projection(self.hidden, heads * self.head).init(init),
            kv: projection(context, 2 * key_heads * self.head).init(init),
            out: projection(heads * self.head, self.hidden).init(init),
            spec: self.spec,
        }
    }
}

impl KvCache {
    /// Number of tokens held.
    pub fn tokens(&self) -> usize {
        self.calls.iter().map(|call| call.dims()[1]).sum()
    }

    /// Forgets the calls, counted from the first that is held, that `keep` refuses.
    pub fn retain(&mut self, keep: impl Fn(usize) -> bool) {
        let mut index = 0..;
        self.calls.retain(|_| index.next().is_some_and(&keep));
    }

    /// That of some of the batch, in the order of `at`, `[images]`.
    pub fn select(&self, at: &Tensor<1, Int>) -> Self {
        self.each(|call| call.clone().select(0, at.clone()))
    }

    /// That of the batches of both.
    ///
    /// # Panics
    /// If they hold different numbers of tokens.
    pub fn followed_by(&self, other: &Self) -> Self {
        assert_eq!(self.calls.len(), other.calls.len(), "calls of two caches");
        let mut others = other.calls.iter().cloned();
        self.each(|call| Tensor::cat(vec![call.clone(), others.next().expect("a call")], 0))
    }

    /// The same without gradients.
    pub(crate) fn without_autodiff(&self) -> Self {
        self.each(|call| call.clone().without_autodiff())
    }

    fn each(&self, change: impl FnMut(&Tensor<3>) -> Tensor<3>) -> Self {
        Self { calls: self.calls.iter().map(change).collect() }
    }

    /// Adds the keys and values of rows of all parts.
    fn push(&mut self, rows: &Tensor<3>, spec: &AttentionSpec) {
        let (width, held) = (rows.dims()[2], 2 * spec.key_heads);
        let held = width / (spec.heads + held) * held;
        // A copy: a part of the rows would hold the queries in memory too.
        self.calls.push(rows.clone().narrow(2, width - held, held) * 1.0);
    }
}

impl Attention {
    /// # Shapes
    /// `[batch, tokens, hidden]` to the same
    pub fn forward(&self, x: Tensor<3>, attend: Attend<'_>) -> Tensor<3> {
        self.adapted(x, None, attend, None)
    }

    /// [`Attention::forward`] at rotary positions, with adapters of `qkv` and `out`.
    pub fn adapted(
        &self,
        x: Tensor<3>,
        rotary: Option<&Rotary>,
        attend: Attend<'_>,
        adapters: Option<[&Lora; 2]>,
    ) -> Tensor<3> {
        let alone = matches!(attend, Attend::Full | Attend::Biased(_)) && !self.renormalized;
        let Projected { packed, rms } = match (rotary, &self.norm, adapters) {
            // Nothing comes between the projection and the attention, and nothing is kept.
            (None, None, None) if alone => {
                Projected { packed: projected(&self.qkv, x, Packed::qkv), rms: None }
            }
            _ => self.project(x, rotary, adapters.map(|[qkv, _]| qkv)),
        };
        let mut sources = vec![packed];
        let bias = match attend {
            Attend::Full => None,
            Attend::Biased(bias) => Some(bias),
            Attend::Cached { cache, keep } => {
                sources.extend(cache.calls.iter().cloned().map(Packed::kv));
                if keep {
                    cache.push(&sources[0].rows, &self.spec);
                }
                None
            }
            Attend::Seen(seen) => {
                sources.extend(seen.calls.iter().cloned().map(Packed::kv));
                None
            }
        };
        let mixed = ops::attention(sources, &spec_of(&self.qkv, self.spec), bias);
        self.finish(mixed, rms, adapters.map(|[_, out]| out))
    }

    /// Queries, keys and values of tokens: what [`ops::attention()`] takes.
    ///
    /// # Shapes
    /// `x`: `[batch, tokens, hidden]`
    pub fn project(
        &self,
        x: Tensor<3>,
        rotary: Option<&Rotary>,
        adapter: Option<&Lora>,
    ) -> Projected {
        let rms = |x: Tensor<3>| x.square().mean_dim(2).sqrt();
        let rms = self.renormalized.then(|| in_f32(x.clone(), rms));
        let packed = Packed::qkv(self.qkv.adapted(x, None, adapter));
        let norm = self.norm.as_ref().map(HeadNorm::values);
        let packed = ops::norm_and_rotate(packed, &self.spec, norm.as_ref(), rotary);
        Projected { packed, rms }
    }

    /// From what the heads have mixed to the layer's output; `rms` is that of [`Projected`].
    ///
    /// # Shapes
    /// `mixed`: `[batch, tokens, heads · d]`, output: `[batch, tokens, hidden]`
    pub fn finish(
        &self,
        mixed: Tensor<3>,
        rms: Option<Tensor<3>>,
        adapter: Option<&Lora>,
    ) -> Tensor<3> {
        let mixed = match rms {
            Some(rms) => normalize(mixed, 2) * rms,
            None => mixed,
        };
        match &self.out {
            Some(out) => out.adapted(mixed, None, adapter),
            None => mixed,
        }
    }

    /// See [`Dense::folded`].
    pub fn folded(mut self) -> Self {
        self.qkv = self.qkv.folded();
        self.out = self.out.map(Dense::folded);
        self
    }
}

impl HeadNorm {
    fn values(&self) -> ops::HeadNorm {
        ops::HeadNorm { gains: [self.query.val(), self.key.val()], epsilon: self.epsilon }
    }
}

/// Rows of a projection, whose bias is left to the attention where that takes it along.
fn projected(layer: &Dense, x: Tensor<3>, packed: fn(Tensor<3>) -> Packed) -> Packed {
    match ops::defers(&x).then(|| layer.deferred(&x)).flatten() {
        Some((rows, bias)) => Packed { bias: Some(bias), ..packed(rows) },
        None => packed(layer.forward(x)),
    }
}

/// Attention rounds as the projection of its queries does.
fn spec_of(queries: &Dense, spec: AttentionSpec) -> AttentionSpec {
    AttentionSpec { rounds: queries.rounds(), ..spec }
}

/// Attention of the tokens of all sides to those of all sides, each side with weights of its own (Esser et al. 2024).
/// Queries and keys of `bias` are those of the sides in their order.
///
/// # Shapes
/// Each side: `[batch, its tokens, its hidden]` to the same
///
/// # Panics
/// If heads or scores of the layers differ.
pub fn joint_attention<const N: usize>(
    sides: [Side<'_>; N],
    bias: Option<&AttentionBias>,
) -> [Tensor<3>; N] {
    let spec = sides[0].layer.spec;
    let sides = sides.map(|Side { layer, x, rotary, adapters }| {
        assert_eq!(layer.spec, spec, "heads and scores of every side");
        (layer, layer.project(x, rotary, adapters.map(|[qkv, _]| qkv)), adapters)
    });
    let sources = sides.iter().map(|(_, projected, _)| projected.packed.clone());
    let spec = spec_of(&sides[0].0.qkv, spec);
    let mixed = ops::attention(sources.collect(), &spec, bias); // [batch, all tokens, heads · d]
    let mut first = 0;
    sides.map(|(layer, Projected { packed, rms }, adapters)| {
        let tokens = packed.rows.dims()[1];
        let own = mixed.clone().narrow(1, first, tokens);
        first += tokens;
        layer.finish(own, rms, adapters.map(|[_, out]| out))
    })
}

impl CrossAttention {
    /// # Shapes
    /// `x`: `[batch, tokens, hidden]`, `context`: `[batch, its tokens, its width]`, output: as `x`; queries of the
    /// bias are the tokens, keys those of the context
    pub fn forward(
        &self,
        x: Tensor<3>,
        context: Tensor<3>,
        bias: Option<&AttentionBias>,
    ) -> Tensor<3> {
        let sources =
            vec![projected(&self.q, x, Packed::q), projected(&self.kv, context, Packed::kv)];
        self.out.forward(ops::attention(sources, &spec_of(&self.q, self.spec), bias))
    }

    /// See [`Dense::folded`].
    pub fn folded(mut self) -> Self {
        self.q = self.q.folded();
        self.kv = self.kv.folded();
        self.out = self.out.folded();
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::Rope;
    use crate::ops::Pairs;
    use burn::tensor::{Bool, Device, TensorData};

    fn layer(cosine: bool) -> Attention {
        let device = Device::flex();
        let init = Init::new(1, &device);
        let config = AttentionConfig::new(32, 4);
        let spec = AttentionSpec { cosine, ..config.spec };
        AttentionConfig { spec, ..config }.init(|i, o| DenseConfig::new(i, o, cosine), &init)
    }

    fn tokens(n: usize) -> Tensor<3> {
        crate::testing::random([2, n, 32])
    }

    #[test]
    fn cached_block_by_block_equals_one_masked_pass() {
        let (layer, x) = (layer(true), tokens(9));
        let hidden: Vec<bool> = (0..81).map(|i| i % 9 / 3 > i / 9 / 3).collect();
        let mask =
            Tensor::<4, Bool>::from_data(TensorData::new(hidden, [1, 1, 9, 9]), &Device::flex())
                .expand([2, 4, 9, 9]);
        let whole = layer.forward(x.clone(), Attend::Biased(&AttentionBias::hidden(mask)));

        let mut cache = KvCache::default();
        for block in 0..3 {
            let part = x.clone().narrow(1, 3 * block, 3);
            let y = layer.forward(part, Attend::Cached { cache: &mut cache, keep: true });
            let expected = whole.clone().narrow(1, 3 * block, 3);
            assert!(y.all_close(expected, None, Some(1e-5)), "block {block}");
        }
        assert_eq!(cache.tokens(), 9);
    }

    #[test]
    fn cosine_attention_ignores_the_size_of_queries() {
        let (layer, x) = (layer(true), tokens(6));
        let expected = layer.forward(x.clone(), Attend::Full);
        let mut scaled = layer.clone();
        scaled.qkv.weight = scaled.qkv.weight.map(|w| {
            let [rows, _] = w.dims();
            let query = w.clone().slice([0..rows, 0..32]) * 10.0;
            w.slice_assign([0..rows, 0..32], query)
        });
        assert!(scaled.forward(x, Attend::Full).all_close(expected, None, Some(1e-3)));
    }
    /// A layer with norms of heads, and positions for it.
    fn placed(seed: u64) -> Attention {
        let device = Device::flex();
        let spec = AttentionSpec { key_heads: 2, ..AttentionSpec::new(4) };
        let config = AttentionConfig { spec, norm: Some(1e-6), ..AttentionConfig::new(32, 4) };
        let mut layer =
            config.init(|i, o| DenseConfig::new(i, o, false), &Init::new(seed, &device));
        let norm = layer.norm.as_mut().expect("norms");
        norm.query = Param::from_tensor(crate::testing::random([8]));
        norm.key = Param::from_tensor(crate::testing::random([8]));
        layer
    }

    fn positions(range: std::ops::Range<usize>) -> Rotary {
        let rope = Rope { axes: vec![8], theta: 100.0, pairs: Pairs::Interleaved };
        let positions: Vec<[f64; 1]> = range.map(|i| [i as f64]).collect();
        rope.table(&positions, &Device::flex())
    }

    fn side<'a>(layer: &'a Attention, x: &Tensor<3>, rotary: &'a Rotary) -> Side<'a> {
        Side { layer, x: x.clone(), rotary: Some(rotary), adapters: None }
    }

    fn hidden_keys(count: usize, hidden: std::ops::Range<usize>) -> AttentionBias {
        let hidden: Vec<bool> = (0..2 * count).map(|i| hidden.contains(&(i % count))).collect();
        let hidden = TensorData::new(hidden, [2, count]);
        AttentionBias::hidden_keys(Tensor::from_data(hidden, &Device::flex()))
    }

    #[test]
    fn positions_of_cached_tokens_are_kept() {
        let (layer, x) = (placed(2), tokens(9));
        let whole = layer.adapted(x.clone(), Some(&positions(0..9)), Attend::Full, None);
        let mut cache = KvCache::default();
        let attend = Attend::Cached { cache: &mut cache, keep: true };
        layer.adapted(x.clone().narrow(1, 0, 6), Some(&positions(0..6)), attend, None);
        let attend = Attend::Cached { cache: &mut cache, keep: false };
        let y = layer.adapted(x.narrow(1, 6, 3), Some(&positions(6..9)), attend, None);
        assert!(y.all_close(whole.narrow(1, 6, 3), None, Some(1e-5)));
        assert_eq!(cache.tokens(), 6);
    }

    #[test]
    fn joint_attention_of_one_layer_is_that_of_all_its_tokens() {
        let (layer, x) = (placed(2), tokens(9));
        let (all, head, tail) = (positions(0..9), positions(0..4), positions(4..9));
        let expected = layer.adapted(x.clone(), Some(&all), Attend::Full, None);
        let (a, b) = (x.clone().narrow(1, 0, 4), x.narrow(1, 4, 5));
        let found = joint_attention([side(&layer, &a, &head), side(&layer, &b, &tail)], None);
        assert!(Tensor::cat(found.to_vec(), 1).all_close(expected, None, Some(1e-5)));
    }

    #[test]
    fn a_hidden_side_is_as_if_it_were_not_there() {
        let (image, text, x, context) = (placed(2), placed(3), tokens(6), tokens(4));
        let (own, other) = (positions(0..6), positions(0..4));
        let sides = || [side(&image, &x, &own), side(&text, &context, &other)];
        let alone = image.adapted(x.clone(), Some(&own), Attend::Full, None);
        let [found, _] = joint_attention(sides(), Some(&hidden_keys(10, 6..10)));
        assert!(found.all_close(alone.clone(), None, Some(1e-5)));
        let [seen, _] = joint_attention(sides(), None);
        assert!(!seen.all_close(alone, None, Some(1e-2)));
    }

    #[test]
    fn padding_of_a_context_does_not_matter() {
        let device = Device::flex();
        let config = AttentionConfig::new(32, 4);
        let projection = |i, o| DenseConfig::new(i, o, false);
        let layer = config.init_cross(20, projection, &Init::new(1, &device));
        let (x, context) = (tokens(6), crate::testing::random([2, 5, 20]));
        let expected = layer.forward(x.clone(), context.clone(), None);
        let padded = Tensor::cat(vec![context, crate::testing::random([2, 3, 20])], 1);
        let found = layer.forward(x.clone(), padded.clone(), Some(&hidden_keys(8, 5..8)));
        assert!(found.all_close(expected.clone(), None, Some(1e-5)));
        assert!(!layer.folded().forward(x, padded, None).all_close(expected, None, Some(1e-2)));
    }
}
