//! Types of the tensors of GGUF files, and their values.
//!
//! Most are of blocks: codes of few bits, and scales for them. A value is `scale * (code - centre) + offset`; where the
//! codes are wider than the bytes can be cut into, their higher bits are kept apart.

use std::fmt;

use half::f16;

use crate::dtype::{Dtype, put_f32};

/// Type of the elements of a tensor, or of blocks of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub(crate) enum Kind {
    F64,
    F32,
    F16,
    BF16,
    I64,
    I32,
    I16,
    I8,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Iq4Nl,
    Iq4Xs,
}

/// A type with its number in files and its name, and the elements and bytes of a block.
type Row = (Kind, u32, &'static str, usize, usize);

const KINDS: [Row; 20] = [
    (Kind::F64, 28, "F64", 1, 8),
    (Kind::F32, 0, "F32", 1, 4),
    (Kind::F16, 1, "F16", 1, 2),
    (Kind::BF16, 30, "BF16", 1, 2),
    (Kind::I64, 27, "I64", 1, 8),
    (Kind::I32, 26, "I32", 1, 4),
    (Kind::I16, 25, "I16", 1, 2),
    (Kind::I8, 24, "I8", 1, 1),
    (Kind::Q4_0, 2, "Q4_0", 32, 18),
    (Kind::Q4_1, 3, "Q4_1", 32, 20),
    (Kind::Q5_0, 6, "Q5_0", 32, 22),
    (Kind::Q5_1, 7, "Q5_1", 32, 24),
    (Kind::Q8_0, 8, "Q8_0", 32, 34),
    (Kind::Q2K, 10, "Q2_K", 256, 84),
    (Kind::Q3K, 11, "Q3_K", 256, 110),
    (Kind::Q4K, 12, "Q4_K", 256, 144),
    (Kind::Q5K, 13, "Q5_K", 256, 176),
    (Kind::Q6K, 14, "Q6_K", 256, 210),
    (Kind::Iq4Nl, 20, "IQ4_NL", 32, 18),
    (Kind::Iq4Xs, 23, "IQ4_XS", 256, 136),
];

/// Types that are refused, by number, to be named.
const OTHERS: [(u32, &str); 17] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (29, "IQ1_M"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (41, "Q1_0"),
];

/// What the codes of `IQ4_NL` and `IQ4_XS` stand for.
const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

impl Kind {
    /// By its number in files.
    ///
    /// # Errors
    /// A type that is not read, by its name if it has one.
    pub(crate) fn of(number: u32) -> Result<Self, String> {
        if let Some(row) = KINDS.iter().find(|row| row.1 == number) {
            return Ok(row.0);
        }
        Err(match OTHERS.iter().find(|other| other.0 == number) {
            Some((_, name)) => format!("type {name}, which is not read"),
            None => format!("type {number}, which is not known"),
        })
    }

    /// Elements of a block; 1 where elements stand alone. Rows are of whole blocks.
    pub(crate) fn block(self) -> usize {
        KINDS[self as usize].3
    }

    /// Bytes of a block.
    pub(crate) fn bytes(self) -> usize {
        KINDS[self as usize].4
    }

    /// The values of little-endian elements or of blocks; trailing bytes that make none are left out.
    pub(crate) fn to_f32(self, bytes: &[u8]) -> Vec<f32> {
        let mut values = vec![0.0; bytes.len() / self.bytes() * self.block()];
        self.unpack(bytes, &mut values);
        values
    }

    /// The same into memory of their number.
    pub(crate) fn unpack(self, bytes: &[u8], values: &mut [f32]) {
        match self {
            Kind::F64 => put_f32(bytes, Dtype::F64, values),
            Kind::F32 => put_f32(bytes, Dtype::F32, values),
            Kind::F16 => put_f32(bytes, Dtype::F16, values),
            Kind::BF16 => put_f32(bytes, Dtype::BF16, values),
            Kind::I64 => put_f32(bytes, Dtype::I64, values),
            Kind::I32 => put_f32(bytes, Dtype::I32, values),
            Kind::I16 => put_f32(bytes, Dtype::I16, values),
            Kind::I8 => put_f32(bytes, Dtype::I8, values),
            Kind::Q4_0 => blocks(bytes, values, q4_0),
            Kind::Q4_1 => blocks(bytes, values, q4_1),
            Kind::Q5_0 => blocks(bytes, values, q5_0),
            Kind::Q5_1 => blocks(bytes, values, q5_1),
            Kind::Q8_0 => blocks(bytes, values, q8_0),
            Kind::Q2K => blocks(bytes, values, q2_k),
            Kind::Q3K => blocks(bytes, values, q3_k),
            Kind::Q4K => blocks(bytes, values, q4_k),
            Kind::Q5K => blocks(bytes, values, q5_k),
            Kind::Q6K => blocks(bytes, values, q6_k),
            Kind::Iq4Nl => blocks(bytes, values, iq4_nl),
            Kind::Iq4Xs => blocks(bytes, values, iq4_xs),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(KINDS[*self as usize].2)
    }
}

/// Whole blocks, as f32.
fn blocks<const BYTES: usize, const BLOCK: usize>(
    bytes: &[u8],
    values: &mut [f32],
    read: impl Fn(&[u8; BYTES], &mut [f32; BLOCK]),
) {
    let blocks = bytes.as_chunks().0.iter().zip(values.as_chunks_mut().0);
    blocks.for_each(|(block, values)| read(block, values));
}

/// The number that most scales are stored as, as f32.
fn half(bytes: [u8; 2]) -> f32 {
    f16::from_le_bytes(bytes).to_f32()
}

/// Codes of `BITS` bits. Of each `RUN` bytes the lowest bits are the first codes, one from every byte, the bits above
/// them the next, and so on.
fn unpack<const BITS: usize, const RUN: usize, const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut codes = [0; N];
    let groups = codes.chunks_exact_mut(8 / BITS * RUN);
    for (bytes, codes) in bytes.as_chunks::<RUN>().0.iter().zip(groups) {
        for (place, codes) in codes.as_chunks_mut::<RUN>().0.iter_mut().enumerate() {
            for (byte, code) in bytes.iter().zip(codes) {
                *code = (byte >> (place * BITS)) & ((1 << BITS) - 1);
            }
        }
    }
    codes
}

/// Codes with their higher bits, above the lower `BITS`.
fn join<const BITS: usize, const N: usize>(mut codes: [u8; N], high: [u8; N]) -> [u8; N] {
    codes.iter_mut().zip(high).for_each(|(code, high)| *code |= high << BITS);
    codes
}

/// The values of codes, of which each `RUN` have a scale and an offset. Less the centre, a code has a sign.
fn scale<const RUN: usize>(
    values: &mut [f32],
    codes: &[u8],
    centre: u8,
    parts: impl IntoIterator<Item = (f32, f32)>,
) {
    let runs = values.as_chunks_mut::<RUN>().0.iter_mut().zip(codes.as_chunks::<RUN>().0);
    for ((values, codes), (scale, offset)) in runs.zip(parts) {
        for (value, code) in values.iter_mut().zip(codes) {
            *value = scale * f32::from(code.wrapping_sub(centre) as i8) + offset;
        }
    }
}

/// A scale and codes of 4 bits.
fn q4_0([d0, d1, codes @ ..]: &[u8; 18], values: &mut [f32; 32]) {
    let codes: [u8; 32] = unpack::<4, 16, _>(codes);
    scale::<32>(values, &codes, 8, [(half([*d0, *d1]), 0.0)]);
}

/// A scale, an offset and codes of 4 bits.
fn q4_1([d0, d1, m0, m1, codes @ ..]: &[u8; 20], values: &mut [f32; 32]) {
    let codes: [u8; 32] = unpack::<4, 16, _>(codes);
    scale::<32>(values, &codes, 0, [(half([*d0, *d1]), half([*m0, *m1]))]);
}

/// Codes of 5 bits: the highest of all first.
fn five(bytes: &[u8; 20]) -> [u8; 32] {
    let (high, low) = bytes.split_at(4);
    join::<4, 32>(unpack::<4, 16, _>(low), unpack::<1, 1, _>(high))
}

/// A scale and codes of 5 bits.
fn q5_0([d0, d1, codes @ ..]: &[u8; 22], values: &mut [f32; 32]) {
    scale::<32>(values, &five(codes), 16, [(half([*d0, *d1]), 0.0)]);
}

/// A scale, an offset and codes of 5 bits.
fn q5_1([d0, d1, m0, m1, codes @ ..]: &[u8; 24], values: &mut [f32; 32]) {
    scale::<32>(values, &five(codes), 0, [(half([*d0, *d1]), half([*m0, *m1]))]);
}

/// A scale and codes of 8 bits, which have a sign.
fn q8_0([d0, d1, codes @ ..]: &[u8; 34], values: &mut [f32; 32]) {
    scale::<32>(values, codes, 0, [(half([*d0, *d1]), 0.0)]);
}

/// For each 16 codes of 2 bits a byte: 4 bits of a scale below 4 bits of an offset, each with a factor.
fn q2_k([parts @ .., d0, d1, m0, m1]: &[u8; 84], values: &mut [f32; 256]) {
    let (d, m) = (half([*d0, *d1]), half([*m0, *m1]));
    let (parts, codes) = parts.split_at(16);
    let codes: [u8; 256] = unpack::<2, 32, _>(codes);
    let parts = parts.iter().map(|part| (d * f32::from(part & 15), -m * f32::from(part >> 4)));
    scale::<16>(values, &codes, 0, parts);
}

/// For each 16 codes of 3 bits a scale of 6 bits, with a factor. Of the codes the highest bits come first, of the
/// scales the lower 4 bits.
fn q3_k([parts @ .., d0, d1]: &[u8; 110], values: &mut [f32; 256]) {
    let d = half([*d0, *d1]);
    let (high, rest) = parts.split_at(32);
    let (low, scales) = rest.split_at(64);
    let codes = join::<2, 256>(unpack::<2, 32, _>(low), unpack::<1, 32, _>(high));
    let (low, high) = scales.split_at(8);
    let scales = join::<4, 16>(unpack::<4, 8, _>(low), unpack::<2, 4, _>(high));
    scale::<16>(values, &codes, 4, scales.map(|scale| (d * (f32::from(scale) - 32.0), 0.0)));
}

/// Eight scales and eight offsets of 6 bits, with a factor each: four of both in the lower bits of a byte, and then the
/// lower 4 bits of the other four, whose upper 2 bits stand above the first.
fn scales_and_offsets(d: f32, m: f32, packed: &[u8]) -> [(f32, f32); 8] {
    let part = |scale: u8, offset: u8| (d * f32::from(scale), -m * f32::from(offset));
    std::array::from_fn(|i| {
        let (scale, offset, both) = (packed[i % 4], packed[i % 4 + 4], packed[i % 4 + 8]);
        match i {
            0..4 => part(scale & 63, offset & 63),
            _ => part((both & 15) | (scale >> 6 << 4), (both >> 4) | (offset >> 6 << 4)),
        }
    })
}

/// For each 32 codes of 4 bits a scale and an offset.
fn q4_k([d0, d1, m0, m1, parts @ ..]: &[u8; 144], values: &mut [f32; 256]) {
    let (packed, codes) = parts.split_at(12);
    let parts = scales_and_offsets(half([*d0, *d1]), half([*m0, *m1]), packed);
    let codes: [u8; 256] = unpack::<4, 32, _>(codes);
    scale::<32>(values, &codes, 0, parts);
}

/// For each 32 codes of 5 bits a scale and an offset; of the codes the highest bits come first.
fn q5_k([d0, d1, m0, m1, parts @ ..]: &[u8; 176], values: &mut [f32; 256]) {
    let (packed, codes) = parts.split_at(12);
    let parts = scales_and_offsets(half([*d0, *d1]), half([*m0, *m1]), packed);
    let (high, low) = codes.split_at(32);
    let codes = join::<4, 256>(unpack::<4, 32, _>(low), unpack::<1, 32, _>(high));
    scale::<32>(values, &codes, 0, parts);
}

/// For each 16 codes of 6 bits a scale of 8 bits, with a factor; of the codes the lower 4 bits come first.
fn q6_k([parts @ .., d0, d1]: &[u8; 210], values: &mut [f32; 256]) {
    let d = half([*d0, *d1]);
    let (low, rest) = parts.split_at(128);
    let (high, scales) = rest.split_at(64);
    let codes = join::<4, 256>(unpack::<4, 64, _>(low), unpack::<2, 32, _>(high));
    let parts = scales.iter().map(|scale| (d * f32::from(*scale as i8), 0.0));
    scale::<16>(values, &codes, 32, parts);
}

/// A scale and codes of 4 bits, by a table.
fn iq4_nl([d0, d1, codes @ ..]: &[u8; 18], values: &mut [f32; 32]) {
    let codes: [u8; 32] = unpack::<4, 16, _>(codes);
    let codes = codes.map(|code| IQ4[usize::from(code)] as u8);
    scale::<32>(values, &codes, 0, [(half([*d0, *d1]), 0.0)]);
}

/// For each 32 codes of 4 bits, by the same table, a scale of 6 bits, with a factor; the upper 2 bits of scales come
/// first.
fn iq4_xs([d0, d1, h0, h1, parts @ ..]: &[u8; 136], values: &mut [f32; 256]) {
    let d = half([*d0, *d1]);
    let (low, codes) = parts.split_at(4);
    let scales = join::<4, 8>(unpack::<4, 1, _>(low), unpack::<2, 1, _>(&[*h0, *h1]));
    let codes: [u8; 256] = unpack::<4, 16, _>(codes);
    let codes = codes.map(|code| IQ4[usize::from(code)] as u8);
    scale::<32>(values, &codes, 0, scales.map(|scale| (d * (f32::from(scale) - 32.0), 0.0)));
}
