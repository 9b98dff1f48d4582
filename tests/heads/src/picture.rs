//! A head to pixels.

use image::{Rgb, RgbImage};
use nalgebra::Matrix3;

use crate::flow::Match;
use crate::head::Material;
use crate::paint::{Marks, surface};
use crate::raster::{NONE, Raster, rasterised};
use crate::shape::{V3, unit};
use crate::{Head, Identity, Light, View};

/// Largest side of a picture.
pub const MOST_PIXELS: usize = 1024;
/// Pictures are drawn this many times as large and averaged; odd, so that the middle of a pixel is one of a small one.
const FINE: usize = 3;
/// How far the camera is from the head.
const CAMERA: f32 = 13.0;
/// Of the stored values, to those proportional to light.
pub(crate) const GAMMA: f32 = 1.9;
/// Points of the surface that differ less in their distance from the camera are taken for the same; and how much more is granted
/// where the surface is steep, in small pixels.
const SAME: f32 = 0.03;
const STEEP: f32 = 1.5;

/// What is seen at the middle of a pixel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// What it is made of.
    pub material: Material,
    /// Its colour without light: red, green and blue, linear, 0 to 1.
    pub albedo: [f32; 3],
    /// Its direction, of length 1: x to the picture's right, y up, z to the viewer.
    pub normal: [f32; 3],
    /// How far it is from the camera; a head is about 2.3 high and 13 away.
    pub depth: f32,
    /// The triangle it is on. Triangles are the same for all people and views.
    pub triangle: u32,
    /// The weights of its corners, which sum to 1.
    pub weights: [f32; 3],
}

/// A picture of a head, and what is known of each pixel. Places are in pixels from the upper left corner, so that the middle of the first
/// pixel is (0.5, 0.5).
#[derive(Debug, Clone)]
pub struct Picture {
    /// The picture, in the usual coding of colours.
    pub rgb: RgbImage,
    /// Of each pixel, row by row; none where the background is seen.
    pub samples: Vec<Option<Sample>>,
    /// Of each vertex, its place and its distance from the camera.
    points: Vec<V3>,
    /// The distances of what is seen in the picture that was averaged.
    depth: Vec<f32>,
    /// How much these may be off.
    tolerance: f32,
}

/// Where the points of a head are seen.
pub(crate) struct Camera {
    turn: Matrix3<f32>,
    center: V3,
    /// Pixels by units of length, at the distance of the center.
    pub(crate) scale: f32,
    middle: [f32; 2],
}

impl Camera {
    pub(crate) fn new(identity: &Identity, view: &View, side: usize) -> Self {
        let side = side as f32;
        Self {
            turn: view.rotation(),
            center: identity.center,
            scale: side * view.scale / identity.height,
            middle: view.shift.map(|shift| side * (0.5 + shift)),
        }
    }

    /// The place of a point, and its distance from the camera.
    pub(crate) fn place(&self, point: V3) -> V3 {
        let turned = self.turn * (point - self.center);
        let depth = CAMERA - turned.z;
        let near = self.scale * CAMERA / depth;
        V3::new(self.middle[0] + turned.x * near, self.middle[1] - turned.y * near, depth)
    }

    pub(crate) fn turned(&self, normal: V3) -> V3 {
        self.turn * normal
    }
}

/// Draws a person, `size` pixels wide and high.
///
/// # Panics
/// If `size` is 0 or above [`MOST_PIXELS`], or the person was made for another head.
pub fn render(head: &Head, identity: &Identity, view: &View, size: usize) -> Picture {
    assert!((1..=MOST_PIXELS).contains(&size), "a size of 1 to {MOST_PIXELS}, not {size}");
    assert_eq!(identity.points.len(), head.marks.len(), "a person of this head");
    let mut points = identity.points.clone();
    for (unit, weight) in &view.units {
        for side in ["", "Left", "Right"] {
            head.moved(&mut points, &format!("faceunits/{unit}{side}"), *weight);
        }
    }
    let side = size * FINE;
    let camera = Camera::new(identity, view, side);
    let normals = head.normals(&points).into_iter().map(|normal| camera.turned(normal)).collect();
    points.iter_mut().for_each(|point| *point = camera.place(*point));
    let two_sided = |triangle: usize| head.materials[triangle].two_sided();
    let raster = rasterised(&points, &head.triangles, two_sided, side);
    let scene = Scene { head, identity, view, normals, raster, side, scale: camera.scale };
    let shrunk = |point: &V3| V3::new(point.x / FINE as f32, point.y / FINE as f32, point.z);
    let (rgb, samples) = scene.picture(size);
    Picture {
        rgb,
        samples,
        points: points.iter().map(shrunk).collect(),
        depth: scene.raster.depth,
        tolerance: SAME + STEEP / camera.scale,
    }
}

/// All that the colour of a pixel depends on.
struct Scene<'a> {
    head: &'a Head,
    identity: &'a Identity,
    view: &'a View,
    normals: Vec<V3>,
    raster: Raster,
    side: usize,
    /// Pixels by units of length.
    scale: f32,
}

