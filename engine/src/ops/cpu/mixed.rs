//! Products of f32 matrices in bf16, with sums in f32, for training in mixed precision.
//!
//! Both matrices are rounded as they are laid out for the [tile](super::tile): the left one in rows of pairs,
//! the right one in panels of [`COLUMNS`] columns whose rows are woven in pairs.

use burn::tensor::DType;
use half::bf16;
use rayon::prelude::*;

use super::amx;
use super::buffers::buffer;
use super::math::simd;
use super::matrix::{Matrix, Output};
use super::tile::{COLUMNS, Method, ROWS, Tile, Weights};

/// Steps whose products are summed at a time.
const DEPTH: usize = 512;
/// Rows that meet every panel before the next rows do, so that they stay in the near caches.
const BLOCK: usize = 256;
/// Side of the squares in which matrices are transposed: words of a cache line.
const SQUARE: usize = 16;

/// Whether this machine has products of bf16 that are faster than those of f32.
pub(in crate::ops) fn available() -> bool {
    matches!(Method::of(DType::BF16), Some(Method::Amx | Method::Dot))
}

/// Whether they are those of tile units.
pub(in crate::ops) fn in_tiles() -> bool {
    amx::available()
}

/// `a · b` of both rounded to bf16, `[a.rows, b.columns]`.
///
/// # Panics
/// Without products of bf16 on this machine, and for matrices neither of whose rows nor of whose columns
/// the elements lie next to each other.
pub(in crate::ops) fn multiply(a: Matrix<'_>, b: Matrix<'_>) -> Vec<f32> {
    assert!(available(), "products of bf16");
    assert!(a.strides.contains(&1) && b.strides.contains(&1), "{:?}, {:?}", a.strides, b.strides);
    assert_eq!(a.columns, b.rows, "inner dimensions");
    if in_tiles() {
        return amx::multiply(a, b);
    }
    let (rows, steps, outputs) = (a.rows, a.columns.div_ceil(2), b.columns);
    #[cfg(test)]
    super::matrix::count(rows * a.columns * outputs);
    let (words, panels) = (in_rows(a), in_panels(b));
    let mut y = buffer(rows * outputs);
    if steps == 0 {
        y.fill(0.0);
        return y;
    }
    let all = Output::new(&mut y);
    panels.par_chunks(steps).enumerate().for_each(|(panel, weights)| {
        let columns = COLUMNS.min(outputs - panel * COLUMNS);
        for block in (0..rows).step_by(BLOCK) {
            for start in (0..steps).step_by(DEPTH) {
                let weights = &weights[start..steps.min(start + DEPTH)];
                for row in (block..rows.min(block + BLOCK)).step_by(ROWS) {
                    // SAFETY: the product's memory is borrowed for all tasks, this panel's columns
                    // are this task's alone, and the machine was found to have the method.
                    #[allow(unsafe_code)]
                    unsafe {
                        let y = all.at(row * outputs + panel * COLUMNS);
                        let tile = Tile { y, stride: outputs, rows: ROWS.min(rows - row), columns };
                        let x = &words[row * steps + start..];
                        tile.multiply(Method::Dot, x, steps, weights, start > 0);
                    }
                }
            }
        }
    });
    y
}

/// Whether products of bf16 are those of vectors.
pub(in crate::ops) fn in_vectors() -> bool {
    matches!(Method::of(DType::BF16), Some(Method::Dot))
}

/// `y = a · b`, or `y += a · b`, of both rounded to bf16 in vectors, on this thread; `a` as [`in_rows`] has laid it out,
/// `[rows, ⌈inner / 2⌉]`, and `y` in one piece, `[rows, b.columns]`.
///
/// # Panics
/// Without such products on this machine, and for sizes that do not go together.
pub(in crate::ops) fn add(y: &mut [f32], a: &[u32], b: Matrix<'_>, accumulate: bool) {
    assert!(in_vectors(), "products of bf16 in vectors");
    let (steps, outputs) = (b.rows.div_ceil(2), b.columns);
    let rows = a.len() / steps;
    assert_eq!((rows * steps, rows * outputs), (a.len(), y.len()), "sizes of a product");
    #[cfg(test)]
    super::matrix::count(rows * b.rows * outputs);
    let all = Output::new(y);
    let mut weights = vec![[0; COLUMNS]; steps];
    for first in (0..outputs).step_by(COLUMNS) {
        let columns = COLUMNS.min(outputs - first);
        panel(b, first, columns, &mut weights);
        for row in (0..rows).step_by(ROWS) {
            // SAFETY: rows and columns are within the product, whose memory is borrowed, and the machine was found to
            // have the method.
            #[allow(unsafe_code)]
            unsafe {
                let y = all.at(row * outputs + first);
                let tile = Tile { y, stride: outputs, rows: ROWS.min(rows - row), columns };
                tile.multiply(Method::Dot, &a[row * steps..], steps, &weights, accumulate);
            }
        }
    }
}

