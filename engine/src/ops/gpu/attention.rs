//! Attention without scores in memory (Dao et al. 2022): a cube of units for some queries of a head, which sees block after
//! block of keys.

use burn::backend::cubecl::dtype_to_storage_type;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use super::rows::empty;
use crate::ops::attention::HIDDEN;
use crate::ops::magnitude;

/// Numbers that are loaded and multiplied at a time.
pub(super) const LANES: usize = 4;
/// Queries of a cube, each of a row of units.
const QUERIES: usize = 16;
/// Units of a query, each of which sees every so-manieth key.
const PARTS: usize = 4;
/// Widest head.
pub(super) const WIDEST: usize = 128;
/// A bias below this hides a key.
const SEEN: f32 = 0.5 * HIDDEN;

/// Where queries, keys and values are in their rows, and what is done to the scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Form {
    pub(super) heads: usize,
    /// Heads of keys and of values, each seen by `heads / key_heads` of queries.
    pub(super) key_heads: usize,
    /// Width of a head.
    pub(super) width: usize,
    /// Numbers of a row before the first key.
    pub(super) before_keys: usize,
    /// Whether queries and keys are brought to unit RMS.
    pub(super) cosine: bool,
    /// Whether the rows of the queries, and of what they see, have a bias that is still to be added; not with `cosine`. That of
    /// a key adds as much to each score of a query, which changes nothing.
    pub(super) shifted: [bool; 2],
    /// Whether there is a bias.
    pub(super) biased: bool,
    /// Keys of a block.
    pub(super) keys: usize,
}

/// Keys of a block whose memory every GPU has, 16 KB.
pub(super) fn block(width: usize) -> usize {
    if width > 96 { 8 } else { 16 }
}

type Lanes = Vector<f32, Const<LANES>>;

/// Four numbers of a row.
#[cube]
fn lanes<F: Float>(rows: &Tensor<F>, first: usize, step: usize) -> Lanes {
    let mut loaded = Lanes::zeroed();
    #[unroll]
    for lane in 0..LANES {
        loaded.insert(lane, f32::cast_from(rows[first + lane * step]));
    }
    loaded
}

/// See [`crate::ops::magnitude::normalize`].
const EPSILON: f32 = magnitude::EPSILON as f32;

/// The factor that brings a square sum to a mean of 1, as `normalize` does.
#[cube]
fn to_unit(square: f32, #[comptime] width: usize) -> f32 {
    let norm = (square + 1e-24f32).sqrt();
    (width as f32).sqrt() / (norm + EPSILON)
}

/// The query of a unit, and its square sum; its head begins at `column` of the rows.
#[cube]
fn load_query<F: Float>(
    queries: &Tensor<F>,
    bias: &Tensor<F>,
    own: &mut Array<Lanes>,
    row: usize,
    column: usize,
    #[comptime] form: Form,
) -> f32 {
    let step = queries.stride(2);
    let mut square = 0.0f32;
    #[unroll]
    for i in 0..comptime!(form.width / LANES) {
        let at = column + i * LANES;
        let mut loaded = lanes::<F>(queries, row + at * step, step);
        if comptime!(form.shifted[0]) {
            loaded += lanes::<F>(bias, at * bias.stride(0), bias.stride(0));
        }
        square += (loaded * loaded).vector_sum();
        own[i] = loaded;
    }
    square
}

/// Keys of a block, and their values behind them, by all units of the cube.
#[cube]
fn load_block<F: Float>(
    held: &Tensor<F>,
    memory: &mut Shared<[Lanes]>,
    image: usize,
    key_head: usize,
    block: usize,
    #[comptime] form: Form,
) {
    let steps = comptime!(form.width / LANES);
    let lines = comptime!(form.keys * form.width / LANES);
    let (seen, step) = (held.shape(1), held.stride(2));
    let key_column = comptime!(form.before_keys) + key_head * comptime!(form.width);
    let value_column = key_column + comptime!(form.key_heads * form.width);
    for i in range_stepped(UNIT_POS as usize, lines, comptime!(QUERIES * PARTS)) {
        let (key, place) = (block + i / steps, i % steps);
        let key = select(key < seen, key, seen - 1);
        let base = image * held.stride(0) + key * held.stride(1) + place * LANES * step;
        memory[i] = lanes::<F>(held, base + key_column * step, step);
        memory[lines + i] = lanes::<F>(held, base + value_column * step, step);
    }
}

