//! `--dtype`: how the weights are held while they are used.

use std::fmt;
use std::str::FromStr;

use burn::tensor::Device;
use pyrograph::model::{Model, Recognised};
use pyrograph_weights::FloatDtype;
use serde::{Deserialize, Serialize};

/// A float type of the file format, or 8 bits with scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) enum WeightType {
    Float(FloatDtype),
    Int8,
}

impl WeightType {
    /// The model with its weights in this type; `warn` hears of weights that are not finite.
    pub(super) fn load(
        self,
        model: Recognised,
        device: &Device,
        warn: &mut dyn FnMut(String),
    ) -> anyhow::Result<Model> {
        match self {
            Self::Float(dtype) => Ok(model.load(dtype, device, warn)?),
            Self::Int8 => {
                let model = model.load(FloatDtype::F16, device, warn)?.quantized()?;
                crate::give_memory_back();
                Ok(model)
            }
        }
    }
}

impl FromStr for WeightType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "int8" | "i8" | "q8_0" => Ok(Self::Int8),
            other => match other.parse() {
                Ok(dtype) => Ok(Self::Float(dtype)),
                Err(_) => Err(format!("unknown type `{text}`, expected f32, f16, bf16 or int8")),
            },
        }
    }
}

impl fmt::Display for WeightType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Float(dtype) => dtype.fmt(f),
            Self::Int8 => f.write_str("int8"),
        }
    }
}

impl TryFrom<String> for WeightType {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<WeightType> for String {
    fn from(dtype: WeightType) -> Self {
        dtype.to_string()
    }
}
