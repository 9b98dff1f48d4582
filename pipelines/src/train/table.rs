//! Every setting of a training run: the one table behind the checks, the help and the guide.

use std::fmt;

use toml::Value;

use super::config::TrainConfig;

/// A setting of a training run.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Its dotted name, such as `model.hidden`.
    pub key: &'static str,
    /// What kind of value it has.
    pub kind: &'static str,
    /// What values are possible.
    pub range: Range,
    /// What it does.
    pub meaning: &'static str,
}

/// Possible values, of every number in a list; no number may be infinite.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Range {
    /// What the kind and the meaning say.
    Any,
    /// This or more.
    From(f64),
    /// More than this.
    Above(f64),
    /// From the first to the second, both included.
    Within(f64, f64),
    /// From the first to the second, which is not included.
    Below(f64, f64),
    /// One of these.
    OneOf(&'static [&'static str]),
}

impl Range {
    fn holds(self, value: f64) -> bool {
        value.is_finite()
            && match self {
                Self::Any | Self::OneOf(_) => true,
                Self::From(low) => value >= low,
                Self::Above(low) => value > low,
                Self::Within(low, high) => (low..=high).contains(&value),
                Self::Below(low, high) => (low..high).contains(&value),
            }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => Ok(()),
            Self::From(low) => write!(f, "{low} or more"),
            Self::Above(low) => write!(f, "above {low}"),
            Self::Within(low, high) => write!(f, "{low} to {high}"),
            Self::Below(low, high) => write!(f, "from {low} to below {high}"),
            Self::OneOf(names) => f.write_str(&names.join(", ")),
        }
    }
}

impl Setting {
    /// Its value where nothing is said, in TOML; `None` where it is left out.
    pub fn default(&self) -> Option<String> {
        let table = toml::Table::try_from(TrainConfig::default()).expect("settings serialise");
        find(&table, self.key).map(ToString::to_string)
    }

    /// What values it takes, for people.
    pub fn values(&self) -> String {
        match (self.kind, self.range) {
            (kind, Range::Any) => kind.to_owned(),
            (_, Range::OneOf(_)) => self.range.to_string(),
            (kind, range) => format!("{kind}, {range}"),
        }
    }
}

/// The value at a dotted key.
pub(super) fn find<'a>(table: &'a toml::Table, key: &str) -> Option<&'a Value> {
    match key.split_once('.') {
        None => table.get(key),
        Some((first, rest)) => find(table.get(first)?.as_table()?, rest),
    }
}

/// The first value out of its range, for people.
pub(super) fn out_of_range(table: &toml::Table) -> Option<String> {
    SETTINGS.iter().find_map(|setting| {
        let bad = numbers(find(table, setting.key)?)
            .into_iter()
            .find(|value| !setting.range.holds(*value))?;
        let expected = match setting.range {
            Range::Any | Range::OneOf(_) => "a finite number".into(),
            range => range.to_string(),
        };
        Some(format!("{} is {bad}, expected {expected}", setting.key))
    })
}

/// All numbers of a value.
fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Integer(number) => vec![*number as f64],
        Value::Float(number) => vec![*number],
        Value::Array(values) => values.iter().flat_map(numbers).collect(),
        _ => Vec::new(),
    }
}

/// The first key of a table that is no setting.
pub(super) fn unknown_key(given: &toml::Table, above: &str) -> Option<String> {
    given.iter().find_map(|(key, value)| {
        let key = format!("{above}{key}");
        if SETTINGS.iter().any(|setting| setting.key == key) {
            return None;
        }
        let within = format!("{key}.");
        let known = SETTINGS.iter().any(|setting| setting.key.starts_with(&within));
        match value.as_table() {
            Some(inner) if known => unknown_key(inner, &within),
            _ if known => None,
            _ => Some(key),
        }
    })
}

/// The settings whose names are most like `key`.
pub(super) fn similar(key: &str) -> Vec<&'static str> {
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    let near = |known: &str| {
        let whole = strsim::jaro_winkler(key, known);
        whole.max(strsim::jaro_winkler(&last(key), &last(known)))
    };
    let mut found: Vec<(f64, &str)> =
        SETTINGS.iter().map(|setting| (near(setting.key), setting.key)).collect();
    found.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    found
        .into_iter()
        .take_while(|(near, _)| *near > SIMILARITY)
        .take(3)
        .map(|(_, key)| key)
        .collect()
}

/// How similar a key is at least, of 1.
const SIMILARITY: f64 = 0.85;

const INTEGER: &str = "integer";
const NUMBER: &str = "number";
const SWITCH: &str = "true or false";
const NAME: &str = "name";
const PATH: &str = "path";
const TABLE: &str = "table";
const LIST: &str = "list";

