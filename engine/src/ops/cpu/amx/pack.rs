//! From f32 and 8 bits to tiles of bf16, rounded to nearest.

use rayon::prelude::*;

use super::{INNER, SIDE, Side, TILES_RIGHT, Tile, Tiles};
use crate::ops::cpu::matrix::Matrix;
use crate::ops::cpu::packed::RECORD;

/// The matrix `[outer, inner]` in tiles, by several threads if `parallel`. For the right one of a product, that is its
/// transpose.
///
/// # Panics
/// For a matrix neither of whose rows nor of whose columns the elements lie next to each other.
pub(in crate::ops::cpu) fn pack(side: Side, matrix: Matrix<'_>, parallel: bool) -> Tiles {
    assert!(matrix.strides.contains(&1), "{:?}", matrix.strides);
    let empty = matrix.rows == 0 || matrix.columns == 0;
    assert!(empty || matrix.end() <= matrix.values.len(), "the matrix within its memory");
    let panels = matrix.rows.div_ceil(side.tiles() * SIDE);
    let length = side.tiles() * matrix.columns.div_ceil(INNER);
    let mut tiles = Tiles::new(panels * length);
    if length > 0 {
        let memory = tiles.as_mut_slice();
        match parallel {
            true => memory
                .par_chunks_mut(length)
                .enumerate()
                .for_each(|(panel, out)| fill(side, matrix, panel, out)),
            false => memory
                .chunks_mut(length)
                .enumerate()
                .for_each(|(panel, out)| fill(side, matrix, panel, out)),
        }
    }
    tiles
}

