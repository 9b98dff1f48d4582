//! Attention: of tokens to themselves, to others, to both, and to those of earlier calls.

use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{Bool, Device, FloatDType, Tensor, TensorData, module};

use super::available;
use super::cpu::attention::Attention;
use super::cpu::bridge::{Operand, run};
use super::cpu::mixed::in_tiles;
use super::linear::is_mixed;
use super::magnitude::normalize;
use crate::device::is_host;

/// What the rows of some tokens hold, side by side in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parts {
    /// Queries, keys and values: `(heads + 2 · key_heads) · d` numbers.
    Qkv,
    /// Queries: `heads · d` numbers, of tokens that see and are not seen.
    Q,
    /// Keys and values: `2 · key_heads · d` numbers, of tokens that are seen and do not see.
    Kv,
}

/// Tokens that take part in an attention, in rows as a projection makes them: what is side by side in a row is
/// never copied apart.
#[derive(Debug, Clone)]
pub struct Packed {
    /// `[batch, tokens, width of the parts]`.
    pub rows: Tensor<3>,
    /// What the rows hold.
    pub parts: Parts,
    /// What is still to be added to each row, `[width of the parts]`: the bias of the projection, where the attention takes it
    /// along (see [`defers`]).
    pub bias: Option<Tensor<1>>,
}

/// Heads and scores of an attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionSpec {
    /// Heads of the queries.
    pub heads: usize,
    /// Heads of keys and values, a divisor of `heads`: query head `i` sees key head `i · key_heads / heads`
    /// (grouped-query attention, Ainslie et al. 2023; multi-query attention with 1).
    pub key_heads: usize,
    /// Whether queries and keys are brought to unit RMS first.
    pub cosine: bool,
    /// Factor on the products of queries and keys, above 0; `None` is `1 / √d` for heads of width `d`.
    pub scale: Option<f64>,
    /// Scores `s` become `c · tanh(s / c)` for this `c` before a bias (Gemma 2); above 0.
    pub softcap: Option<f64>,
    /// Whether products are of bf16 where the CPU has tile units for them, as they are in
    /// [mixed precision](super::mixed()).
    pub rounds: bool,
}

/// What acts on the scores of an attention before the softmax.
///
/// Queries and keys are those of all sources in their order.
#[derive(Debug, Clone, Default)]
pub struct AttentionBias {
    /// `[batch | 1, heads | 1, queries | 1, keys]`: `true` = not seen.
    pub hidden: Option<Tensor<4, Bool>>,
    /// `[batch | 1, heads | 1, queries | 1, keys]`: finite numbers, added to the scaled products.
    pub added: Option<Tensor<4>>,
}

impl Packed {
    /// Rows of queries, keys and values, `[batch, tokens, (heads + 2 · key_heads) · d]`.
    pub fn qkv(rows: Tensor<3>) -> Self {
        Self { rows, parts: Parts::Qkv, bias: None }
    }

    /// Rows of queries, `[batch, tokens, heads · d]`.
    pub fn q(rows: Tensor<3>) -> Self {
        Self { rows, parts: Parts::Q, bias: None }
    }

    /// Rows of keys and values, `[batch, tokens, 2 · key_heads · d]`.
    pub fn kv(rows: Tensor<3>) -> Self {
        Self { rows, parts: Parts::Kv, bias: None }
    }

    /// The same with nothing left to be added.
    pub(super) fn settled(self) -> Self {
        match self.bias {
            Some(bias) => Self { rows: self.rows + bias.unsqueeze(), bias: None, ..self },
            None => self,
        }
    }
}

impl AttentionSpec {
    /// As many heads of keys as of queries, and scores of `q · k / √d`.
    pub fn new(heads: usize) -> Self {
        Self { heads, key_heads: heads, cosine: false, scale: None, softcap: None, rounds: false }
    }

