//! A1111's `parameters` text.

use std::fmt;

/// Fields of A1111's `parameters` text.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameters {
    /// What was asked for: a text, or the names of classes.
    pub prompt: String,
    /// What guidance went away from.
    pub negative: Option<String>,
    /// Sampling steps.
    pub steps: usize,
    /// Sampler.
    pub sampler: String,
    /// Guidance scale.
    pub cfg_scale: f64,
    /// Seed of the first image.
    pub seed: u64,
    /// `[width, height]` of one image.
    pub size: [u32; 2],
    /// Base name of the model.
    pub model: String,
    /// Start of the weights' fingerprint.
    pub model_hash: String,
}

impl fmt::Display for Parameters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.prompt)?;
        if let Some(negative) = &self.negative {
            writeln!(f, "Negative prompt: {negative}")?;
        }
        write!(
            f,
            "Steps: {}, Sampler: {}, CFG scale: {}, Seed: {}, Size: {}x{}, Model hash: {}, \
             Model: {}, Version: pyrograph {}",
            self.steps,
            quoted(&self.sampler),
            self.cfg_scale,
            self.seed,
            self.size[0],
            self.size[1],
            quoted(&self.model_hash),
            quoted(&self.model),
            env!("CARGO_PKG_VERSION"),
        )
    }
}

/// A value as A1111 writes it: in JSON quotes if it would end the field.
fn quoted(value: &str) -> String {
    match value.contains([',', ':', '\n']) {
        true => serde_json::Value::from(value).to_string(),
        false => value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_would_end_a_field_are_quoted() {
        let parameters = Parameters {
            prompt: "cat, dog".into(),
            negative: Some("bird".into()),
            steps: 20,
            sampler: "ddim".into(),
            cfg_scale: 4.0,
            seed: 7,
            size: [64, 32],
            model: "a, b: c".into(),
            model_hash: "abc".into(),
        };
        let text = parameters.to_string();
        assert!(text.contains(r#"Model: "a, b: c", Version"#), "{text}");
        assert!(text.starts_with(
            "cat, dog\nNegative prompt: bird\nSteps: 20, Sampler: ddim, CFG scale: 4, Seed: 7, "
        ));
    }
}
