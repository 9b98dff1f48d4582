//! Floating-point numbers of 8 bits (Micikevicius et al. 2022, "FP8 formats for deep learning").

use std::sync::LazyLock;

use pulp::Arch;

/// The numbers of 4 exponent and 3 mantissa bits, without infinities.
pub(crate) fn e4m3(bytes: &[u8], values: &mut [f32]) {
    each(bytes, values, |bits| match bits {
        0x7f => f32::NAN,
        _ => raised(bits, 20, 120),
    });
}

/// The numbers of 5 exponent and 2 mantissa bits, each the upper half of an f16.
pub(crate) fn e5m2(bytes: &[u8], values: &mut [f32]) {
    each(bytes, values, |bits| match bits {
        0x7c => f32::INFINITY,
        0x7d.. => f32::NAN,
        _ => raised(bits, 21, 112),
    });
}

/// What `magnitude` makes of each byte without its sign, with the sign.
#[inline(always)]
fn each(bytes: &[u8], values: &mut [f32], magnitude: impl Fn(u32) -> f32) {
    static ARCH: LazyLock<Arch> = LazyLock::new(Arch::new);
    ARCH.dispatch(
        #[inline(always)]
        || {
            for (value, byte) in values.iter_mut().zip(bytes) {
                let bits = u32::from(*byte);
                let sign = (bits & 0x80) << 24;
                *value = f32::from_bits(magnitude(bits & 0x7f).to_bits() | sign);
            }
        },
    );
}

/// The f32 of exponent and mantissa bits that stand so many places lower there, of an exponent that is so much less.
#[inline(always)]
fn raised(bits: u32, places: u32, exponent: u32) -> f32 {
    // Where the exponent is 0 the number has no leading one: it is added, and taken off again. To multiply them at the places of
    // an f32, where they are subnormal, is slow.
    let is_subnormal = bits < 1 << (23 - places);
    let leading = (exponent + 1) << 23;
    let (offset, one) = match is_subnormal {
        true => (leading, f32::from_bits(leading)),
        false => (exponent << 23, 0.0),
    };
    f32::from_bits((bits << places) + offset) - one
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    /// All numbers of 5 exponent bits are those of an f16, those of 4 are what their bits mean, and values of both by hand:
    /// the smallest, one, the largest, and what is none.
    #[test]
    fn every_number_is_read() {
        let all: Vec<u8> = (0..=u8::MAX).collect();
        let read = |unpack: fn(&[u8], &mut [f32]), bytes: &[u8]| {
            let mut values = vec![0.5; bytes.len()];
            unpack(bytes, &mut values);
            values
        };
        let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
        for (byte, found) in all.iter().zip(read(e5m2, &all)) {
            let expected = f16::from_le_bytes([0, *byte]).to_f32();
            assert!(same(found, expected), "{byte:#x}: {found}, not {expected}");
        }
        for (byte, found) in all.iter().zip(read(e4m3, &all)) {
            let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7) / 8.0);
            let magnitude = match (exponent, byte & 7) {
                (15, 7) => f32::NAN,
                (0, _) => mantissa * 2f32.powi(-6),
                _ => (1.0 + mantissa) * 2f32.powi(exponent - 7),
            };
            let expected = if *byte < 0x80 { magnitude } else { -magnitude };
            assert!(same(found, expected), "{byte:#x}: {found}, not {expected}");
        }
        let values = read(e4m3, &[0x00, 0x01, 0x08, 0x38, 0xb8, 0x7e, 0xfe]);
        assert_eq!(values, [0.0, 2f32.powi(-9), 2f32.powi(-6), 1.0, -1.0, 448.0, -448.0]);
        let values = read(e5m2, &[0x01, 0x3c, 0xc0, 0x7b, 0x7c]);
        assert_eq!(values, [2f32.powi(-16), 1.0, -2.0, 57344.0, f32::INFINITY]);
    }
}
