//! What a call of the network takes, and what it holds.

use burn::module::Module;
use burn::tensor::Device;

use super::{Dit, DitConfig, TextAttention, TextEntry};
use crate::layers::Init;

impl DitConfig {
    /// Floating-point operations of one network call on one image of `size` with patches of `patch`, told a text of `text`
    /// tokens if it reads any, a multiplication and an addition being two: matrix products only, as in the papers' tables.
    /// Those of panels are not counted.
    pub fn flops(&self, size: [usize; 2], patch: usize, text: usize) -> f64 {
        let (hidden, tokens) = (self.hidden as f64, text as f64);
        let [inner, width] = self.condition_widths().map(|width| width as f64);
        let [rows, columns] = self.grid(size, patch);
        let parts = |gated| self.modulation.width(gated) * hidden * width;
        let pixels = (rows * columns * patch * patch) as f64;
        let predicted = self.out_channels() * self.window(1).pow(2);
        let patches = match self.bottleneck.map(|width| width as f64) {
            Some(width) => {
                width * (pixels * self.channels as f64 + (rows * columns) as f64 * hidden)
            }
            None => pixels * self.channels as f64 * hidden,
        };
        let ends = patches + pixels * predicted as f64 * hidden;
        let refiners = self.text.as_ref().map_or(0, |text| text.refiners);
        let shared = if self.is_parallel() { 1.0 } else { 2.0 };
        let modulation = match (self.modulation.single, self.modulation.common) {
            (true, _) => 2.0 * parts(true),
            (_, true) => (4.0 + shared) * parts(true) + parts(false),
            _ => {
                let both = self.first_shared().unwrap_or(self.depth);
                let blocks = 2.0 * (both + refiners) as f64 + shared * (self.depth - both) as f64;
                let dual = self.text.as_ref().map_or(0, |text| text.dual) as f64;
                (blocks + dual) * parts(true) + parts(false)
            }
        };
        let embedder = (self.time.channels(self.hidden) as f64 + width) * inner;
        let third = width / 3.0;
        let sized = if self.sized { 3.0 * (256.0 + third) * third } else { 0.0 };
        // What depends on the text alone: its way into the network, and its layers in every block.
        let of_text = self.text.as_ref().map_or(0.0, |config| {
            let pooled = config.pooled.map_or(0.0, |pooled| (pooled as f64 + width) * width);
            let second =
                if config.entry == TextEntry::Mlp { tokens * hidden * hidden } else { 0.0 };
            let seen = self.seen(text) as f64;
            let entering = if config.length.is_some() { seen } else { tokens };
            let caption = entering * config.width as f64 * hidden + second;
            let refiners = (config.refiners + config.alone) as f64;
            let alone = refiners * (self.layers(seen) + self.pairs(seen, seen));
            let own = |blocks: usize| match self.modulation.common {
                true => 0.0,
                false => blocks as f64 * 2.0 * parts(true),
            };
            let blocks = match config.attention {
                TextAttention::Cross => self.depth as f64 * self.keys() * seen * hidden * hidden,
                TextAttention::Joint => {
                    let adapters = config.shared as f64 * self.adapters(patch, seen);
                    let layers = self.depth as f64 * self.layers(seen);
                    // Of a closing block, there is no output and no MLP, and no gate.
                    let unused = match config.closing {
                        true => {
                            let keys = (1.0 + self.keys()) * seen * hidden * hidden;
                            self.layers(seen) - keys + own(1) - parts(false)
                        }
                        false => 0.0,
                    };
                    layers + adapters + own(self.depth - config.shared) - unused
                }
            };
            pooled + caption + alone + blocks
        });
        let rest = ends + modulation + embedder + sized + of_text;
        self.trunk_flops(size, patch, text) + 2.0 * rest
    }

    /// Products of attention between so many queries and keys.
    fn pairs(&self, queries: f64, keys: f64) -> f64 {
        2.0 * queries * keys * self.hidden as f64
    }

    /// Keys and values of a token, as a multiple of the square of the width.
    fn keys(&self) -> f64 {
        2.0 * self.key_heads() as f64 / self.heads as f64
    }

    /// Products of so many tokens with the layers of a block.
    fn layers(&self, tokens: f64) -> f64 {
        let hidden = self.hidden as f64;
        let mlp = if self.branches.gated { 3.0 } else { 2.0 } * self.inner() as f64;
        tokens * hidden * ((2.0 + self.keys()) * hidden + mlp)
    }

    /// Those of so many tokens with the adapters of a block.
    fn adapters(&self, patch: usize, tokens: f64) -> f64 {
        let Some(rank) = self.adapter_rank().filter(|_| patch != self.patch) else { return 0.0 };
        let inner = if self.branches.gated { 3.0 } else { 2.0 } * self.inner() as f64;
        tokens * rank as f64 * (self.hidden as f64 * (6.0 + self.keys()) + inner)
    }

