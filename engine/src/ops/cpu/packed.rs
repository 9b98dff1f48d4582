//! Products with weights that are laid out for them once, in f32, half precision or 8 bits.
//!
//! A weight `[in, out]` is kept in panels of [`COLUMNS`] columns, which a product reads from first to last.
//! Where the machine has dot products of bf16, the rows of a panel are woven in pairs, as their instruction
//! takes them; where it has tile units, pairs of 16 columns are [tiles](super::amx).
//!
//! Of a [compressed](Compressed) weight a panel is made for each product, and meets all rows.

use std::ops::Range;

use burn::backend::flex::{FlexTensor, Layout};
use burn::tensor::{Bytes, DType, Shape};
use bytemuck::Pod;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};
use rayon::prelude::*;

use super::amx::{self, Right, Side};
use super::buffers::buffer;
use super::linear::Finish;
use super::math::simd;
use super::matrix::{Matrix, Output};
use super::mixed::{in_rows, in_words, stored_in_words};
use super::tile::{COLUMNS, GROUPED, Method, ROWS, Tile, Weights};
use crate::ops::compressed::Compressed;

/// Steps whose products are summed at a time, so that what they read stays in the near caches.
const DEPTH: usize = 1536;
/// Rows of a weight in 8 bits that share the scales of their columns; some may be of the next panel.
pub(in crate::ops::cpu) const GROUP: usize = 32;
/// Bytes of these scales, one f32 per column, which precede the rows.
pub(in crate::ops::cpu) const SCALES: usize = size_of::<f32>() * COLUMNS;
/// Bytes of a group. A tensor of floats has no 8 bits: it holds them as f16, in rows of this length.
pub(in crate::ops::cpu) const RECORD: usize = SCALES + GROUP * COLUMNS;
/// Bytes of a cache line.
const LINE: usize = 64;

/// Elements of a contiguous tensor.
fn elements<T: Pod>(x: &FlexTensor) -> &[T] {
    let start = x.layout().start_offset();
    &bytemuck::cast_slice(x.bytes())[start..start + x.layout().num_elements()]
}

/// Whether panels of this type gain anything.
pub(in crate::ops) fn packs(dtype: DType) -> bool {
    Method::of(dtype).is_some()
}

/// The weight in panels, in its own memory where they fit into it.
pub(in crate::ops) fn pack(mut weight: FlexTensor) -> FlexTensor {
    let method = Method::of(weight.dtype()).expect("a type of packed weights");
    if weight.dtype() != DType::F32 {
        return pack_as::<u16>(&weight, method);
    }
    let packed = pack_as::<u32>(&weight, method);
    // In the memory of the weight, if no other tensor uses it: freed, it would be of the wrong size for the
    // next one.
    if let Some(memory) = weight.try_storage_mut::<f32>()
        && memory.len() == packed.layout().num_elements()
    {
        memory.copy_from_slice(elements(&packed));
        return weight.with_layout(Layout::contiguous(packed.layout().shape().clone()));
    }
    packed
}

fn pack_as<T: Pod + Send + Sync>(weight: &FlexTensor, method: Method) -> FlexTensor {
    let weight = weight.to_contiguous();
    let [inputs, outputs] = [0, 1].map(|i| weight.layout().shape()[i]);
    let source = elements::<T>(&weight);
    let depth = inputs.next_multiple_of(method.inputs());
    let panels = outputs.div_ceil(COLUMNS);
    let count = panels * depth * COLUMNS;
    // The panels start at a cache line.
    let mut memory = vec![T::zeroed(); count + LINE / size_of::<T>()];
    let start = memory.as_ptr().align_offset(LINE);
    let packed = memory[start..start + count].par_chunks_mut(depth * COLUMNS);
    packed.enumerate().for_each(|(panel, out)| {
        let first = panel * COLUMNS;
        let count = COLUMNS.min(outputs - first);
        for (row, source) in source.chunks_exact(outputs).enumerate() {
            let source = &source[first..first + count];
            for (group, source) in source.chunks(GROUPED).enumerate() {
                let (start, step) = method.place(row, group);
                let out = out[start..].iter_mut().step_by(step);
                out.zip(source).for_each(|(out, value)| *out = *value);
            }
        }
    });
    let shape = Shape::from(vec![panels * depth, COLUMNS]);
    let layout = Layout::new(shape, vec![COLUMNS as isize, 1], start);
    FlexTensor::new(Bytes::from_elems(memory), layout, weight.dtype())
}

