//! Products of bf16 in the tile units of Intel's processors (AMX), with sums in f32.
//!
//! Both matrices are laid out in tiles of 1 KiB, in the order in which a product reads them. The left one is in
//! panels of [`ROWS`] rows, the right one in panels of [`COLUMNS`] columns; each panel holds, for every [`INNER`]
//! numbers of the inner dimension, its tiles of 16 rows of 16 pairs, or of 16 pairs of 16 columns.

mod pack;
mod units;

use std::marker::PhantomData;

use rayon::prelude::*;

use super::buffers::buffer;
use super::linear::Finish;
use super::math::simd;
use super::matrix::{Matrix, Output};
use super::tile::COLUMNS;
use units::Units;

pub(in crate::ops::cpu) use pack::{dequantized, pack};
pub(in crate::ops::cpu) use units::available;

/// Lines of a tile, and words of a line.
const SIDE: usize = 16;
/// Numbers of the inner dimension that one step takes.
pub(in crate::ops::cpu) const INNER: usize = 2 * SIDE;
const TILES_LEFT: usize = 2;
const TILES_RIGHT: usize = COLUMNS / SIDE;
/// Rows of a panel.
const ROWS: usize = TILES_LEFT * SIDE;

/// Sixteen lines of sixteen pairs of bf16, the first of a pair in the lower bits.
pub(in crate::ops::cpu) type Tile = [u32; SIDE * SIDE];
/// The product of two panels.
type Sums = [[f32; COLUMNS]; ROWS];

/// Which matrix of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ops::cpu) enum Side {
    Left,
    Right,
}

impl Side {
    /// Tiles of a panel per step.
    fn tiles(self) -> usize {
        match self {
            Self::Left => TILES_LEFT,
            Self::Right => TILES_RIGHT,
        }
    }
}

/// Tiles that start at a cache line.
pub(in crate::ops::cpu) struct Tiles {
    memory: Vec<f32>,
    start: usize,
    count: usize,
}

impl Tiles {
    /// To be written before they are read.
    fn new(count: usize) -> Self {
        const LINE: usize = 64;
        let words = count * SIDE * SIDE;
        let memory = buffer(words + LINE / size_of::<f32>());
        let start = memory.as_ptr().align_offset(LINE);
        Self { memory, start, count: words }
    }

    fn as_mut_slice(&mut self) -> &mut [Tile] {
        bytemuck::cast_slice_mut(&mut self.memory[self.start..][..self.count])
    }

    pub(in crate::ops::cpu) fn as_slice(&self) -> &[Tile] {
        bytemuck::cast_slice(&self.memory[self.start..][..self.count])
    }
}

