//! Element types and their conversion.

use std::fmt;
use std::str::FromStr;

use burn::tensor::{BoolStore, DType, TensorData};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use safetensors::Dtype as Stored;
use serde::{Deserialize, Serialize};

use crate::float8;

/// Type of the elements of a stored tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Dtype {
    F64,
    F32,
    F16,
    BF16,
    F8E4M3,
    F8E5M2,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
}

/// A type with its name here and in safetensors, what PyTorch calls it and a block of it, and burn's name, if it has one.
type Names = (Dtype, &'static str, Stored, [&'static str; 2], Option<DType>);

const TYPES: [Names; 12] = [
    (Dtype::F64, "f64", Stored::F64, ["float64", "DoubleStorage"], Some(DType::F64)),
    (Dtype::F32, "f32", Stored::F32, ["float32", "FloatStorage"], Some(DType::F32)),
    (Dtype::F16, "f16", Stored::F16, ["float16", "HalfStorage"], Some(DType::F16)),
    (Dtype::BF16, "bf16", Stored::BF16, ["bfloat16", "BFloat16Storage"], Some(DType::BF16)),
    (Dtype::F8E4M3, "f8_e4m3", Stored::F8_E4M3, ["float8_e4m3fn", ""], None),
    (Dtype::F8E5M2, "f8_e5m2", Stored::F8_E5M2, ["float8_e5m2", ""], None),
    (Dtype::I64, "i64", Stored::I64, ["int64", "LongStorage"], Some(DType::I64)),
    (Dtype::I32, "i32", Stored::I32, ["int32", "IntStorage"], Some(DType::I32)),
    (Dtype::I16, "i16", Stored::I16, ["int16", "ShortStorage"], Some(DType::I16)),
    (Dtype::I8, "i8", Stored::I8, ["int8", "CharStorage"], Some(DType::I8)),
    (Dtype::U8, "u8", Stored::U8, ["uint8", "ByteStorage"], Some(DType::U8)),
    (Dtype::Bool, "bool", Stored::BOOL, ["bool", "BoolStorage"], Some(BOOL)),
];

/// A byte for each.
const BOOL: DType = DType::Bool(BoolStore::Native);

impl Dtype {
    /// Bytes per element.
    pub fn size(self) -> usize {
        self.safetensors().bitsize() / 8
    }

    /// Whether elements are floating-point numbers.
    pub fn is_float(self) -> bool {
        matches!(self, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16) || self.is_f8()
    }

    pub(crate) fn is_f8(self) -> bool {
        matches!(self, Dtype::F8E4M3 | Dtype::F8E5M2)
    }

    pub(crate) fn safetensors(self) -> Stored {
        TYPES[self as usize].2
    }

    pub(crate) fn of_safetensors(stored: Stored) -> Option<Self> {
        TYPES.iter().find(|row| row.2 == stored).map(|row| row.0)
    }

    /// By the name of the type, or of a block of it.
    pub(crate) fn of_pytorch(name: &str) -> Option<Self> {
        TYPES.iter().find(|row| !name.is_empty() && row.3.contains(&name)).map(|row| row.0)
    }

    pub(crate) fn of_burn(dtype: DType) -> Option<Self> {
        TYPES.iter().find(|row| row.4 == Some(dtype)).map(|row| row.0)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(TYPES[*self as usize].1)
    }
}

/// Type of the weights of a loaded network, or of a written bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FloatDtype {
    /// 32 bits.
    #[default]
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
}

impl FloatDtype {
    /// burn's name.
    pub fn burn(self) -> DType {
        TYPES[self.stored() as usize].4.expect("burn has the types that weights are held in")
    }

    /// Bytes of a number.
    pub fn size(self) -> usize {
        self.stored().size()
    }

    pub(crate) fn stored(self) -> Dtype {
        match self {
            FloatDtype::F32 => Dtype::F32,
            FloatDtype::F16 => Dtype::F16,
            FloatDtype::Bf16 => Dtype::BF16,
        }
    }

    /// Whether little-endian numbers of this type are neither infinite nor NaN, whose exponents are all ones.
    pub(crate) fn is_finite(self, bytes: &[u8]) -> bool {
        // All are looked at, which is several at a time, rather than up to the first that is not.
        fn every<const N: usize>(bytes: &[u8], finite: impl Fn([u8; N]) -> bool) -> bool {
            bytes.as_chunks().0.iter().fold(true, |all, value| all & finite(*value))
        }
        let exponent = |mask: u16| move |half| u16::from_le_bytes(half) & mask != mask;
        match self {
            FloatDtype::F32 => every(bytes, |value| f32::from_le_bytes(value).is_finite()),
            FloatDtype::F16 => every(bytes, exponent(0x7c00)),
            FloatDtype::Bf16 => every(bytes, exponent(0x7f80)),
        }
    }

    /// A tensor of these values in this type.
    pub(crate) fn data(self, values: Vec<f32>, shape: Vec<usize>) -> TensorData {
        match self {
            FloatDtype::F32 => TensorData::new(values, shape),
            FloatDtype::F16 => TensorData::new(f16s(&values), shape),
            FloatDtype::Bf16 => TensorData::new(bf16s(&values), shape),
        }
    }

