//! What is measured of a portrait.

use std::collections::{BTreeMap, BTreeSet};

use image::RgbImage;
use image::imageops::{FilterType, resize};
use nalgebra::DVector;
use rayon::prelude::*;
use serde::Serialize;

use super::pair::{MOST_PEOPLE, Pair, YAW};
use crate::head::Material;
use crate::light::luminance;
use crate::metric::is_inner_face;
use crate::metric::report::SIDE;
use crate::paint::Marks;
use crate::{
    Head, Identity, Picture, Protocol, Recogniser, Sample, View, angle, light_of, render,
    similarity,
};

/// Half a side of the squares over which luminance is averaged, which are of 9x9 pixels.
const AROUND: usize = 4;
/// Added to each channel before shares are taken, so that black is gray.
const FAINT: f64 = 0.02;

/// A measure of a portrait. All are taken at 64x64 pixels; of stored values from 0 to 1; and, where the face is meant, in the pixels where the
/// truth shows the inner face.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Likeness to the person, of whom another picture is known, from the front and in even light.
    SimA,
    /// Likeness to the other person, as the reference shows them.
    SimB,
    /// 1 if of all people of the pairs the person is the likest, else 0.
    #[serde(rename = "rank_1")]
    Rank1,
    /// Mean distance of luminance in the face from that of the truth, both averaged over squares of 9x9 pixels.
    Luminance,
    /// 1 if the half of the face that is lighter is that of the truth, else 0: whether the logarithms of the ratios have one sign.
    LitSide,
    /// The angle between the directions of light that are found in the face ([`light_of`]) and in that of the truth, in degrees.
    LightDirection,
    /// Mean distance of the shares of red, green and blue in the face from those of the truth; how light it is does not count.
    Chroma,
}

/// What was measured; without what could not be.
pub type Measured = BTreeMap<Measure, f64>;

/// Measures portraits of some pairs.
#[derive(Debug)]
pub struct Judge<'h> {
    head: &'h Head,
    recogniser: Recogniser,
    /// Of each person of the pairs, by seed and number.
    gallery: BTreeMap<(u64, u64), DVector<f64>>,
}

impl<'h> Judge<'h> {
    /// Learns to tell people apart from others than those of pairs, in views as theirs. None if the head shows too little.
    pub fn new(head: &'h Head, pairs: &[Pair]) -> Option<Self> {
        let front = View::default();
        let asked = || pairs.iter().map(|pair| &pair.reference_view);
        let protocol = Protocol {
            first: 2 * MOST_PEOPLE,
            yaw: YAW,
            tilted: asked().any(|view| (view.pitch, view.roll) != (0.0, 0.0)),
            expressions: asked().any(|view| view.units != front.units),
            ..Protocol::default()
        };
        let recogniser = protocol.recogniser(head)?;
        let both = |pair: &Pair| {
            [pair.identity, pair.reference_identity].map(|number| (pair.seed, number))
        };
        let people: BTreeSet<(u64, u64)> = pairs.iter().flat_map(both).collect();
        let known = |(seed, number)| {
            let picture = render(head, &Identity::numbered(head, seed, number), &front, SIDE).rgb;
            ((seed, number), recogniser.read(&picture, &front))
        };
        let gallery = people.into_par_iter().map(known).collect();
        Some(Self { head, recogniser, gallery })
    }

