//! What a call of the network takes, and what it holds.

use burn::module::Module;
use burn::tensor::Device;

use super::{Dit, DitConfig, TextAttention};
use crate::layers::Init;

impl DitConfig {
    /// Floating-point operations of one network call on one image of `size` with patches of `patch`, told a text of `text`
    /// tokens if it reads any, a multiplication and an addition being two: matrix products only, as in the papers' tables.
    /// Those of panels are not counted.
    pub fn flops(&self, size: [usize; 2], patch: usize, text: usize) -> f64 {
        let (hidden, tokens) = (self.hidden as f64, text as f64);
        let [rows, columns] = self.grid(size, patch);
        let parts = |gated| self.modulation.width(gated) * hidden * hidden;
        let pixels = (rows * columns * patch * patch) as f64;
        let predicted = self.out_channels() * self.window(1).pow(2);
        let ends = pixels * hidden * (self.channels + predicted) as f64;
        let modulation = match self.modulation.single {
            true => 2.0 * parts(true),
            false => self.depth as f64 * 2.0 * parts(true) + parts(false),
        };
        let embedder = (self.time.channels(self.hidden) as f64 + hidden) * hidden;
        let third = hidden / 3.0;
        let sized = if self.sized { 3.0 * (256.0 + third) * third } else { 0.0 };
        let square = tokens * hidden * hidden;
        // What depends on the text alone: its way into the network, and its layers in every block.
        let of_text = self.text.as_ref().map_or(0.0, |config| {
            let pooled = config.pooled.map_or(0.0, |width| (width as f64 + hidden) * hidden);
            let caption = tokens * config.width as f64 * hidden + square;
            let block = match config.attention {
                TextAttention::Cross => 2.0 * square,
                TextAttention::Joint => (4.0 + 2.0 * self.mlp_ratio) * square + 2.0 * parts(true),
            };
            pooled + caption + self.depth as f64 * block
        });
        let rest = ends + modulation + embedder + sized + of_text;
        self.trunk_flops(size, patch, text) + 2.0 * rest
    }

    /// The part of [`DitConfig::flops`] that depends on the number of tokens of the image: projections, attention, also to
    /// the text, MLP, adapters. FlexiDiT's percentages are of this.
    pub fn trunk_flops(&self, size: [usize; 2], patch: usize, text: usize) -> f64 {
        let [rows, columns] = self.grid(size, patch);
        let (tokens, hidden) = ((rows * columns) as f64, self.hidden as f64);
        let square = tokens * hidden * hidden;
        let pairs = |a: f64, b: f64| 2.0 * a * b * hidden;
        let own = 4.0 * square + pairs(tokens, tokens);
        let text = text as f64;
        let attention = match self.text.as_ref().map(|text| text.attention) {
            None => own,
            Some(TextAttention::Cross) => own + 2.0 * square + pairs(tokens, text),
            Some(TextAttention::Joint) => 4.0 * square + pairs(tokens + text, tokens + text),
        };
        let mlp = 2.0 * self.mlp_ratio * square;
        let adapters = match self.adapter_rank() {
            Some(rank) if patch != self.patch => {
                tokens * rank as f64 * hidden * (8.0 + 2.0 * self.mlp_ratio)
            }
            _ => 0.0,
        };
        2.0 * self.depth as f64 * (attention + mlp + adapters)
    }

    /// Number of parameters of the network, see [`Dit::parameters`].
    pub fn parameters(&self) -> usize {
        // All blocks but the first are alike, and the size of the image does not matter. Parameters are drawn
        // when they are first needed: here, never.
        let side = self.patches().into_iter().fold(0, usize::max);
        let of = |depth| {
            let small = Self { depth, size: [side; 2], ..self.clone() };
            small.init_from(&Init::new(0, &Device::flex())).parameters()
        };
        of(1) + (self.depth - 1) * (of(2) - of(1))
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
        self.num_params() - fixed.sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor};

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
        let reads = |attention, pooled| Some(TextConfig { width: 24, pooled, attention });
        let (cross, joint) =
            (reads(TextAttention::Cross, None), reads(TextAttention::Joint, Some(20)));
        let kinds = [None, cross, joint].into_iter().flat_map(|text| {
            [DitConfig::dit(64, 2, 4), DitConfig::mp_dit(64, 2, 4)]
                .map(|base| DitConfig { text: text.clone(), ..base })
        });
        for base in kinds {
            for sharing in [shared, adapted] {
                let flexible = Flexible { patches: vec![4, 8], sharing, corners: false };
                let config = DitConfig {
                    size: [16, 16],
                    classes: 3,
                    overlap: base.bias,
                    flexible: Some(flexible),
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
                            padding: None,
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