    /// Heads of the queries, and those of the keys and of the values together, in a row of such parts.
    pub(super) fn heads_of(&self, parts: Parts) -> [usize; 2] {
        match parts {
            Parts::Qkv => [self.heads, 2 * self.key_heads],
            Parts::Q => [self.heads, 0],
            Parts::Kv => [0, 2 * self.key_heads],
        }
    }

    /// Width `d` of a head.
    ///
    /// # Panics
    /// If the heads do not fit into the rows, or into each other.
    pub(super) fn head_width(&self, packed: &Packed) -> usize {
        let (width, heads) = (packed.rows.dims()[2], self.heads_of(packed.parts));
        let count: usize = heads.iter().sum();
        let Self { heads, key_heads, .. } = self;
        assert!(
            *key_heads > 0 && heads % key_heads == 0,
            "{heads} heads of queries cannot share {key_heads} heads of keys"
        );
        assert!(width % count == 0, "rows of {width} numbers for {count} heads");
        width / count
    }
}

/// What hides a key where a mask is made of numbers: shaders know no infinity.
pub(super) const HIDDEN: f32 = -1e30;

impl AttentionBias {
    /// Keys that no query sees, row by row of `[batch | 1, keys]`, `true` = not seen, for tokens on a device: on a GPU as the
    /// numbers that its kernels take, which otherwise each of them would make of a mask.
    pub fn hiding(hidden: Vec<bool>, shape: [usize; 2], device: &Device) -> Self {
        // Where all is hidden, numbers would not say so to burn's own attention.
        let is_blind = hidden.chunks(shape[1].max(1)).any(|row| row.iter().all(|hidden| *hidden));
        if is_host(device) || is_blind {
            return Self::hidden_keys(Tensor::from_data(TensorData::new(hidden, shape), device));
        }
        let numbers: Vec<f32> =
            hidden.into_iter().map(|hidden| if hidden { HIDDEN } else { 0.0 }).collect();
        let numbers = Tensor::<2>::from_data(TensorData::new(numbers, shape), device);
        Self::added(numbers.reshape([shape[0], 1, 1, shape[1]]))
    }

    /// Keys that no query sees, such as padding: `[batch | 1, keys]`, `true` = not seen.
    pub fn hidden_keys(hidden: Tensor<2, Bool>) -> Self {
        let [batch, keys] = hidden.dims();
        Self::hidden(hidden.reshape([batch, 1, 1, keys]))
    }

    /// `[batch | 1, heads | 1, queries | 1, keys]`, `true` = not seen.
    pub fn hidden(hidden: Tensor<4, Bool>) -> Self {
        Self { hidden: Some(hidden), added: None }
    }

    /// `[batch | 1, heads | 1, queries | 1, keys]`, added to the scaled products of queries and keys.
    pub fn added(added: Tensor<4>) -> Self {
        Self { hidden: None, added: Some(added) }
    }

    /// Both in one, with `lowest` for what is hidden.
    pub(super) fn merged(self, lowest: f32) -> Option<Tensor<4>> {
        let Self { hidden, added } = self;
        let Some(hidden) = hidden else { return added };
        let added = added.unwrap_or_else(|| Tensor::zeros(hidden.dims(), &hidden.device()));
        let (a, b) = (added.dims(), hidden.dims());
        let shape = std::array::from_fn::<usize, 4, _>(|i| a[i].max(b[i]));
        Some(added.expand(shape).mask_fill(hidden.expand(shape), lowest))
    }

    /// # Panics
    /// If a size is neither that of the scores nor, but for the keys, 1.
    fn check(&self, scores: [usize; 4]) {
        let hidden = self.hidden.as_ref().map(Tensor::dims);
        for dims in hidden.into_iter().chain(self.added.as_ref().map(Tensor::dims)) {
            let fits = |i: usize| dims[i] == scores[i] || i < 3 && dims[i] == 1;
            assert!((0..4).all(fits), "a bias of {dims:?} for scores of {scores:?}");
        }
    }
}

