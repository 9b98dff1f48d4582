//! Images to tokens and back.

use std::f64::consts::PI;

use burn::tensor::{Device, Tensor, TensorData};

/// Cuts an image into non-overlapping patches, row by row.
///
/// Inside a token the order is (row, column, channel), the channel fastest.
///
/// # Shapes
/// `[batch, channels, height, width]` to `[batch, tokens, patch · patch · channels]`
///
/// # Panics
/// If the patch size does not divide height and width.
pub fn patchify(x: Tensor<4>, patch: usize) -> Tensor<3> {
    let [batch, channels, height, width] = x.dims();
    assert!(
        height % patch == 0 && width % patch == 0,
        "patch size {patch} does not divide {height}x{width}"
    );
    let (rows, columns) = (height / patch, width / patch);
    let x: Tensor<6> = x.reshape([batch, channels, rows, patch, columns, patch]);
    x.permute([0, 2, 4, 3, 5, 1]) // [batch, rows, columns, patch, patch, channels]
        .reshape([batch, rows * columns, patch * patch * channels])
}

/// Inverse of [`patchify`] for a grid of `rows` by `columns` tokens.
///
/// # Shapes
/// `[batch, rows · columns, patch · patch · channels]` to
/// `[batch, channels, rows · patch, columns · patch]`
pub fn unpatchify(tokens: Tensor<3>, patch: usize, [rows, columns]: [usize; 2]) -> Tensor<4> {
    let [batch, _, width] = tokens.dims();
    let channels = width / (patch * patch);
    let x: Tensor<6> = tokens.reshape([batch, rows, columns, patch, patch, channels]);
    x.permute([0, 5, 1, 3, 2, 4]) // [batch, channels, rows, patch, columns, patch]
        .reshape([batch, channels, rows * patch, columns * patch])
}

/// An image from squares of twice the side of a patch, which stand around the patches and overlap by half: each pixel
/// is the mean of those that cover it, weighted by a Hann window over each.
///
/// # Shapes
/// `[batch, rows · columns, 2 · patch · 2 · patch · channels]` to
/// `[batch, channels, rows · patch, columns · patch]`
///
/// # Panics
/// For an odd patch size.
pub fn blend(tokens: Tensor<3>, patch: usize, [rows, columns]: [usize; 2]) -> Tensor<4> {
    let ([batch, _, width], side) = (tokens.dims(), 2 * patch);
    let channels = width / (side * side);
    let x: Tensor<6> = tokens.reshape([batch, rows, columns, side, side, channels]);
    let x = x.permute([0, 5, 1, 3, 2, 4]); // [batch, channels, rows, side, columns, side]
    let x = blend_lines(x.reshape([batch * channels, rows, side, columns * side]));
    let x = blend_lines(x.reshape([batch * channels * rows * patch, columns, side, 1]));
    x.reshape([batch, channels, rows * patch, columns * patch])
}

/// The lines of neighbouring squares, `[outer, squares, 2 · patch, inner]`, to `[outer, squares · patch, inner]`.
fn blend_lines(x: Tensor<4>) -> Tensor<3> {
    let [outer, squares, side, inner] = x.dims();
    let patch = side / 2;
    assert!(patch.is_multiple_of(2), "squares around patches of {patch}");
    let x = x.clone() * shares(squares, patch, &x.device());
    // The first half of a square lies where the second half of the one before does.
    let none = Tensor::zeros([outer, 1, patch, inner], &x.device());
    let before = Tensor::cat(vec![x.clone().narrow(2, 0, patch), none.clone()], 1);
    let after = Tensor::cat(vec![none, x.narrow(2, patch, patch)], 1);
    let lines = (before + after).reshape([outer, (squares + 1) * patch, inner]);
    lines.narrow(1, patch / 2, squares * patch)
}

/// What each line of each square contributes to the image, `[1, squares, 2 · patch, 1]`: the Hann window, whose two
/// halves sum to 1, and all where no other square is.
fn shares(squares: usize, patch: usize, device: &Device) -> Tensor<4> {
    let side = 2 * patch;
    let share = |square: usize, line: usize| {
        let alone = square == 0 && line < patch || square + 1 == squares && line >= patch;
        match alone {
            true => 1.0,
            false => (PI * (line as f64 + 0.5) / side as f64).sin().powi(2) as f32,
        }
    };
    let shares: Vec<f32> = (0..squares * side).map(|i| share(i / side, i % side)).collect();
    Tensor::from_data(TensorData::new(shares, [1, squares, side, 1]), device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Int};

    #[test]
    fn unpatchify_inverts_patchify_on_oblong_images() {
        let x = Tensor::<1, Int>::arange(0..2 * 3 * 4 * 8, &Device::flex())
            .float()
            .reshape([2, 3, 4, 8]);
        let tokens = patchify(x.clone(), 2);
        assert_eq!(tokens.dims(), [2, 8, 12]);
        assert!(unpatchify(tokens, 2, [2, 4]).equal(x).all().into_scalar::<bool>());
    }

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
            let found = blend(Tensor::cat(squares.collect(), 1), patch, [rows, columns]);
            let worst = (found - image.clone()).abs().max().into_scalar::<f32>();
            assert!(worst < 1e-6, "patches of {patch}: {worst}");
        }
        // Two squares of 4 x 4, of 0 and of 1, around patches of 2 x 2.
        let values = Tensor::<3>::cat(
            vec![Tensor::zeros([1, 1, 16], &device), Tensor::ones([1, 1, 16], &device)],
            1,
        );
        let row = blend(values, 2, [1, 2]).narrow(2, 0, 1);
        let row: Vec<f32> = row.into_data().try_into_vec().expect("floats");
        let expected = [0.0, (PI / 8.0).sin().powi(2) as f32, (PI / 8.0).cos().powi(2) as f32, 1.0];
        row.iter().zip(expected).for_each(|(a, b)| assert!((a - b).abs() < 1e-6, "{row:?}"));
    }

    #[test]
    fn channels_are_fastest_inside_a_token() {
        let x = Tensor::<1, Int>::arange(0..8, &Device::flex()).float().reshape([1, 2, 2, 2]);
        let token: Vec<f32> = patchify(x, 2).into_data().try_into_vec().expect("floats");
        assert_eq!(token, [0.0, 4.0, 1.0, 5.0, 2.0, 6.0, 3.0, 7.0]);
    }
}
