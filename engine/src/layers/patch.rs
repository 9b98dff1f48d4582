//! Images to tokens and back.

use burn::tensor::Tensor;

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

    #[test]
    fn channels_are_fastest_inside_a_token() {
        let x = Tensor::<1, Int>::arange(0..8, &Device::flex()).float().reshape([1, 2, 2, 2]);
        let token: Vec<f32> = patchify(x, 2).into_data().try_into_vec().expect("floats");
        assert_eq!(token, [0.0, 4.0, 1.0, 5.0, 2.0, 6.0, 3.0, 7.0]);
    }
}
