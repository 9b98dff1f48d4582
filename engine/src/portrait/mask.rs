//! Hiding most of a reference.

use burn::tensor::{Bool, Tensor, TensorData};

use crate::random::SplitMix64;

/// Hides cells of images at random. Of a portrait of which 80 % are hidden in fine cells, the light and the layout can
/// still be told, and hardly who it shows (IC-Portrait's lighting-aware stitching).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CellMask {
    /// Share of the cells that are hidden, 0 to 1.
    pub ratio: f64,
    /// Side of a cell in pixels; at the right and bottom border cells are as much smaller as they have to be.
    pub cell: usize,
    /// What stands in hidden cells: black is −1 in images from −1 to 1.
    pub hidden: f64,
}

impl CellMask {
    /// Which cells of an image are hidden, row by row: exactly the share, rounded to whole cells.
    ///
    /// # Panics
    /// For a ratio that is not from 0 to 1, and for cells without a side.
    pub fn draw(&self, [height, width]: [usize; 2], seed: u64) -> Vec<bool> {
        assert!((0.0..=1.0).contains(&self.ratio), "a share of {}", self.ratio);
        let count = height.div_ceil(self.cell) * width.div_ceil(self.cell);
        let hidden = (self.ratio * count as f64).round() as usize;
        let mut random = SplitMix64::new(seed);
        let mut order: Vec<usize> = (0..count).collect();
        let mut cells = vec![false; count];
        for i in 0..hidden {
            let rest = (count - i) as u64;
            order.swap(i, i + (random.next_u64() % rest) as usize);
            cells[order[i]] = true;
        }
        cells
    }

    /// Each image with cells hidden by a seed of its own; all others stay as they are, to the bit.
    ///
    /// # Shapes
    /// `[images, channels, height, width]` to the same
    ///
    /// # Panics
    /// As [`CellMask::draw`], and unless there is a seed for each image.
    pub fn apply(&self, images: Tensor<4>, seeds: &[u64]) -> Tensor<4> {
        let [count, channels, height, width] = images.dims();
        assert_eq!(seeds.len(), count, "a seed for each image");
        let columns = width.div_ceil(self.cell);
        let pixels = seeds.iter().flat_map(|&seed| {
            let cells = self.draw([height, width], seed);
            let cell = self.cell;
            (0..height * width).map(move |i| cells[i / width / cell * columns + i % width / cell])
        });
        let data = TensorData::new(pixels.collect::<Vec<bool>>(), [count, 1, height, width]);
        let mask = Tensor::<4, Bool>::from_data(data, &images.device());
        images.mask_fill(mask.expand([count, channels, height, width]), self.hidden)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::random;

    fn values(x: Tensor<4>) -> Vec<f32> {
        x.into_data().try_into_vec().expect("floats")
    }

    #[test]
    fn the_share_is_exact_and_what_is_kept_is_equal_to_the_bit() {
        for (ratio, cell, hidden, cells) in
            [(0.8, 1, 86, 108), (0.8, 2, 24, 30), (0.5, 5, 3, 6), (0.0, 1, 0, 108), (1.0, 4, 9, 9)]
        {
            let mask = CellMask { ratio, cell, hidden: -1.0 };
            let drawn = mask.draw([9, 12], 7);
            assert_eq!((drawn.iter().filter(|cell| **cell).count(), drawn.len()), (hidden, cells));
            let images = random([2, 3, 9, 12]);
            let found = values(mask.apply(images.clone(), &[7, 8]));
            let columns = 12_usize.div_ceil(cell);
            let masks = [drawn, mask.draw([9, 12], 8)];
            for (i, (found, before)) in found.into_iter().zip(values(images)).enumerate() {
                let (image, y, x) = (i / 324, i / 12 % 9, i % 12);
                let expected = match masks[image][y / cell * columns + x / cell] {
                    true => -1.0,
                    false => before,
                };
                assert_eq!(found.to_bits(), expected.to_bits());
            }
        }
    }

    #[test]
    fn a_seed_decides() {
        let mask = CellMask { ratio: 0.8, cell: 1, hidden: 0.0 };
        assert_eq!(mask.draw([16, 16], 3), mask.draw([16, 16], 3));
        assert_ne!(mask.draw([16, 16], 3), mask.draw([16, 16], 4));
    }
}