/// The right matrix of a product.
pub(in crate::ops::cpu) enum Right<'a> {
    /// In tiles.
    Packed(&'a [Tile]),
    /// Each panel is made when it is needed.
    Made(&'a (dyn Fn(usize) -> Tiles + Sync)),
}

/// `a · b` of both rounded to bf16, `[a.rows, b.columns]`.
pub(in crate::ops::cpu) fn multiply(a: Matrix<'_>, b: Matrix<'_>) -> Vec<f32> {
    assert_eq!(a.columns, b.rows, "inner dimensions");
    let (left, right) = (pack(Side::Left, a, true), pack(Side::Right, b.transposed(), true));
    let right = Right::Packed(right.as_slice());
    product(&left, right, [a.rows, a.columns, b.columns], Finish::default())
}

/// A right matrix of several products.
pub(in crate::ops::cpu) struct Packed {
    tiles: Tiles,
    rows: usize,
    columns: usize,
}

impl Packed {
    /// Rounded to bf16, on this thread.
    pub(in crate::ops::cpu) fn new(b: Matrix<'_>) -> Self {
        let tiles = pack(Side::Right, b.transposed(), false);
        Self { tiles, rows: b.rows, columns: b.columns }
    }
}

/// `c = a · b`, or `c += a · b`, of both rounded to bf16, for `c` in rows that are `stride` apart; on this thread.
pub(in crate::ops::cpu) fn multiply_into(
    c: &mut [f32],
    stride: usize,
    a: Matrix<'_>,
    b: &Packed,
    accumulate: bool,
) {
    assert_eq!(a.columns, b.rows, "inner dimensions");
    let left = pack(Side::Left, a, false);
    let place = Place::new(c, stride, [a.rows, b.columns], accumulate);
    let product = Product::new(&left, a.columns, place);
    let units = Units::new();
    for (column, right) in b.tiles.as_slice().chunks_exact(product.panels[1]).enumerate() {
        for row in 0..a.rows.div_ceil(ROWS) {
            product.part(&units, [row, column], right, Finish::default());
        }
    }
}

/// `c = Σ a · b` over so many pairs, all rounded to bf16, on this thread: the left matrices in tiles, `[c's rows, inner]`,
/// the right ones `[inner, columns]`.
pub(in crate::ops::cpu) fn sum_into<const N: usize>(
    c: &mut [f32],
    columns: usize,
    lefts: &[Tiles; N],
    rights: [Matrix<'_>; N],
) {
    let rows = c.len() / columns;
    let place = Place::new(c, columns, [rows, columns], false);
    let units = Units::new();
    for first in (0..columns).step_by(COLUMNS) {
        let panels = rights.map(|right| {
            let panel = right.transposed().rows_at(first, COLUMNS.min(columns - first));
            pack(Side::Right, panel, false)
        });
        for row in 0..rows.div_ceil(ROWS) {
            let terms: [_; N] = std::array::from_fn(|i| {
                let (left, right) = (lefts[i].as_slice(), panels[i].as_slice());
                let length = right.len() / TILES_RIGHT * TILES_LEFT;
                [&left[row * length..][..length], right]
            });
            place.sum(&units, [row, first / COLUMNS], terms, Finish::default());
        }
    }
}

/// The product of matrices in tiles, of `[rows, inner, columns]`.
pub(in crate::ops::cpu) fn product(
    left: &Tiles,
    right: Right<'_>,
    sizes: [usize; 3],
    finish: Finish<'_>,
) -> Vec<f32> {
    let [rows, inner, columns] = sizes;
    if inner == 0 {
        let mut y = vec![0.0; rows * columns];
        finish.rows(&mut y, columns);
        return y;
    }
    let mut y = buffer(rows * columns);
    let place = Place::new(&mut y, columns, [rows, columns], false);
    let product = Product::new(left, inner, place);
    let (down, across) = (rows.div_ceil(ROWS), columns.div_ceil(COLUMNS));
    let length = product.panels[1];
    match right {
        // Of many rows, each meets the whole right matrix while it is near; of few, each panel is read once.
        Right::Packed(right) if rows > columns => (0..down).into_par_iter().for_each(|row| {
            let units = Units::new();
            for (column, right) in right.chunks_exact(length).enumerate() {
                product.part(&units, [row, column], right, finish);
            }
        }),
        _ => (0..across).into_par_iter().for_each(|column| {
            let made;
            let right = match &right {
                Right::Packed(right) => &right[column * length..][..length],
                Right::Made(make) => {
                    made = make(column);
                    made.as_slice()
                }
            };
            let units = Units::new();
            for row in 0..down {
                product.part(&units, [row, column], right, finish);
            }
        }),
    }
    y
}

/// A product in the making.
struct Product<'a> {
    left: &'a [Tile],
    /// Tiles of a panel of the left and of the right matrix.
    panels: [usize; 2],
    place: Place<'a>,
}

impl<'a> Product<'a> {
    fn new(left: &'a Tiles, inner: usize, place: Place<'a>) -> Self {
        assert!(inner > 0, "an inner dimension");
        #[cfg(test)]
        super::matrix::count(place.rows * inner * place.columns);
        let panels = [TILES_LEFT, TILES_RIGHT].map(|tiles| tiles * inner.div_ceil(INNER));
        Self { left: left.as_slice(), panels, place }
    }

    /// The part of two panels, which one thread writes.
    fn part(&self, units: &Units, at: [usize; 2], right: &[Tile], finish: Finish<'_>) {
        let left = &self.left[at[0] * self.panels[0]..][..self.panels[0]];
        self.place.sum(units, at, [[left, right]], finish);
    }
}

/// What is fetched of the right matrix's next panel during a part of the product.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(
    not(all(target_arch = "x86_64", target_os = "linux")),
    expect(dead_code, reason = "no units fetch it")
)]
struct Next {
    start: *const u8,
    /// Of a step's tiles, per step.
    eighths: usize,
}