const fn row(
    key: &'static str,
    kind: &'static str,
    range: Range,
    meaning: &'static str,
) -> Setting {
    Setting { key, kind, range, meaning }
}

use Range::{Above, Any, Below, From, OneOf, Within};

/// All settings, in the order in which they are explained.
#[rustfmt::skip]
pub const SETTINGS: &[Setting] = &[
    row("steps", INTEGER, From(1.0), "Steps of the run"),
    row("batch", INTEGER, From(1.0), "Images per step"),
    row("micro_batches", INTEGER, From(1.0),
        "Parts of a batch, which they divide: side by side on the CPU, one after the other on a GPU to save memory"),
    row("precision", NAME, OneOf(&["f32", "bf16"]),
        "Type in which linear layers multiply; bf16 is mixed precision, on a CPU that multiplies bf16 faster than f32"),
    row("seed", INTEGER, From(0.0), "Determines fresh weights, the order of the data, noise, dropout and flips"),
    row("data", PATH, Any, "Folder of the images"),
    row("trajectories", PATH, Any, "Folder of the trajectories that a student learns from"),
    row("init", PATH, Any, "Model whose weights the run starts from; the settings of `model` and `process` are then its own"),

    row("weighting", NAME, OneOf(&["output", "velocity"]),
        "How much errors count at each noise level: as in the network's output, or as in the velocity that follows, which is \
         much more at low noise"),
    row("perceptual.weight", NUMBER, Above(0.0),
        "Weight of the distance between estimated and true picture in the features of a classifier, beside the loss [1]"),
    row("perceptual.below", NUMBER, Within(0.0, 1.0), "Share of noise, σ / (α + σ), below which it counts [0.4]"),
    row("perceptual.net", PATH, Any, "Weights of the classifier, EfficientNet-Lite0; without, the shipped ones"),
    row("learning_rate.peak", NUMBER, Above(0.0),
        "Highest learning rate; from a model 0.01 where weights are normalised, else 0.0001"),
    row("learning_rate.warmup", INTEGER, From(0.0), "Steps in which it rises from 0"),
    row("learning_rate.decay.kind", NAME, OneOf(&["constant", "inverse_sqrt", "cosine"]),
        "How it falls then; cosine ends at 0 with the run"),
    row("learning_rate.decay.start", INTEGER, From(0.0), "inverse_sqrt: last step at the peak"),
    row("optimizer", NAME, OneOf(&["adamw", "muon"]),
        "How gradients change the weights; muon changes the matrices of the blocks by orthogonal steps of the size of AdamW's, \
         all else by AdamW"),
    row("betas", LIST, Below(0.0, 1.0), "Decay of the two moments of AdamW"),
    row("epsilon", NUMBER, Above(0.0), "Added to the root of the second moment"),
    row("weight_decay", NUMBER, From(0.0), "Decoupled weight decay, per unit of learning rate"),
    row("clip", NUMBER, From(0.0), "Largest norm of the gradients; 0 is no limit"),
    row("averages", LIST, Any,
        "Averages of the weights, { power = WIDTH } with a relative width above 0 and below 0.28, or { decay = SHARE } \
         from 0 to below 1; the first is sampled and exported"),

    row("text_encoder", PATH, Any,
        "Folder or file of a text encoder, or a model with one; trains on captions instead of classes"),
    row("tokenizer", PATH, Any, "Folder of its tokenizer, if that is not with it"),
    row("captions.tokens", INTEGER, From(1.0), "Most tokens of a caption, and later of a prompt; the rest is cut off"),
    row("captions.clean", SWITCH, Any, "Captions, and later prompts, are cleaned as those of PixArt were, not only put in lower case"),
    row("label_dropout", NUMBER, Within(0.0, 1.0),
        "Share of images without their class or caption, which makes guidance possible"),
    row("flip", SWITCH, Any, "Mirrors half of the images"),
    row("augment.scale", LIST, Within(0.25, 4.0), "Least and largest factor by which images are shrunk or enlarged, [0.85, 1.0]"),
    row("augment.shift", NUMBER, Within(0.0, 16384.0), "Farthest distance in pixels by which images are moved, along each axis"),
    row("background", LIST, Within(0.0, 255.0),
        "Colours, [red, green, blue], of which one is laid under a transparent image each time it is drawn"),
    row("skip_damaged", SWITCH, Any, "Leaves images out that cannot be read, instead of refusing their folder"),
    row("vae", PATH, Any, "Model or diffusers folder with an autoencoder; trains on its latents instead of pixels"),

    row("checkpoint_every", INTEGER, From(1.0), "Steps between checkpoints"),
    row("sample_every", INTEGER, From(0.0), "Steps between sample sheets; 0 is never"),
    row("sample_prompts", LIST, Any, "Texts of the sample sheets; without any, up to 16 of the captions"),
    row("snapshot_every", INTEGER, From(0.0), "Steps between stored averages, for `train average`; 0 is never"),
    row("log_every", INTEGER, From(1.0), "Steps between lines of the log"),

    row("model.kind", NAME, OneOf(&["mp-dit", "dit", "ladder-a", "ladder-b", "ladder-c", "ladder-d", "ladder-e"]),
        "Variant: MP-DiT, the original DiT, or a step of the ablation between"),
    row("model.size", LIST, Within(1.0, 16384.0),
        "[height, width] of the images in pixels, multiples of the patch (and, with an autoencoder, of its factor)"),
    row("model.patch", INTEGER, From(1.0), "Side of a patch, in pixels or latent cells"),
    row("model.overlap", SWITCH, Any, "Each patch, of an even side, predicts a square of twice its side; these are blended, without seams"),
    row("model.pooled", SWITCH, Any, "The mean of the encoder's states of a caption acts on all blocks, as a class does, beside the states"),
    row("model.hidden", INTEGER, From(4.0), "Width of a token, a multiple of 4 and of `model.heads`"),
    row("model.depth", INTEGER, From(1.0), "Number of blocks"),
    row("model.heads", INTEGER, From(1.0), "Attention heads"),
    row("model.flexible", TABLE, Any,
        "Further patch sizes: { patches = [16], sharing = { kernels = { underlying = 16 } } }, or adapters = { rank = 8 }"),
    row("model.modulation", TABLE, Any,
        "In place of the variant's: { scale, shift, rotation, gate = true or false, gate_form = \"zero\" or \"one\" }"),
    row("model.magnitude", TABLE, Any,
        "In place of the variant's: cosine_attention, normalized_weights, forced_normalization, residual, scaled_silu, \
         normalized_embeddings, renormalized_attention"),

    row("process.schedule.kind", NAME, OneOf(&["edm", "linear", "scaled_linear", "squared_cosine", "rectified_flow"]),
        "How noise is mixed in"),
    row("process.schedule.sigma_min", NUMBER, Above(0.0), "edm: smallest σ of sampling"),
    row("process.schedule.sigma_max", NUMBER, Above(0.0), "edm: largest σ of sampling"),
    row("process.schedule.rho", NUMBER, Above(0.0), "edm: exponent of the sampling grid"),
    row("process.schedule.log_mean", NUMBER, Any, "edm: mean of ln σ in training"),
    row("process.schedule.log_std", NUMBER, Above(0.0), "edm: standard deviation of ln σ in training"),
    row("process.schedule.steps", INTEGER, From(1.0), "linear, scaled_linear, squared_cosine: timesteps"),
    row("process.schedule.first", NUMBER, Within(0.0, 1.0), "linear, scaled_linear: first β"),
    row("process.schedule.last", NUMBER, Within(0.0, 1.0), "linear, scaled_linear: last β"),
    row("process.schedule.zero_snr", SWITCH, Any, "linear, scaled_linear, squared_cosine: the last step is pure noise"),
    row("process.schedule.shift", NUMBER, Above(0.0), "rectified_flow: moves times towards the noise; 1 is none"),
    row("process.prediction", NAME, Any,
        "What the network's output means: noise, velocity, clean, flow, or { edm = { sigma_data = 0.5 } }"),
    row("process.time", NAME, OneOf(&["log_sigma", "timestep"]), "What it is told of the noise level"),

    row("defaults.steps", INTEGER, From(1.0), "Sampling steps of the finished model and of sample sheets"),
    row("defaults.sampler", NAME, Any, "Their solver by its name, dpmpp_2m, euler, ..; or with its settings, { ddim = { eta = 0.5 } }"),
    row("defaults.spacing", NAME, Any, "Places of their steps by name, karras, trailing, ..; or with settings, { karras = { rho = 5.0 } }"),
    row("defaults.cfg_scale", NUMBER, Any, "Their guidance; 1 is none"),
    row("defaults.cfg_channels", NAME, Any, "Channels that are guided: all, or { first = 3 }"),
    row("defaults.cfg_interval", LIST, From(0.0), "Noise levels σ, [low, high], between which guidance acts; left out, everywhere"),
    row("defaults.cfg_normalized", SWITCH, Any, "Whether each row of the guided prediction has the length of the unguided one's"),

    row("patches", LIST, Any,
        "Patch sizes of a flexible model over the run: [{ until = 8500, shares = [[8, 0.75], [16, 0.25]] }]"),

    row("lora.rank", INTEGER, From(1.0), "LoRA: its rank, and alpha [16]"),
    row("lora.layers", LIST, Any,
        "LoRA: what it changes of every block, of attention, cross, mlp, modulation [\"attention\", \"cross\", \"mlp\"]"),

    row("control.kind", NAME, OneOf(&["edges", "luminance", "tile", "picture"]),
        "Branches: what of a picture they see; without, they make portraits"),
    row("control.pictures", PATH, Any, "Branches of the kind picture: folder of what they see, each under the name of its image"),
    row("control.matching", PATH, Any,
        "Branches: folder of those that find matches, beside which the ones of the appearance are trained; without, the first"),
    row("control.in_context", INTEGER, From(1.0),
        "Branches: in place of one of the appearance, rank of adapters through which the model attends to both pictures"),
    row("control.depth", INTEGER, From(1.0), "Branches: their blocks, copies of the first ones of the model [3]"),
    row("control.fresh", SWITCH, Any, "Branches: they start with fresh weights, which shows what the model's are worth [false]"),
    row("control.panel", SWITCH, Any, "Branches: the model itself sees the profile, too [false]"),
    row("control.hidden", NUMBER, Within(0.0, 1.0), "Branches: share of a reference that is hidden [0.8]"),
    row("control.cell", INTEGER, From(1.0), "Branches: side of the cells that are hidden, in pixels or latent cells [1]"),
    row("control.profile_dropout", NUMBER, Within(0.0, 1.0),
        "Branches: share of black profiles, which makes guidance towards the person possible [0.1]"),
    row("control.reference_dropout", NUMBER, Within(0.0, 1.0),
        "Branches: share of references that are hidden as a whole, for guidance towards light and pose [0.1]"),
    row("control.prompt", NAME, Any, "Branches: what a model of texts is told of every picture [nothing]"),

    row("student.steps", INTEGER, Within(1.0, 8.0), "Few-step student: its steps, a divisor of the recorded points"),
    row("student.patches", LIST, From(1.0), "Patch size of each step; none are the model's own"),
    row("student.history", NAME, OneOf(&["all", "previous", "noise", "newest"]), "Earlier points that a step sees"),
    row("student.history_layers", INTEGER, From(0.0), "Blocks, from the first, that see them; left out, a fifth of all"),
    row("student.own_heads", SWITCH, Any, "A head for each step"),
    row("student.init", PATH, Any, "Trained student of the same shape to go on from"),
    row("adversarial.data", PATH, Any, "Folder of real images by which heads judge the student's"),
    row("adversarial.warmup", INTEGER, From(0.0), "Steps in which the heads learn alone [300]"),
    row("adversarial.weight", NUMBER, From(0.0), "Pull of their judgement, as a multiple of the regression's [10]"),
    row("adversarial.learning_rate", NUMBER, Above(0.0), "Learning rate of the heads [0.001]"),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// Dotted names of all values of a table; what a row explains as a whole is one value.
    fn leaves(table: &toml::Table, above: &str, found: &mut Vec<String>) {
        for (key, value) in table {
            let key = format!("{above}{key}");
            match value.as_table() {
                Some(inner) if !SETTINGS.iter().any(|setting| setting.key == key) => {
                    leaves(inner, &format!("{key}."), found);
                }
                _ => found.push(key),
            }
        }
    }

    #[test]
    fn every_setting_is_explained_once() {
        let table = toml::Table::try_from(TrainConfig::default()).expect("serialises");
        let mut known = Vec::new();
        leaves(&table, "", &mut known);
        assert!(known.len() > 30, "{known:?}");
        for key in known {
            let rows = SETTINGS.iter().filter(|setting| setting.key == key).count();
            assert_eq!(rows, 1, "{key}");
        }
    }

    #[test]
    fn every_explained_setting_is_taken_with_its_default_and_refused_out_of_its_range() {
        for setting in SETTINGS {
            let key = setting.key;
            if let Some(value) = setting.default() {
                let given = [format!("{key}={value}")];
                assert_eq!(TrainConfig::parse("", &given).expect(key), TrainConfig::default());
            }
            let bad = match setting.range {
                Range::From(low) => low - 1.0,
                Range::Above(low) => low,
                Range::Within(_, high) => high + 1.0,
                Range::Below(_, high) => high,
                Range::Any | Range::OneOf(_) => continue,
            };
            let bad = match setting.kind {
                INTEGER => Value::Integer(bad as i64),
                LIST => Value::Array(vec![Value::Float(bad); 2]),
                _ => Value::Float(bad),
            };
            let mut table = toml::Table::new();
            super::super::given::set(&mut table, key, bad).expect("a table");
            let said = out_of_range(&table).expect(key);
            assert!(said.starts_with(key), "{said}");
        }
    }

    #[test]
    fn names_are_those_that_are_read() {
        for setting in SETTINGS {
            let Range::OneOf(names) = setting.range else { continue };
            for name in names {
                let error = TrainConfig::parse("", &[format!("{}={name}", setting.key)]).err();
                let said = error.map(|error| error.to_string()).unwrap_or_default();
                assert!(!said.contains("unknown variant"), "{said}");
            }
        }
    }
}
