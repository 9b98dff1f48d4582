//! Runs that make a LoRA of a model, which itself stays as it is.

use std::path::Path;

use burn::tensor::Device;
use pyrograph_engine::nets::{
    Adaptable, Adapter, Dit, DitConfig, TextAttention, TextConfig, Tuned,
};
use pyrograph_engine::read;
use pyrograph_weights::convert::{LoraTerm, PersonParts, write_lora};
use serde::{Deserialize, Serialize};

use crate::adapter::layouts;
use crate::error::{Error, Result};

/// Name of the file in the folder of a run.
pub(crate) const LORA: &str = "lora.safetensors";
/// Place of our own names among the layouts of a network.
const OWN: usize = 0;
/// Place of those of diffusers.
const DIFFUSERS: usize = 2;

/// A LoRA to train.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraShape {
    /// Rank of its matrices; alpha is the same.
    pub rank: usize,
    /// Layers of the blocks that it changes, by parts of their names: `attention`, `cross`, `mlp`, `modulation`.
    pub layers: Vec<String>,
}

impl Default for LoraShape {
    fn default() -> Self {
        Self { rank: 16, layers: ["attention", "cross", "mlp"].map(str::to_owned).to_vec() }
    }
}

impl LoraShape {
    /// Names of the layers of a network that it changes.
    ///
    /// # Errors
    /// A part that no layer has, but for `cross` of a network that reads no text; a rank that is too high.
    pub(crate) fn layers(&self, net: &DitConfig) -> Result<Vec<String>> {
        let fault = |reason: String| Err(Error::Config { reason });
        if !(1..=net.hidden).contains(&self.rank) {
            return fault(format!("lora.rank is {}, expected 1 to {}", self.rank, net.hidden));
        }
        let mut known = vec!["attention", "mlp", "modulation"];
        known.extend(net.text.is_some().then_some("cross"));
        let joint = |text: &TextConfig| text.attention == TextAttention::Joint;
        known.extend(net.text.as_ref().is_some_and(joint).then_some("text"));
        let of_texts = |part: &String| part == "cross" && net.text.is_none();
        let unknown = |part: &&String| !known.contains(&part.as_str()) && !of_texts(part);
        if let Some(part) = self.layers.iter().find(unknown) {
            return fault(format!(
                "lora.layers has `{part}`, expected some of {}",
                known.join(", ")
            ));
        }
        let changes = |name: &str| {
            name.starts_with("blocks.")
                && self.layers.iter().any(|part| name.split('.').nth(2) == Some(part))
        };
        let all = net.init(0, &Device::flex()).layer_widths();
        let found: Vec<String> =
            all.into_iter().map(|(name, _)| name).filter(|name| changes(name)).collect();
        match found.is_empty() {
            true => fault("lora.layers is empty".into()),
            false => Ok(found),
        }
    }

    /// A network with fresh matrices.
    pub(crate) fn tuned(&self, net: Dit, seed: u64, device: &Device) -> Result<Tuned> {
        let layers = self.layers(net.config())?;
        Ok(Tuned::new(net, layers, self.rank, seed, &device.clone().autodiff())?)
    }
}

/// Writes the LoRA of a network in training; one with a token, of a person, is for the network `base` alone.
///
/// # Errors
/// A file that cannot be written; a GPU that failed.
pub(crate) fn write(path: &Path, tuned: &Tuned, base: &str) -> Result<()> {
    let config = tuned.net.config();
    // Networks that only we have go by our names.
    let is_own = !config.bias && !config.homogeneous;
    let layout = &layouts(config, 1)[if is_own { OWN } else { DIFFUSERS }];
    let Adapter { terms, token } = tuned.adapter();
    let token = token.map(read::data).transpose()?;
    let person = token.map(|token| PersonParts { token, base: base.to_owned() });
    let mut written = Vec::new();
    for (layer, terms) in terms {
        for term in terms {
            written.push(LoraTerm {
                layer: layer.clone(),
                down: read::data(term.down)?,
                up: read::data(term.up)?,
                start: term.start,
            });
        }
    }
    Ok(write_lora(path, layout, &written, person)?)
}
