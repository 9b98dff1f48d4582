//! Shape and variant of a diffusion transformer, as data.

use serde::{Deserialize, Serialize};

use super::modes::Flexible;
use super::student::Student;
use crate::layers::dense::DenseConfig;
use crate::layers::modulation::GateForm;
use crate::layers::{Activation, Fresh, Magnitude, ModulationConfig, Position, Residual, TimeCode};

/// Normalisation of the input of each branch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Norm {
    /// None: magnitudes are preserved by other means.
    None,
    /// Layer norm without learned parameters.
    Layer {
        /// ε of the attention branches and of the head.
        epsilon: f64,
        /// ε of the MLP branches; the diffusers port of DiT has 1e-5 here and 1e-6 above.
        mlp_epsilon: f64,
    },
}

/// Everything that determines a [`Dit`](super::Dit) but its weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DitConfig {
    /// Channels of the image or latent.
    pub channels: usize,
    /// Native `[height, width]` of the image or latent.
    pub size: [usize; 2],
    /// Side of a square patch.
    pub patch: usize,
    /// Width of a token.
    pub hidden: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads; divides `hidden`.
    pub heads: usize,
    /// Inner width of the MLP as a multiple of `hidden`.
    pub mlp_ratio: f64,
    /// Classes without the null class, which has the id `classes`.
    pub classes: usize,
    /// Whether the head also predicts the variance of each channel.
    pub learned_variance: bool,
    /// Learned biases in every layer; otherwise only a constant input channel of the patches.
    pub bias: bool,
    /// Embedding of the noise level.
    pub time: TimeCode,
    /// Every block but the first has its own embedding of noise level and class, as the diffusers port of
    /// DiT stores them; published weights hold copies of one.
    #[serde(default)]
    pub embedder_per_block: bool,
    /// Position table.
    pub position: Position,
    /// Normalisation of branch inputs.
    pub norm: Norm,
    /// How the condition acts.
    pub modulation: ModulationConfig,
    /// Activation of the MLPs of the blocks.
    pub activation: Activation,
    /// Which operations preserve magnitude.
    pub magnitude: Magnitude,
    /// Further patch sizes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flexible: Option<Flexible>,
    /// Steps that the network takes as a few-step student.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub student: Option<Student>,
}

/// Length of the code of the noise level in the published models.
const TIME_CHANNELS: usize = 256;

impl DitConfig {
    /// The original DiT (Peebles & Xie 2023).
    pub fn dit(hidden: usize, depth: usize, heads: usize) -> Self {
        Self {
            channels: 4,
            size: [32, 32],
            patch: 2,
            hidden,
            depth,
            heads,
            mlp_ratio: 4.0,
            classes: 1000,
            learned_variance: true,
            bias: true,
            time: TimeCode::Sinusoidal { channels: TIME_CHANNELS, frequency_shift: 0.0 },
            embedder_per_block: false,
            position: Position::Plain,
            norm: Norm::Layer { epsilon: 1e-6, mlp_epsilon: 1e-6 },
            modulation: ModulationConfig::ADALN_ZERO,
            activation: Activation::GeluTanh,
            magnitude: Magnitude::FREE,
            flexible: None,
            student: None,
        }
    }

    /// MP-DiT with rotation and scale modulation (Bill et al. 2025).
    pub fn mp_dit(hidden: usize, depth: usize, heads: usize) -> Self {
        Self {
            bias: false,
            time: TimeCode::Fourier { channels: TIME_CHANNELS, unit_variance: true },
            position: Position::Centred,
            norm: Norm::None,
            modulation: ModulationConfig::ROTATION_SCALE,
            activation: Activation::MpSilu,
            magnitude: Magnitude::PRESERVED,
            ..Self::dit(hidden, depth, heads)
        }
    }

