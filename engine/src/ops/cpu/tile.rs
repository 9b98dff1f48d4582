//! Products of a few rows with a few columns, in registers.

use std::fmt;

#[cfg(target_arch = "x86_64")]
use std::arch::is_x86_feature_detected as found;
use std::sync::LazyLock;
use std::time::Instant;

use burn::tensor::DType;

use super::amx;
use super::matrix::Output;
use crate::device::Kernels;

/// Other processors have none of what is looked for.
#[cfg(not(target_arch = "x86_64"))]
macro_rules! found {
    ($feature:literal) => {
        false
    };
}

/// Columns of a tile: three AVX-512 registers of f32.
pub(in crate::ops) const COLUMNS: usize = 48;
/// Columns that stay next to each other in every panel.
pub(in crate::ops) const GROUPED: usize = 16;
/// Rows of a tile.
pub(in crate::ops) const ROWS: usize = 8;

/// What one step takes from each column: an f32, or a pair of bf16, the first in the lower bits.
pub(in crate::ops) type Weights = [u32; COLUMNS];

/// How products with a weight are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ops) enum Method {
    /// Tile units, which take bf16 and sum in f32.
    Amx,
    /// AVX-512 dot products of pairs of bf16, summed in f32.
    Dot,
    /// AVX-512 multiplications and additions of f32.
    Fused,
    /// f32, by the `gemm` crate.
    Portable,
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Amx => "AMX",
            Self::Dot => "AVX-512 BF16",
            Self::Fused => "AVX-512",
            Self::Portable => "gemm",
        })
    }
}

impl Method {
    /// The fastest of this machine; `None` if a weight of the type is best left as it is.
    pub(in crate::ops) fn of(dtype: DType) -> Option<Self> {
        let half = matches!(dtype, DType::BF16 | DType::F16);
        if dtype == DType::BF16 && amx::available() {
            return Some(Self::Amx);
        }
        if dtype == DType::BF16 && Kernels::Avx512Bf16.on() && *DOT_IS_FASTER {
            return Some(Self::Dot);
        }
        if (half || dtype == DType::F32) && Kernels::Avx512.on() && found!("avx512f") {
            return Some(Self::Fused);
        }
        half.then_some(Self::Portable)
    }

    /// Inputs that one step takes.
    pub(in crate::ops) fn inputs(self) -> usize {
        match self {
            Self::Amx => amx::INNER,
            Self::Dot => 2,
            Self::Fused | Self::Portable => 1,
        }
    }

    /// In a panel, where an input's row of a group of [`GROUPED`] columns starts, and how far apart they are.
    pub(in crate::ops) fn place(self, row: usize, group: usize) -> (usize, usize) {
        let woven = |rows: usize| row / rows * rows * COLUMNS + row % 2;
        match self {
            Self::Amx => {
                let tile = group * amx::INNER * GROUPED;
                (woven(amx::INNER) + tile + row % amx::INNER / 2 * 2 * GROUPED, 2)
            }
            Self::Dot => (woven(2) + group * 2 * GROUPED, 2),
            Self::Fused | Self::Portable => (row * COLUMNS + group * GROUPED, 1),
        }
    }
}

/// Whether dot products of bf16 gain anything: on some processors they take twice as long as multiplications of f32,
/// which then need half of the time. Far from equal on all, so that a short look decides.
static DOT_IS_FASTER: LazyLock<bool> = LazyLock::new(|| {
    if [found!("avx512f"), found!("avx512bf16")].contains(&false) {
        return false;
    }
    let (x, weights) = ([0; ROWS * 512], [[0; COLUMNS]; 512]);
    let mut y = [0.0; ROWS * COLUMNS];
    let mut seconds = |method: Method, steps: usize| {
        let start = Instant::now();
        let tile = Tile { y: Output::new(&mut y), stride: COLUMNS, rows: ROWS, columns: COLUMNS };
        // SAFETY: the memory is as long as the tile, and the machine was found to have both methods.
        #[allow(unsafe_code)]
        unsafe {
            tile.multiply(method, &x, 512, &weights[..steps], false);
        }
        start.elapsed()
    };
    // The same product: a step of the first takes two inputs.
    let [dot, fused] = [(Method::Dot, 256), (Method::Fused, 512)]
        .map(|(method, steps)| (0..9).map(|_| seconds(method, steps)).min());
    dot < fused
});