    /// These values in this type, little-endian.
    pub(crate) fn bytes(self, values: &[f32]) -> Vec<u8> {
        fn each<const N: usize, T: Copy>(values: &[T], bytes: impl Fn(T) -> [u8; N]) -> Vec<u8> {
            let mut all = vec![0; N * values.len()];
            let chunks = all.as_chunks_mut::<N>().0.iter_mut();
            chunks.zip(values).for_each(|(chunk, value)| *chunk = bytes(*value));
            all
        }
        match self {
            FloatDtype::F32 => each(values, f32::to_le_bytes),
            FloatDtype::F16 => each(&f16s(values), f16::to_le_bytes),
            FloatDtype::Bf16 => each(&bf16s(values), bf16::to_le_bytes),
        }
    }
}

impl FromStr for FloatDtype {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "f32" | "float32" => Ok(FloatDtype::F32),
            "f16" | "float16" | "fp16" | "half" => Ok(FloatDtype::F16),
            "bf16" | "bfloat16" => Ok(FloatDtype::Bf16),
            _ => Err(format!("unknown type `{text}`, expected f32, f16 or bf16")),
        }
    }
}

impl fmt::Display for FloatDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stored().fmt(f)
    }
}

fn f16s(values: &[f32]) -> Vec<f16> {
    let mut halves = vec![f16::ZERO; values.len()];
    halves.convert_from_f32_slice(values);
    halves
}

fn bf16s(values: &[f32]) -> Vec<bf16> {
    let mut halves = vec![bf16::ZERO; values.len()];
    halves.convert_from_f32_slice(values);
    halves
}

/// Little-endian bytes of any type as f32; trailing bytes that make no element are left out.
pub(crate) fn to_f32(bytes: &[u8], dtype: Dtype) -> Vec<f32> {
    let mut values = vec![0.0; bytes.len() / dtype.size()];
    put_f32(bytes, dtype, &mut values);
    values
}

/// The same into memory of their number.
pub(crate) fn put_f32(bytes: &[u8], dtype: Dtype, values: &mut [f32]) {
    fn each<const N: usize>(bytes: &[u8], values: &mut [f32], value: impl Fn([u8; N]) -> f32) {
        let elements = values.iter_mut().zip(bytes.as_chunks::<N>().0);
        elements.for_each(|(out, chunk)| *out = value(*chunk));
    }
    match dtype {
        Dtype::F32 => each(bytes, values, f32::from_le_bytes),
        Dtype::F64 => each(bytes, values, |b| f64::from_le_bytes(b) as f32),
        Dtype::I64 => each(bytes, values, |b| i64::from_le_bytes(b) as f32),
        Dtype::I32 => each(bytes, values, |b| i32::from_le_bytes(b) as f32),
        Dtype::I16 => each(bytes, values, |b| f32::from(i16::from_le_bytes(b))),
        Dtype::I8 => each(bytes, values, |b: [u8; 1]| f32::from(b[0] as i8)),
        Dtype::U8 | Dtype::Bool => each(bytes, values, |b: [u8; 1]| f32::from(b[0])),
        Dtype::F8E5M2 => float8::e5m2(bytes, values),
        Dtype::F8E4M3 => float8::e4m3(bytes, values),
        Dtype::BF16 => each(bytes, values, |b| bf16::from_le_bytes(b).to_f32()),
        Dtype::F16 => {
            let mut some = [f16::ZERO; 256];
            for (bytes, values) in bytes.chunks(2 * some.len()).zip(values.chunks_mut(some.len())) {
                let elements = some.iter_mut().zip(bytes.as_chunks().0);
                elements.for_each(|(out, chunk)| *out = f16::from_le_bytes(*chunk));
                some[..values.len()].convert_to_f32_slice(values);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FLOATS: [FloatDtype; 3] = [FloatDtype::F32, FloatDtype::F16, FloatDtype::Bf16];

    #[test]
    fn every_type_reads_back_its_values() {
        let values = [0.0f32, 1.0, -2.5, 96.0];
        for dtype in FLOATS {
            let data = dtype.data(values.to_vec(), vec![4]);
            assert_eq!(to_f32(data.as_bytes(), dtype.stored()), values);
            assert_eq!(dtype.to_string().parse(), Ok(dtype));
        }
        assert_eq!(to_f32(&(-7i64).to_le_bytes(), Dtype::I64), [-7.0]);
        assert_eq!(to_f32(&[0xff, 3], Dtype::I8), [-1.0, 3.0]);
    }

    #[test]
    fn rows_of_the_table_are_in_the_order_of_the_types() {
        for (i, (dtype, _, stored, _, burn)) in TYPES.into_iter().enumerate() {
            assert_eq!(dtype as usize, i);
            assert_eq!(Dtype::of_safetensors(stored), Some(dtype));
            if let Some(burn) = burn {
                assert_eq!((Dtype::of_burn(burn), burn.size()), (Some(dtype), dtype.size()));
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Any bits: a number that is stored in a type stays what it is, and NaN stays NaN.
        #[test]
        fn conversion_to_f32_and_back_keeps_every_number(
            bytes in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            for dtype in FLOATS {
                let length = bytes.len() / dtype.stored().size();
                let values = to_f32(&bytes, dtype.stored());
                prop_assert_eq!(dtype.is_finite(&bytes), values.iter().all(|v| v.is_finite()));
                let back = dtype.data(values.clone(), vec![length]);
                let again = to_f32(back.as_bytes(), dtype.stored());
                for (a, b) in values.iter().zip(&again) {
                    prop_assert!(a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()));
                }
            }
        }
    }
}
