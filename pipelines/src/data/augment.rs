//! Training images in other places and sizes.

use fast_image_resize::ResizeOptions;
use pyrograph_engine::random::Generator;
use serde::{Deserialize, Serialize};

use crate::image::resample;

/// How the images of a batch are varied; what is uncovered shows their background.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Augment {
    /// Least and largest factor by which an image is shrunk or enlarged around its centre.
    pub scale: [f64; 2],
    /// Farthest distance in pixels by which it is moved, along each axis.
    pub shift: f64,
}

impl Default for Augment {
    /// Images as they are.
    fn default() -> Self {
        Self { scale: [1.0; 2], shift: 0.0 }
    }
}

/// Where an image is laid.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    scale: f64,
    /// Down and to the right, in pixels.
    shift: [f64; 2],
}

impl Augment {
    /// Whether images stay as they are.
    pub(crate) fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// A place for one image.
    pub(super) fn draw(&self, random: &mut Generator) -> Place {
        let [least, largest] = self.scale;
        let scale = least + (largest - least) * random.uniform();
        let mut shift = || self.shift * (2.0 * random.uniform() - 1.0);
        Place { scale, shift: [shift(), shift()] }
    }
}

impl Place {
    /// Straight RGBA of `[height, width]` pixels in this place, on nothing.
    pub(super) fn put(self, rgba: &[u8], [height, width]: [usize; 2]) -> Vec<u8> {
        // The part of the plane that becomes the image, in the pixels of the source: start and length on each axis.
        let part = |side: usize, shift: f64| {
            let length = side as f64 / self.scale;
            ((side as f64 - length) / 2.0 - shift / self.scale, length)
        };
        let (top, tall) = part(height, self.shift[0]);
        let (left, wide) = part(width, self.shift[1]);
        let beyond =
            |start: f64, length: f64, side: usize| (-start).max(start + length - side as f64);
        let margin =
            beyond(top, tall, height).max(beyond(left, wide, width)).max(0.0).ceil() as usize;
        let line = width + 2 * margin;
        let mut padded = vec![0; 4 * line * (height + 2 * margin)];
        for (row, pixels) in rgba.chunks_exact(4 * width).enumerate() {
            padded[4 * ((row + margin) * line + margin)..][..4 * width].copy_from_slice(pixels);
        }
        let source = [height + 2 * margin, line];
        let margin = margin as f64;
        let part = ResizeOptions::new().crop(left + margin, top + margin, wide, tall);
        resample(&padded, source, [height, width], part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sum of alpha, and its centre, row and column.
    fn moments(rgba: &[u8], width: usize) -> (f64, [f64; 2]) {
        let (mut sum, mut centre) = (0.0, [0.0; 2]);
        for (i, pixel) in rgba.chunks_exact(4).enumerate() {
            let alpha = f64::from(pixel[3]) / 255.0;
            sum += alpha;
            centre[0] += alpha * (i / width) as f64;
            centre[1] += alpha * (i % width) as f64;
        }
        (sum, centre.map(|along| along / sum))
    }

    /// A square of 8 pixels a side, its corner at 12, 20 in 32 x 40.
    fn square() -> Vec<u8> {
        let pixel = |i: usize| {
            let (row, column) = (i / 40, i % 40);
            let inside = (12..20).contains(&row) && (20..28).contains(&column);
            if inside { [200, 100, 50, 255] } else { [0; 4] }
        };
        (0..32 * 40).flat_map(pixel).collect()
    }

    #[test]
    fn images_move_and_shrink_around_their_centre() {
        let (size, image) = ([32, 40], square());
        let put = |scale: f64, shift| moments(&Place { scale, shift }.put(&image, size), 40);
        let near = |(sum, at): (f64, [f64; 2]), expected: (f64, [f64; 2])| {
            assert!((sum - expected.0).abs() < 0.03 * expected.0, "{sum}, expected {}", expected.0);
            for (a, b) in at.iter().zip(expected.1) {
                assert!((a - b).abs() < 0.06, "{at:?}, expected {:?}", expected.1);
            }
        };
        let original = Place { scale: 1.0, shift: [0.0; 2] }.put(&image, size);
        assert!(original == image);
        near(put(1.0, [3.0, -2.0]), (64.0, [18.5, 21.5]));
        near(put(1.0, [0.5, 0.25]), (64.0, [16.0, 23.75]));
        // Around 15.5, 19.5.
        near(put(0.5, [0.0; 2]), (16.0, [15.5, 21.5]));
        near(put(1.5, [1.0, 1.0]), (144.0, [16.5, 26.5]));
        // Out of the picture.
        assert_eq!(
            Place { scale: 1.0, shift: [40.0, 0.0] }.put(&image, size),
            vec![0; 4 * 32 * 40]
        );
    }

    #[test]
    fn places_lie_in_their_range() {
        let augment = Augment { scale: [0.8, 1.1], shift: 3.0 };
        let mut random = Generator::new(7);
        let places: Vec<Place> = (0..500).map(|_| augment.draw(&mut random)).collect();
        let ends = |values: Vec<f64>| {
            values.iter().fold([f64::MAX, f64::MIN], |[a, b], &x| [a.min(x), b.max(x)])
        };
        let [least, largest] = ends(places.iter().map(|place| place.scale).collect());
        assert!((0.8..0.81).contains(&least) && (1.09..1.1).contains(&largest));
        for axis in 0..2 {
            let [least, largest] = ends(places.iter().map(|place| place.shift[axis]).collect());
            assert!((-3.0..-2.9).contains(&least) && (2.9..3.0).contains(&largest));
        }
    }
}