    /// The part of [`DitConfig::flops`] that depends on the number of tokens of the image: projections, attention, also to
    /// the text, MLP, adapters. FlexiDiT's percentages are of this.
    pub fn trunk_flops(&self, size: [usize; 2], patch: usize, text: usize) -> f64 {
        let [rows, columns] = self.grid(size, patch);
        let (count, hidden) = (rows * columns, self.hidden as f64);
        let (tokens, seen) = ((count + self.missing(count)) as f64, self.seen(text) as f64);
        let attention = match self.text.as_ref().map(|text| text.attention) {
            None => self.pairs(tokens, tokens),
            Some(TextAttention::Cross) => {
                let projections = 2.0 * tokens * hidden * hidden;
                self.pairs(tokens, tokens) + projections + self.pairs(tokens, seen)
            }
            Some(TextAttention::Joint) => self.pairs(tokens + seen, tokens + seen),
        };
        let adapters = self.adapters(patch, tokens);
        let refiners = self.text.as_ref().map_or(0, |text| text.refiners) as f64;
        let refined = refiners * (self.layers(tokens) + self.pairs(tokens, tokens));
        let dual = self.text.as_ref().map_or(0, |text| text.dual) as f64;
        let second = (2.0 + self.keys()) * tokens * hidden * hidden + self.pairs(tokens, tokens);
        let blocks = self.depth as f64 * (self.layers(tokens) + attention + adapters);
        2.0 * (blocks + refined + dual * second)
    }

    /// Number of parameters of the network, see [`Dit::parameters`].
    pub fn parameters(&self) -> usize {
        // All blocks but the first are alike, of their kind, and the size of the image does not matter. Parameters are drawn
        // when they are first needed: here, never.
        let side = self.patches().into_iter().fold(0, usize::max);
        let of = |depth| {
            let small = Self { depth, size: [side; 2], ..self.clone() };
            small.init_from(&Init::new(0, &Device::flex())).parameters()
        };
        match self.text.as_ref().is_some_and(|text| text.shared + text.dual > 0 || text.closing) {
            false => of(1) + (self.depth - 1) * (of(2) - of(1)),
            true => of(self.depth),
        }
    }
}

impl Dit {
    /// Number of parameters: those of further patch sizes included, fixed tables and the random features of
    /// the noise level excluded.
    pub fn parameters(&self) -> usize {
        let embedders = self.blocks.iter().filter_map(|block| block.embedder.as_ref());
        let fixed = embedders.chain([&self.embedder]).filter_map(|embedder| {
            let fourier = embedder.time.fourier.as_ref();
            fourier.map(Module::num_params)
        });
        let table = self.table.as_ref().map_or(0, Module::num_params);
        self.num_params() - fixed.sum::<usize>() - table
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor};

    use super::super::stream::tests::{dual, joined, parallel, unconditioned};
    use super::DitConfig;
    use crate::nets::{Conditioning, Flexible, Sharing, Text, TextAttention, TextConfig};

    /// Of a text.
    const TOKENS: usize = 5;

    #[test]
    fn network_calls_take_the_published_operations() {
        let gmacs = |size, patch, side: usize| {
            let (hidden, depth, heads) = DitConfig::preset(size).expect("a published size");
            let config = DitConfig { patch, ..DitConfig::dit(hidden, depth, heads) };
            config.flops([side, side], patch, 0) / 2e9
        };
        let published = [
            ("XL", 2, 32, 118.62),
            ("XL", 4, 32, 29.04),
            ("XL", 8, 32, 7.39),
            ("XL", 2, 64, 524.54),
            ("L", 2, 32, 80.70),
            ("B", 2, 32, 23.005),
            ("S", 4, 32, 1.413),
        ];
        for (size, patch, side, expected) in published {
            let found = gmacs(size, patch, side);
            assert!((found - expected).abs() < 0.006, "{size}/{patch} at {side}: {found}");
        }
    }

    #[test]
    fn the_products_of_a_call_are_those_of_the_formula() {
        let shared = Sharing::Kernels { underlying: 4 };
        let adapted = Sharing::Adapters { rank: 8 };
        let reads =
            |attention, pooled| Some(TextConfig { pooled, ..TextConfig::new(24, attention) });
        let (cross, joint) =
            (reads(TextAttention::Cross, None), reads(TextAttention::Joint, Some(20)));
        let kinds = [None, cross, joint].into_iter().flat_map(|text| {
            [DitConfig::dit(64, 2, 4), DitConfig::mp_dit(64, 2, 4)]
                .map(|base| DitConfig { text: text.clone(), ..base })
        });
        let unfilled = |base: DitConfig| {
            let text = base.text.clone().map(|text| TextConfig { multiple: None, ..text });
            DitConfig { text, ..base }
        };
        let joined =
            [joined(64, 2), unfilled(joined(64, 2)), joined(64, 1), parallel(64), dual(64)];
        let joined = joined.into_iter().chain([unconditioned(64)]);
        for base in kinds.chain(joined) {
            for sharing in [shared, adapted] {
                let flexible = Flexible { patches: vec![4, 8], sharing, corners: false };
                let config = DitConfig {
                    size: [16, 16],
                    classes: 3,
                    overlap: base.bias,
                    flexible: Some(flexible)
                        .filter(|_| base.table.is_none() && base.bottleneck.is_none()),
                    ..base.clone()
                };
                let net = config.init(0, &Device::flex()).folded();
                for patch in config.patches() {
                    let counted = crate::ops::counted(|| {
                        let device = Device::flex();
                        let x = Tensor::zeros([1, 4, 16, 16], &device);
                        let time = Tensor::zeros([1], &device);
                        let text = config.text.as_ref().map(|text| Text {
                            tokens: Tensor::zeros([1, TOKENS, text.width], &device),
                            lengths: None,
                            pooled: text.pooled.map(|width| Tensor::zeros([1, width], &device)),
                        });
                        let told = Conditioning { text, ..Conditioning::classes(&[0], &device) };
                        net.forward(x, time, &told, patch);
                    });
                    let expected = config.flops(config.size, patch, TOKENS) / 2.0;
                    assert_eq!(counted as f64, expected, "{patch} of {config:?}");
                }
            }
        }
    }
}
