//! Pictures at places between their pixels.

use image::RgbImage;

use super::align::Similarity;

/// Most places per side that are averaged for one pixel.
const MOST: usize = 16;

/// Levels of a picture around places that a map takes there, each a mean over what one pixel covers.
pub(super) struct Sampler<'a> {
    picture: &'a RgbImage,
    /// From pixels of the result to those of the picture.
    map: Similarity,
    /// Places per side of a pixel.
    places: usize,
}

impl<'a> Sampler<'a> {
    pub(super) fn new(picture: &'a RgbImage, map: Similarity) -> Self {
        let places = (map.scale().ceil() as usize).clamp(1, MOST);
        Self { picture, map, places }
    }

    /// Red, green and blue, from 0 to 255, of the pixel in this column and row of the result.
    pub(super) fn at(&self, column: u32, row: u32) -> [f32; 3] {
        let count = self.places as f64;
        let mut sum = [0.0; 3];
        for i in 0..self.places * self.places {
            let (down, across) = (i / self.places, i % self.places);
            let place = [(column, across), (row, down)]
                .map(|(pixel, part)| f64::from(pixel) + (part as f64 + 0.5) / count);
            let levels = cubic(self.picture, self.map.apply(place));
            sum.iter_mut().zip(levels).for_each(|(sum, level)| *sum += level);
        }
        sum.map(|sum| sum / (count * count) as f32)
    }
}

/// Levels at a place, from the 4 x 4 pixels around it (Keys 1981); beyond the edge are its pixels.
fn cubic(picture: &RgbImage, place: [f64; 2]) -> [f32; 3] {
    let sides = [picture.width(), picture.height()].map(i64::from);
    // Where the place lies among the centres of pixels.
    let [x, y] = [0, 1].map(|i| (place[i] - 0.5).clamp(-2.0, sides[i] as f64 + 1.0));
    let (columns, rows) = (weights(x - x.floor()), weights(y - y.floor()));
    let pixel = |i: i64, from: f64, side: i64| (from.floor() as i64 + i - 1).clamp(0, side - 1);
    let mut sum = [0.0; 3];
    for (i, down) in (0..).zip(rows) {
        for (j, across) in (0..).zip(columns) {
            let at = [pixel(j, x, sides[0]), pixel(i, y, sides[1])].map(|at| at as u32);
            let weight = down * across;
            let levels = picture.get_pixel(at[0], at[1]).0;
            sum.iter_mut().zip(levels).for_each(|(sum, level)| *sum += weight * f32::from(level));
        }
    }
    sum.map(|level| level.clamp(0.0, 255.0))
}

/// Of the four pixels around a place that lies so far from the second to the third.
fn weights(t: f64) -> [f32; 4] {
    let near = |x: f64| (1.5 * x - 2.5) * x * x + 1.0;
    let far = |x: f64| ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0;
    [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)].map(|weight| weight as f32)
}