/// Where a product of at most [`ROWS`] rows and [`COLUMNS`] columns is written.
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "no method fills tiles"))]
pub(in crate::ops) struct Tile {
    /// The first element.
    pub(in crate::ops) y: Output,
    /// From one row to the next.
    pub(in crate::ops) stride: usize,
    pub(in crate::ops) rows: usize,
    pub(in crate::ops) columns: usize,
}

impl Tile {
    /// `y = x · w`, or `y += x · w`, for rows of `x` that are `stride` apart.
    ///
    /// # Safety
    /// The memory of all rows and columns is borrowed for the tile, and [`Method::of`] has named the
    /// method.
    #[allow(unsafe_code)]
    pub(in crate::ops) unsafe fn multiply(
        self,
        method: Method,
        x: &[u32],
        stride: usize,
        weights: &[Weights],
        accumulate: bool,
    ) {
        assert!((self.rows - 1) * stride + weights.len() <= x.len(), "rows within their memory");
        let x = Rows { first: x.as_ptr(), stride };
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the caller's promise.
        unsafe {
            match (method, self.rows) {
                (Method::Dot, 1) => avx512::dot::<1>(self, x, weights, accumulate),
                (Method::Dot, 2) => avx512::dot::<2>(self, x, weights, accumulate),
                (Method::Dot, 3 | 4) => avx512::dot::<4>(self, x, weights, accumulate),
                (Method::Dot, _) => avx512::dot::<ROWS>(self, x, weights, accumulate),
                (Method::Fused, 1) => avx512::fused::<1>(self, x, weights, accumulate),
                (Method::Fused, 2) => avx512::fused::<2>(self, x, weights, accumulate),
                (Method::Fused, 3 | 4) => avx512::fused::<4>(self, x, weights, accumulate),
                (Method::Fused, _) => avx512::fused::<ROWS>(self, x, weights, accumulate),
                (Method::Amx | Method::Portable, _) => unreachable!("not by vectors"),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        unreachable!("{method:?} of {x:?}: {accumulate}");
    }
}

/// Rows of words.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "no method reads them"))]
struct Rows {
    first: *const u32,
    stride: usize,
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;
    use std::array::from_fn;

    use super::{COLUMNS, Rows, Tile, Weights};

    /// Registers of a row.
    const VECTORS: usize = COLUMNS / 16;

    /// A function that computes the first `R` rows of a tile, with one instruction per register and step.
    macro_rules! tile {
        ($name:ident, $features:literal, |$sum:ident, $x:ident, $w:ident| $step:expr) => {
            /// # Safety
            /// As [`Tile::multiply`], which has checked the length of the rows.
            #[allow(unsafe_code)]
            #[target_feature(enable = $features)]
            pub(in crate::ops) unsafe fn $name<const R: usize>(
                tile: Tile,
                x: Rows,
                weights: &[Weights],
                accumulate: bool,
            ) {
                let mut sums = [[_mm512_setzero_ps(); VECTORS]; R];
                // Rows that are not there are the last one again.
                let rows: [*const u32; R] =
                    from_fn(|row| x.first.wrapping_add(row.min(tile.rows - 1) * x.stride));
                for (step, w) in weights.iter().enumerate() {
                    // SAFETY: a step of weights fills three registers.
                    let w: [__m512i; VECTORS] =
                        from_fn(|v| unsafe { _mm512_loadu_si512(w.as_ptr().add(16 * v).cast()) });
                    for (sums, row) in sums.iter_mut().zip(rows) {
                        // SAFETY: each row has as many steps as the weights.
                        let $x = _mm512_set1_epi32(unsafe { *row.add(step) }.cast_signed());
                        for ($sum, $w) in sums.iter_mut().zip(w) {
                            *$sum = $step;
                        }
                    }
                }
                let masks: [__mmask16; VECTORS] = from_fn(|v| {
                    let count = tile.columns.saturating_sub(16 * v).min(16);
                    ((1u32 << count) - 1) as __mmask16
                });
                for (row, sums) in sums.iter().enumerate().take(tile.rows) {
                    for (v, (&sum, &mask)) in sums.iter().zip(&masks).enumerate() {
                        // Past the last column, this may point past the memory.
                        let y = tile.y.pointer().wrapping_add(row * tile.stride + 16 * v);
                        // SAFETY: the row is in the tile, and masked lanes are not touched.
                        unsafe {
                            let before = match accumulate {
                                true => _mm512_maskz_loadu_ps(mask, y),
                                false => _mm512_setzero_ps(),
                            };
                            _mm512_mask_storeu_ps(y, mask, _mm512_add_ps(before, sum));
                        }
                    }
                }
            }
        };
    }

    tile!(fused, "avx512f", |sum, x, w| {
        _mm512_fmadd_ps(_mm512_castsi512_ps(x), _mm512_castsi512_ps(w), *sum)
    });

    tile!(dot, "avx512f,avx512bf16", |sum, x, w| pairs(*sum, x, w));

    /// Adds the products of both halves of each lane.
    #[cfg(not(miri))]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    #[allow(unsafe_code)]
    fn pairs(sum: __m512, x: __m512i, w: __m512i) -> __m512 {
        // SAFETY: both types are 64 bytes of any bits.
        let [x, w] = [x, w].map(|x| unsafe { std::mem::transmute::<__m512i, __m512bh>(x) });
        _mm512_dpbf16_ps(sum, x, w)
    }

    /// The same for Miri, which does not know the instruction.
    #[cfg(miri)]
    #[target_feature(enable = "avx512f")]
    fn pairs(sum: __m512, x: __m512i, w: __m512i) -> __m512 {
        let half = |words: __m512i, upper: bool| {
            let bits = if upper { words } else { _mm512_slli_epi32::<16>(words) };
            _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(!0xffff)))
        };
        let sum = _mm512_fmadd_ps(half(x, false), half(w, false), sum);
        _mm512_fmadd_ps(half(x, true), half(w, true), sum)
    }
}

