//! A norm, scale, shift and rotation of rows, a cube of units for each.

use burn::backend::cubecl::dtype_to_storage_type;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use super::rows::{cube_of, empty, sum_of_units, to_unit};

/// What is done to a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Form {
    pub(super) normalizes: bool,
    /// Whether the norm takes off the mean.
    pub(super) centres: bool,
    pub(super) scales: bool,
    pub(super) shifts: bool,
    /// Rotates the pairs `(i, i + width / 2)`.
    pub(super) turns: bool,
}

/// A factor at one channel of a row: `[batch, 1 | tokens, width]`.
#[cube]
fn factor<F: Float>(factors: &Tensor<F>, image: usize, token: usize, channel: usize) -> f32 {
    let mut place = image * factors.stride(0) + channel * factors.stride(2);
    if factors.shape(1) > 1 {
        place += token * factors.stride(1);
    }
    f32::cast_from(factors[place])
}

#[cube(launch)]
fn modulate_kernel<F: Float>(
    x: &Tensor<F>,
    scale: &Tensor<F>,
    shift: &Tensor<F>,
    angles: &Tensor<F>,
    output: &mut Tensor<F>,
    epsilon: f32,
    #[comptime] form: Form,
    #[comptime] units: u32,
    #[define(F)] _dtype: ElemType,
) {
    let (token, image) = (CUBE_POS_X as usize, CUBE_POS_Y as usize);
    let (unit, stride) = (UNIT_POS as usize, units as usize);
    let width = x.shape(2);
    let row = image * x.stride(0) + token * x.stride(1);
    let out = (image * x.shape(1) + token) * width;
    let mut mean = 0.0f32;
    let mut gain = 1.0f32;
    if comptime!(form.normalizes) {
        let mut memory = Shared::<[f32]>::new_slice(comptime!(units as usize));
        if comptime!(form.centres) {
            let mut own = 0.0f32;
            for i in range_stepped(unit, width, stride) {
                own += f32::cast_from(x[row + i * x.stride(2)]);
            }
            mean = sum_of_units(own, &mut memory, units) / width as f32;
        }
        gain = to_unit::<F>(x, row, width, mean, epsilon, &mut memory, units);
    }
    if comptime!(form.turns) {
        let half = width / 2;
        for i in range_stepped(unit, half, stride) {
            let u = channel(x, scale, shift, row, image, token, i, mean, gain, form);
            let v = channel(x, scale, shift, row, image, token, i + half, mean, gain, form);
            let angle = factor(angles, image, token, i);
            let (cos, sin) = (angle.cos(), angle.sin());
            output[out + i] = F::cast_from(u * cos - v * sin);
            output[out + i + half] = F::cast_from(u * sin + v * cos);
        }
    } else {
        for i in range_stepped(unit, width, stride) {
            let value = channel(x, scale, shift, row, image, token, i, mean, gain, form);
            output[out + i] = F::cast_from(value);
        }
    }
}

/// A channel of a row, normalised, scaled and shifted.
#[cube]
fn channel<F: Float>(
    x: &Tensor<F>,
    scale: &Tensor<F>,
    shift: &Tensor<F>,
    row: usize,
    image: usize,
    token: usize,
    i: usize,
    mean: f32,
    gain: f32,
    #[comptime] form: Form,
) -> f32 {
    let mut value = (f32::cast_from(x[row + i * x.stride(2)]) - mean) * gain;
    if comptime!(form.scales) {
        value *= factor(scale, image, token, i);
    }
    if comptime!(form.shifts) {
        value += factor(shift, image, token, i);
    }
    value
}

/// See [`super::Operations::modulate_rows`].
pub(super) fn launch(
    x: CubeTensor,
    [scale, shift, angles]: [CubeTensor; 3],
    form: Form,
    epsilon: f32,
) -> CubeTensor {
    let (client, shape, dtype) = (x.client.clone(), x.meta.shape().clone(), x.dtype);
    let output = empty(&x, shape.clone());
    if shape.num_elements() == 0 {
        return output;
    }
    let units = cube_of(&client, shape[2]);
    modulate_kernel::launch(
        &client,
        CubeCount::Static(shape[1] as u32, shape[0] as u32, 1),
        CubeDim::new_1d(units),
        x.into_tensor_arg(),
        scale.into_tensor_arg(),
        shift.into_tensor_arg(),
        angles.into_tensor_arg(),
        output.clone().into_tensor_arg(),
        epsilon,
        form,
        units,
        dtype_to_storage_type(dtype),
    );
    output
}
