//! Shape and variant of a diffusion transformer, as data.

use serde::{Deserialize, Serialize};

use super::form::{Branches, Norm, Placing, TextConfig};
use crate::layers::dense::DenseConfig;
use crate::layers::{Activation, Fresh, Magnitude, ModulationConfig, Position, Residual, TimeCode};
use crate::nets::ConfigError;

/// The patch sizes that a network has beside its native one, and what they share with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flexible {
    /// Patch sizes without the native one, ascending.
    pub patches: Vec<usize>,
    /// What they share.
    pub sharing: Sharing,
    /// Positions of patches are those of their corners, as in the works that FlexiDiT cites, not of their
    /// centres.
    #[serde(default)]
    pub corners: bool,
}

/// What the patch sizes of a network share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Sharing {
    /// Everything, and everything is trained (section 3.2 of the paper). The embedding and the projection
    /// are kept at an underlying patch size and resized for each.
    Kernels {
        /// The underlying patch size, not below the native one.
        underlying: usize,
    },
    /// The trunk, which is frozen and has a low-rank adapter per further size; at the native size the
    /// function stays as it was, bit for bit (section 3.3).
    Adapters {
        /// Rank of the adapters.
        rank: usize,
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
    /// Each patch predicts a square of twice its side around it; where such squares overlap, they are blended, so
    /// that no seams show between patches.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub overlap: bool,
    /// Patches come through a layer of this width without biases before that of tokens; there is one patch size then (JiT,
    /// Li & He 2025).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bottleneck: Option<usize>,
    /// Width of a token.
    pub hidden: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads; divides `hidden`.
    pub heads: usize,
    /// Inner width of the MLP as a multiple of `hidden`.
    pub mlp_ratio: f64,
    /// Classes without the null class, which has the id `classes`; 0 is a network that is told no class.
    pub classes: usize,
    /// Whether the head also predicts the variance of each channel.
    pub learned_variance: bool,
    /// Learned biases in every layer; otherwise only a constant input channel of the patches.
    pub bias: bool,
    /// Not even that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub homogeneous: bool,
    /// Embedding of the noise level.
    pub time: TimeCode,
    /// Every block but the first has its own embedding of noise level and class, as the diffusers port of
    /// DiT stores them; published weights hold copies of one.
    #[serde(default)]
    pub embedder_per_block: bool,
    /// Position table.
    pub position: Position,
    /// The positions of a side go from 0 to this, however many tokens there are (PixArt); otherwise each token takes
    /// one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub span: Option<f64>,
    /// Side of the patches that take one position each, where these are not the native ones: those that were native
    /// before the network was [refined](super::refine).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position_patch: Option<usize>,
    /// The weights hold a square table of positions of so many tokens a side, from whose middle those of an image are taken
    /// (SD3); there is one patch size then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<usize>,
    /// Whether the network is told how large the image is, see [`Conditioning::size`](super::Conditioning::size).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sized: bool,
    /// Normalisation of branch inputs.
    pub norm: Norm,
    /// What attention and MLPs have that DiT has not.
    #[serde(default, skip_serializing_if = "Branches::is_plain")]
    pub branches: Branches,
    /// Rotary positions, whether or not there is a table, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placing: Option<Placing>,
    /// Inner width of the embedding of the noise level and width of the condition vector, where these are not `hidden`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condition: Option<[usize; 2]>,
    /// How the condition acts.
    pub modulation: ModulationConfig,
    /// Activation of the MLPs of the blocks.
    pub activation: Activation,
    /// Which operations preserve magnitude.
    pub magnitude: Magnitude,
    /// Further patch sizes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flexible: Option<Flexible>,
    /// Text that the network reads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<TextConfig>,
}

/// Largest number of anything.
const LIMIT: usize = 1 << 24;
/// Most patch sizes of a network.
const MOST_PATCHES: usize = 16;
/// Largest product of a patch size and the underlying one.
const MOST_RESIZED: usize = 1 << 12;

/// Length of the code of the noise level in the published models.
const TIME_CHANNELS: usize = 256;

