//! What is painted on surfaces: skin, brows, lips, beards, irises, strands of hair.
//!
//! It is placed by where a point is before any target moves it: x to the side, y up, z to the front; the eyes are at y = 7.28.

use crate::head::Material;
use crate::identity::Paint;
use crate::shape::{V3, along, bump, mixed, step, unit};
use crate::{Head, View};

/// The height at which hair begins, by the angle from the front; it falls before the ears, which are from 1.0 to 1.4.
const HAIRLINE: [(f32, f32); 11] = [
    (0.0, 7.99),
    (0.5, 7.97),
    (0.7, 7.88),
    (0.82, 7.66),
    (0.9, 7.2),
    (1.0, 7.05),
    (1.45, 7.05),
    (1.6, 6.85),
    (2.0, 6.65),
    (2.5, 6.48),
    (3.15, 6.42),
];
// Heights by the distance from the middle of the face.
const BROWS: [(f32, f32); 5] =
    [(0.10, 7.555), (0.25, 7.59), (0.40, 7.61), (0.52, 7.595), (0.62, 7.54)];
const BEARD_TOP: [(f32, f32); 6] =
    [(0.0, 6.46), (0.16, 6.47), (0.30, 6.64), (0.5, 6.72), (0.65, 6.95), (0.75, 7.3)];
/// From a point to another, how wide and how deep.
const WRINKLES: [([f32; 4], f32, f32); 4] = [
    ([0.17, 6.86, 0.34, 6.60], 0.03, 1.0),
    ([0.15, 7.14, 0.42, 7.12], 0.03, 0.9),
    ([0.0, 7.78, 0.37, 7.79], 0.018, 0.7),
    ([0.0, 7.88, 0.37, 7.89], 0.018, 0.7),
];

/// What is told once of a vertex.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Marks {
    /// Where it is before any target moves it.
    pub(crate) rest: V3,
    /// 1 on skin, 0 elsewhere; ears, lips, eyelids, the inside of the mouth and where a beard grows are from 0 to 1.
    pub(crate) skin: f32,
    pub(crate) ears: f32,
    pub(crate) lips: f32,
    pub(crate) eyelids: f32,
    pub(crate) inside: f32,
    pub(crate) beard: f32,
}

impl Marks {
    /// Those of a point of a triangle.
    pub(crate) fn between(corners: [&Self; 3], weights: [f32; 3]) -> Self {
        let [a, b, c] = corners;
        let sum = |value: fn(&Self) -> f32| {
            value(a) * weights[0] + value(b) * weights[1] + value(c) * weights[2]
        };
        Self {
            rest: a.rest * weights[0] + b.rest * weights[1] + c.rest * weights[2],
            skin: sum(|marks| marks.skin),
            ears: sum(|marks| marks.ears),
            lips: sum(|marks| marks.lips),
            eyelids: sum(|marks| marks.eyelids),
            inside: sum(|marks| marks.inside),
            beard: sum(|marks| marks.beard),
        }
    }

    /// How far a point of the skin is above the hairline, and how much of hair covers it. Some people's is `higher` than usual.
    pub(crate) fn hair(&self, higher: f32) -> (f32, f32) {
        let (x, y, z) = (self.rest.x.abs(), self.rest.y, self.rest.z);
        let above = y - higher - along(&HAIRLINE, libm::atan2f(x, z - 0.2));
        (above, step(above, -0.03, 0.05) * (1.0 - step(self.ears, 0.3, 0.6)) * step(y, 6.3, 6.35))
    }
}

/// How much of a beard grows at a place.
pub(crate) fn beard(rest: V3) -> f32 {
    let (x, y, z) = (rest.x.abs(), rest.y, rest.z);
    let jaw =
        step(along(&BEARD_TOP, x) - y, -0.03, 0.05) * step(y, 6.03, 6.14) * step(z, 0.45, 0.65);
    let lip = bump([(y - 6.74 + 1.1 * x * x) / 0.06]) * (1.0 - step(x, 0.27, 0.37));
    jaw.max(if z > 1.2 { lip } else { 0.0 })
}

