//! By what the product of the two matrices is multiplied.

use std::collections::BTreeMap;
use std::fmt::Display;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};

/// Key of diffusers' settings in the metadata of a file.
pub(super) const METADATA: &str = "lora_adapter_metadata";
/// What diffusers puts before the names of the settings of a network.
const COMPONENTS: [&str; 2] = ["transformer.", "unet."];
/// PEFT's names of a file of weights, without its ending, and of the settings beside it.
const PEFT: [&str; 2] = ["adapter_model", "adapter_config.json"];
/// Most bytes of these settings.
const LONGEST: u64 = 1 << 20;

/// How a file says what alpha is.
#[derive(Debug, Default)]
pub(super) struct Scaling {
    given: Option<f64>,
    settings: Option<Settings>,
}

/// Those of PEFT's settings that matter here.
#[derive(Debug, Deserialize)]
struct Settings {
    peft_type: Option<String>,
    lora_alpha: f64,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    alpha_pattern: Option<BTreeMap<String, f64>>,
}

impl Scaling {
    /// `given` replaces what the file says.
    pub(super) fn of(checkpoint: &Checkpoint, given: Option<f64>) -> Result<Self> {
        let settings = match metadata(checkpoint)? {
            Some(settings) => Some(settings),
            None => beside(checkpoint)?,
        };
        if let Some(kind) = settings.as_ref().and_then(|settings| match &settings.peft_type {
            Some(kind) if kind != "LORA" => Some(kind.as_str()),
            _ => settings.use_dora.then_some("DoRA"),
        }) {
            let reason = format!("the settings are of {kind}, only LoRA is supported");
            return Err(fault(checkpoint, reason));
        }
        let patterns = settings.iter().flat_map(|settings| settings.alpha_pattern.iter().flatten());
        let plain =
            |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || "._".contains(c));
        if let Some((pattern, _)) = patterns.into_iter().find(|(pattern, _)| !plain(pattern)) {
            let reason = format!("alpha_pattern `{pattern}` is not the name of a layer");
            return Err(fault(checkpoint, reason));
        }
        Ok(Self { given, settings })
    }

    /// Alpha of a layer over its rank, or over the root of the rank if the settings say so; `None` if there is
    /// no alpha.
    pub(super) fn factor(
        &self,
        checkpoint: &Checkpoint,
        module: &str,
        own: Option<&str>,
        rank: usize,
    ) -> Result<Option<f64>> {
        let (alpha, root) = match (self.given, own, &self.settings) {
            (Some(given), ..) => (given, false),
            (None, Some(own), _) => (f64::from(checkpoint.read_f32(own)?.0[0]), false),
            (None, None, Some(settings)) => {
                (settings.alpha(checkpoint, module)?, settings.use_rslora)
            }
            (None, None, None) => return Ok(None),
        };
        if !alpha.is_finite() {
            return Err(fault(checkpoint, format!("alpha of `{module}` is {alpha}")));
        }
        let rank = rank as f64;
        Ok(Some(alpha / if root { rank.sqrt() } else { rank }))
    }
}

impl Settings {
    /// That of the pattern that the layer's name ends with, or else that of all layers.
    fn alpha(&self, checkpoint: &Checkpoint, module: &str) -> Result<f64> {
        let ends = |pattern: &str| {
            let before = module.strip_suffix(pattern);
            before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
        };
        let patterns = self.alpha_pattern.iter().flatten();
        let mut found = patterns.filter(|(pattern, _)| ends(pattern)).map(|(_, alpha)| *alpha);
        let Some(alpha) = found.next() else { return Ok(self.lora_alpha) };
        match found.find(|other| *other != alpha) {
            None => Ok(alpha),
            Some(other) => {
                let reason = format!("alpha_pattern has {alpha} and {other} for `{module}`");
                Err(fault(checkpoint, reason))
            }
        }
    }
}

/// Settings that diffusers wrote into the file.
fn metadata(checkpoint: &Checkpoint) -> Result<Option<Settings>> {
    let Some(text) = checkpoint.metadata().get(METADATA) else { return Ok(None) };
    let json = |source| Error::Json { path: checkpoint.path().to_owned(), source };
    let all: Map<String, Value> = serde_json::from_str(text).map_err(json)?;
    let own: Map<String, Value> = all
        .into_iter()
        .filter_map(|(name, value)| {
            // A network that was saved alone has no component.
            let own = COMPONENTS.iter().find_map(|component| name.strip_prefix(component));
            let own = own.or_else(|| (!name.contains('.')).then_some(name.as_str()))?;
            Some((own.to_owned(), value))
        })
        .collect();
    match own.is_empty() {
        true => Ok(None),
        false => serde_json::from_value(Value::Object(own)).map(Some).map_err(json),
    }
}

/// Settings that PEFT wrote beside the file.
fn beside(checkpoint: &Checkpoint) -> Result<Option<Settings>> {
    let [weights, settings] = PEFT;
    let path = checkpoint.path().with_file_name(settings);
    if checkpoint.path().file_stem().is_none_or(|stem| stem != weights) || !path.exists() {
        return Ok(None);
    }
    let file = |source| Error::File { path: path.clone(), source };
    let bytes = std::fs::metadata(&path).map_err(file)?.len();
    if bytes > LONGEST {
        let reason = format!("{settings} has {bytes} bytes, expected at most {LONGEST}");
        return Err(fault(checkpoint, reason));
    }
    let text = std::fs::read(&path).map_err(file)?;
    let json = |source| Error::Json { path: path.clone(), source };
    serde_json::from_slice(&text).map(Some).map_err(json)
}

pub(super) fn fault(checkpoint: &Checkpoint, reason: impl Display) -> Error {
    Error::Lora { path: checkpoint.path().to_owned(), reason: reason.to_string() }
}