/// A weight that was packed in f16, as whole numbers of 8 bits and their scales.
pub(in crate::ops) fn quantize(packed: &FlexTensor) -> FlexTensor {
    let rows = packed.layout().shape()[0];
    let groups = rows.div_ceil(GROUP);
    let mut memory = vec![f16::ZERO; groups * RECORD / 2];
    let bytes: &mut [i8] = bytemuck::cast_slice_mut(memory.reinterpret_cast_mut());
    bytes.par_chunks_exact_mut(RECORD).enumerate().for_each(|(i, record)| {
        let (first, mut memory) = (i * GROUP, Vec::new());
        let rows = widened(packed, first, GROUP.min(rows - first), &mut memory);
        let rows: &[[f32; COLUMNS]] = bytemuck::cast_slice(rows);
        let (scales, values) = record.split_at_mut(SCALES);
        let scales = bytemuck::cast_slice_mut::<i8, [u8; 4]>(scales);
        for (column, stored) in scales.iter_mut().enumerate() {
            let largest = rows.iter().map(|row| row[column].abs()).fold(0.0, f32::max);
            // Whole numbers have no NaN: the scale stands for it.
            let finite = rows.iter().all(|row| row[column].is_finite());
            let scale = if finite { largest / f32::from(i8::MAX) } else { f32::NAN };
            *stored = scale.to_ne_bytes();
            for (row, values) in rows.iter().zip(values.chunks_exact_mut(COLUMNS)) {
                // A column of zeros gives 0 / 0, which becomes 0.
                values[column] = (row[column] / scale).round() as i8;
            }
        }
    });
    let layout = Layout::contiguous(Shape::from(vec![groups, RECORD / 2]));
    FlexTensor::new(Bytes::from_elems(memory), layout, DType::F16)
}

/// `f(x · W + b)` for rows of `x`, `[rows, inputs]`, and a packed weight of `outputs` columns.
pub(in crate::ops) fn product(
    x: &[f32],
    inputs: usize,
    packed: &FlexTensor,
    outputs: usize,
    finish: Finish<'_>,
) -> Vec<f32> {
    let method = Method::of(packed.dtype()).expect("a packed weight");
    let sizes = [x.len() / inputs.max(1), inputs, outputs];
    if rounds(packed) {
        let made = |panel| tiles_of(packed, panel, inputs, outputs);
        let right = match packed.dtype() {
            DType::BF16 => Right::Packed(bytemuck::cast_slice(elements::<u16>(packed))),
            _ => Right::Made(&made),
        };
        return in_tiles(x, right, sizes, finish);
    }
    let panels = match steps_of(packed, method) {
        Some(kept) => Panels::Kept(kept),
        None => Panels::Packed(packed),
    };
    in_vectors(method, x, panels, sizes, finish)
}

/// The same with a compressed weight, in bf16 where that is the machine's fastest.
pub(in crate::ops) fn compressed(
    x: &[f32],
    weight: &dyn Compressed,
    finish: Finish<'_>,
) -> Vec<f32> {
    let [inputs, outputs] = weight.widths();
    let sizes = [x.len() / inputs.max(1), inputs, outputs];
    let method = Method::of(DType::BF16).expect("products of half precision");
    if method != Method::Amx {
        return in_vectors(method, x, Panels::Compressed(weight), sizes, finish);
    }
    let made = |panel: usize| {
        let (mut memory, first) = (Vec::new(), panel * COLUMNS);
        let columns = COLUMNS.min(outputs - first);
        memory.resize(columns * inputs, 0.0);
        weight.read(first..first + columns, 0..inputs, &mut memory);
        amx::pack(Side::Right, Matrix::new(&memory, columns, inputs), false)
    };
    in_tiles(x, Right::Made(&made), sizes, finish)
}

/// Whether products with a packed weight are of bf16 in tile units.
pub(in crate::ops) fn rounds(packed: &FlexTensor) -> bool {
    amx::available() && (packed.dtype() == DType::BF16 || is_quantized(packed))
}

/// The same in the tile units. A panel of 8 bits becomes one of bf16 when it is needed, and meets all rows.
fn in_tiles(x: &[f32], right: Right<'_>, sizes: [usize; 3], finish: Finish<'_>) -> Vec<f32> {
    let [rows, inputs, _] = sizes;
    let left = amx::pack(Side::Left, Matrix::new(x, rows, inputs), true);
    amx::product(&left, right, sizes, finish)
}

