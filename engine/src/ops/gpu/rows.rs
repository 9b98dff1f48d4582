//! What kernels share that work on rows, a cube of units for each.

use burn::tensor::Shape;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;

/// A tensor of this shape, of the type and on the device of another.
pub(super) fn empty(like: &CubeTensor, shape: Shape) -> CubeTensor {
    let (client, device) = (like.client.clone(), like.device.clone());
    empty_device_contiguous_dtype(client, device, shape, like.dtype)
}

/// Units that work on a row of so many numbers: a power of two.
pub(super) fn cube_of(client: &cubecl::client::Client, numbers: usize) -> u32 {
    const MOST: usize = 128;
    let most = MOST.min(client.properties().hardware.max_units_per_cube as usize);
    1 << numbers.next_power_of_two().min(most).ilog2()
}

/// The sum of what each unit of the cube has.
#[cube]
pub(super) fn sum_of_units(value: f32, memory: &mut Shared<[f32]>, #[comptime] units: u32) -> f32 {
    let unit = UNIT_POS as usize;
    // What was summed before has been read by all.
    sync_cube();
    memory[unit] = value;
    sync_cube();
    #[unroll]
    for step in 0..comptime!(units.ilog2()) {
        let half = comptime!((units >> (step + 1)) as usize);
        if unit < half {
            let other = memory[unit + half];
            memory[unit] += other;
        }
        sync_cube();
    }
    memory[0]
}

/// What brings numbers of a row, less their mean, to a mean square of 1.
#[cube]
pub(super) fn to_unit<F: Float>(
    x: &Tensor<F>,
    first: usize,
    width: usize,
    mean: f32,
    epsilon: f32,
    memory: &mut Shared<[f32]>,
    #[comptime] units: u32,
) -> f32 {
    let mut own = 0.0f32;
    for i in range_stepped(UNIT_POS as usize, width, units as usize) {
        let value = f32::cast_from(x[first + i * x.stride(2)]) - mean;
        own += value * value;
    }
    let square = sum_of_units(own, memory, units) / width as f32;
    1.0f32 / (square + epsilon).sqrt()
}