/// The factors of the keys of a block, by as many units.
#[cube]
fn units_of(memory: &Shared<[Lanes]>, units: &mut Shared<[f32]>, #[comptime] form: Form) {
    let steps = comptime!(form.width / LANES);
    let key = UNIT_POS as usize;
    if key < comptime!(form.keys) {
        let mut square = 0.0f32;
        for i in 0..steps {
            let loaded = memory[key * steps + i];
            square += (loaded * loaded).vector_sum();
        }
        units[key] = to_unit(square, comptime!(form.width));
    }
}

#[cube]
fn clear(mixed: &mut Array<Lanes>, #[comptime] steps: usize) {
    #[unroll]
    for i in 0..steps {
        mixed[i] = Lanes::zeroed();
    }
}

#[cube]
fn product(
    own: &Array<Lanes>,
    memory: &Shared<[Lanes]>,
    first: usize,
    #[comptime] steps: usize,
) -> f32 {
    let mut products = Lanes::zeroed();
    #[unroll]
    for i in 0..steps {
        products += own[i] * memory[first + i];
    }
    products.vector_sum()
}

/// So much of what is mixed, and a share of something else.
#[cube]
fn mix(
    mixed: &mut Array<Lanes>,
    kept: f32,
    memory: &Shared<[Lanes]>,
    first: usize,
    share: f32,
    #[comptime] steps: usize,
) {
    let (kept, share) = (Lanes::new(kept), Lanes::new(share));
    #[unroll]
    for i in 0..steps {
        mixed[i] = mixed[i] * kept + memory[first + i] * share;
    }
}

/// What the parts of a query have mixed, one after the other, into the first, which gets the sum of all.
#[cube]
fn merge(
    mixed: &mut Array<Lanes>,
    memory: &mut Shared<[Lanes]>,
    own_largest: f32,
    own_sum: f32,
    #[comptime] steps: usize,
) -> f32 {
    let (query, part) = (UNIT_POS_X as usize, UNIT_POS_Y as usize);
    let mut sums = Shared::<[f32]>::new_slice(comptime!(2 * QUERIES));
    let mut largest = own_largest;
    let mut sum = own_sum;
    #[unroll]
    for from in 1..PARTS {
        sync_cube();
        if part == from {
            sums[2 * query] = largest;
            sums[2 * query + 1] = sum;
            #[unroll]
            for i in 0..steps {
                memory[query * steps + i] = mixed[i];
            }
        }
        sync_cube();
        if part == 0 {
            let next = max(largest, sums[2 * query]);
            let (kept, share) = ((largest - next).exp(), (sums[2 * query] - next).exp());
            sum = sum * kept + sums[2 * query + 1] * share;
            mix(mixed, kept, &memory.clone(), query * steps, share, steps);
            largest = next;
        }
    }
    sum
}

/// Divides what is mixed by the sum of the shares, and adds the bias of the values, from `column` on; zeros if the sum is 0.
#[cube]
fn finish<F: Float>(
    mixed: &mut Array<Lanes>,
    bias: &Tensor<F>,
    column: usize,
    sum: f32,
    #[comptime] form: Form,
) {
    let by = select(sum > 0.0f32, 1.0f32 / sum, 0.0f32);
    let seen = select(sum > 0.0f32, 1.0f32, 0.0f32);
    #[unroll]
    for i in 0..comptime!(form.width / LANES) {
        mixed[i] *= Lanes::new(by);
        if comptime!(form.shifted[1]) {
            let step = bias.stride(0);
            let shift = lanes::<F>(bias, (column + i * LANES) * step, step);
            mixed[i] += shift * Lanes::new(seen);
        }
    }
}

#[cube]
fn write<F: Float>(
    output: &mut Tensor<F>,
    first: usize,
    mixed: &Array<Lanes>,
    #[comptime] steps: usize,
) {
    #[unroll]
    for i in 0..steps {
        #[unroll]
        for lane in 0..LANES {
            output[first + i * LANES + lane] = F::cast_from(mixed[i].extract(lane));
        }
    }
}

