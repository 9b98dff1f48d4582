//! Which part of a crop is the face.

use super::align::Alignment;
use super::{Face, Point};
use crate::error::{Error, Result};

/// How far the brows are lifted, as a share of their distance from the eyes.
const LIFT: f64 = 0.25;
/// How far the outline grows, as a share of the face's width.
const GROWTH: f64 = 0.1;
/// Widest feather, as a share of the crop's side.
const WIDEST: f64 = 0.25;

/// What counts of each pixel of a square crop, from 0 to 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Mask {
    side: usize,
    /// `[side, side]`.
    values: Vec<f32>,
}

impl Mask {
    /// Width over which a mask usually fades, as a share of the crop's side.
    pub const FEATHER: f64 = 0.0625;

    /// Of values of `[side, side]` pixels, row by row.
    ///
    /// # Errors
    /// Another number of values, or one that is not from 0 to 1.
    pub fn new(side: usize, values: Vec<f32>) -> Result<Self> {
        let refused = |found: String, expected: String| {
            Err(Error::Setting { what: "mask of a face's crop:", found, expected })
        };
        if side.checked_mul(side) != Some(values.len()) {
            return refused(format!("{} values", values.len()), format!("{side} x {side}"));
        }
        match values.iter().find(|value| !(0.0..=1.0).contains(*value)) {
            Some(value) => refused(value.to_string(), "0 to 1".to_owned()),
            None => Ok(Self { side, values }),
        }
    }

    /// From the jaw to above the brows, a tenth of the face's width wider all around, and fading over a `feather`, as a
    /// share of the crop's side. It is 0 at the edges of the crop, unless there is no feather.
    ///
    /// # Errors
    /// A feather that is not from 0 to 0.25.
    pub fn of_face(face: &Face, place: &Alignment, feather: f64) -> Result<Self> {
        if !(0.0..=WIDEST).contains(&feather) {
            let (found, expected) = (feather.to_string(), format!("0 to {WIDEST}"));
            return Err(Error::Setting { what: "feather of a face's mask", found, expected });
        }
        let side = place.side();
        let outline = outline(face).map(|point| place.place(point));
        let wide = (outline[16][0] - outline[0][0]).hypot(outline[16][1] - outline[0][1]);
        let radius = |pixels: f64| pixels.round().clamp(0.0, side as f64) as usize;
        // To close the outline before, by the same square, would change nothing.
        let growth = radius(GROWTH * wide);
        let mut inside: Vec<bool> =
            sums(&filled(&outline, side), side, growth).into_iter().map(|sum| sum > 0).collect();
        let fade = radius(feather * side as f64 / 2.0);
        let edge = |at: usize| fade > 0 && (at <= fade || at + fade + 1 >= side);
        for (i, inside) in inside.iter_mut().enumerate() {
            *inside &= !edge(i / side) && !edge(i % side);
        }
        let most = ((2 * fade + 1) * (2 * fade + 1)) as f32;
        let values = sums(&inside, side, fade).into_iter().map(|sum| sum as f32 / most).collect();
        Ok(Self { side, values })
    }

    /// Pixels of its side.
    pub fn side(&self) -> usize {
        self.side
    }

    /// Of all pixels, row by row.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// At a place between pixels; 0 outside.
    pub(super) fn at(&self, place: [f64; 2]) -> f32 {
        let side = self.side as f64;
        if !place.iter().all(|at| (0.0..=side).contains(at)) {
            return 0.0;
        }
        let [x, y] = place.map(|at| (at - 0.5).clamp(0.0, side - 1.0));
        let value = |column: f64, row: f64| {
            let at = [column, row].map(|at| (at as usize).min(self.side - 1));
            self.values[at[1] * self.side + at[0]]
        };
        let between = |from: f32, to: f32, share: f64| from + (to - from) * share as f32;
        let row = |row: f64| between(value(x, row), value(x + 1.0, row), x.fract());
        between(row(y), row(y + 1.0), y.fract())
    }
}

/// Around the face: along the jaw from the left of the picture, then back over the brows, which are lifted.
fn outline(face: &Face) -> [Point; 27] {
    let lift = |brow: std::ops::Range<usize>, eye: std::ops::Range<usize>| {
        let (brow, eye) = (face.centre(brow), face.centre(eye));
        [0, 1].map(|axis| LIFT as f32 * (brow[axis] - eye[axis]))
    };
    let (left, right) = (lift(17..22, 36..42), lift(22..27, 42..48));
    std::array::from_fn(|i| match i {
        0..17 => face.landmarks[i],
        _ => {
            let brow = 26 - (i - 17);
            let up = if brow < 22 { left } else { right };
            [0, 1].map(|axis| face.landmarks[brow][axis] + up[axis])
        }
    })
}

/// The pixels whose centres are inside a polygon, `[side, side]`.
fn filled(polygon: &[[f64; 2]], side: usize) -> Vec<bool> {
    let mut inside = vec![false; side * side];
    for (row, line) in inside.chunks_exact_mut(side).enumerate() {
        let y = row as f64 + 0.5;
        let edges = polygon.iter().zip(polygon.iter().cycle().skip(1));
        let mut crossings: Vec<f64> = edges
            .filter(|(a, b)| (a[1] <= y) != (b[1] <= y))
            .map(|(a, b)| a[0] + (y - a[1]) / (b[1] - a[1]) * (b[0] - a[0]))
            .collect();
        crossings.sort_by(f64::total_cmp);
        for pair in crossings.as_chunks::<2>().0 {
            let [start, end] = pair.map(|x| (x - 0.5).ceil().clamp(0.0, side as f64) as usize);
            line[start..end].fill(true);
        }
    }
    inside
}

/// How many pixels are inside in the square of `2 · radius + 1` around each, exactly.
fn sums(inside: &[bool], side: usize, radius: usize) -> Vec<u32> {
    // What is above and left of each corner of a pixel.
    let width = side + 1;
    let mut before = vec![0u32; width * width];
    for (row, line) in inside.chunks_exact(side).enumerate() {
        let mut sum = 0;
        for (column, inside) in line.iter().enumerate() {
            sum += u32::from(*inside);
            before[(row + 1) * width + column + 1] = before[row * width + column + 1] + sum;
        }
    }
    let span = |at: usize| [at.saturating_sub(radius), (at + radius + 1).min(side)];
    let sum = |i: usize| {
        let ([top, bottom], [left, right]) = (span(i / side), span(i % side));
        let of = |row: usize, column: usize| before[row * width + column];
        of(bottom, right) + of(top, left) - of(top, right) - of(bottom, left)
    };
    (0..side * side).map(sum).collect()
}