impl DitConfig {
    /// The original DiT (Peebles & Xie 2023).
    pub fn dit(hidden: usize, depth: usize, heads: usize) -> Self {
        Self {
            channels: 4,
            size: [32, 32],
            patch: 2,
            overlap: false,
            bottleneck: None,
            hidden,
            depth,
            heads,
            mlp_ratio: 4.0,
            classes: 1000,
            learned_variance: true,
            bias: true,
            homogeneous: false,
            time: TimeCode::Sinusoidal { channels: TIME_CHANNELS, frequency_shift: 0.0 },
            embedder_per_block: false,
            position: Position::Plain,
            span: None,
            position_patch: None,
            table: None,
            sized: false,
            norm: Norm::Layer { epsilon: 1e-6, mlp_epsilon: 1e-6 },
            branches: Branches::default(),
            placing: None,
            condition: None,
            modulation: ModulationConfig::ADALN_ZERO,
            activation: Activation::GeluTanh,
            magnitude: Magnitude::FREE,
            flexible: None,
            text: None,
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

    /// All patch sizes, ascending.
    pub fn patches(&self) -> Vec<usize> {
        let mut patches = vec![self.patch];
        patches.extend(self.flexible.iter().flat_map(|flexible| &flexible.patches));
        patches.sort_unstable();
        patches
    }

    /// Side of the square that a patch of this side predicts.
    pub fn window(&self, patch: usize) -> usize {
        if self.overlap { 2 * patch } else { patch }
    }

    /// The patch size at which embedding and projection are kept.
    pub fn kernel(&self) -> usize {
        match &self.flexible {
            Some(Flexible { sharing: Sharing::Kernels { underlying }, .. }) => *underlying,
            _ => self.patch,
        }
    }

    /// Rank of the adapters of the further patch sizes, which leave the native one frozen; `None` where
    /// everything is trained.
    pub fn adapter_rank(&self) -> Option<usize> {
        match self.flexible.as_ref()?.sharing {
            Sharing::Adapters { rank } => Some(rank),
            Sharing::Kernels { .. } => None,
        }
    }

    /// Place of the first token and distance between tokens of the rows and columns of an image of this size, whose
    /// first pixel stands at `origin`.
    pub(super) fn coordinates(
        &self,
        size: [usize; 2],
        patch: usize,
        origin: [f64; 2],
    ) -> [[f64; 2]; 2] {
        let corners = self.flexible.as_ref().is_some_and(|flexible| flexible.corners);
        let places = [0, 1].map(|axis| {
            // A native patch takes one, or its share of the span.
            let native = self.position_patch.unwrap_or(self.patch) as f64;
            let unit = self.span.map_or(1.0, |span| span * native / size[axis] as f64);
            let step = unit * patch as f64 / native;
            let start = if corners { 0.0 } else { (step - unit) / 2.0 };
            (start + unit * origin[axis] / native, step)
        });
        [places.map(|(start, _)| start), places.map(|(_, step)| step)]
    }

    /// Whether the network can have the further patch sizes.
    pub(super) fn check_patches(&self) -> Result<(), ConfigError> {
        let Some(flexible) = &self.flexible else { return Ok(()) };
        let patches = self.patches();
        if patches.len() > MOST_PATCHES {
            let expected = format!("at most {MOST_PATCHES}");
            return Err(ConfigError::value("number of patch sizes", patches.len(), expected));
        }
        if flexible.patches.is_empty() || patches.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(ConfigError::PatchSizes { found: patches });
        }
        for patch in patches {
            // The kernels of each size are made by a matrix of so many rows and columns.
            if self.window(patch).saturating_mul(self.window(self.kernel())) > MOST_RESIZED {
                let factor = self.window(1) * self.window(self.kernel());
                let expected = format!("at most {}", MOST_RESIZED / factor);
                return Err(ConfigError::value("patch", patch, expected));
            }
            if patch == 0 || self.size.iter().any(|side| side % patch != 0) {
                return Err(ConfigError::Division { patch, size: self.size });
            }
        }
        match flexible.sharing {
            Sharing::Kernels { underlying } if !(self.patch..=256).contains(&underlying) => {
                let expected = format!("{} to 256", self.patch);
                Err(ConfigError::value("underlying patch size", underlying, expected))
            }
            Sharing::Adapters { rank } if !(1..=self.hidden).contains(&rank) => {
                Err(ConfigError::value("rank", rank, format!("1 to {}", self.hidden)))
            }
            _ => Ok(()),
        }
    }

    /// Inner width of the MLPs.
    pub fn inner(&self) -> usize {
        (self.hidden as f64 * self.mlp_ratio) as usize
    }

    /// Whether there can be such a network.
    ///
    /// # Errors
    /// The first number that is out of range or does not go with the others.
    pub fn check(&self) -> Result<(), ConfigError> {
        let positive = [
            ("channels", self.channels, 1 << 12),
            ("patch", self.patch, 1 << 10),
            ("patch of a position", self.position_patch.unwrap_or(self.patch), 1 << 10),
            ("hidden", self.hidden, 1 << 16),
            ("depth", self.depth, 1 << 10),
            ("heads", self.heads, 1 << 10),
            ("height", self.size[0], 1 << 16),
            ("width", self.size[1], 1 << 16),
            ("channels of the time", self.time.channels(self.hidden), 1 << 16),
        ];
        for (name, value, limit) in positive {
            if !(1..=limit).contains(&value) {
                return Err(ConfigError::value(name, value, format!("1 to {limit}")));
            }
        }
        let rows = if let TimeCode::Table { steps } = self.time { steps } else { 0 };
        for (name, value) in [("classes", self.classes), ("steps of the time", rows)] {
            if value > LIMIT {
                return Err(ConfigError::value(name, value, format!("at most {LIMIT}")));
            }
        }
        if !self.hidden.is_multiple_of(self.heads) || !self.hidden.is_multiple_of(4) {
            let expected = format!("a multiple of 4 and of heads, {}", self.heads);
            return Err(ConfigError::value("hidden", self.hidden, expected));
        }
        if self.size.iter().any(|side| side % self.patch != 0) {
            let found = format!("{}x{}", self.size[0], self.size[1]);
            let expected = format!("multiples of the patch size {}", self.patch);
            return Err(ConfigError::value("size", found, expected));
        }
        self.check_patches()?;
        if let (Some(side), true) = (self.table, self.flexible.is_some()) {
            let expected = "none, for a network of several patch sizes";
            return Err(ConfigError::value("table of positions", side, expected));
        }
        if let Some(width) = self.bottleneck
            && (!(1..=1 << 16).contains(&width) || self.flexible.is_some() || !self.bias)
        {
            let expected = "1 to 65536, or none for several patch sizes or without biases";
            return Err(ConfigError::value("bottleneck", width, expected));
        }
        if let Some(side) = self.table.filter(|side| *side > 1 << 12) {
            return Err(ConfigError::value("table of positions", side, "at most 4096 a side"));
        }
        if let Some(patch) = self.patches().iter().find(|patch| self.overlap && *patch % 2 == 1) {
            return Err(ConfigError::value("patch", patch, "even, for squares that overlap"));
        }
        self.check_form()?;
        self.check_condition()?;
        if !(self.mlp_ratio.is_finite() && self.mlp_ratio > 0.0 && self.mlp_ratio < 64.0) {
            return Err(ConfigError::value("mlp_ratio", self.mlp_ratio, "within (0, 64)"));
        }
        Ok(())
    }

    fn check_condition(&self) -> Result<(), ConfigError> {
        if let Some(span) = self.span.filter(|span| !(span.is_finite() && *span > 0.0)) {
            return Err(ConfigError::value("span of the positions", span, "finite and above 0"));
        }
        let [inner, width] = self.condition_widths();
        for (name, value) in [("inner width of the condition", inner), ("its width", width)] {
            if !(1..=1 << 16).contains(&value) {
                return Err(ConfigError::value(name, value, "1 to 65536"));
            }
        }
        if self.sized && !width.is_multiple_of(3) {
            let expected = "a multiple of 3, for a network that is told the size";
            return Err(ConfigError::value("width of the condition", width, expected));
        }
        let ModulationConfig { single, common, .. } = self.modulation;
        for (name, on) in [("modulation.single", single), ("modulation.common", common)] {
            if on && (self.magnitude.normalized_weights || self.embedder_per_block) {
                let expected = "false where weights are normalised or blocks have embedders";
                return Err(ConfigError::value(name, true, expected));
            }
        }
        if common && (single || self.modulation.unactivated) {
            let expected = "false where modulation.single or modulation.unactivated is true";
            return Err(ConfigError::value("modulation.common", true, expected));
        }
        if common && !self.text.as_ref().is_some_and(|text| text.refiners == 0 && self.is_joint()) {
            let expected = "false without joint attention to a text, or where that is refined";
            return Err(ConfigError::value("modulation.common", true, expected));
        }
        if self.homogeneous && self.bias {
            return Err(ConfigError::value("homogeneous", true, "false where there are biases"));
        }
        Ok(())
    }

    /// Inner width of the embedding of the noise level, and width of the condition.
    pub fn condition_widths(&self) -> [usize; 2] {
        self.condition.unwrap_or([self.hidden; 2])
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

    /// The residual rule with its default balances.
    pub fn with_depth_rule(mut self) -> Self {
        self.magnitude.residual = Residual::Blend { balance: None };
        self
    }
}

#[cfg(test)]
mod tests {
    use super::DitConfig;

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
}