    /// A step of the published component ladder, from the LayerNorm baseline `A` to the fully
    /// preserving `E`, with adaLN throughout (specs of the first code generation of MP-DiT).
    ///
    /// Each component can also be switched alone through the fields.
    pub fn ladder(step: char, hidden: usize, depth: usize, heads: usize) -> Option<Self> {
        let mut config = Self {
            bias: false,
            time: TimeCode::Sinusoidal { channels: hidden, frequency_shift: 0.0 },
            activation: Activation::Silu,
            ..Self::dit(hidden, depth, heads)
        };
        let step = "ABCDE".find(step)?;
        config.magnitude.cosine_attention = step >= 1;
        config.magnitude.normalized_weights = step >= 2;
        config.magnitude.forced_normalization = step >= 3;
        if step >= 4 {
            config.magnitude = Magnitude::PRESERVED;
            config.norm = Norm::None;
            config.activation = Activation::MpSilu;
            config.position = Position::Normalized;
            config.time = TimeCode::Table { steps: 1000 };
        }
        Some(config)
    }

    /// A published size: `XS`, `S`, `B`, `L` or `XL`, as `(hidden, depth, heads)`.
    pub fn preset(size: &str) -> Option<(usize, usize, usize)> {
        Some(match size {
            "XS" => (256, 6, 4),
            "S" => (384, 12, 6),
            "B" => (768, 12, 12),
            "L" => (1024, 24, 16),
            "XL" => (1152, 28, 16),
            _ => return None,
        })
    }

    /// Channels of the output: twice the input's with a learned variance.
    pub fn out_channels(&self) -> usize {
        self.channels * if self.learned_variance { 2 } else { 1 }
    }

    /// Rows and columns of tokens of an image of this size.
    pub fn grid(&self, [height, width]: [usize; 2], patch: usize) -> [usize; 2] {
        [height / patch, width / patch]
    }

    /// Floating-point operations of one network call on one image of `size` with patches of `patch`, a
    /// multiplication and an addition being two: matrix products only, as in the papers' tables.
    pub fn flops(&self, size: [usize; 2], patch: usize) -> f64 {
        let hidden = self.hidden as f64;
        let [rows, columns] = self.grid(size, patch);
        let parts = |gated| self.modulation.width(gated) * hidden * hidden;
        let pixels = (rows * columns * patch * patch) as f64;
        let ends = pixels * hidden * (self.channels + self.out_channels()) as f64;
        let modulation = self.depth as f64 * 2.0 * parts(true) + parts(false);
        let embedder = (self.time.channels(self.hidden) as f64 + hidden) * hidden;
        self.trunk_flops(size, patch) + 2.0 * (ends + modulation + embedder)
    }

    /// The part of [`DitConfig::flops`] that depends on the number of tokens: projections, attention, MLP,
    /// adapters. FlexiDiT's percentages are of this.
    pub fn trunk_flops(&self, size: [usize; 2], patch: usize) -> f64 {
        let [rows, columns] = self.grid(size, patch);
        let (tokens, hidden) = ((rows * columns) as f64, self.hidden as f64);
        let attention = 4.0 * tokens * hidden * hidden + 2.0 * tokens * tokens * hidden;
        let mlp = 2.0 * self.mlp_ratio * tokens * hidden * hidden;
        let adapters = match self.adapter_rank() {
            Some(rank) if patch != self.patch => {
                tokens * rank as f64 * hidden * (8.0 + 2.0 * self.mlp_ratio)
            }
            _ => 0.0,
        };
        2.0 * self.depth as f64 * (attention + mlp + adapters)
    }