/// Colour without light (linear, 0 to 1) and gloss of a point.
pub(crate) fn surface(
    head: &Head,
    paint: &Paint,
    view: &View,
    material: Material,
    marks: &Marks,
) -> (V3, f32) {
    let strands = |wave: f32| paint.hair * strands(marks.rest, wave);
    match material {
        Material::Teeth => (V3::new(0.8, 0.78, 0.72), 0.0),
        Material::Lash => (V3::repeat(0.02), 0.0),
        Material::Tongue => (V3::new(0.32, 0.09, 0.09), 0.0),
        Material::Cloth => (paint.cloth, 0.0),
        Material::Eye => (eye(head, paint, marks.rest, view.gaze), 0.5),
        Material::Hair => (strands(paint.wave), 0.08),
        Material::Skin => {
            let covered = if paint.hairy { marks.hair(paint.hairline).1 } else { 0.0 };
            let skin = if covered < 1.0 { skin(paint, view, marks) } else { V3::zeros() };
            let colour =
                if covered > 0.0 { mixed(skin, strands(paint.wave), covered) } else { skin };
            (colour, 0.08)
        }
    }
}

fn skin(paint: &Paint, view: &View, marks: &Marks) -> V3 {
    let (x, y, z) = (marks.rest.x.abs(), marks.rest.y, marks.rest.z);
    let tone = paint.skin;
    let times = |r, g, b| tone.component_mul(&V3::new(r, g, b));
    let mut colour = tone;
    if z > 0.8 {
        if z > 0.9 {
            let cheeks = bump([(x - 0.45) / 0.2, (y - 6.95) / 0.18])
                + 0.6 * bump([x / 0.1, (y - 6.9) / 0.1]);
            colour = mixed(colour, times(1.0, 0.72, 0.72), 0.5 * cheeks);
        }
        colour = mixed(colour, colour * 0.55, paint.wrinkles * wrinkles(x, y));
    }
    colour = mixed(colour, times(0.6, 0.48, 0.46), 0.55 * marks.eyelids);
    let lips = mixed(times(0.82, 0.50, 0.47), V3::new(0.6, 0.04, 0.09), paint.lipstick);
    colour = mixed(colour, lips, 0.9 * marks.lips);
    colour = mixed(colour, V3::new(0.16, 0.03, 0.03), marks.inside);
    if z > 0.9 && (7.0..8.2).contains(&y) {
        let apart = y - along(&BROWS, x) - view.brows * (x - 0.36);
        let wide = paint.brow * (1.2 - step(x, 0.3, 0.62));
        let brows = bump([apart / wide]) * step(x, 0.08, 0.14) * (1.0 - step(x, 0.56, 0.64));
        colour = mixed(colour, paint.hair * 0.45, 0.9 * brows);
    }
    let beard = paint.beard * marks.beard;
    if beard > 0.0 {
        mixed(colour, paint.hair * (0.75 * strands(marks.rest, 1.0)), beard)
    } else {
        colour
    }
}

fn wrinkles(x: f32, y: f32) -> f32 {
    let depth = |([x0, y0, x1, y1], wide, deep): ([f32; 4], f32, f32)| {
        let (dx, dy) = (x1 - x0, y1 - y0);
        let part = (((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy)).clamp(0.0, 1.0);
        deep * bump([(x - x0 - part * dx) / wide, (y - y0 - part * dy) / wide])
    };
    WRINKLES.map(depth).into_iter().fold(0.0, f32::max)
}

fn eye(head: &Head, paint: &Paint, rest: V3, [aside, up]: [f32; 2]) -> V3 {
    let middle = head.eyes[usize::from(rest.x > 0.0)];
    let ahead = unit(rest - middle).dot(&unit(V3::new(aside, up, 1.0)));
    let colour = mixed(V3::repeat(0.84), paint.iris, step(ahead, 0.84, 0.87));
    mixed(colour, V3::repeat(0.01), step(ahead, 0.95, 0.965))
}

/// How light a strand of hair is.
fn strands(rest: V3, wave: f32) -> f32 {
    let angle = libm::atan2f(rest.x, rest.z - 0.4);
    let bent =
        wave * (3.0 * libm::sinf(4.0 * rest.y + 2.0 * rest.x) + 2.0 * libm::sinf(9.0 * rest.y));
    0.9 + 0.13 * libm::sinf(43.0 * angle + bent) + 0.10 * libm::sinf(17.0 * angle + 0.7 * bent)
}
