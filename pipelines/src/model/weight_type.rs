//! How the weights of a network are held while it is used.

use std::fmt;
use std::str::FromStr;

use pyrograph_weights::FloatDtype;
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// A float type of the file format, 8 bits with scales, or whatever a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum WeightType {
    /// Floats, in which the network also computes.
    Float(FloatDtype),
    /// 8 bits with scales, on the CPU alone; the network computes in f32.
    Int8,
    /// As the file stores them where those are 16 bits or fewer, in the machine's memory: unpacked each time that they are
    /// multiplied, on the CPU in bf16 where that is faster; the network computes in f32.
    Stored,
}

impl Default for WeightType {
    fn default() -> Self {
        Self::Float(FloatDtype::F32)
    }
}

impl From<FloatDtype> for WeightType {
    fn from(dtype: FloatDtype) -> Self {
        Self::Float(dtype)
    }
}

impl FromStr for WeightType {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text.to_ascii_lowercase().as_str() {
            "int8" | "i8" | "q8_0" => Ok(Self::Int8),
            "stored" => Ok(Self::Stored),
            other => {
                let float = other.parse().map(Self::Float);
                float.map_err(|_| Error::UnknownDtype { found: text.to_owned() })
            }
        }
    }
}

impl fmt::Display for WeightType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Float(dtype) => dtype.fmt(f),
            Self::Int8 => f.write_str("int8"),
            Self::Stored => f.write_str("stored"),
        }
    }
}

impl TryFrom<String> for WeightType {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<WeightType> for String {
    fn from(dtype: WeightType) -> Self {
        dtype.to_string()
    }
}