/// Multi-head attention: `softmax(scale · q · kᵀ + bias) · v` in each head, of all queries to all keys of the
/// sources; with a cap on the scores as a chain of burn's operations everywhere.
///
/// Self-attention is one source with all parts; a cache adds keys and values; cross-attention is a source of
/// queries and one of keys and values; joint attention two sources with all parts. Where gradients are recorded,
/// there are at most 8 sources, a bias counting as one. A query that sees no key gets zeros.
///
/// # Shapes
/// Sources: `[batch, their tokens, width of their parts]`, output: `[batch, queries, heads · d]`, the queries
/// of all sources in their order
///
/// # Panics
/// If no source has queries, or none has keys; if the batches or the widths of the heads differ, the heads do not
/// fit into the rows, or the bias does not fit the scores.
pub fn attention(
    sources: Vec<Packed>,
    spec: &AttentionSpec,
    bias: Option<&AttentionBias>,
) -> Tensor<3> {
    check(&sources, spec, bias);
    let bias = bias.cloned().unwrap_or_default();
    let fused = spec.softcap.is_none()
        && sources.iter().all(|source| available(&source.rows))
        && bias.added.as_ref().is_none_or(available);
    if !fused {
        #[cfg(feature = "gpu")]
        if super::gpu::attends(&sources, spec, &bias) {
            return super::gpu::attention(sources, spec, bias);
        }
        return plain(sources.into_iter().map(Packed::settled).collect(), spec, bias);
    }
    let sources: Vec<_> = sources.into_iter().map(Packed::settled).collect();
    let recorded = sources.iter().any(|source| source.rows.is_autodiff());
    let rounds = in_tiles() && (spec.rounds || recorded && is_mixed());
    let bias = bias.merged(f32::NEG_INFINITY);
    let kernel = Attention {
        spec: AttentionSpec { rounds, ..*spec },
        parts: sources.iter().map(|source| source.parts).collect(),
        biased: bias.is_some(),
    };
    let rows = sources.into_iter().map(|source| Operand::from(source.rows));
    run(kernel, rows.chain(bias.map(Operand::from)).collect())
}

/// Whether an attention takes along the bias of rows that are projected from tokens like these: on a GPU, where it is one
/// launch less.
pub fn defers(x: &Tensor<3>) -> bool {
    #[cfg(feature = "gpu")]
    return super::gpu::defers(x);
    #[cfg(not(feature = "gpu"))]
    {
        let _ = x;
        false
    }
}

fn check(sources: &[Packed], spec: &AttentionSpec, bias: Option<&AttentionBias>) {
    let tokens = |parts: [Parts; 2]| -> usize {
        let own = sources.iter().filter(|source| parts.contains(&source.parts));
        own.map(|source| source.rows.dims()[1]).sum()
    };
    let (queries, keys) = (tokens([Parts::Qkv, Parts::Q]), tokens([Parts::Qkv, Parts::Kv]));
    assert!(queries > 0 && keys > 0, "attention of {queries} queries to {keys} keys");
    let of = |source: &Packed| [source.rows.dims()[0], spec.head_width(source)];
    let [batch, width] = of(&sources[0]);
    for source in sources {
        assert_eq!(of(source), [batch, width], "batch and width of a head of every source");
    }
    assert!(spec.scale.is_none_or(|scale| scale > 0.0), "a scale of {:?}", spec.scale);
    assert!(spec.softcap.is_none_or(|cap| cap > 0.0), "scores capped at {:?}", spec.softcap);
    if let Some(bias) = bias {
        bias.check([batch, spec.heads, queries, keys]);
    }
}

fn plain(sources: Vec<Packed>, spec: &AttentionSpec, bias: AttentionBias) -> Tensor<3> {
    let [queries, keys, values] = unpack(sources, spec);
    let unit = |x| if spec.cosine { normalize(x, 3) } else { x };
    let mixed = mix([unit(queries), unit(keys), values], spec, bias);
    let [batch, heads, tokens, head] = mixed.dims();
    mixed.swap_dims(1, 2).reshape([batch, tokens, heads * head])
}

