//! The norm of each head of queries and keys, and its rotary position, a cube of units for each head of a token.

use burn::backend::cubecl::dtype_to_storage_type;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use super::rows::{cube_of, empty, to_unit};

/// What is done to the heads of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Form {
    /// Heads of queries, and of keys behind them; others stay as they are.
    pub(super) heads: [usize; 2],
    /// Width of a head.
    pub(super) width: usize,
    pub(super) normalizes: bool,
    pub(super) turns: bool,
    /// Whether pairs are next to each other, rather than half a head apart.
    pub(super) interleaved: bool,
}

#[cube(launch)]
fn heads_kernel<F: Float>(
    rows: &Tensor<F>,
    query_gain: &Tensor<f32>,
    key_gain: &Tensor<f32>,
    cos: &Tensor<f32>,
    sin: &Tensor<f32>,
    output: &mut Tensor<F>,
    epsilon: f32,
    #[comptime] form: Form,
    #[comptime] units: u32,
    #[define(F)] _dtype: ElemType,
) {
    let (token, head, image) = (CUBE_POS_X as usize, CUBE_POS_Y as usize, CUBE_POS_Z as usize);
    let (unit, stride) = (UNIT_POS as usize, units as usize);
    let width = comptime!(form.width);
    let half = comptime!(form.width / 2);
    let queries = comptime!(form.heads[0]);
    let changed = comptime!(form.heads[0] + form.heads[1]);
    let step = rows.stride(2);
    let first = image * rows.stride(0) + token * rows.stride(1) + head * width * step;
    let out = (image * rows.shape(1) + token) * rows.shape(2) + head * width;
    let mut factor = 1.0f32;
    if comptime!(form.normalizes) {
        let mut memory = Shared::<[f32]>::new_slice(comptime!(units as usize));
        let unit = to_unit::<F>(rows, first, width, 0.0f32, epsilon, &mut memory, units);
        if head < changed {
            factor = unit;
        }
    }
    for pair in range_stepped(unit, half, stride) {
        let mut a = pair;
        let mut b = pair + half;
        if comptime!(form.interleaved) {
            a = 2 * pair;
            b = 2 * pair + 1;
        }
        let mut u = f32::cast_from(rows[first + a * step]) * factor;
        let mut v = f32::cast_from(rows[first + b * step]) * factor;
        if head < changed {
            if comptime!(form.normalizes) {
                if head < queries {
                    u *= query_gain[a];
                    v *= query_gain[b];
                } else {
                    u *= key_gain[a];
                    v *= key_gain[b];
                }
            }
            if comptime!(form.turns) {
                let mut at = token * cos.stride(1) + pair * cos.stride(2);
                let mut at_sin = token * sin.stride(1) + pair * sin.stride(2);
                if cos.shape(0) > 1 {
                    at += image * cos.stride(0);
                    at_sin += image * sin.stride(0);
                }
                let turned = u * cos[at] - v * sin[at_sin];
                v = u * sin[at_sin] + v * cos[at];
                u = turned;
            }
        }
        output[out + a] = F::cast_from(u);
        output[out + b] = F::cast_from(v);
    }
}

/// See [`super::Operations::change_heads`].
pub(super) fn launch(
    rows: CubeTensor,
    [query_gain, key_gain]: [CubeTensor; 2],
    [cos, sin]: [CubeTensor; 2],
    form: Form,
    epsilon: f32,
) -> CubeTensor {
    let (client, shape, dtype) = (rows.client.clone(), rows.meta.shape().clone(), rows.dtype);
    let output = empty(&rows, shape.clone());
    if shape.num_elements() == 0 {
        return output;
    }
    let units = cube_of(&client, form.width / 2);
    let heads = shape[2] / form.width;
    heads_kernel::launch(
        &client,
        CubeCount::Static(shape[1] as u32, heads as u32, shape[0] as u32),
        CubeDim::new_1d(units),
        rows.into_tensor_arg(),
        query_gain.into_tensor_arg(),
        key_gain.into_tensor_arg(),
        cos.into_tensor_arg(),
        sin.into_tensor_arg(),
        output.clone().into_tensor_arg(),
        epsilon,
        form,
        units,
        dtype_to_storage_type(dtype),
    );
    output
}