/// Under Miri these show that nothing outside of the rows and columns is touched; see CONTRIBUTING.md.
#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    /// Small whole numbers, whose products are exact.
    fn number(i: usize) -> f32 {
        (i * 7 % 11) as f32 - 5.0
    }

    /// Words of `inputs` numbers each, and the numbers.
    fn words(count: usize, inputs: usize) -> (Vec<u32>, Vec<f32>) {
        let numbers: Vec<f32> = (0..count * inputs).map(number).collect();
        let word = |part: &[f32]| match *part {
            [one, two] => {
                let [one, two] = [one, two].map(|x| u32::from(bf16::from_f32(x).to_bits()));
                one | two << 16
            }
            _ => part[0].to_bits(),
        };
        (numbers.chunks(inputs).map(word).collect(), numbers)
    }

    /// A product into the last rows and columns of memory that ends with them.
    fn check(method: Method, [rows, columns, steps, gap]: [usize; 4], accumulate: bool) {
        let inputs = method.inputs();
        let (x, left) = words((rows - 1) * (steps + gap) + steps, inputs);
        let (weights, right) = words(steps * COLUMNS, inputs);
        let weights: Vec<Weights> = weights.as_chunks::<COLUMNS>().0.to_vec();
        let stride = columns + gap;
        let before = vec![1.0; (rows - 1) * stride + columns];
        let mut memory = before.clone();
        let tile = Tile { y: Output::new(&mut memory), stride, rows, columns };
        // SAFETY: the memory is as long as the tile, and the caller has asked for the method.
        #[allow(unsafe_code)]
        unsafe {
            tile.multiply(method, &x, steps + gap, &weights, accumulate);
        }
        let mut expected = before;
        for row in 0..rows {
            for column in 0..columns {
                let product = |step: usize| -> f32 {
                    let x = &left[(row * (steps + gap) + step) * inputs..][..inputs];
                    let w = &right[(step * COLUMNS + column) * inputs..][..inputs];
                    x.iter().zip(w).map(|(x, w)| x * w).sum()
                };
                let sum = (0..steps).map(product).sum::<f32>();
                let y = &mut expected[row * stride + column];
                *y = if accumulate { *y + sum } else { sum };
            }
        }
        assert_eq!(memory, expected, "{method:?} {rows} {columns} {steps} {gap} {accumulate}");
    }

    #[test]
    fn tiles_of_every_size_stay_within_their_memory() {
        let mut methods = Vec::new();
        #[cfg(target_arch = "x86_64")]
        if found!("avx512f") {
            methods.push(Method::Fused);
            methods.extend(found!("avx512bf16").then_some(Method::Dot));
        }
        // Miri is 10,000 times slower.
        let columns: &[usize] = match cfg!(miri) {
            true => &[1, 17, COLUMNS],
            false => &[1, 15, 16, 17, 31, 32, 33, 47, COLUMNS],
        };
        for method in methods {
            for rows in (1..=ROWS).step_by(if cfg!(miri) { 3 } else { 1 }) {
                for &columns in columns {
                    for (steps, gap) in [(1, 0), (2, 5)] {
                        for accumulate in [false, true] {
                            check(method, [rows, columns, steps, gap], accumulate);
                        }
                    }
                }
            }
        }
    }
}
