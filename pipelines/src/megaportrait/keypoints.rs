//! Five points of a face, drawn for a branch of the kind picture: the form of InstantID (Wang et al. 2024), which is the one
//! that such branches are trained on.

use image::{Rgb, RgbImage};

use crate::faces::Point;

/// Colours of the eye at the left of the picture, the other one, the tip of the nose, and the corners of the mouth, left first.
const COLOURS: [[u8; 3]; 5] = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [255, 0, 255]];
/// Number of the nose.
const NOSE: usize = 2;
/// Radius of a disc as a share of the picture's height; it is a pixel or more.
const RADIUS: f32 = 0.01;
/// How light a line is, of its disc.
const DIM: f32 = 0.6;

/// Discs at the points, and lines to the nose from the others, on black; `[height, width]` in pixels.
pub fn keypoints(points: &[Point; 5], [height, width]: [usize; 2]) -> RgbImage {
    let radius = (RADIUS * height as f32).max(1.0);
    let nose = points[NOSE];
    RgbImage::from_fn(width as u32, height as u32, |x, y| {
        let at = [x as f32 + 0.5, y as f32 + 0.5];
        let disc = (0..5).find(|&i| apart(at, points[i]) <= radius);
        let line = || (0..5).find(|&i| i != NOSE && off(at, points[i], nose) <= radius / 2.0);
        match (disc, disc.is_none().then(line).flatten()) {
            (Some(own), _) => Rgb(COLOURS[own]),
            (None, Some(own)) => Rgb(COLOURS[own].map(|value| (f32::from(value) * DIM) as u8)),
            (None, None) => Rgb([0; 3]),
        }
    })
}

fn apart(a: Point, b: Point) -> f32 {
    (a[0] - b[0]).hypot(a[1] - b[1])
}

/// Distance of a point from a line between two others.
fn off(at: Point, from: Point, to: Point) -> f32 {
    let [dx, dy] = [to[0] - from[0], to[1] - from[1]];
    let square = dx * dx + dy * dy;
    let along = (at[0] - from[0]) * dx + (at[1] - from[1]) * dy;
    let share = if square > 0.0 { (along / square).clamp(0.0, 1.0) } else { 0.0 };
    apart(at, [from[0] + share * dx, from[1] + share * dy])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Discs at their pixels, in their colours; a face that is its own mirror image gives a drawing that is.
    #[test]
    fn points_are_where_they_are_and_a_symmetric_face_is_drawn_so() {
        let points = [[24.5, 24.5], [39.5, 24.5], [32.0, 34.5], [26.5, 44.5], [37.5, 44.5]];
        let drawn = keypoints(&points, [64, 64]);
        for (point, colour) in points.iter().zip(COLOURS) {
            let at = point.map(|at| at as u32);
            assert_eq!(drawn.get_pixel(at[0], at[1]).0, colour);
        }
        let mirrored = points.map(|[x, y]| [64.0 - x, y]);
        // Left and right of the picture change places.
        let mirrored = [1, 0, 2, 4, 3].map(|i| mirrored[i]);
        assert_eq!(points, mirrored);
        let dark = |x: u32, y: u32| drawn.get_pixel(x, y).0 == [0; 3];
        for (x, y) in (0..64).flat_map(|y| (0..32).map(move |x| (x, y))) {
            assert_eq!(dark(x, y), dark(63 - x, y), "{x}, {y}");
        }
        let lit = drawn.pixels().filter(|pixel| pixel.0 != [0; 3]).count();
        assert!((40..400).contains(&lit), "{lit}");
        // Half way from an eye to the nose.
        assert_eq!(drawn.get_pixel(28, 29).0, [153, 0, 0]);
        // What lies outside is not drawn, and nothing fails.
        assert!(keypoints(&[[-50.0, -50.0]; 5], [8, 8]).pixels().all(|pixel| pixel.0 == [0; 3]));
    }
}
