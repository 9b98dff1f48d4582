//! Multi-head self-attention.

use burn::module::Module;
use burn::tensor::{Bool, Tensor};

use super::dense::{Dense, DenseConfig};
use super::init::Init;
use super::lora::Lora;
use super::magnitude::{in_f32, normalize};
use crate::ops;

/// Self-attention with fused queries, keys and values.
#[derive(Module, Debug)]
pub struct Attention {
    /// Queries, keys and values: `[hidden, 3 · hidden]`.
    pub qkv: Dense,
    /// Output projection: `[hidden, hidden]`.
    pub out: Dense,
    heads: usize,
    cosine: bool,
    renormalized: bool,
}

/// Which keys a query sees.
#[derive(Debug)]
pub enum Attend<'a> {
    /// All tokens see each other.
    Full,
    /// `[batch, heads | 1, queries, keys]`, `true` = hidden.
    Masked(&'a Tensor<4, Bool>),
    /// The tokens see each other and all that the cache holds.
    Cached {
        /// Tokens of earlier calls.
        cache: &'a mut KvCache,
        /// Whether the tokens are added to it.
        keep: bool,
    },
}

/// Keys and values of the tokens that an attention layer has seen, those of each call as they are:
/// nothing is copied when more come.
#[derive(Debug, Clone, Default)]
pub struct KvCache {
    /// Each `[batch, tokens, 2 · hidden]`.
    calls: Vec<Tensor<3>>,
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
}

impl Attention {
    /// Makes a layer; `projection` describes both matrices, with their sizes filled in here.
    pub fn new(
        hidden: usize,
        heads: usize,
        cosine: bool,
        renormalized: bool,
        projection: impl Fn(usize, usize) -> DenseConfig,
        init: &Init<'_>,
    ) -> Self {
        Self {
            qkv: projection(hidden, 3 * hidden).init(init),
            out: projection(hidden, hidden).init(init),
            heads,
            cosine,
            renormalized,
        }
    }

    /// # Shapes
    /// `[batch, tokens, hidden]` to the same
    pub fn forward(&self, x: Tensor<3>, attend: Attend<'_>) -> Tensor<3> {
        self.adapted(x, attend, None)
    }

    /// [`Attention::forward`] with adapters of `qkv` and `out`.
    pub fn adapted(
        &self,
        x: Tensor<3>,
        attend: Attend<'_>,
        adapters: Option<[&Lora; 2]>,
    ) -> Tensor<3> {
        let rms = |x: Tensor<3>| x.square().mean_dim(2).sqrt();
        let incoming = self.renormalized.then(|| in_f32(x.clone(), rms));

        let (qkv, heads, cosine) =
            (self.qkv.adapted(x, None, adapters.map(|[qkv, _]| qkv)), self.heads, self.cosine);
        let mixed = match attend {
            Attend::Full => ops::attention(qkv, Vec::new(), heads, cosine),
            Attend::Masked(mask) => ops::masked_attention(qkv, mask.clone(), heads, cosine),
            Attend::Cached { cache, keep } => {
                let past = cache.calls.clone();
                if keep {
                    // A copy: a part of `qkv` would hold the queries in memory too.
                    let hidden = qkv.dims()[2] / 3;
                    cache.calls.push(qkv.clone().narrow(2, hidden, 2 * hidden) * 1.0);
                }
                ops::attention(qkv, past, heads, cosine)
            }
        };
        let mixed = match incoming {
            Some(rms) => normalize(mixed, 2) * rms,
            None => mixed,
        };
        self.out.adapted(mixed, None, adapters.map(|[_, out]| out))
    }

    /// See [`Dense::folded`].
    pub fn folded(mut self) -> Self {
        self.qkv = self.qkv.folded();
        self.out = self.out.folded();
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, TensorData};

    fn layer(cosine: bool) -> Attention {
        let device = Device::flex();
        let init = Init::new(1, &device);
        Attention::new(32, 4, cosine, false, |i, o| DenseConfig::new(i, o, cosine), &init)
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
        let whole = layer.forward(x.clone(), Attend::Masked(&mask));

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
}