    /// Says what is wrong with the numbers, if anything.
    pub fn check(&self) -> Result<(), String> {
        let positive = [
            ("channels", self.channels),
            ("patch", self.patch),
            ("hidden", self.hidden),
            ("depth", self.depth),
            ("heads", self.heads),
            ("height", self.size[0]),
            ("width", self.size[1]),
            ("classes", self.classes),
        ];
        for (name, value) in positive {
            if value == 0 || value > 1 << 24 {
                return Err(format!("{name} is {value}, expected a positive number below 2^24"));
            }
        }
        if !self.hidden.is_multiple_of(self.heads) || !self.hidden.is_multiple_of(4) {
            return Err(format!(
                "hidden is {}, expected a multiple of 4 and of heads, {}",
                self.hidden, self.heads
            ));
        }
        if self.size.iter().any(|side| side % self.patch != 0) {
            return Err(format!(
                "size is {}x{}, expected multiples of the patch size {}",
                self.size[0], self.size[1], self.patch
            ));
        }
        self.check_patches()?;
        self.check_student()?;
        if !(self.mlp_ratio.is_finite() && self.mlp_ratio > 0.0 && self.mlp_ratio < 64.0) {
            return Err(format!("mlp_ratio is {}, expected within (0, 64)", self.mlp_ratio));
        }
        Ok(())
    }

    /// Describes a layer of this network.
    pub(super) fn dense(&self, inputs: usize, outputs: usize) -> DenseConfig {
        let preserved = self.magnitude.normalized_weights;
        let mut dense = DenseConfig::new(inputs, outputs, preserved);
        dense.bias = self.bias;
        if !self.bias {
            // The bias-free baseline of MP-DiT draws uniformly within ±√(6 / in).
            dense = dense.with_free_weights(Fresh::kaiming(inputs));
        }
        dense
    }

    /// Activation of the embedders and before each modulation: SiLU, scaled if asked for.
    pub(super) fn embedder_activation(&self) -> Activation {
        if self.magnitude.scaled_silu { Activation::MpSilu } else { Activation::Silu }
    }

    /// Number of parameters, fixed tables excluded; see [`Mode`](super::Mode) for those of further patch sizes.
    pub fn parameters(&self) -> usize {
        let (d, bias) = (self.hidden, usize::from(self.bias));
        let layer = |i: usize, o: usize| (i + bias) * o;
        let time = match self.time {
            TimeCode::Sinusoidal { channels, .. } | TimeCode::Fourier { channels, .. } => {
                layer(channels, d)
            }
            TimeCode::Table { steps } => steps * d + layer(d, d),
        };
        let m = self.modulation;
        let halves = 2 * (usize::from(m.scale) + usize::from(m.shift)) + usize::from(m.rotation);
        let gate = usize::from(m.gate);
        let parts = usize::from(m.scale) + usize::from(m.shift) + usize::from(m.rotation);
        let gains = |parts: usize| match (self.magnitude.normalized_weights, m.gate_form) {
            (false, _) => 0,
            (true, GateForm::Zero) => parts.min(1),
            (true, GateForm::One) => parts,
        };
        let inner = (d as f64 * self.mlp_ratio) as usize;
        let block = layer(d, 3 * d)
            + layer(d, d)
            + layer(d, inner)
            + layer(inner, d)
            + layer(d, (halves + 2 * gate) * d)
            + gains(2 * (parts + gate));
        let head = layer(d, halves * d / 2) + gains(parts);
        let embedder = time + layer(d, d) + (self.classes + 1) * d;
        let embedders = if self.embedder_per_block { self.depth } else { 1 };
        self.end_parameters(self.kernel())
            + embedder * embedders
            + self.depth * block
            + head
            + self
                .later_heads()
                .map(|patch| head + self.projection_parameters(patch))
                .sum::<usize>()
            + self.mode_parameters()
    }

    /// Parameters of the layers from patches of this size and back.
    pub(super) fn end_parameters(&self, patch: usize) -> usize {
        (patch * patch * self.channels + 1) * self.hidden + self.projection_parameters(patch)
    }

    /// Parameters of the layer to patches of this size.
    fn projection_parameters(&self, patch: usize) -> usize {
        let bias = usize::from(self.bias);
        let gain = usize::from(self.magnitude.normalized_weights);
        (self.hidden + bias) * patch * patch * self.out_channels() + gain
    }