#[cube(launch)]
fn attention_kernel<F: Float>(
    queries: &Tensor<F>,
    held: &Tensor<F>,
    of_queries: &Tensor<F>,
    of_held: &Tensor<F>,
    bias: &Tensor<f32>,
    output: &mut Tensor<F>,
    scale: f32,
    #[comptime] form: Form,
    #[define(F)] _dtype: ElemType,
) {
    let (width, steps) = (comptime!(form.width), comptime!(form.width / LANES));
    let (head, image) = (CUBE_POS_Y as usize, CUBE_POS_Z as usize);
    let (query, part) = (UNIT_POS_X as usize, UNIT_POS_Y as usize);
    let (rows, seen) = (queries.shape(1), held.shape(1));
    let token = CUBE_POS_X as usize * QUERIES + query;
    // Units without a query work on the last one, and write nothing.
    let row = select(token < rows, token, rows - 1);
    let mut own = Array::<Lanes>::new(steps);
    let first = image * queries.stride(0) + row * queries.stride(1);
    let square = load_query::<F>(queries, of_queries, &mut own, first, head * width, form);
    let mut by = scale;
    if comptime!(form.cosine) {
        by *= to_unit(square, width);
    }
    let mut mixed = Array::<Lanes>::new(steps);
    clear(&mut mixed, steps);

    // Keys and values of a block; in the end, what the parts of a query have mixed.
    let lines = comptime!(if 2 * form.keys > QUERIES { 2 * form.keys } else { QUERIES });
    let mut memory = Shared::<[Lanes]>::new_slice(comptime!(lines * form.width / LANES));
    let mut units = Shared::<[f32]>::new_slice(comptime!(form.keys));
    let key_head = head / comptime!(form.heads / form.key_heads);
    let of_bias = image * bias.stride(0);
    let mut largest = f32::min_value();
    let mut sum = 0.0f32;
    for block in range_stepped(0, seen, comptime!(form.keys)) {
        sync_cube();
        load_block::<F>(held, &mut memory, image, key_head, block, form);
        sync_cube();
        if comptime!(form.cosine) {
            units_of(&memory, &mut units, form);
            sync_cube();
        }
        for key in range_stepped(part, comptime!(form.keys), PARTS) {
            if block + key < seen {
                let mut score = product(&own, &memory, key * steps, steps) * by;
                if comptime!(form.cosine) {
                    score *= units[key];
                }
                if comptime!(form.biased) {
                    let at = of_bias + head * bias.stride(1) + row * bias.stride(2);
                    score += bias[at + (block + key) * bias.stride(3)];
                }
                if score > SEEN {
                    let next = max(largest, score);
                    let (kept, share) = ((largest - next).exp(), (score - next).exp());
                    sum = sum * kept + share;
                    let at = comptime!(form.keys * form.width / LANES) + key * steps;
                    mix(&mut mixed, kept, &memory, at, share, steps);
                    largest = next;
                }
            }
        }
    }

    let sum = merge(&mut mixed, &mut memory, largest, sum, steps);
    if part == 0 && token < rows {
        let out = (image * rows + token) * comptime!(form.heads * form.width) + head * width;
        let values = comptime!(form.before_keys + form.key_heads * form.width) + key_head * width;
        finish::<F>(&mut mixed, of_held, values, sum, form);
        write::<F>(output, out, &mixed, steps);
    }
}

/// See [`super::Operations::attend`].
pub(super) fn launch(
    [queries, held]: [CubeTensor; 2],
    [of_queries, of_held]: [CubeTensor; 2],
    bias: CubeTensor,
    form: Form,
    scale: f32,
) -> CubeTensor {
    let (client, dtype) = (queries.client.clone(), queries.dtype);
    let mut shape = queries.meta.shape().clone();
    shape[2] = form.heads * form.width;
    let output = empty(&queries, shape.clone());
    if shape.num_elements() == 0 {
        return output;
    }
    let blocks = shape[1].div_ceil(QUERIES);
    attention_kernel::launch(
        &client,
        CubeCount::Static(blocks as u32, form.heads as u32, shape[0] as u32),
        CubeDim::new_2d(QUERIES as u32, PARTS as u32),
        queries.into_tensor_arg(),
        held.into_tensor_arg(),
        of_queries.into_tensor_arg(),
        of_held.into_tensor_arg(),
        bias.into_tensor_arg(),
        output.clone().into_tensor_arg(),
        scale,
        form,
        dtype_to_storage_type(dtype),
    );
    output
}