/// Attention with each head on its own; see [`attention`].
///
/// # Shapes
/// `[batch, heads, tokens, d]`
fn mix(
    [queries, keys, values]: [Tensor<4>; 3],
    &AttentionSpec { scale, softcap, .. }: &AttentionSpec,
    AttentionBias { hidden, added }: AttentionBias,
) -> Tensor<4> {
    let options = AttentionModuleOptions { scale, softcap, ..Default::default() };
    let ([batch, heads, tokens, head], seen) = (queries.dims(), keys.dims()[2]);
    let scores = [batch, heads, tokens, seen];
    let dtype = FloatDType::from(queries.dtype());
    let added = added.map(|added| added.cast(dtype).expand(scores));
    let Some(hidden) = hidden else {
        return module::attention(queries, keys, values, None, added, options);
    };
    // Where nothing is seen, everything is, and then put out: the softmax has no other gradient there.
    let blind = hidden.clone().all_dim(3);
    let hidden = hidden.clone().bool_and(blind.clone().expand(hidden.dims()).bool_not());
    let hidden = Some(hidden.expand(scores));
    let mixed = module::attention(queries, keys, values, hidden, added, options);
    mixed.mask_fill(blind.expand([batch, heads, tokens, head]), 0.0)
}

/// Queries, keys and values of all sources, each `[batch, heads, tokens, d]`.
fn unpack(mut sources: Vec<Packed>, spec: &AttentionSpec) -> [Tensor<4>; 3] {
    let AttentionSpec { heads, key_heads, .. } = *spec;
    if let ([Packed { parts: Parts::Qkv, .. }], true) = (&sources[..], heads == key_heads) {
        return split(sources.remove(0).rows, heads);
    }
    let [queries, held] = sides(&sources, spec);
    let ([queries], [keys, values]) = (split(queries, heads), split(held, key_heads));
    let [keys, values] = [keys, values].map(|x| repeat(x, heads / key_heads));
    [queries, keys, values]
}

/// The rows of queries of all sources, and those of keys and values.
pub(super) fn sides(sources: &[Packed], spec: &AttentionSpec) -> [Tensor<3>; 2] {
    [0, 1].map(|which| {
        let part = |source: &Packed| {
            let counts = spec.heads_of(source.parts);
            let head = spec.head_width(source);
            let (start, count) = (which * counts[0] * head, counts[which] * head);
            (count > 0).then(|| source.rows.clone().narrow(2, start, count))
        };
        together(sources.iter().filter_map(part).collect())
    })
}

/// The tokens of all, without a copy of one alone.
pub(super) fn together(mut rows: Vec<Tensor<3>>) -> Tensor<3> {
    match rows.len() {
        1 => rows.remove(0),
        _ => Tensor::cat(rows, 1),
    }
}

/// `N` parts of packed rows, each `[batch, heads, tokens, d]`.
fn split<const N: usize>(rows: Tensor<3>, heads: usize) -> [Tensor<4>; N] {
    let [batch, tokens, width] = rows.dims();
    let head = width / (N * heads);
    // One copy of all, by the first reshape.
    let parts: Tensor<5> = rows.reshape([batch, tokens, N, heads, head]).permute([2, 0, 3, 1, 4]);
    let parts = parts.reshape([N * batch, heads, tokens, head]);
    std::array::from_fn(|i| parts.clone().narrow(0, i * batch, batch))
}

/// Each head `times` times in a row.
fn repeat(x: Tensor<4>, times: usize) -> Tensor<4> {
    if times == 1 {
        return x;
    }
    let [batch, heads, tokens, head] = x.dims();
    let x: Tensor<5> = x.unsqueeze_dim(2);
    x.expand([batch, heads, times, tokens, head]).reshape([batch, heads * times, tokens, head])
}

#[cfg(test)]
mod tests;