/// A panel of a weight in 8 bits as tiles.
fn tiles_of(packed: &FlexTensor, panel: usize, inputs: usize, outputs: usize) -> amx::Tiles {
    if inputs.is_multiple_of(GROUP) {
        // All groups are of one panel.
        let records = bytemuck::cast_slice::<u16, i8>(elements::<u16>(packed));
        let length = inputs / GROUP * RECORD;
        return amx::dequantized(&records[panel * length..][..length]);
    }
    let mut memory = Vec::new();
    let columns = COLUMNS.min(outputs - panel * COLUMNS);
    let weight = bytemuck::cast_slice(widened(packed, panel * inputs, inputs, &mut memory));
    let weight = Matrix::strided(weight, inputs, columns, COLUMNS);
    amx::pack(Side::Right, weight.transposed(), false)
}

/// Where the panels of a weight come from.
#[derive(Clone, Copy)]
enum Panels<'a> {
    /// As they are multiplied.
    Kept(&'a [Weights]),
    /// In fewer bits.
    Packed(&'a FlexTensor),
    Compressed(&'a dyn Compressed),
}

/// What one thread makes of a part of a panel.
#[derive(Default)]
struct Made {
    weights: Vec<Weights>,
    /// The numbers of a compressed weight, and these as words.
    values: Vec<f32>,
    words: Vec<u32>,
}

impl<'a> Panels<'a> {
    /// Steps of a panel, of `all`.
    fn steps<'b>(
        self,
        method: Method,
        panel: usize,
        steps: Range<usize>,
        all: usize,
        made: &'b mut Made,
    ) -> &'b [Weights]
    where
        'a: 'b,
    {
        let first = panel * all + steps.start;
        match self {
            Self::Kept(weights) => &weights[first..first + steps.len()],
            Self::Packed(packed) => widened(packed, first, steps.len(), &mut made.weights),
            Self::Compressed(weight) => read(weight, method, panel, steps, made),
        }
    }
}

/// Steps of a panel of a compressed weight.
fn read<'a>(
    weight: &dyn Compressed,
    method: Method,
    panel: usize,
    steps: Range<usize>,
    Made { weights, values, words }: &'a mut Made,
) -> &'a [Weights] {
    let ([inputs, outputs], count) = (weight.widths(), steps.len());
    let outputs = panel * COLUMNS..outputs.min((panel + 1) * COLUMNS);
    let inputs = steps.start * method.inputs()..inputs.min(steps.end * method.inputs());
    weights.resize(count, [0; COLUMNS]);
    let lines: &[u32] = match method {
        Method::Dot => {
            words.resize(outputs.len() * count, 0);
            pairs(weight, outputs, inputs, values, words.chunks_exact_mut(count));
            words
        }
        _ => {
            values.resize(outputs.len() * inputs.len(), 0.0);
            weight.read(outputs, inputs, values);
            bytemuck::cast_slice(values)
        }
    };
    // A square at a time, so that both sides stay in the nearest cache.
    for (group, lines) in lines.chunks(GROUPED * count).enumerate() {
        for start in (0..count).step_by(GROUPED) {
            let out = &mut weights[start..count.min(start + GROUPED)];
            for (column, line) in (group * GROUPED..).zip(lines.chunks_exact(count)) {
                for (out, word) in out.iter_mut().zip(&line[start..]) {
                    out[column] = *word;
                }
            }
        }
    }
    weights
}

/// The weights of some inputs to each output in pairs of bf16.
fn pairs<'a>(
    weight: &dyn Compressed,
    outputs: Range<usize>,
    inputs: Range<usize>,
    values: &mut Vec<f32>,
    words: impl Iterator<Item = &'a mut [u32]>,
) {
    let stored = outputs.clone().map(|output| weight.bf16(output, inputs.clone()));
    if let Some(lines) = stored.collect::<Option<Vec<_>>>() {
        lines.into_iter().zip(words).for_each(|(line, words)| stored_in_words(line, words));
        return;
    }
    values.resize(outputs.len() * inputs.len(), 0.0);
    let width = inputs.len();
    weight.read(outputs, inputs, values);
    values.chunks_exact(width).zip(words).for_each(|(line, words)| in_words(line, words));
}