    /// Measures what was made for one of these pairs.
    ///
    /// # Panics
    /// If the pair is none of them, or its size is 0 or above [`MOST_PIXELS`](crate::MOST_PIXELS).
    pub fn measured(&self, pair: &Pair, made: &RgbImage) -> Measured {
        let view = &pair.reference_view;
        let [person, other] = pair.people(self.head);
        let drawn = |who: &Identity, size: u32| render(self.head, who, view, size as usize);
        let [made, reference, truth] = [
            resized(made),
            resized(&drawn(&other, pair.size).rgb),
            resized(&drawn(&person, pair.size).rgb),
        ];
        let mut known = drawn(&person, SIDE as u32);
        let code = self.recogniser.read(&made, view);
        let own = (pair.seed, pair.identity);
        let sim_a = similarity(&code, &self.gallery[&own]);
        let mut others = self.gallery.iter().filter(|(person, _)| **person != own);
        let first = others.all(|(_, other)| similarity(&code, other) < sim_a);
        let face = Face::of(self.head, &known);
        // Beyond the face, hair that is not quite that of the truth would count as skin in the dark.
        for (sample, half) in known.samples.iter_mut().zip(&face.0) {
            *sample = sample.filter(|_| half.is_some());
        }
        let found = |picture: &RgbImage| light_of(picture, &known);
        let light = found(&made).zip(found(&truth)).map(|(made, truth)| angle(made, truth));
        let measures = [
            (Measure::SimA, Some(sim_a)),
            (Measure::SimB, Some(similarity(&code, &self.recogniser.read(&reference, view)))),
            (Measure::Rank1, Some(f64::from(u8::from(first)))),
            (Measure::Luminance, face.luminance_error(&made, &truth)),
            (Measure::LitSide, face.same_side_is_lit(&made, &truth)),
            (Measure::LightDirection, light.map(f64::from)),
            (Measure::Chroma, face.chroma_error(&made, &truth)),
        ];
        measures.into_iter().filter_map(|(measure, value)| Some((measure, value?))).collect()
    }
}

/// At the size at which is measured; smaller with antialiasing.
fn resized(picture: &RgbImage) -> RgbImage {
    resize(picture, SIDE as u32, SIDE as u32, FilterType::CatmullRom)
}

/// Where the inner face is: of each pixel, row by row, whether it shows the face's half with x below 0, or the other; or none.
struct Face(Vec<Option<bool>>);

impl Face {
    fn of(head: &Head, known: &Picture) -> Self {
        let half = |sample: &Option<Sample>| {
            let Sample { material, triangle, weights, .. } = (*sample)?;
            let corners = head.triangles[triangle as usize].map(|at| &head.marks[at as usize]);
            let rest = Marks::between(corners, weights).rest;
            let bare = !matches!(material, Material::Hair | Material::Cloth);
            (bare && is_inner_face(rest)).then_some(rest.x < 0.0)
        };
        Self(known.samples.iter().map(half).collect())
    }

    /// The pixels of the face.
    fn pixels(&self) -> impl Iterator<Item = usize> {
        (0..self.0.len()).filter(|at| self.0[*at].is_some())
    }

    fn luminance_error(&self, made: &RgbImage, truth: &RgbImage) -> Option<f64> {
        let apart: Vec<f64> =
            light(made).zip(light(truth)).map(|(made, truth)| made - truth).collect();
        mean(self.pixels().filter_map(|at| {
            let near = square(at).filter(|near| self.0[*near].is_some());
            Some(mean(near.map(|near| apart[near]))?.abs())
        }))
    }

    fn same_side_is_lit(&self, made: &RgbImage, truth: &RgbImage) -> Option<f64> {
        let lighter = |picture: &RgbImage| {
            let light: Vec<f64> = light(picture).collect();
            let half = |side: bool| {
                mean(self.pixels().filter(|at| self.0[*at] == Some(side)).map(|at| light[at]))
            };
            Some(half(true)?.total_cmp(&half(false)?))
        };
        Some(f64::from(u8::from(lighter(made)? == lighter(truth)?)))
    }

    fn chroma_error(&self, made: &RgbImage, truth: &RgbImage) -> Option<f64> {
        let apart: Vec<f64> = made
            .pixels()
            .zip(truth.pixels())
            .map(|(made, truth)| {
                let (made, truth) = (shares(made.0), shares(truth.0));
                (0..3).map(|channel| (made[channel] - truth[channel]).abs()).sum::<f64>() / 3.0
            })
            .collect();
        mean(self.pixels().map(|at| apart[at]))
    }
}

