//! Upright crops of faces, and the way back into the photograph.

use image::RgbImage;
use rayon::prelude::*;

use super::mask::Mask;
use super::sample::Sampler;
use super::{Face, Point};
use crate::error::{Error, FaceError, Result};

/// Most pixels of a crop's side.
const LARGEST: usize = 2048;
/// Two eyes, tip of the nose and corners of the mouth of a face from the front, in distances of the eyes from the point
/// between them: the usual places for recognition (those of ArcFace, Deng et al. 2019), made symmetric.
const TEMPLATE: [[f64; 2]; 5] =
    [[-0.5, 0.0], [0.5, 0.0], [0.0, 0.57], [-0.414, 1.155], [0.414, 1.155]];

/// A turn, a change of size and a shift: x, y to (a x - b y + s, b x + a y + t).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Similarity {
    /// a and b.
    turn: [f64; 2],
    /// s and t.
    shift: [f64; 2],
}

/// How much of a face's surroundings a crop shows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Framing {
    /// Distance of the eyes, as a share of the crop's side.
    pub eyes: f64,
    /// Where the line through them lies, from the upper edge, as such a share.
    pub line: f64,
}

/// Where the square crop of a face lies in a photograph.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Alignment {
    to_crop: Similarity,
    side: usize,
}

impl Similarity {
    /// The map that takes points nearest to others, in the sense of least squares (Umeyama 1991); without a mirror, as in
    /// two dimensions the product of complex numbers.
    ///
    /// None for points in one place, or that are not finite.
    ///
    /// # Panics
    /// For another number of points.
    pub fn fit(from: &[[f64; 2]], to: &[[f64; 2]]) -> Option<Self> {
        assert_eq!(from.len(), to.len(), "points of both kinds");
        let mean = |points: &[[f64; 2]]| {
            [0, 1].map(|i| points.iter().map(|p| p[i]).sum::<f64>() / points.len() as f64)
        };
        let (start, end) = (mean(from), mean(to));
        let (mut turn, mut spread) = ([0.0; 2], 0.0);
        for (from, to) in from.iter().zip(to) {
            let [x, y] = [0, 1].map(|i| from[i] - start[i]);
            let [u, v] = [0, 1].map(|i| to[i] - end[i]);
            turn = [turn[0] + x * u + y * v, turn[1] + x * v - y * u];
            spread += x * x + y * y;
        }
        let map = Self { turn: turn.map(|part| part / spread), shift: [0.0; 2] };
        let [x, y] = map.apply(start);
        let map = Self { shift: [end[0] - x, end[1] - y], ..map };
        let known = map.turn.into_iter().chain(map.shift).all(f64::is_finite);
        (known && map.scale() > 0.0 && map.scale().recip().is_finite()).then_some(map)
    }

    /// Where a point goes.
    pub fn apply(&self, [x, y]: [f64; 2]) -> [f64; 2] {
        let ([a, b], [s, t]) = (self.turn, self.shift);
        [a * x - b * y + s, b * x + a * y + t]
    }

    /// The map back.
    pub fn inverse(&self) -> Self {
        let [a, b] = self.turn;
        let square = a * a + b * b;
        let map = Self { turn: [a / square, -b / square], shift: [0.0; 2] };
        let [x, y] = map.apply(self.shift);
        Self { shift: [-x, -y], ..map }
    }

    /// By how much distances grow.
    pub fn scale(&self) -> f64 {
        self.turn[0].hypot(self.turn[1])
    }
}

impl Framing {
    /// The inner face, as the recogniser was trained.
    pub const FACE: Self = Self { eyes: 0.3575, line: 0.292 };
    /// The head from the hair to the chin.
    pub const PORTRAIT: Self = Self { eyes: 0.25, line: 0.4 };
}

impl Alignment {
    /// An upright crop of `side` pixels around a face.
    ///
    /// # Errors
    /// A side of 0 or above 2048; [`FaceError::Landmarks`].
    pub fn new(face: &Face, framing: Framing, side: usize) -> Result<Self> {
        if !(1..=LARGEST).contains(&side) {
            return Err(Error::Setting {
                what: "side of a face's crop",
                found: side.to_string(),
                expected: format!("1 to {LARGEST}"),
            });
        }
        let Framing { eyes, line } = framing;
        let size = side as f64;
        let to = TEMPLATE.map(|[x, y]| [(x * eyes + 0.5) * size, (y * eyes + line) * size]);
        let from = face.five().map(|point| point.map(f64::from));
        let to_crop = Similarity::fit(&from, &to).ok_or(FaceError::Landmarks)?;
        Ok(Self { to_crop, side })
    }