impl Next {
    /// The share of a row of panels, of which there are so many.
    fn after(panel: &[Tile], row: usize, rows: usize) -> Self {
        let eighths = 8_usize.div_ceil(rows);
        let share = size_of_val(panel) / 8 * eighths;
        let end = panel.as_ptr_range().end.cast::<u8>();
        Self { start: end.wrapping_add(row % 8 * share), eighths }
    }
}

/// Where a product is written, in parts.
struct Place<'a> {
    memory: Output,
    borrowed: PhantomData<&'a mut [f32]>,
    /// From one row to the next.
    stride: usize,
    rows: usize,
    columns: usize,
    /// Whether it is added to what is there.
    accumulate: bool,
}

impl<'a> Place<'a> {
    fn new(
        memory: &'a mut [f32],
        stride: usize,
        [rows, columns]: [usize; 2],
        accumulate: bool,
    ) -> Self {
        assert!(rows == 0 || (rows - 1) * stride + columns <= memory.len(), "within its memory");
        assert!(columns <= stride, "{columns} columns in rows of {stride}");
        let memory = Output::new(memory);
        Self { memory, borrowed: PhantomData, stride, rows, columns, accumulate }
    }

    /// The sum of products of panels with these numbers; one thread writes it.
    fn sum<const N: usize>(
        &self,
        units: &Units,
        [row, column]: [usize; 2],
        terms: [[&[Tile]; 2]; N],
        finish: Finish<'_>,
    ) {
        let next = Next::after(terms[N - 1][1], row, self.rows.div_ceil(ROWS));
        let (row, column) = (row * ROWS, column * COLUMNS);
        let [height, width] = [ROWS.min(self.rows - row), COLUMNS.min(self.columns - column)];
        // SAFETY: these rows and columns lie in the memory, as `new` has seen, which is borrowed for all tasks; this
        // one alone has them.
        #[allow(unsafe_code)]
        let y = unsafe { self.memory.at(row * self.stride + column) }.pointer();
        if [height, width] == [ROWS, COLUMNS] && !self.accumulate && finish.is_nothing() {
            // SAFETY: as above, of whole panels.
            #[allow(unsafe_code)]
            return unsafe { units.multiply(terms, next, y, self.stride) };
        }
        let mut sums: Sums = [[0.0; COLUMNS]; ROWS];
        // SAFETY: the sums are as many rows and columns.
        #[allow(unsafe_code)]
        unsafe {
            units.multiply(terms, next, sums.as_mut_ptr().cast(), COLUMNS);
        }
        let sums = &mut sums[..height];
        finish.part(sums.as_flattened_mut(), COLUMNS, column, width);
        simd(
            #[inline(always)]
            || {
                for (i, sums) in sums.iter().enumerate() {
                    // SAFETY: as above.
                    #[allow(unsafe_code)]
                    let out =
                        unsafe { std::slice::from_raw_parts_mut(y.add(i * self.stride), width) };
                    for (out, sum) in out.iter_mut().zip(sums) {
                        *out = if self.accumulate { *out + sum } else { *sum };
                    }
                }
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::activation::Activation;
    use half::bf16;

    /// Small whole numbers, whose products and sums are exact.
    fn numbers(count: usize) -> Vec<f32> {
        (0..count).map(|i| (i * 7 % 11) as f32 - 5.0).collect()
    }

    #[test]
    fn products_of_whole_numbers_are_exact() {
        if !available() {
            return;
        }
        let sizes =
            [[1, 1, 1], [5, 31, 47], [32, 32, 48], [33, 65, 49], [300, 200, 100], [2, 0, 3]];
        for [rows, inner, columns] in sizes {
            let (a, b) = (numbers(rows * inner), numbers(inner * columns));
            let expected: Vec<f32> = (0..rows * columns)
                .map(|i| {
                    let (row, column) = (i / columns, i % columns);
                    (0..inner).map(|k| a[row * inner + k] * b[k * columns + column]).sum()
                })
                .collect();
            let turned = |x: &[f32], rows: usize, columns: usize| -> Vec<f32> {
                (0..rows * columns).map(|i| x[i % rows * columns + i / rows]).collect()
            };
            let (a_turned, b_turned) = (turned(&a, rows, inner), turned(&b, inner, columns));
            let lefts =
                [Matrix::new(&a, rows, inner), Matrix::new(&a_turned, inner, rows).transposed()];
            let rights = [
                Matrix::new(&b, inner, columns),
                Matrix::new(&b_turned, columns, inner).transposed(),
            ];
            for a in lefts {
                for b in rights {
                    let what = format!("{rows} {inner} {columns}, {:?} {:?}", a.strides, b.strides);
                    assert!(multiply(a, b) == expected, "{what}");
                    if inner > 0 {
                        // In wider rows, added to what is there, which stays beside it.
                        let stride = columns + 3;
                        let mut c = vec![7.0; rows * stride];
                        let packed = Packed::new(b);
                        multiply_into(&mut c, stride, a, &packed, true);
                        for (i, &c) in c.iter().enumerate() {
                            let (row, column) = (i / stride, i % stride);
                            let sum =
                                expected.get(row * columns + column).filter(|_| column < columns);
                            assert_eq!(c, 7.0 + sum.unwrap_or(&0.0), "{what}");
                        }
                        multiply_into(&mut c[..rows * columns], columns, a, &packed, false);
                        assert!(c[..rows * columns] == expected, "{what}");
                    }
                }
            }
        }
    }

    #[test]
    fn panels_may_be_made_and_products_finished() {
        if !available() {
            return;
        }
        let [rows, inner, columns] = [70, 100, 130];
        let (a, b, bias) = (numbers(rows * inner), numbers(inner * columns), numbers(columns));
        let (a, b) = (Matrix::new(&a, rows, inner), Matrix::new(&b, inner, columns));
        let left = pack(Side::Left, a, true);
        let make = |panel: usize| {
            let turned = b.transposed();
            let first = panel * COLUMNS;
            pack(Side::Right, turned.rows_at(first, COLUMNS.min(columns - first)), false)
        };
        let finish = Finish { bias: Some(&bias), activation: Some(Activation::Silu) };
        let sizes = [rows, inner, columns];
        let found = product(&left, Right::Made(&make), sizes, finish);
        let mut expected = multiply(a, b);
        finish.rows(&mut expected, columns);
        assert!(found == expected);
    }

    #[test]
    fn records_become_the_tiles_of_their_numbers() {
        if !available() {
            return;
        }
        let scales: Vec<f32> = (0..COLUMNS).map(|column| 0.01 + column as f32 * 1e-4).collect();
        let values: Vec<i8> = (0..INNER * COLUMNS).map(|i| (i * 37 % 255) as u8 as i8).collect();
        let mut record: Vec<i8> = bytemuck::cast_slice(&scales).to_vec();
        record.extend(&values);
        let numbers = |(i, value): (usize, &i8)| f32::from(*value) * scales[i % COLUMNS];
        let numbers: Vec<f32> = values.iter().enumerate().map(numbers).collect();
        let twice = [numbers.clone(), numbers].concat();
        let matrix = Matrix::new(&twice, 2 * INNER, COLUMNS);
        let expected = pack(Side::Right, matrix.transposed(), false);
        let found = dequantized(&[record.clone(), record].concat());
        assert!(found.as_slice() == expected.as_slice());
    }

    #[test]
    fn numbers_are_rounded_to_nearest() {
        if !available() {
            return;
        }
        let values: Vec<f32> = (0..64).map(|i| 1.0 + i as f32 * 0.001_357).collect();
        let identity: Vec<f32> = (0..64 * 64).map(|i| f32::from(u8::from(i % 65 == 0))).collect();
        let identity = Matrix::new(&identity, 64, 64);
        let found = multiply(Matrix::new(&values, 1, 64), identity);
        let expected: Vec<f32> = values.iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
        assert_eq!(found, expected);
        // What is not finite stays so.
        for bad in [f32::NAN, f32::INFINITY] {
            let mut values = values.clone();
            values[20] = bad;
            let found = multiply(Matrix::new(&values, 1, 64), identity);
            assert!(!found[20].is_finite());
        }
    }
}