/// `f(x · W + b)` in vectors, or by `gemm`.
fn in_vectors(
    method: Method,
    x: &[f32],
    panels: Panels<'_>,
    [rows, inputs, outputs]: [usize; 3],
    finish: Finish<'_>,
) -> Vec<f32> {
    let steps = inputs.div_ceil(method.inputs());
    #[cfg(test)]
    super::matrix::count(rows * inputs * outputs);
    let pairs = (method == Method::Dot).then(|| in_rows(Matrix::new(x, rows, inputs)));
    let words: &[u32] = pairs.as_deref().unwrap_or(bytemuck::cast_slice(x));
    let mut y = buffer(rows * outputs);
    let all = Output::new(&mut y);
    // Threads share the panels, so that each reads a part of the weight alone.
    let count = outputs.div_ceil(COLUMNS);
    let share = count.div_ceil(rayon::current_num_threads()).max(1);
    (0..count.div_ceil(share)).into_par_iter().for_each(|i| {
        let mine = i * share..count.min((i + 1) * share);
        let mut made = Made::default();
        for start in (0..steps).step_by(DEPTH) {
            let part = start..steps.min(start + DEPTH);
            for panel in mine.clone() {
                let weight = panels.steps(method, panel, part.clone(), steps, &mut made);
                let columns = COLUMNS.min(outputs - panel * COLUMNS);
                // SAFETY: `mine` are panels of the product, and no other task has them.
                #[allow(unsafe_code)]
                let y = unsafe { all.at(panel * COLUMNS) };
                if method == Method::Portable {
                    let x = Matrix::strided(&x[start..], rows, part.len(), inputs);
                    let weight = bytemuck::cast_slice(weight);
                    let weight = Matrix::strided(weight, part.len(), columns, COLUMNS);
                    // SAFETY: the product's memory is borrowed for all tasks.
                    #[allow(unsafe_code)]
                    unsafe {
                        y.product(outputs, x, weight, start > 0);
                    }
                    continue;
                }
                for row in (0..rows).step_by(ROWS) {
                    let x = &words[row * steps + start..];
                    // SAFETY: the product's memory is borrowed for all tasks, rows and columns are
                    // within it, and the machine was found to have the method.
                    #[allow(unsafe_code)]
                    unsafe {
                        let y = y.at(row * outputs);
                        let tile = Tile { y, stride: outputs, rows: ROWS.min(rows - row), columns };
                        tile.multiply(method, x, steps, weight, start > 0);
                    }
                }
            }
        }
    });
    finish.rows(&mut y, outputs);
    y
}

/// The packed rows as they are multiplied, if they are kept so.
fn steps_of(packed: &FlexTensor, method: Method) -> Option<&[Weights]> {
    let kept = packed.dtype() == DType::F32 || method == Method::Dot;
    kept.then(|| match packed.dtype() {
        DType::F32 => bytemuck::cast_slice(elements::<f32>(packed)),
        _ => bytemuck::cast_slice(elements::<u16>(packed)),
    })
}

/// `count` rows of a weight of fewer than 32 bits, from `first` on, as f32.
fn widened<'a>(
    packed: &FlexTensor,
    first: usize,
    count: usize,
    memory: &'a mut Vec<Weights>,
) -> &'a [Weights] {
    memory.resize(count, [0; COLUMNS]);
    let out: &mut [f32] = bytemuck::cast_slice_mut(memory);
    if is_quantized(packed) {
        dequantized(bytemuck::cast_slice(elements::<u16>(packed)), first, out);
        return memory;
    }
    let bits = &elements::<u16>(packed)[first * COLUMNS..][..out.len()];
    match packed.dtype() {
        DType::BF16 => bits.reinterpret_cast::<bf16>().convert_to_f32_slice(out),
        _ => bits.reinterpret_cast::<f16>().convert_to_f32_slice(out),
    }
    memory
}

/// Whether a weight is in 8 bits.
fn is_quantized(packed: &FlexTensor) -> bool {
    packed.layout().shape()[1] == RECORD / 2
}

/// Rows of a weight in 8 bits, from `first` on.
fn dequantized(records: &[i8], first: usize, out: &mut [f32]) {
    simd(
        #[inline(always)]
        || {
            for (row, out) in (first..).zip(out.chunks_exact_mut(COLUMNS)) {
                let record = &records[row / GROUP * RECORD..][..RECORD];
                let (scales, values) = record.split_at(SCALES);
                let scales = bytemuck::cast_slice::<i8, [u8; 4]>(scales);
                let values = &values[row % GROUP * COLUMNS..][..COLUMNS];
                for ((out, value), scale) in out.iter_mut().zip(values).zip(scales) {
                    *out = f32::from(*value) * f32::from_ne_bytes(*scale);
                }
            }
        },
    );
}