impl Scene<'_> {
    fn picture(&self, size: usize) -> (RgbImage, Vec<Option<Sample>>) {
        let behind = V3::from(self.view.background.map(linear));
        let mut rgb = RgbImage::new(size as u32, size as u32);
        let mut samples = vec![None; size * size];
        for (at, pixel) in rgb.pixels_mut().enumerate() {
            let (row, column) = (at / size * FINE, at % size * FINE);
            let mut sum = V3::zeros();
            for fine in 0..FINE * FINE {
                let place = (row + fine / FINE) * self.side + column + fine % FINE;
                let seen = self.seen(place);
                let light = seen.as_ref().map_or(behind, |(_, light)| *light);
                sum += light.map(|value| value.clamp(0.0, 1.0));
                if fine == FINE * FINE / 2 {
                    samples[at] = seen.map(|(sample, _)| sample);
                }
            }
            let coded = |value: f32| libm::powf(value, 1.0 / GAMMA) * 255.0 + 0.5;
            *pixel = Rgb((sum / (FINE * FINE) as f32).map(coded).map(|value| value as u8).into());
        }
        (rgb, samples)
    }

    /// What is seen at a small pixel, and its colour in the light.
    fn seen(&self, place: usize) -> Option<(Sample, V3)> {
        let triangle = self.raster.triangle[place];
        if triangle == NONE {
            return None;
        }
        let (head, weights) = (self.head, self.raster.weights[place]);
        let material = head.materials[triangle as usize];
        let corners = head.triangles[triangle as usize].map(|at| at as usize);
        let marks = Marks::between(corners.map(|at| &head.marks[at]), weights);
        let normal = corners.iter().zip(weights).map(|(at, weight)| self.normals[*at] * weight);
        let mut normal = unit(normal.sum());
        if material == Material::Hair && normal.z < 0.0 {
            normal = -normal;
        }
        let (colour, gloss) = surface(head, &self.identity.paint, self.view, material, &marks);
        let light = &self.view.light;
        let lit = light.on(colour, gloss, normal, self.is_shaded(place, light));
        let depth = self.raster.depth[place];
        let sample = Sample {
            material,
            albedo: colour.into(),
            normal: normal.into(),
            depth,
            triangle,
            weights,
        };
        Some((sample, lit))
    }

    /// Whether something else in the picture is between a small pixel and the light.
    fn is_shaded(&self, place: usize, light: &Light) -> bool {
        let (x, y) = ((place % self.side) as f32, (place / self.side) as f32);
        let depth = self.raster.depth[place];
        let [right, up, near] = light.direction;
        let last = (self.side - 1) as f32;
        STEPS.iter().any(|far| {
            let at_x = (x + far * right * self.scale).clamp(0.0, last) as usize;
            let at_y = (y - far * up * self.scale).clamp(0.0, last) as usize;
            let before = depth - far * near - self.raster.depth[at_y * self.side + at_x];
            before > 0.03 + 0.05 * far && before < 0.9
        })
    }
}

/// How far from a point it is looked for what shades it: from 0.06 to 1.5, each 1.281 times as far as the last.
const STEPS: [f32; 14] = [
    0.06, 0.0769, 0.0985, 0.1261, 0.1615, 0.2069, 0.2650, 0.3395, 0.4349, 0.5571, 0.7137, 0.9142,
    1.171, 1.5,
];

/// The light of a stored value.
pub(crate) fn linear(value: u8) -> f32 {
    libm::powf(f32::from(value) / 255.0, GAMMA)
}

impl Picture {
    /// Pixels of a side.
    pub fn size(&self) -> usize {
        self.rgb.width() as usize
    }

    /// Where a point of the surface is in this picture, and whether it is seen there.
    pub(crate) fn place(&self, head: &Head, triangle: u32, weights: [f32; 3]) -> Match {
        let corners = head.triangles[triangle as usize].map(|at| self.points[at as usize]);
        let mut sum = V3::zeros();
        for (corner, weight) in corners.iter().zip(weights) {
            sum += V3::new(corner.x * corner.z, corner.y * corner.z, corner.z) * weight;
        }
        let (x, y) = (sum.x / sum.z, sum.y / sum.z);
        let [a, b, c] = corners;
        let faces = (b - a).xy().perp(&(c - a).xy()) < 0.0;
        let faces = faces || head.materials[triangle as usize].two_sided();
        Match { place: [x, y], visible: faces && self.shows(x, y, sum.z) }
    }

    fn shows(&self, x: f32, y: f32, depth: f32) -> bool {
        let side = self.size() * FINE;
        let [x, y] = [x, y].map(|at| (at * FINE as f32).floor());
        let inside = |at: f32| at >= 0.0 && at < side as f32;
        inside(x)
            && inside(y)
            && (self.depth[y as usize * side + x as usize] - depth).abs() < self.tolerance
    }
}