/// The panel of a right matrix from its [records](RECORD) of 8 bits, one for each step.
pub(in crate::ops::cpu) fn dequantized(records: &[i8]) -> Tiles {
    let (records, rest) = records.as_chunks::<RECORD>();
    assert!(rest.is_empty(), "whole records");
    let mut tiles = Tiles::new(records.len() * Side::Right.tiles());
    for (record, out) in records.iter().zip(tiles.as_mut_slice().chunks_exact_mut(TILES_RIGHT)) {
        widen(record, out);
    }
    tiles
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn widen(_: &[i8; RECORD], _: &mut [Tile]) {
    unreachable!("tile units")
}

/// One step.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn widen(record: &[i8; RECORD], out: &mut [Tile]) {
    assert!(super::available(), "tile units");
    // SAFETY: where there are tile units of bf16, there are these features.
    #[allow(unsafe_code)]
    unsafe {
        avx512::widen(record, out);
    }
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn fill(_: Side, _: Matrix<'_>, _: usize, _: &mut [Tile]) {
    unreachable!("tile units")
}

/// One panel.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn fill(side: Side, matrix: Matrix<'_>, panel: usize, out: &mut [Tile]) {
    assert!(super::available(), "tile units");
    // SAFETY: where there are tile units of bf16, there are these features.
    #[allow(unsafe_code)]
    unsafe {
        avx512::fill(side, matrix, panel, out);
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod avx512 {
    use std::arch::x86_64::*;
    use std::array::from_fn;

    use super::{INNER, Matrix, RECORD, SIDE, Side, Tile};
    use crate::ops::cpu::packed::SCALES;
    use crate::ops::cpu::tile::COLUMNS;

    /// Sixteen lines of sixteen pairs.
    type Square = [__m512i; SIDE];

    #[allow(unsafe_code)]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub(super) fn fill(side: Side, matrix: Matrix<'_>, panel: usize, out: &mut [Tile]) {
        let by_outer = matrix.strides[1] == 1;
        for (i, tile) in out.iter_mut().enumerate() {
            let (step, part) = (i / side.tiles(), i % side.tiles());
            let at = [(panel * side.tiles() + part) * SIDE, step * INNER];
            let mut square = if by_outer { lines(matrix, at) } else { woven(matrix, at) };
            if by_outer != (side == Side::Left) {
                square = transposed(square);
            }
            for (line, out) in square.into_iter().zip(tile.as_chunks_mut::<SIDE>().0) {
                // SAFETY: a line is 64 bytes.
                unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), line) };
            }
        }
    }

    /// Of sixteen lanes, those of which there are some.
    fn mask(left: usize) -> __mmask16 {
        ((1u32 << left.min(16)) - 1) as __mmask16
    }

    /// Sixteen numbers from `start` on, of which `left` are there, the others 0.
    #[allow(unsafe_code)]
    #[target_feature(enable = "avx512f")]
    fn load(matrix: Matrix<'_>, start: usize, left: usize) -> __m512 {
        let start = matrix.values.as_ptr().wrapping_add(start);
        // SAFETY: the caller has counted those that are within the matrix, and `pack` has seen that this lies
        // in its memory; lanes that are masked are not touched.
        unsafe { _mm512_maskz_loadu_ps(mask(left), start) }
    }

    #[allow(unsafe_code)]
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn rounded(first: __m512, second: __m512) -> __m512i {
        // SAFETY: both types are 64 bytes of any bits.
        unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first)) }
    }

    /// A line per row, of a matrix whose rows lie in one piece each.
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn lines(matrix: Matrix<'_>, [row, column]: [usize; 2]) -> Square {
        from_fn(|i| {
            if row + i >= matrix.rows {
                return _mm512_setzero_si512();
            }
            let (start, left) = ((row + i) * matrix.strides[0] + column, matrix.columns - column);
            let first = load(matrix, start, left);
            rounded(first, load(matrix, start + 16, left.saturating_sub(16)))
        })
    }

    /// A line per pair of columns, of a matrix whose columns lie in one piece each.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn woven(matrix: Matrix<'_>, [row, column]: [usize; 2]) -> Square {
        let left = matrix.rows.saturating_sub(row);
        let column = |i: usize| match column + i < matrix.columns {
            true => load(matrix, (column + i) * matrix.strides[1] + row, left),
            false => _mm512_setzero_ps(),
        };
        from_fn(|i| paired(column(2 * i), column(2 * i + 1)))
    }

    /// Pairs of the numbers of two lines.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn paired(first: __m512, second: __m512) -> __m512i {
        // The first number of each half, then the second ones.
        const ORDER: [u16; 32] = {
            let mut order = [0; 32];
            let mut i = 0;
            while i < 32 {
                order[i] = (i / 2 + i % 2 * 16) as u16;
                i += 1;
            }
            order
        };
        // SAFETY: both types are 64 bytes of any bits.
        #[allow(unsafe_code)]
        let order = unsafe { std::mem::transmute::<[u16; 32], __m512i>(ORDER) };
        _mm512_permutexvar_epi16(order, rounded(first, second))
    }

    /// The numbers of a record times the scales of their columns.
    #[allow(unsafe_code)]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub(super) fn widen(record: &[i8; RECORD], out: &mut [Tile]) {
        let (scales, values) = record.split_at(SCALES);
        for (part, tile) in out.iter_mut().enumerate() {
            let scales = &scales[4 * part * SIDE..][..4 * SIDE];
            // SAFETY: these are 64 bytes.
            let scales = unsafe { _mm512_loadu_ps(scales.as_ptr().cast()) };
            let row = |row: usize| {
                let values = &values[row * COLUMNS + part * SIDE..][..SIDE];
                // SAFETY: these are 16 bytes.
                let values = unsafe { _mm_loadu_si128(values.as_ptr().cast()) };
                _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(values)), scales)
            };
            for (pair, out) in tile.as_chunks_mut::<SIDE>().0.iter_mut().enumerate() {
                let line = paired(row(2 * pair), row(2 * pair + 1));
                // SAFETY: a line is 64 bytes.
                unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), line) };
            }
        }
    }

    /// Lines for columns of pairs.
    #[target_feature(enable = "avx512f")]
    fn transposed(mut lines: Square) -> Square {
        // Neighbours, then neighbouring twos, exchange halves of 128 bits; then fours and eights exchange those.
        let mut twos = lines;
        for i in 0..8 {
            twos[2 * i] = _mm512_unpacklo_epi32(lines[2 * i], lines[2 * i + 1]);
            twos[2 * i + 1] = _mm512_unpackhi_epi32(lines[2 * i], lines[2 * i + 1]);
        }
        for i in 0..4 {
            let [a, b, c, d] = from_fn(|j| twos[4 * i + j]);
            lines[4 * i] = _mm512_unpacklo_epi64(a, c);
            lines[4 * i + 1] = _mm512_unpackhi_epi64(a, c);
            lines[4 * i + 2] = _mm512_unpacklo_epi64(b, d);
            lines[4 * i + 3] = _mm512_unpackhi_epi64(b, d);
        }
        for i in 0..4 {
            let [a, b, c, d] = from_fn(|j| lines[i + 4 * j]);
            twos[i] = _mm512_shuffle_i32x4::<0x88>(a, b);
            twos[i + 4] = _mm512_shuffle_i32x4::<0xdd>(a, b);
            twos[i + 8] = _mm512_shuffle_i32x4::<0x88>(c, d);
            twos[i + 12] = _mm512_shuffle_i32x4::<0xdd>(c, d);
        }
        for i in 0..8 {
            lines[i] = _mm512_shuffle_i32x4::<0x88>(twos[i], twos[i + 8]);
            lines[i + 8] = _mm512_shuffle_i32x4::<0xdd>(twos[i], twos[i + 8]);
        }
        lines
    }
}
