//! What is read at the points of a face.

use image::RgbImage;

use crate::light::luminance;
use crate::picture::{Camera, linear};
use crate::raster::{NONE, rasterised};
use crate::shape::{V3, unit};
use crate::{Head, Identity, View};

/// Points of a side of the grid, and of a side of the blocks in which colours are averaged.
const SIDE: usize = 36;
const BLOCK: usize = 3;
/// What the grid covers, before a target moves it: the inner face, without the hair.
const LEFT: f32 = -0.66;
const TOP: f32 = 7.72;
const WIDTH: f32 = 1.32;
/// How far to the front a point of the face is.
const FRONT: f32 = 0.4;
/// A point is read if its normal points this much at the viewer.
const FACING: f32 = 0.25;
/// Half a side of the squares in which contrast is normalised.
const AROUND: usize = 4;
/// Added to light before the logarithm, and to contrast before it divides.
const FAINT: f32 = 0.005;
const FLAT: f64 = 0.1;
/// How much colours count beside contrasts.
const COLOUR: f64 = 10.0;

/// Points of the mean head, seen from the front in rows and columns.
#[derive(Debug, Clone)]
pub(super) struct Grid {
    person: Identity,
    /// Places and normals.
    points: Vec<Option<(V3, V3)>>,
}

impl Grid {
    pub(super) fn new(head: &Head) -> Self {
        let person = Identity::mean(head);
        let cells = SIDE as f32 / WIDTH;
        let flat =
            |point: &V3| V3::new((point.x - LEFT) * cells, (TOP - point.y) * cells, 10.0 - point.z);
        let seen: Vec<V3> = person.points.iter().map(flat).collect();
        let raster = rasterised(&seen, &head.triangles, |_| false, SIDE);
        let normals = head.normals(&person.points);
        let point = |(triangle, weights): (&u32, &[f32; 3])| {
            let corners = head.triangles.get(*triangle as usize).filter(|_| *triangle != NONE)?;
            let sum = |of: &[V3]| {
                corners
                    .iter()
                    .zip(weights)
                    .map(|(at, weight)| of[*at as usize] * *weight)
                    .sum::<V3>()
            };
            Some((sum(&person.points), unit(sum(&normals))))
        };
        let points = raster.triangle.iter().zip(&raster.weights).map(point).collect();
        Self { person, points }
    }

    /// Contrasts of the points, then colours of the blocks; none where nothing is seen.
    pub(super) fn read(&self, picture: &RgbImage, view: &View) -> Vec<Option<f64>> {
        let camera = Camera::new(&self.person, view, picture.width() as usize);
        let cell = |point: &Option<(V3, V3)>| {
            let (point, normal) = (*point)?;
            let place = camera.place(point);
            let faces = camera.turned(normal).z > FACING;
            if faces { between(picture, place.x, place.y) } else { None }
        };
        let cells: Vec<Option<[f32; 3]>> = self.points.iter().map(cell).collect();
        let light = |cell: &Option<[f32; 3]>| {
            cell.map(|cell| f64::from(libm::logf(luminance(cell) + FAINT)))
        };
        let light: Vec<Option<f64>> = cells.iter().map(light).collect();
        let mut read: Vec<Option<f64>> = (0..cells.len()).map(|at| contrast(&light, at)).collect();
        for block in 0..(SIDE / BLOCK) * (SIDE / BLOCK) {
            read.extend(colour(&cells, block).map_or([None; 3], |colour| colour.map(Some)));
        }
        read
    }
}

/// Whether the grid covers a point, given by where it is before a target moves it.
pub(crate) fn is_inner_face(rest: V3) -> bool {
    let (right, down) = (rest.x - LEFT, TOP - rest.y);
    [right, down].iter().all(|way| (0.0..WIDTH).contains(way)) && rest.z > FRONT
}

/// The colour at a place, between the middles of pixels; none outside of the picture.
fn between(picture: &RgbImage, x: f32, y: f32) -> Option<[f32; 3]> {
    let (width, height) = picture.dimensions();
    if !(x >= 0.0 && y >= 0.0 && x < width as f32 && y < height as f32) {
        return None;
    }
    let (x, y) = ((x - 0.5).max(0.0), (y - 0.5).max(0.0));
    let mut sum = V3::zeros();
    for (dx, dy) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
        let (column, row) = ((x as u32 + dx).min(width - 1), (y as u32 + dy).min(height - 1));
        let part = |at: f32, next: u32| if next == 1 { at.fract() } else { 1.0 - at.fract() };
        let colour = picture.get_pixel(column, row).0.map(linear);
        sum += V3::from(colour) * (part(x, dx) * part(y, dy));
    }
    Some(sum.into())
}

/// How much lighter a point is than those around, by how much these differ.
fn contrast(light: &[Option<f64>], at: usize) -> Option<f64> {
    let own = light[at]?;
    let range = |middle: usize| middle.saturating_sub(AROUND)..(middle + AROUND + 1).min(SIDE);
    let (mut count, mut sum, mut squares) = (0.0, 0.0, 0.0);
    for row in range(at / SIDE) {
        for value in range(at % SIDE).filter_map(|column| light[row * SIDE + column]) {
            let value = value - own;
            (count, sum, squares) = (count + 1.0, sum + value, squares + value * value);
        }
    }
    let mean: f64 = sum / count;
    Some(-mean / ((squares / count - mean * mean).max(0.0).sqrt() + FLAT))
}

/// The mean colour of a block, apart from how light it is.
fn colour(cells: &[Option<[f32; 3]>], block: usize) -> Option<[f64; 3]> {
    let (row, column) = (block / (SIDE / BLOCK) * BLOCK, block % (SIDE / BLOCK) * BLOCK);
    let own = (0..BLOCK * BLOCK).map(|at| cells[(row + at / BLOCK) * SIDE + column + at % BLOCK]);
    let (mut count, mut sum) = (0.0, [0.0; 3]);
    for cell in own.flatten() {
        let logs = cell.map(|value| f64::from(libm::logf(value + FAINT)));
        let mean = logs.iter().sum::<f64>() / 3.0;
        count += 1.0;
        sum.iter_mut().zip(logs).for_each(|(sum, log)| *sum += log - mean);
    }
    (count > 0.0).then(|| sum.map(|sum| COLOUR * sum / count))
}
