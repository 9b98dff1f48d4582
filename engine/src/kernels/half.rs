//! Products with half-precision weights: bf16 dot products where the machine has them, f32 elsewhere.
//!
//! A weight `[in, out]` is kept in panels of [`COLUMNS`] columns. Inside a panel, pairs of rows follow each
//! other, and inside a pair the two numbers of a column: what one dot-product instruction reads.

use burn::backend::flex::{FlexTensor, Layout};
use burn::tensor::{Bytes, DType, Shape};
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};
use rayon::prelude::*;

use super::matrix::{Matrix, multiply};
use super::memory::buffer;

/// Columns of a panel: three AVX-512 registers of f32.
const COLUMNS: usize = 48;
/// Rows of the product that are computed at a time.
const ROWS: usize = 8;
/// Rows of the weight whose products are summed at a time: a panel of them stays in the second cache.
const DEPTH: usize = 1536;

/// The bits of a bf16 or f16 tensor.
fn bits(x: &FlexTensor) -> &[u16] {
    bytemuck::cast_slice(x.bytes())
}

/// The weight in panels, `[panels · ⌈in / 2⌉ · 2, 48]`, padded with zeros.
pub(super) fn pack(weight: &FlexTensor) -> FlexTensor {
    let weight = weight.to_contiguous();
    let [inputs, outputs] = [0, 1].map(|i| weight.layout().shape()[i]);
    let source = &bits(&weight)[weight.layout().start_offset()..][..inputs * outputs];
    let (panels, depth) = (outputs.div_ceil(COLUMNS), inputs.next_multiple_of(2));
    let mut packed = vec![0u16; panels * depth * COLUMNS];
    packed.par_chunks_mut(depth * COLUMNS).enumerate().for_each(|(panel, out)| {
        let first = panel * COLUMNS;
        let count = COLUMNS.min(outputs - first);
        for (row, source) in source.chunks_exact(outputs).enumerate() {
            let out = &mut out[row / 2 * 2 * COLUMNS + row % 2..];
            let source = &source[first..first + count];
            out.iter_mut().step_by(2).zip(source).for_each(|(out, value)| *out = *value);
        }
    });
    let layout = Layout::contiguous(Shape::from(vec![panels * depth, COLUMNS]));
    FlexTensor::new(Bytes::from_elems(packed), layout, weight.dtype())
}

/// `y = x · W` for `rows` rows of `x`, `[rows, inputs]`, and a packed weight of `outputs` columns.
pub(super) fn product(x: &[f32], inputs: usize, packed: &FlexTensor, outputs: usize) -> Vec<f32> {
    let rows = x.len() / inputs.max(1);
    let panels = Panels { bits: bits(packed), dtype: packed.dtype() };
    let threads = rayon::current_num_threads();
    let mut y = buffer(rows * outputs);
    // Few rows: each task takes some panels, and its columns are put in place afterwards.
    if rows < ROWS * threads {
        let depth = inputs.next_multiple_of(2);
        let share = outputs.div_ceil(COLUMNS).div_ceil(threads);
        let parts: Vec<Vec<f32>> = panels
            .bits
            .par_chunks(share * depth * COLUMNS)
            .enumerate()
            .map(|(i, bits)| {
                let width = (share * COLUMNS).min(outputs - i * share * COLUMNS);
                let mut part = buffer(rows * width);
                block(x, inputs, Panels { bits, ..panels }, &mut part, width);
                part
            })
            .collect();
        let width = share * COLUMNS;
        for (row, y) in y.chunks_exact_mut(outputs).enumerate() {
            for (y, part) in y.chunks_mut(width).zip(&parts) {
                y.copy_from_slice(&part[row * y.len()..][..y.len()]);
            }
        }
        return y;
    }
    let share = rows.div_ceil(threads).next_multiple_of(ROWS);
    let parts = y.par_chunks_mut(share * outputs).zip(x.par_chunks(share * inputs));
    parts.for_each(|(y, x)| block(x, inputs, panels, y, outputs));
    y
}

/// Packed panels of a weight.
#[derive(Clone, Copy)]
struct Panels<'a> {
    bits: &'a [u16],
    dtype: DType,
}

/// The product of some rows with some panels, on one thread.
fn block(x: &[f32], inputs: usize, panels: Panels<'_>, y: &mut [f32], outputs: usize) {
    #[cfg(target_arch = "x86_64")]
    if panels.dtype == DType::BF16 && std::arch::is_x86_feature_detected!("avx512bf16") {
        return dot::block(x, inputs, panels.bits, y, outputs);
    }
    portable(x, inputs, panels, y, outputs);
}

