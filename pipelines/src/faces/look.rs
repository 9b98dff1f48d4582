//! Photographs as the networks see them: squares of one size.

use image::{RgbImage, imageops};
use pyrograph_engine::nets::face::Bounds;

use super::Point;
use crate::image::stretched;

/// A square with the whole photograph at its upper left.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look {
    /// In pixels.
    pub(super) side: usize,
    /// Pixels around the photograph, which repeat its edge; what is beyond is black.
    pub(super) margin: usize,
}

/// A part of a photograph in the middle of a square.
pub(super) struct Centred {
    /// The square.
    pub(super) picture: RgbImage,
    /// Left and top of the part in the photograph.
    start: [u32; 2],
    /// Left and top of the part in the square.
    offset: [u32; 2],
    /// Pixels of the square for one of the photograph.
    scale: f32,
}

impl Look {
    /// The longer side of the photograph in the square.
    fn inner(self) -> usize {
        self.side - 2 * self.margin
    }

    /// The square.
    pub(super) fn square(self, photo: &RgbImage) -> RgbImage {
        let (side, margin) = (self.side as u32, self.margin as u32);
        let mut square = RgbImage::new(side, side);
        if photo.is_empty() {
            return square;
        }
        let small = resized(photo, self.inner());
        let (wide, high) = small.dimensions();
        for y in 0..high + 2 * margin {
            for x in 0..wide + 2 * margin {
                let at = |place: u32, side: u32| place.saturating_sub(margin).min(side - 1);
                square.put_pixel(x, y, *small.get_pixel(at(x, wide), at(y, high)));
            }
        }
        square
    }

    /// A box of the square, whose sides are 1, in pixels of the photograph.
    pub(super) fn in_photo(self, bounds: Bounds, photo: &RgbImage) -> Bounds {
        let (scale, side) = (scale(photo, self.inner()), self.side as f32);
        let place = |share: f32| (share * side - self.margin as f32) / scale;
        let size = |share: f32| share * side / scale;
        let Bounds { left, top, width, height } = bounds;
        Bounds { left: place(left), top: place(top), width: size(width), height: size(height) }
    }
}

impl Centred {
    /// A place of the square, whose sides are 1, in pixels of the photograph.
    pub(super) fn in_photo(&self, place: Point) -> Point {
        let side = self.picture.width() as f32;
        let axis = |i: usize| (place[i] * side - self.offset[i] as f32) / self.scale;
        [0, 1].map(|i| axis(i) + self.start[i] as f32)
    }
}

/// Left, top, width and height of the whole pixels of a box that are inside the photograph, if there are any.
pub(super) fn inside(bounds: Bounds, photo: &RgbImage) -> Option<[u32; 4]> {
    let Bounds { left, top, width, height } = bounds;
    let span = |start: f32, length: f32, side: u32| {
        let end = (start + length).floor().clamp(0.0, side as f32) as u32;
        let start = start.floor().clamp(0.0, side as f32) as u32;
        Some((start, end.checked_sub(start).filter(|length| *length > 0)?))
    };
    let (x, width) = span(left, width, photo.width())?;
    let (y, height) = span(top, height, photo.height())?;
    Some([x, y, width, height])
}

/// A part of a photograph, left, top, width and height, in the middle of a black square.
pub(super) fn centred(photo: &RgbImage, part: [u32; 4], side: usize) -> Centred {
    let [x, y, width, height] = part;
    let part = imageops::crop_imm(photo, x, y, width, height).to_image();
    let (small, scale) = (resized(&part, side), scale(&part, side));
    let offset = [small.width(), small.height()].map(|length| (side as u32 - length) / 2);
    let mut picture = RgbImage::new(side as u32, side as u32);
    imageops::replace(&mut picture, &small, i64::from(offset[0]), i64::from(offset[1]));
    Centred { picture, start: [x, y], offset, scale }
}

/// By how much a picture is resized for its longer side to become this long.
fn scale(picture: &RgbImage, longest: usize) -> f32 {
    longest as f32 / picture.width().max(picture.height()).max(1) as f32
}

/// With antialiasing, so that the longer side is this long.
fn resized(picture: &RgbImage, longest: usize) -> RgbImage {
    let (sides, scale) = ([picture.width(), picture.height()], scale(picture, longest));
    let scaled = |side: u32| (side as f32 * scale).round().clamp(1.0, longest as f32) as u32;
    let [width, height] = sides.map(scaled);
    stretched(picture, width, height)
}
