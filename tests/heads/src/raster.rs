//! Triangles to pixels.

use crate::shape::V3;

/// No triangle.
pub(crate) const NONE: u32 = u32::MAX;

/// What is seen at the middles of the pixels of a square, row by row.
pub(crate) struct Raster {
    /// The foremost triangle, or `NONE`.
    pub(crate) triangle: Vec<u32>,
    /// The weights of its corners at the point that is seen; they sum to 1.
    pub(crate) weights: Vec<[f32; 3]>,
    /// How far that is from the camera; infinite where there is none.
    pub(crate) depth: Vec<f32>,
}

/// Draws triangles whose corners are given by x and y in pixels, down, and by their distance from the camera. Those with corners at
/// no distance or behind the camera are left out, and so are those seen from behind, unless `two_sided`.
pub(crate) fn rasterised(
    points: &[V3],
    triangles: &[[u32; 3]],
    two_sided: impl Fn(usize) -> bool,
    side: usize,
) -> Raster {
    let mut raster = Raster {
        triangle: vec![NONE; side * side],
        weights: vec![[0.0; 3]; side * side],
        depth: vec![f32::INFINITY; side * side],
    };
    for (index, corners) in triangles.iter().enumerate() {
        let corners = corners.map(|at| points[at as usize]);
        let [a, b, c] = corners;
        let area = (b.x - a.x) * (c.y - a.y) - (b.y - a.y) * (c.x - a.x);
        let faces = area < -1e-6 || area > 1e-6 && two_sided(index);
        if faces && corners.iter().all(|corner| corner.z > 1e-3) {
            raster.draw(index as u32, corners, area, side);
        }
    }
    raster
}

impl Raster {
    fn draw(&mut self, index: u32, [a, b, c]: [V3; 3], area: f32, side: usize) {
        // The middles of pixels between the smallest and the largest coordinate; casts stop at the ends of the type.
        let first = |low: f32| (low - 0.5).ceil().max(0.0) as usize;
        let end = |high: f32| ((high + 0.5).floor().max(0.0) as usize).min(side);
        let (low, high) = (a.inf(&b).inf(&c), a.sup(&b).sup(&c));
        let nearness = [a.z, b.z, c.z].map(|depth| 1.0 / depth);
        // A weight on the picture is linear in x and y.
        let slope = |p: V3, q: V3| ((p.y - q.y) / area, (q.x - p.x) / area);
        let ((ax, ay), (bx, by)) = (slope(b, c), slope(c, a));
        for y in first(low.y)..end(high.y) {
            let down = y as f32 + 0.5;
            for x in first(low.x)..end(high.x) {
                let right = x as f32 + 0.5;
                let flat_a = ax * (right - c.x) + ay * (down - c.y);
                let flat_b = bx * (right - c.x) + by * (down - c.y);
                let flat_c = 1.0 - flat_a - flat_b;
                if flat_a < 0.0 || flat_b < 0.0 || flat_c < 0.0 {
                    continue;
                }
                // So is nearness; weights on the surface follow.
                let near = [flat_a * nearness[0], flat_b * nearness[1], flat_c * nearness[2]];
                let depth = 1.0 / (near[0] + near[1] + near[2]);
                let pixel = y * side + x;
                if depth < self.depth[pixel] {
                    self.depth[pixel] = depth;
                    self.triangle[pixel] = index;
                    self.weights[pixel] = near.map(|part| part * depth);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SQUARE: [[u32; 3]; 2] = [[0, 1, 2], [2, 1, 3]];

    fn square(low: f32, high: f32, depth: f32) -> [V3; 4] {
        [(low, low), (low, high), (high, low), (high, high)].map(|(x, y)| V3::new(x, y, depth))
    }

    #[test]
    fn a_square_covers_its_pixels_once() {
        let raster = rasterised(&square(2.0, 6.0, 3.0), &SQUARE, |_| false, 8);
        for (at, triangle) in raster.triangle.iter().enumerate() {
            let inside = (2..6).contains(&(at / 8)) && (2..6).contains(&(at % 8));
            assert_eq!(*triangle != NONE, inside, "{at}");
        }
    }

    #[test]
    fn the_nearer_one_is_seen_whatever_the_order() {
        let points = [square(0.0, 8.0, 3.0), square(2.0, 6.0, 2.0)].concat();
        let near = SQUARE.map(|corners| corners.map(|at| at + 4));
        let first = rasterised(&points, &[near, SQUARE].concat(), |_| false, 8);
        let last = rasterised(&points, &[SQUARE, near].concat(), |_| false, 8);
        assert_eq!(first.depth, last.depth);
        assert!((last.depth[27] - 2.0).abs() < 1e-6 && (last.depth[0] - 3.0).abs() < 1e-6);
    }

    #[test]
    fn backs_and_what_is_behind_the_camera_are_not_seen() {
        let back = SQUARE.map(|[a, b, c]| [a, c, b]);
        let seen = |depth: f32, triangles: &[[u32; 3]], two_sided: bool| {
            let raster = rasterised(&square(0.0, 8.0, depth), triangles, |_| two_sided, 8);
            raster.triangle.iter().any(|triangle| *triangle != NONE)
        };
        assert!(seen(1.0, &SQUARE, false) && seen(1.0, &back, true));
        assert!(
            !seen(1.0, &back, false) && !seen(0.0, &SQUARE, true) && !seen(-1.0, &SQUARE, true)
        );
        assert!(!seen(f32::NAN, &SQUARE, true));
    }

    #[test]
    fn weights_are_those_of_the_surface_not_of_the_picture() {
        // An edge that recedes: its middle is seen nearer to the far end.
        let points =
            [(0.0, 0.0, 1.0), (0.0, 8.0, 1.0), (8.0, 0.0, 3.0)].map(|(x, y, z)| V3::new(x, y, z));
        let raster = rasterised(&points, &[[0, 1, 2]], |_| false, 8);
        let [a, b, c] = raster.weights[3];
        assert!((a + b + c - 1.0).abs() < 1e-6);
        assert!(c < 3.5 / 8.0 / 2.0 && (raster.depth[3] - (a + b + 3.0 * c)).abs() < 1e-5);
    }
}