/// [`block`] in f32, for f16 and for machines without bf16 instructions.
fn portable(x: &[f32], inputs: usize, panels: Panels<'_>, y: &mut [f32], outputs: usize) {
    let depth = inputs.next_multiple_of(2);
    let rows = x.len() / inputs.max(1);
    let (mut line, mut panel) = (vec![0.0; depth * COLUMNS], vec![0.0; depth * COLUMNS]);
    for (i, packed) in panels.bits.chunks_exact(depth * COLUMNS).enumerate() {
        match panels.dtype {
            DType::BF16 => packed.reinterpret_cast::<bf16>().convert_to_f32_slice(&mut line),
            _ => packed.reinterpret_cast::<f16>().convert_to_f32_slice(&mut line),
        }
        for (pair, line) in panel.chunks_exact_mut(2 * COLUMNS).zip(line.chunks_exact(2 * COLUMNS))
        {
            let (even, odd) = pair.split_at_mut(COLUMNS);
            for ((even, odd), pair) in even.iter_mut().zip(odd).zip(line.chunks_exact(2)) {
                (*even, *odd) = (pair[0], pair[1]);
            }
        }
        let first = i * COLUMNS;
        let count = COLUMNS.min(outputs - first);
        let weight = Matrix::strided(&panel, inputs, count, COLUMNS);
        multiply(&mut y[first..], outputs, Matrix::new(x, rows, inputs), weight, false, false);
    }
}

/// bf16 dot products of AVX-512.
#[cfg(target_arch = "x86_64")]
mod dot {
    use std::arch::x86_64::*;

    use half::bf16;

    use super::{COLUMNS, DEPTH, ROWS};

    /// Registers of a row of a tile.
    const VECTORS: usize = COLUMNS / 16;

    /// Groups of [`ROWS`] rows as bf16 pairs, `[groups, pairs, ROWS]`, padded with zeros.
    fn pack_rows(x: &[f32], inputs: usize) -> Vec<u32> {
        let pairs = inputs.div_ceil(2);
        let groups = x.len().div_ceil(inputs * ROWS);
        let mut packed = vec![0; groups * pairs * ROWS];
        let low = |value: f32| u32::from(bf16::from_f32(value).to_bits());
        for (row, x) in x.chunks_exact(inputs).enumerate() {
            let out = &mut packed[row / ROWS * pairs * ROWS + row % ROWS..];
            for (out, pair) in out.iter_mut().step_by(ROWS).zip(x.chunks(2)) {
                *out = low(pair[0]) | pair.get(1).map_or(0, |&odd| low(odd) << 16);
            }
        }
        packed
    }

    #[allow(unsafe_code)]
    pub(super) fn block(x: &[f32], inputs: usize, panels: &[u16], y: &mut [f32], outputs: usize) {
        let (rows, pairs) = (x.len() / inputs.max(1), inputs.div_ceil(2));
        let packed = pack_rows(x, inputs);
        for start in (0..pairs).step_by(DEPTH / 2) {
            let count = (DEPTH / 2).min(pairs - start);
            for (i, panel) in panels.chunks_exact(pairs * 2 * COLUMNS).enumerate() {
                let first = i * COLUMNS;
                let panel = &panel[start * 2 * COLUMNS..][..count * 2 * COLUMNS];
                for (group, x) in packed.chunks_exact(pairs * ROWS).enumerate() {
                    let x = &x[start * ROWS..][..count * ROWS];
                    let rows = ROWS.min(rows - group * ROWS);
                    let y = &mut y[group * ROWS * outputs + first..];
                    let columns = COLUMNS.min(outputs - first);
                    assert!((rows - 1) * outputs + columns <= y.len());
                    // SAFETY: the caller has found the instructions; `x` and `panel` hold `count`
                    // pairs for every row and column, and the assert covers what is written.
                    unsafe { tile(x, panel, y.as_mut_ptr(), outputs, rows, columns, start > 0) }
                }
            }
        }
    }

    /// `y (+)= x · w` for a tile of at most 8 rows and 48 columns; `y` has rows `stride` apart.
    #[allow(unsafe_code)]
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn tile(
        x: &[u32],
        panel: &[u16],
        y: *mut f32,
        stride: usize,
        rows: usize,
        columns: usize,
        accumulate: bool,
    ) {
        let masks: [__mmask16; VECTORS] = std::array::from_fn(|v| {
            let count = columns.saturating_sub(16 * v).min(16);
            ((1u32 << count) - 1) as __mmask16
        });
        let mut sums = [[_mm512_setzero_ps(); VECTORS]; ROWS];
        for (x, w) in x.chunks_exact(ROWS).zip(panel.chunks_exact(2 * COLUMNS)) {
            // SAFETY: each chunk holds three registers of 64 bytes.
            let w: [__m512bh; VECTORS] = std::array::from_fn(|v| unsafe {
                std::mem::transmute(_mm512_loadu_si512(w.as_ptr().add(32 * v).cast()))
            });
            for row in 0..ROWS {
                // SAFETY: both types are 64 bytes of any bits.
                let x: __m512bh = unsafe { std::mem::transmute(_mm512_set1_epi32(x[row] as i32)) };
                for v in 0..VECTORS {
                    sums[row][v] = _mm512_dpbf16_ps(sums[row][v], x, w[v]);
                }
            }
        }
        for (row, sums) in sums.iter().enumerate().take(rows) {
            for v in 0..VECTORS {
                // SAFETY: the caller has checked rows and columns; masked lanes are not touched.
                unsafe {
                    let at = y.add(row * stride + 16 * v);
                    let before = match accumulate {
                        true => _mm512_maskz_loadu_ps(masks[v], at),
                        false => _mm512_setzero_ps(),
                    };
                    _mm512_mask_storeu_ps(at, masks[v], _mm512_add_ps(before, sums[v]));
                }
            }
        }
    }
}
