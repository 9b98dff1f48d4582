//! How a head is seen: expression, pose, light, background.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Random;
use crate::shape::{V3, unit};

/// Expressions by the weights of their face units.
pub const EXPRESSIONS: [(&str, &[(&str, f32)]); 8] = [
    ("neutral", &[("eyeWide", 0.4), ("mouthSmile", 0.3)]),
    ("smiling", &[("eyeWide", 0.2), ("mouthSmile", 1.4), ("cheekSquint", 0.5)]),
    (
        "laughing",
        &[
            ("mouthSmile", 1.1),
            ("jawOpen", 0.65),
            ("mouthUpperUp", 0.4),
            ("eyeSquint", 0.6),
            ("cheekSquint", 0.7),
        ],
    ),
    (
        "surprised",
        &[("jawOpen", 0.7), ("browInnerUp", 1.2), ("browOuterUp", 1.2), ("eyeWide", 1.2)],
    ),
    (
        "angry",
        &[
            ("browDown", 1.4),
            ("mouthPress", 0.8),
            ("noseSneer", 0.9),
            ("eyeSquint", 0.4),
            ("mouthFrown", 0.5),
        ],
    ),
    (
        "sad",
        &[("eyeWide", 0.2), ("browInnerUp", 1.3), ("mouthFrown", 1.3), ("mouthShrugLower", 0.5)],
    ),
    ("eyes closed", &[("eyeBlink", 1.0)]),
    ("kissing", &[("eyeWide", 0.3), ("mouthPucker", 1.5), ("mouthFunnel", 0.3)]),
];

/// Where light comes from and how strong it is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Light {
    /// Where it comes from, of length 1: x to the picture's right, y up, z to the viewer.
    pub direction: [f32; 3],
    /// Of the light from there; 1 is full.
    pub strength: f32,
    /// Of light from all around.
    pub ambient: f32,
    /// Red, green and blue of the light from there.
    pub tint: [f32; 3],
}

/// How a head is seen. Left and right are those of the picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct View {
    /// To the picture's right, in degrees.
    pub yaw: f32,
    /// Down, in degrees.
    pub pitch: f32,
    /// Counter-clockwise, in degrees.
    pub roll: f32,
    /// Weights of face units, from 0 to about 1.5: `jawOpen`; `mouthSmile` for both sides, `mouthSmileLeft` for one.
    pub units: BTreeMap<String, f32>,
    /// How much brows rise to the sides beyond what face units do.
    pub brows: f32,
    /// Where the eyes look, relative to the head: aside and up, as parts of the way ahead.
    pub gaze: [f32; 2],
    /// The light.
    pub light: Light,
    /// The height of the head, as a part of the picture's.
    pub scale: f32,
    /// How far the head is right and down of the middle, as parts of the picture.
    pub shift: [f32; 2],
    /// The colour behind the head.
    pub background: [u8; 3],
}

impl Default for View {
    /// From the front, neutral, in even light, on gray.
    fn default() -> Self {
        let mut view = Self {
            yaw: 0.0,
            pitch: 0.0,
            roll: 0.0,
            units: BTreeMap::new(),
            brows: 0.0,
            gaze: [0.0, 0.0],
            light: Light {
                direction: [0.0, 0.0, 1.0],
                strength: 0.55,
                ambient: 0.48,
                tint: [1.0; 3],
            },
            scale: 0.75,
            shift: [0.0, 0.02],
            background: [150, 150, 152],
        };
        view.express("neutral", 1.0);
        view
    }
}

impl View {
    /// Sets the expression to one of [`EXPRESSIONS`], with some force; 1 is ordinary. One that is unknown is no expression.
    pub fn express(&mut self, name: &str, force: f32) {
        let units =
            EXPRESSIONS.iter().find(|(own, _)| *own == name).map_or(&[][..], |(_, units)| units);
        self.units =
            units.iter().map(|(unit, weight)| (unit.to_string(), force * weight)).collect();
        self.brows = match name {
            "angry" => 0.3,
            "sad" => -0.2,
            _ => 0.0,
        };
    }

    /// Free pose, expression and light: yaw to 60 degrees to both sides, pitch to 15, roll to 8, light from anywhere before the
    /// head. With it, the name of the expression.
    pub fn random(random: &mut Random) -> (Self, &'static str) {
        let expression = random.pick(&EXPRESSIONS).0;
        let mut view = Self {
            yaw: random.uniform(-60.0, 60.0),
            pitch: random.uniform(-15.0, 15.0),
            roll: random.uniform(-8.0, 8.0),
            gaze: [random.uniform(-0.2, 0.2), random.uniform(-0.1, 0.1)],
            light: Light::random(random),
            scale: random.uniform(0.70, 0.80),
            shift: [random.uniform(-0.03, 0.03), random.uniform(-0.01, 0.05)],
            background: [(); 3].map(|()| random.uniform(20.0, 236.0) as u8),
            ..Self::default()
        };
        view.express(expression, random.uniform(0.85, 1.1));
        (view, expression)
    }

    /// Turns a point or a direction of the head into the frame of the picture: x right, y up, z to the viewer.
    pub(crate) fn rotation(&self) -> nalgebra::Matrix3<f32> {
        let [yaw, pitch, roll] = [self.yaw, self.pitch, self.roll].map(f32::to_radians);
        let ((sy, cy), (sp, cp), (sr, cr)) =
            (libm::sincosf(yaw), libm::sincosf(pitch), libm::sincosf(roll));
        let yaw = nalgebra::Matrix3::new(cy, 0.0, sy, 0.0, 1.0, 0.0, -sy, 0.0, cy);
        let pitch = nalgebra::Matrix3::new(1.0, 0.0, 0.0, 0.0, cp, -sp, 0.0, sp, cp);
        nalgebra::Matrix3::new(cr, -sr, 0.0, sr, cr, 0.0, 0.0, 0.0, 1.0) * yaw * pitch
    }
}

impl Light {
    /// From anywhere before the head, all directions alike.
    pub fn random(random: &mut Random) -> Self {
        let warmth = random.uniform(-0.08, 0.08);
        let (z, angle) = (random.uniform(0.0, 1.0), random.uniform(0.0, std::f32::consts::TAU));
        let aside = (1.0 - z * z).sqrt();
        Self {
            direction: [aside * libm::cosf(angle), aside * libm::sinf(angle), z],
            strength: random.uniform(0.5, 1.1),
            ambient: random.uniform(0.15, 0.4),
            tint: [1.0 + warmth, 1.0, 1.0 - warmth],
        }
    }

    /// The light on a surface: `colour` without light, `normal` in the frame of the picture, and whether it is in the shade.
    pub(crate) fn on(&self, colour: V3, gloss: f32, normal: V3, shaded: bool) -> V3 {
        let direction = V3::from(self.direction);
        let facing = normal.dot(&direction);
        let reached = if shaded { 0.25 } else { 1.0 };
        let direct = self.strength * ((facing + 0.15) / 1.15).clamp(0.0, 1.0) * reached;
        let around =
            self.ambient * (0.8 + 0.35 * normal.y) * (0.65 + 0.35 * normal.z.clamp(0.0, 1.0));
        let lit = colour.component_mul(&(V3::repeat(around) + V3::from(self.tint) * direct));
        if facing <= 0.0 || shaded {
            return lit;
        }
        let halfway = unit(direction + V3::z());
        // Not `powi`, whose rounding is not the same everywhere: four squares.
        let shine = (0..4).fold(normal.dot(&halfway).clamp(0.0, 1.0), |power, _| power * power);
        lit + V3::repeat(self.strength * gloss * shine)
    }
}