    /// From pixels of the photograph to those of the crop.
    pub fn to_crop(&self) -> Similarity {
        self.to_crop
    }

    /// Pixels of the crop's side.
    pub fn side(&self) -> usize {
        self.side
    }

    /// The face upright, with antialiasing; beyond the photograph is its edge.
    ///
    /// # Panics
    /// For a photograph without pixels.
    pub fn crop(&self, photo: &RgbImage) -> RgbImage {
        assert!(photo.width() > 0 && photo.height() > 0, "a photograph without pixels");
        let (side, sampler) = (self.side as u32, Sampler::new(photo, self.to_crop.inverse()));
        let mut crop = RgbImage::new(side, side);
        crop.par_chunks_mut(3 * self.side).zip(0..side).for_each(|(line, row)| {
            for (pixel, column) in line.as_chunks_mut::<3>().0.iter_mut().zip(0..side) {
                *pixel = sampler.at(column, row).map(level);
            }
        });
        crop
    }

    /// The photograph, at its own resolution, with a crop where the mask is; pixels where it is 0 keep their bits, and
    /// where it is 1 are the crop's.
    ///
    /// # Errors
    /// A crop or a mask of another side.
    pub fn paste_back(&self, photo: &RgbImage, crop: &RgbImage, mask: &Mask) -> Result<RgbImage> {
        let side = self.side as u32;
        let sides = [crop.width(), crop.height(), mask.side() as u32];
        if let Some(other) = sides.into_iter().find(|found| *found != side) {
            return Err(Error::Setting {
                what: "side of a face's crop",
                found: other.to_string(),
                expected: side.to_string(),
            });
        }
        let mut result = photo.clone();
        let [left, top, right, bottom] = self.reach(photo);
        let sampler = Sampler::new(crop, self.to_crop);
        let line = 3 * photo.width() as usize;
        if left >= right || top >= bottom {
            return Ok(result);
        }
        let bytes: &mut [u8] = &mut result;
        let rows = bytes[top as usize * line..bottom as usize * line].par_chunks_mut(line);
        rows.zip(top..bottom).for_each(|(line, row)| {
            let pixels = &mut line.as_chunks_mut::<3>().0[left as usize..right as usize];
            for (pixel, column) in pixels.iter_mut().zip(left..right) {
                let centre = [column, row].map(|at| f64::from(at) + 0.5);
                let share = mask.at(self.to_crop.apply(centre));
                if share > 0.0 {
                    let over = sampler.at(column, row);
                    let mixed = |i: usize| share * over[i] + (1.0 - share) * f32::from(pixel[i]);
                    *pixel = [0, 1, 2].map(|i| level(mixed(i)));
                }
            }
        });
        Ok(result)
    }

    /// Pixels of the photograph that the crop may cover: left, top, and what is beyond at the right and below.
    fn reach(&self, photo: &RgbImage) -> [u32; 4] {
        let (back, side) = (self.to_crop.inverse(), self.side as f64);
        let corners = [[0.0, 0.0], [side, 0.0], [0.0, side], [side, side]];
        let corners = corners.map(|corner| back.apply(corner));
        let span = |axis: usize, length: u32| {
            let along = corners.map(|corner| corner[axis]);
            let inside = |place: f64| place.clamp(0.0, f64::from(length)) as u32;
            let start = along.into_iter().fold(f64::INFINITY, f64::min).floor();
            let end = along.into_iter().fold(f64::NEG_INFINITY, f64::max).ceil();
            [inside(start), inside(end)]
        };
        let ([left, right], [top, bottom]) = (span(0, photo.width()), span(1, photo.height()));
        [left, top, right, bottom]
    }

    /// A point of the photograph in pixels of the crop.
    pub(super) fn place(&self, point: Point) -> [f64; 2] {
        self.to_crop.apply(point.map(f64::from))
    }
}

/// Nearest of the 256 levels.
fn level(value: f32) -> u8 {
    value.round().clamp(0.0, 255.0) as u8
}