    /// The residual rule with its default balances.
    pub fn with_depth_rule(mut self) -> Self {
        self.magnitude.residual = Residual::Blend { balance: None };
        self
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor};

    use super::DitConfig;
    use crate::nets::{Flexible, Sharing};

    #[test]
    fn original_dit_sizes_have_the_published_parameter_counts() {
        let count = |size, patch| {
            let (hidden, depth, heads) = DitConfig::preset(size).expect("a published size");
            let config = DitConfig { patch, ..DitConfig::dit(hidden, depth, heads) };
            // Published totals include the fixed table of positions.
            config.parameters() + (32 / patch) * (32 / patch) * hidden
        };
        let published = [
            ("S", 2, 32_963_360),
            ("B", 2, 130_512_416),
            ("L", 2, 458_102_816),
            ("XL", 2, 675_129_632),
            ("S", 4, 32_945_024),
            ("XL", 8, 675_683_072),
        ];
        for (size, patch, parameters) in published {
            assert_eq!(count(size, patch), parameters, "{size}/{patch}");
        }
    }

    #[test]
    fn network_calls_take_the_published_operations() {
        let gmacs = |size, patch, side: usize| {
            let (hidden, depth, heads) = DitConfig::preset(size).expect("a published size");
            let config = DitConfig { patch, ..DitConfig::dit(hidden, depth, heads) };
            config.flops([side, side], patch) / 2e9
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
    fn mp_dit_variants_have_the_published_parameter_counts() {
        let flags = [[1, 1, 1, 0], [1, 0, 1, 1], [1, 0, 1, 0], [0, 0, 1, 1], [0, 0, 0, 1], [0; 4]];
        let published = [
            ("XS", 2, [7608871, 7182887, 6756890, 6330906, 5544462, 5118465]),
            ("S", 4, [32849739, 31006539, 29163314, 27320114, 23781146, 21937921]),
            ("B", 2, [130174539, 122801739, 115428914, 108056114, 93900314, 86527489]),
            ("XL", 2, [674346411, 636523947, 598701426, 560878962, 486561082, 448738561]),
        ];
        for (size, patch, counts) in published {
            let (hidden, depth, heads) = DitConfig::preset(size).expect("a published size");
            for ([scale, shift, gate, rotation], expected) in flags.into_iter().zip(counts) {
                let mut config = DitConfig { patch, ..DitConfig::mp_dit(hidden, depth, heads) };
                config.modulation.scale = scale == 1;
                config.modulation.shift = shift == 1;
                config.modulation.gate = gate == 1;
                config.modulation.rotation = rotation == 1;
                assert_eq!(config.parameters(), expected, "{size}/{patch}");
            }
        }
    }

    #[test]
    fn the_products_of_a_call_are_those_of_the_formula() {
        let shared = Sharing::Kernels { underlying: 4 };
        let adapted = Sharing::Adapters { rank: 8 };
        for base in [DitConfig::dit(64, 2, 4), DitConfig::mp_dit(64, 2, 4)] {
            for sharing in [shared, adapted] {
                let flexible = Flexible { patches: vec![4, 8], sharing, corners: false };
                let config = DitConfig {
                    size: [16, 16],
                    classes: 3,
                    flexible: Some(flexible),
                    ..base.clone()
                };
                let net = config.init(0, &Device::flex()).folded();
                for patch in config.patches() {
                    let counted = crate::ops::counted(|| {
                        let device = Device::flex();
                        let x = Tensor::zeros([1, 4, 16, 16], &device);
                        let (time, label) =
                            (Tensor::zeros([1], &device), Tensor::zeros([1], &device));
                        net.forward(x, time, label, patch);
                    });
                    let expected = config.flops(config.size, patch) / 2.0;
                    assert_eq!(counted as f64, expected, "{patch} of {config:?}");
                }
            }
        }
    }
}
