//! An image from overlapping squares.

use std::f64::consts::PI;

use burn::tensor::{Tensor, TensorData};

use super::available;
use super::cpu::bridge::run;
use super::cpu::overlap::OverlapAdd;

/// An image from squares of twice the side of a patch, which stand around the patches and overlap by half: each pixel
/// is the mean of those that cover it, weighted by a Hann window over each.
///
/// # Shapes
/// `[batch, rows · columns, 2 · patch · 2 · patch · channels]` to
/// `[batch, channels, rows · patch, columns · patch]`
///
/// # Panics
/// For an odd patch size.
pub fn overlap_add(squares: Tensor<3>, patch: usize, grid: [usize; 2]) -> Tensor<4> {
    assert!(patch.is_multiple_of(2), "squares around patches of {patch}");
    if !available(&squares) {
        return plain(squares, patch, grid);
    }
    let shares = grid.map(|count| shares(count, patch));
    run(OverlapAdd { patch, shares }, vec![squares.into()])
}

fn plain(squares: Tensor<3>, patch: usize, [rows, columns]: [usize; 2]) -> Tensor<4> {
    let ([batch, _, width], side) = (squares.dims(), 2 * patch);
    let channels = width / (side * side);
    let x: Tensor<6> = squares.reshape([batch, rows, columns, side, side, channels]);
    let x = x.permute([0, 5, 1, 3, 2, 4]); // [batch, channels, rows, side, columns, side]
    let x = add_lines(x.reshape([batch * channels, rows, side, columns * side]));
    let x = add_lines(x.reshape([batch * channels * rows * patch, columns, side, 1]));
    x.reshape([batch, channels, rows * patch, columns * patch])
}

/// The lines of neighbouring squares, `[outer, squares, 2 · patch, inner]`, to `[outer, squares · patch, inner]`.
fn add_lines(x: Tensor<4>) -> Tensor<3> {
    let [outer, squares, side, inner] = x.dims();
    let (patch, device) = (side / 2, x.device());
    let shares = TensorData::new(shares(squares, patch), [1, squares, side, 1]);
    let x = x * Tensor::from_data(shares, &device);
    // The first half of a square lies where the second half of the one before does.
    let none = Tensor::zeros([outer, 1, patch, inner], &device);
    let before = Tensor::cat(vec![x.clone().narrow(2, 0, patch), none.clone()], 1);
    let after = Tensor::cat(vec![none, x.narrow(2, patch, patch)], 1);
    let lines = (before + after).reshape([outer, (squares + 1) * patch, inner]);
    lines.narrow(1, patch / 2, squares * patch)
}

/// What each of the `2 · patch` lines of each square contributes to the image: the Hann window, whose two halves sum
/// to 1, and all where no other square is.
fn shares(squares: usize, patch: usize) -> Vec<f32> {
    let side = 2 * patch;
    let share = |square: usize, line: usize| {
        let alone = square == 0 && line < patch || square + 1 == squares && line >= patch;
        match alone {
            true => 1.0,
            false => (PI * (line as f64 + 0.5) / side as f64).sin().powi(2) as f32,
        }
    };
    (0..squares * side).map(|i| share(i / side, i % side)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Int};

    use crate::layers::patch::patchify;
    use crate::ops::testing::compare;
    use crate::testing::random;

    /// Squares that agree where they overlap are the image that they are cut from; of two that do not, the one whose
    /// middle is nearer counts more.
    #[test]
    fn blended_squares_are_the_image_they_are_cut_from() {
        let device = Device::flex();
        let numbers = |count: i64| Tensor::<1, Int>::arange(0..count, &device).float();
        let image = numbers(2 * 3 * 8 * 12).sin().reshape([2, 3, 8, 12]);
        for patch in [2, 4] {
            let (rows, columns, half) = (8 / patch, 12 / patch, patch / 2);
            // What lies beyond the image is not seen.
            let wide = image.clone().pad((half, half, half, half), 1e3);
            let squares = (0..rows * columns).map(|i| {
                let (row, column) = (i / columns * patch, i % columns * patch);
                let square = wide.clone().narrow(2, row, 2 * patch).narrow(3, column, 2 * patch);
                patchify(square, 2 * patch) // [batch, 1, values]
            });
            let found = overlap_add(Tensor::cat(squares.collect(), 1), patch, [rows, columns]);
            let worst = (found - image.clone()).abs().max().into_scalar::<f32>();
            assert!(worst < 1e-6, "patches of {patch}: {worst}");
        }
        // Two squares of 4 x 4, of 0 and of 1, around patches of 2 x 2.
        let values = Tensor::<3>::cat(
            vec![Tensor::zeros([1, 1, 16], &device), Tensor::ones([1, 1, 16], &device)],
            1,
        );
        let row = overlap_add(values, 2, [1, 2]).narrow(2, 0, 1);
        let row: Vec<f32> = row.into_data().try_into_vec().expect("floats");
        let expected = [0.0, (PI / 8.0).sin().powi(2) as f32, (PI / 8.0).cos().powi(2) as f32, 1.0];
        row.iter().zip(expected).for_each(|(a, b)| assert!((a - b).abs() < 1e-6, "{row:?}"));
    }

    #[test]
    fn fused_equals_plain() {
        for (patch, [rows, columns], channels) in
            [(2, [1, 1], 1), (4, [2, 3], 3), (8, [3, 2], 4), (2, [4, 1], 3)]
        {
            let inputs = [random([3, rows * columns, 4 * patch * patch * channels])];
            // An image of three channels is no `[batch, tokens, width]`.
            let flat = |x: Tensor<4>| x.flatten::<3>(1, 2);
            compare(
                &inputs,
                |x| flat(overlap_add(x[0].clone(), patch, [rows, columns])),
                |x| flat(plain(x[0].clone(), patch, [rows, columns])),
            );
        }
    }
}
