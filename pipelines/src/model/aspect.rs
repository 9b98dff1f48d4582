//! The sizes that PixArt was trained at: one for each of some ratios of height to width (Chen et al. 2023, appendix).

/// Ratio as the table of diffusers names it, height and width, in units of a sixteenth of a square image's side.
#[rustfmt::skip]
const SIZES: [(f64, [usize; 2]); 33] = [
    (0.25, [8, 32]), (0.28, [8, 29]), (0.32, [9, 28]), (0.33, [9, 27]), (0.35, [9, 26]), (0.4, [10, 25]), (0.42, [10, 24]),
    (0.48, [11, 23]), (0.5, [11, 22]), (0.52, [11, 21]), (0.57, [12, 21]), (0.6, [12, 20]), (0.68, [13, 19]), (0.72, [13, 18]),
    (0.78, [14, 18]), (0.82, [14, 17]), (0.88, [15, 17]), (0.94, [15, 16]), (1.0, [16, 16]), (1.07, [16, 15]), (1.13, [17, 15]),
    (1.21, [17, 14]), (1.29, [18, 14]), (1.38, [18, 13]), (1.46, [19, 13]), (1.67, [20, 12]), (1.75, [21, 12]), (2.0, [22, 11]),
    (2.09, [23, 11]), (2.4, [24, 10]), (2.5, [25, 10]), (3.0, [27, 9]), (4.0, [32, 8]),
];
/// Further ones of the largest model.
#[rustfmt::skip]
const FINER: [(f64, [usize; 2]); 7] = [
    (0.26, [8, 31]), (0.27, [8, 30]), (2.89, [26, 9]), (3.11, [28, 9]), (3.62, [29, 8]), (3.75, [30, 8]), (3.88, [31, 8]),
];
/// Units along the side of a square image.
const UNITS: usize = 16;
/// Side of a square image of the largest model, in latent cells.
const LARGEST: usize = 256;

/// Whether there are such sizes for a model whose square images have `side` latent cells along a side.
pub(super) fn is_known(side: usize) -> bool {
    [32, 64, 128, LARGEST].contains(&side)
}

/// The size, `[height, width]` in latent cells, whose ratio is the nearest one to that of `size`, in any unit; of two
/// as near, the first.
///
/// # Panics
/// If `side` is none of a model with such sizes.
pub(crate) fn nearest(side: usize, [height, width]: [usize; 2]) -> [usize; 2] {
    assert!(is_known(side), "sizes for a model of {side} latent cells along a side");
    let ratio = height as f64 / width as f64;
    let mut sizes = SIZES.to_vec();
    if side == LARGEST {
        sizes.extend(FINER);
        sizes.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    }
    let nearest =
        sizes.iter().min_by(|(a, _), (b, _)| (a - ratio).abs().total_cmp(&(b - ratio).abs()));
    nearest.expect("a table with rows").1.map(|units| units * side / UNITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_the_table() {
        // In pixels: the cells of the autoencoder are eight wide.
        let pixels = |side, size| nearest(side, size).map(|cells| cells * 8);
        assert_eq!(pixels(32, [192, 288]), [208, 304]);
        assert_eq!(pixels(64, [512, 512]), [512, 512]);
        assert_eq!(pixels(128, [768, 1344]), [768, 1344]);
        assert_eq!(pixels(128, [1, 100]), [512, 2048]);
        assert_eq!(pixels(256, [1024, 3840]), [1024, 3840]);
        assert_eq!(pixels(256, [3330, 1152]), [3328, 1152]);
        assert_eq!(pixels(128, [3330, 1152]), [1728, 576]);
        // Each size is its own nearest, and the areas are about that of the square.
        for (_, size) in SIZES {
            assert_eq!(nearest(64, size), size.map(|units| units * 4), "{size:?}");
            assert!((0.9..=1.1).contains(&(size[0] as f64 * size[1] as f64 / 256.0)), "{size:?}");
        }
    }
}
