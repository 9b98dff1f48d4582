//! Hair that hangs: a net around the skull.

use std::f32::consts::{FRAC_PI_2, PI};

use super::{CHIN, CROWN, Head};
use crate::Random;
use crate::paint::Marks;
use crate::shape::{V3, extent, step};

const MERIDIANS: usize = 72;
const CIRCLES: usize = 22;

/// How many vertices the net has.
pub(crate) const COUNT: usize = MERIDIANS * CIRCLES;

/// Of each point of the net: its angle from the front, and where it is from the crown, 0, to the end, 1.
pub(crate) fn net() -> impl Iterator<Item = (f32, f32)> {
    let part = |at: usize, of: usize| at as f32 / (of - 1) as f32;
    let point = move |at| {
        (PI * (2.0 * part(at % MERIDIANS, MERIDIANS) - 1.0), part(at / MERIDIANS, CIRCLES))
    };
    (0..COUNT).map(point)
}

pub(crate) fn triangles() -> Vec<[u32; 3]> {
    let cells = (0..CIRCLES - 1)
        .flat_map(|circle| (0..MERIDIANS - 1).map(move |meridian| (circle, meridian)));
    let halves = |(circle, meridian): (usize, usize)| {
        let a = (circle * MERIDIANS + meridian) as u32;
        let (b, c) = (a + 1, a + MERIDIANS as u32);
        [[a, c, b], [b, c, c + 1]]
    };
    cells.flat_map(halves).collect()
}

/// How hair hangs; heights are those of a head that no target has moved.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Style {
    /// Where it ends.
    end: f32,
    /// Where it ends on the forehead, and how fast it falls away from there to the sides.
    fringe: f32,
    sweep: f32,
    /// The angle at which it parts.
    parting: f32,
    /// The angle from the front at which it begins to hang down.
    open: f32,
    thick: f32,
    /// How much it stands out at the end, and turns in.
    flare: f32,
    curl: f32,
}

impl Style {
    pub(crate) fn random(random: &mut Random, is_long: bool) -> Self {
        let fringed = random.chance(0.4);
        let (low, high) = if is_long { (4.9, 5.5) } else { (6.25, 6.55) };
        Self {
            end: random.uniform(low, high),
            fringe: if fringed { 7.70 } else { 8.12 },
            sweep: if fringed { 0.0 } else { 0.55 },
            parting: random.uniform(-0.5, 0.5),
            open: random.uniform(0.6, 0.85),
            thick: random.uniform(0.13, 0.2),
            flare: random.uniform(0.0, 0.12),
            curl: if is_long { 0.03 } else { 0.12 },
        }
    }

    /// Points of the net for hair that follows the skull from the crown and then hangs down, but not over the face. `points` are
    /// the vertices of the head.
    pub(crate) fn hanging(&self, head: &Head, points: &[V3]) -> Vec<V3> {
        let (lowest, highest) = extent(head.skull.iter().map(|at| points[*at]));
        let (chin, crown) = (lowest.y, highest.y);
        let size = (crown - chin) / (CROWN - CHIN);
        let covered = |marks: &Marks| marks.skin > 0.0 && marks.hair(0.25).1 > 0.5;
        let scalp = points.iter().zip(&head.marks).filter(|(_, marks)| covered(marks));
        let (low, high) = extent(scalp.map(|(point, _)| *point));
        let (middle, half) = ((high + low) / 2.0, (high - low) / 2.0 + V3::repeat(self.thick));
        // Along a quarter of a circle from the crown to the belt, then down.
        let (belt, top) = (crown - 0.75 * size, crown + self.thick + 0.03);
        let quarter = (top - belt) * FRAC_PI_2;
        let point = |(angle, part): (f32, f32)| {
            let end = chin + (self.end_at(angle) - CHIN) * size;
            let above = ((end - belt) / (top - belt)).clamp(0.0, 1.0);
            let length = quarter * libm::acosf(above) / FRAC_PI_2 + (belt - end).max(0.0);
            let turn = (part * length / quarter).min(1.0) * FRAC_PI_2;
            let below = (part * length - quarter).max(0.0);
            let wide =
                libm::powf(libm::sinf(turn), 0.75) + self.flare * below - self.curl * below * below;
            let ripple =
                0.025 * libm::sinf(9.0 * angle + self.parting) * step(part * length, 0.4, 1.5);
            let wide = wide * (1.0 + ripple);
            let height = libm::powf(libm::cosf(turn).max(0.0), 0.85);
            V3::new(
                middle.x + half.x * wide * libm::sinf(angle),
                belt + (top - belt) * height - below,
                middle.z + half.z * wide * libm::cosf(angle),
            )
        };
        net().map(point).collect()
    }

    /// The height at which hair ends, by the angle.
    fn end_at(&self, angle: f32) -> f32 {
        let aside = (angle - self.parting * step(-angle.abs(), -1.0, 0.0)).abs();
        let forehead = self.fringe - self.sweep * aside * aside;
        self.end + (forehead - self.end) * (1.0 - step(angle.abs(), self.open, self.open + 0.3))
    }
}