/// The luminance of each pixel, of stored values.
fn light(picture: &RgbImage) -> impl Iterator<Item = f64> {
    picture
        .pixels()
        .map(|pixel| f64::from(luminance(pixel.0.map(|value| f32::from(value) / 255.0))))
}

/// Of the sum of a colour's channels.
fn shares(colour: [u8; 3]) -> [f64; 3] {
    let parts = colour.map(|value| f64::from(value) / 255.0 + FAINT);
    parts.map(|part| part / parts.iter().sum::<f64>())
}

/// The pixels around one, itself included.
fn square(at: usize) -> impl Iterator<Item = usize> {
    let range = |middle: usize| middle.saturating_sub(AROUND)..(middle + AROUND + 1).min(SIDE);
    range(at / SIDE).flat_map(move |row| range(at % SIDE).map(move |column| row * SIDE + column))
}

/// None of no values.
fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (count, sum) = values.fold((0.0, 0.0), |(count, sum), value| (count + 1.0, sum + value));
    (count > 0.0).then(|| sum / count)
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;
    use crate::HEAD;

    /// A face, and a picture of it.
    fn face() -> (Face, RgbImage) {
        let head = Head::open(HEAD).unwrap();
        let picture = render(&head, &Identity::mean(&head), &View::default(), SIDE);
        (Face::of(&head, &picture), picture.rgb)
    }

    fn changed(picture: &RgbImage, change: impl Fn(u32, u8) -> u8) -> RgbImage {
        RgbImage::from_fn(picture.width(), picture.height(), |x, y| {
            Rgb(picture.get_pixel(x, y).0.map(|value| change(x, value)))
        })
    }

    #[test]
    fn the_face_is_in_the_middle_and_its_halves_are_alike() {
        let (face, _) = face();
        let of = |side: bool| face.0.iter().filter(|half| **half == Some(side)).count();
        assert!((200..600).contains(&of(true)) && of(true).abs_diff(of(false)) < 30);
        assert!(face.pixels().all(|at| (12..52).contains(&(at / SIDE))));
        assert!(face.pixels().all(|at| (12..52).contains(&(at % SIDE))));
    }

    #[test]
    fn what_is_lighter_everywhere_is_off_by_that_much() {
        let (face, picture) = face();
        let lighter = changed(&picture, |_, value| value.saturating_add(10));
        assert!((face.luminance_error(&lighter, &picture).unwrap() - 10.0 / 255.0).abs() < 1e-6);
        assert_eq!(face.luminance_error(&picture, &picture), Some(0.0));
    }

    /// A pattern finer than the squares is no error of light.
    #[test]
    fn fine_patterns_count_little() {
        let (face, picture) = face();
        let striped = |by: u8| {
            changed(&picture, move |x, value| if x % 2 == 0 { value - by } else { value + by })
        };
        assert!(face.luminance_error(&striped(20), &picture).unwrap() < 20.0 / 255.0 / 5.0);
    }

    #[test]
    fn half_as_bright_is_no_error_of_chroma() {
        let (face, picture) = face();
        let darker = changed(&picture, |_, value| value / 2);
        let gray = changed(&picture, |_, _| 128);
        let error = |made: &RgbImage| face.chroma_error(made, &picture).unwrap();
        assert!(
            error(&darker) < 0.015 && error(&gray) > 0.05,
            "{} {}",
            error(&darker),
            error(&gray)
        );
        assert_eq!(error(&picture), 0.0);
    }

    #[test]
    fn the_mirrored_light_is_on_the_other_side() {
        let (face, picture) = face();
        let lit = changed(&picture, |x, value| if x < 32 { value } else { value / 2 });
        let other = changed(&picture, |x, value| if x < 32 { value / 2 } else { value });
        assert_eq!(face.same_side_is_lit(&lit, &lit), Some(1.0));
        assert_eq!(face.same_side_is_lit(&other, &lit), Some(0.0));
    }
}
