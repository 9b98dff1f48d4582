//! Further patch sizes of one network (FlexiDiT, Anagnostidis et al. 2025).

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{FloatDType, Tensor};

use super::config::DitConfig;
use super::form::Norm;
use crate::layers::{Dense, Fresh, Init, Lora, Modulated};

/// What a network has of its own at one further patch size.
#[derive(Module, Debug)]
pub struct Mode {
    /// Patch embedding and projection, where they are not resized from those of the network.
    pub ends: Option<Ends>,
    /// `[hidden]`: added to every token; zero at the start.
    pub token: Param<Tensor<1>>,
    /// After the layer norms of each block's attention and MLP, block by block, and of the head; empty
    /// where there are none.
    pub norms: Vec<Affine>,
    /// One per block; empty where everything is shared.
    pub adapters: Vec<BlockAdapters>,
    pub(super) position: Tensor<3>,
    pub(super) patch: usize,
}

/// Layers from patches and back.
#[derive(Module, Debug)]
pub struct Ends {
    /// `[patch · patch · channels (+ 1), hidden]`.
    pub patch: Dense,
    /// `[hidden, window · window · out_channels]`, see [`DitConfig::window`].
    pub out: Dense,
}

/// `gain · x + bias`.
#[derive(Module, Debug)]
pub struct Affine {
    /// `[hidden]`; one at the start.
    pub gain: Param<Tensor<1>>,
    /// `[hidden]`; zero at the start.
    pub bias: Param<Tensor<1>>,
}

/// Adapters of one block.
#[derive(Module, Debug)]
pub struct BlockAdapters {
    /// Of the queries, keys and values.
    pub qkv: Lora,
    /// Of the attention's output.
    pub out: Lora,
    /// Of the MLP's first layer.
    pub up: Lora,
    /// Of the MLP's second layer.
    pub down: Lora,
}

/// What one block has of its own at a patch size.
#[derive(Debug, Clone, Copy, Default)]
pub struct BlockMode<'a> {
    pub(super) norms: Option<&'a [Affine; 2]>,
    pub(super) adapters: Option<&'a BlockAdapters>,
}

impl DitConfig {
    pub(super) fn init_modes(&self, init: &Init<'_>) -> Vec<Mode> {
        let patches = self.flexible.iter().flat_map(|flexible| &flexible.patches);
        patches.map(|&patch| self.init_mode(patch, init)).collect()
    }

    fn init_mode(&self, patch: usize, init: &Init<'_>) -> Mode {
        let constant = |value| init.param(Fresh::Constant(value), [self.hidden]);
        let affine = || Affine { gain: constant(1.0), bias: constant(0.0) };
        let rank = self.adapter_rank();
        let norms = match (rank, self.norm) {
            (None, Norm::Layer { .. }) => 2 * self.depth + 1,
            _ => 0,
        };
        Mode {
            ends: rank.map(|_| Ends {
                patch: self.init_embedding(patch, init),
                out: self.init_projection(patch, init),
            }),
            token: constant(0.0),
            norms: (0..norms).map(|_| affine()).collect(),
            adapters: rank.map_or(Vec::new(), |rank| self.init_adapters(rank, init)),
            position: self.positions(self.size, patch, [0.0; 2], init.device),
            patch,
        }
    }
}

impl DitConfig {
    /// Adapters of this rank for every block, which add nothing yet.
    pub(crate) fn init_adapters(&self, rank: usize, init: &Init<'_>) -> Vec<BlockAdapters> {
        let (hidden, inner) = (self.hidden, self.inner());
        let qkv = hidden + 2 * hidden / self.heads * self.key_heads();
        let up = if self.branches.gated { 2 * inner } else { inner };
        let fresh = |_| BlockAdapters {
            qkv: Lora::new(hidden, qkv, rank, init),
            out: Lora::new(hidden, hidden, rank, init),
            up: Lora::new(hidden, up, rank, init),
            down: Lora::new(inner, hidden, rank, init),
        };
        (0..self.depth).map(fresh).collect()
    }
}

impl Affine {
    /// Acts on the normalised input of a branch, before its modulation.
    pub(super) fn before(&self, modulated: Modulated) -> Modulated {
        Modulated::after([self.gain.val(), self.bias.val()], modulated)
    }
}

/// Brings all parameters to a type.
struct Cast(FloatDType);

impl ModuleMapper for Cast {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|value| value.cast(self.0))
    }
}

impl Mode {
    /// See [`Dit::folded`](super::Dit::folded); `ends` resizes the network's own.
    pub(super) fn folded(mut self, ends: impl Fn(usize) -> Ends) -> Self {
        let Ends { patch, out } = self.ends.take().unwrap_or_else(|| ends(self.patch));
        let ends = Ends { patch: patch.folded(), out: out.folded() };
        // The layers may compute in another type than that of their weights.
        let rest = self.map(&mut Cast(ends.patch.dtype()));
        Self { ends: Some(ends), ..rest }
    }

    /// Side of its patches.
    pub fn patch(&self) -> usize {
        self.patch
    }

    /// What block number `index` has of its own.
    pub(super) fn block(&self, index: usize) -> BlockMode<'_> {
        BlockMode {
            norms: self.norms.get(2 * index..).and_then(|norms| norms.first_chunk()),
            adapters: self.adapters.get(index),
        }
    }
}