/// Two neighbours of an inner dimension, the first in the lower bits.
#[inline(always)]
fn pair(first: f32, second: f32) -> u32 {
    let bits = |x| u32::from(bf16::from_f32(x).to_bits());
    bits(first) | bits(second) << 16
}

/// Each row as pairs: `[rows, ⌈columns / 2⌉]`.
pub(in crate::ops) fn in_rows(a: Matrix<'_>) -> Vec<u32> {
    let steps = a.columns.div_ceil(2);
    let mut words = vec![0; a.rows * steps];
    if steps == 0 {
        return words;
    }
    if a.strides[1] == 1 {
        words.par_chunks_mut(steps).enumerate().for_each(|(row, words)| {
            in_words(&a.values[row * a.strides[0]..][..a.columns], words);
        });
        return words;
    }
    words.par_chunks_mut(SQUARE * steps).enumerate().for_each(|(i, words)| {
        let count = words.len() / steps;
        for start in (0..steps).step_by(SQUARE) {
            let mut square = [[0; SQUARE]; SQUARE];
            simd(
                #[inline(always)]
                || {
                    for (step, out) in (start..steps).zip(&mut square) {
                        woven(a, step, i * SQUARE, &mut out[..count]);
                    }
                },
            );
            let length = SQUARE.min(steps - start);
            for (row, words) in words.chunks_exact_mut(steps).enumerate() {
                for (word, line) in words[start..start + length].iter_mut().zip(&square) {
                    *word = line[row];
                }
            }
        }
    });
    words
}

/// One row as pairs; a last number that has no other is followed by 0.
pub(in crate::ops) fn in_words(line: &[f32], words: &mut [u32]) {
    simd(
        #[inline(always)]
        || {
            pairs(line, words.iter_mut());
            if let ([last], Some(word)) = (line.chunks_exact(2).remainder(), words.last_mut()) {
                *word = pair(*last, 0.0);
            }
        },
    );
}

/// The same of numbers that are little-endian bf16 already.
pub(in crate::ops) fn stored_in_words(line: &[u8], words: &mut [u32]) {
    let (pairs, last) = line.as_chunks();
    words.iter_mut().zip(pairs).for_each(|(word, pair)| *word = u32::from_le_bytes(*pair));
    if let (&[low, high], Some(word)) = (last, words.last_mut()) {
        *word = u32::from_le_bytes([low, high, 0, 0]);
    }
}

/// Panels of columns, the rows of each in pairs: `[panels, ⌈rows / 2⌉]`.
fn in_panels(b: Matrix<'_>) -> Vec<Weights> {
    let steps = b.rows.div_ceil(2);
    let mut panels = vec![[0; COLUMNS]; b.columns.div_ceil(COLUMNS) * steps];
    if steps == 0 {
        return panels;
    }
    panels.par_chunks_mut(steps).enumerate().for_each(|(number, out)| {
        let first = number * COLUMNS;
        panel(b, first, COLUMNS.min(b.columns - first), out);
    });
    panels
}

/// One panel, of `count` columns from `first` on.
fn panel(b: Matrix<'_>, first: usize, count: usize, out: &mut [Weights]) {
    let steps = out.len();
    simd(
        #[inline(always)]
        || match b.strides[1] {
            1 => {
                for (step, out) in out.iter_mut().enumerate() {
                    woven(b.transposed(), step, first, &mut out[..count]);
                }
            }
            stride => {
                for column in 0..count {
                    let line = &b.values[(first + column) * stride..][..b.rows];
                    pairs(line, out.iter_mut().map(|out| &mut out[column]));
                    if let [last] = line.chunks_exact(2).remainder() {
                        out[steps - 1][column] = pair(*last, 0.0);
                    }
                }
            }
        },
    );
}

/// The elements of a line as pairs, but for an odd last one.
#[inline(always)]
fn pairs<'a>(line: &[f32], words: impl Iterator<Item = &'a mut u32>) {
    for (word, two) in words.zip(line.chunks_exact(2)) {
        *word = pair(two[0], two[1]);
    }
}

/// Pair number `step` of some rows from `first` on, of a matrix whose columns lie in one piece each.
#[inline(always)]
fn woven(a: Matrix<'_>, step: usize, first: usize, out: &mut [u32]) {
    let count = out.len();
    let column = |i: usize| &a.values[i * a.strides[1] + first..][..count];
    let one = column(2 * step);
    if 2 * step + 1 < a.columns {
        for ((out, one), two) in out.iter_mut().zip(one).zip(column(2 * step + 1)) {
            *out = pair(*one, *two);
        }
    } else {
        for (out, one) in out.iter_mut().zip(one) {
            *out = pair(*one, 0.0);
        }
    }
}
