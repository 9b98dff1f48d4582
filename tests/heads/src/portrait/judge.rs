//! What is measured of a portrait.

use std::collections::{BTreeMap, BTreeSet};

use image::imageops::{FilterType, resize};
use image::{GrayImage, ImageBuffer, Pixel, RgbImage};
use nalgebra::DVector;
use rayon::prelude::*;
use serde::Serialize;

use super::face::{face_mask, halves};
use super::pair::{MOST_PEOPLE, Pair, YAW};
use crate::light::luminances;
use crate::metric::report::SIDE;
use crate::{Head, Identity, Protocol, Recogniser, View, angle, light_of, render, similarity};

/// Half a side of the squares over which luminance is averaged, which are of 9x9 pixels.
const AROUND: usize = 4;
/// Added to each channel before shares are taken, so that black is gray.
const FAINT: f64 = 0.02;
/// Where a mask is between these, of 1, is its border.
const BORDER: [f64; 2] = [0.05, 0.95];

/// A measure of a portrait. All but the last are taken at 64x64 pixels; of stored values from 0 to 1; and, where the face is meant, in the pixels
/// where the truth shows the inner face. The mask is that of the reference's face ([`face_mask`]), drawn again.
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
    /// Mean magnitude of the gradient of luminance, by pixel, on the border of the mask: where it is between 0.05 and 0.95.
    Seam,
    /// Largest difference from the reference outside of the mask, where it is 0: of any channel, of stored values from 0 to 255, at the size
    /// of the pair.
    Background,
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
            yaw: asked().map(|view| view.yaw.abs()).fold(YAW, f32::max),
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
        let [reference, truth] = [&other, &person].map(|who| drawn(who, pair.size));
        let mask = face_mask(self.head, &reference);
        let background = background_error(made, &reference.rgb, &mask);
        let [made, reference, truth] = [made, &reference.rgb, &truth.rgb].map(resized);
        let mut known = drawn(&person, SIDE as u32);
        let code = self.recogniser.read(&made, view);
        let own = (pair.seed, pair.identity);
        let sim_a = similarity(&code, &self.gallery[&own]);
        let mut others = self.gallery.iter().filter(|(person, _)| **person != own);
        let first = others.all(|(_, other)| similarity(&code, other) < sim_a);
        let face = Face(halves(self.head, &known));
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
            (Measure::Seam, seam(&made, &resized(&mask))),
            (Measure::Background, background),
        ];
        measures.into_iter().filter_map(|(measure, value)| Some((measure, value?))).collect()
    }
}

/// At the size at which is measured; smaller with antialiasing.
fn resized<P>(picture: &ImageBuffer<P, Vec<u8>>) -> ImageBuffer<P, Vec<u8>>
where
    P: Pixel<Subpixel = u8> + 'static,
{
    resize(picture, SIDE as u32, SIDE as u32, FilterType::CatmullRom)
}

/// Where the inner face is: of each pixel, row by row, whether it shows the face's half with x below 0, or the other; or none.
struct Face(Vec<Option<bool>>);

impl Face {
    /// The pixels of the face.
    fn pixels(&self) -> impl Iterator<Item = usize> {
        (0..self.0.len()).filter(|at| self.0[*at].is_some())
    }

    fn luminance_error(&self, made: &RgbImage, truth: &RgbImage) -> Option<f64> {
        let apart: Vec<f64> =
            luminances(made).zip(luminances(truth)).map(|(made, truth)| made - truth).collect();
        mean(self.pixels().filter_map(|at| {
            let near = square(at).filter(|near| self.0[*near].is_some());
            Some(mean(near.map(|near| apart[near]))?.abs())
        }))
    }

    fn same_side_is_lit(&self, made: &RgbImage, truth: &RgbImage) -> Option<f64> {
        let lighter = |picture: &RgbImage| {
            let light: Vec<f64> = luminances(picture).collect();
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

/// Of the border of a mask; none if it has no border.
fn seam(made: &RgbImage, mask: &GrayImage) -> Option<f64> {
    let light: Vec<f64> = luminances(made).collect();
    let apart = |at: usize, place: usize, step: usize| {
        let (back, on) = (place.min(1), (SIDE - 1 - place).min(1));
        (light[at + on * step] - light[at - back * step]) / (on + back) as f64
    };
    let steep = |at: usize| apart(at, at % SIDE, 1).hypot(apart(at, at / SIDE, SIDE));
    let [low, high] = BORDER.map(|part| 255.0 * part);
    let fades = |value: u8| (low..=high).contains(&f64::from(value));
    mean(mask.iter().enumerate().filter(|(_, value)| fades(**value)).map(|(at, _)| steep(at)))
}

/// None if the sizes differ, or the mask is 0 nowhere.
fn background_error(made: &RgbImage, reference: &RgbImage, mask: &GrayImage) -> Option<f64> {
    if made.dimensions() != reference.dimensions() {
        return None;
    }
    let pixels = made.pixels().zip(reference.pixels()).zip(mask.iter());
    let outside = pixels.filter(|(_, mask)| **mask == 0);
    let apart = outside.flat_map(|((made, reference), _)| {
        made.0.into_iter().zip(reference.0).map(|(made, reference)| made.abs_diff(reference))
    });
    apart.max().map(f64::from)
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
    use image::{Luma, Rgb};

    use super::*;
    use crate::HEAD;

    /// A face, and a picture of it.
    fn face() -> (Face, RgbImage) {
        let head = Head::open(HEAD).unwrap();
        let picture = render(&head, &Identity::mean(&head), &View::default(), SIDE);
        (Face(halves(&head, &picture)), picture.rgb)
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

    /// Half of the picture is lighter, so that the slope over two pixels is half of the step.
    #[test]
    fn a_seam_is_as_steep_as_the_step_on_it() {
        let stepped = RgbImage::from_fn(64, 64, |x, _| Rgb([if x < 32 { 50 } else { 101 }; 3]));
        let at = |column: u32| {
            let mask = GrayImage::from_fn(64, 64, |x, _| Luma([if x == column { 128 } else { 0 }]));
            seam(&stepped, &mask).unwrap()
        };
        assert!((at(31) - 0.1).abs() < 1e-6 && (at(32) - 0.1).abs() < 1e-6);
        assert!([0, 30, 33, 63].map(at) == [0.0; 4]);
        assert_eq!(seam(&stepped, &GrayImage::from_pixel(64, 64, Luma([255]))), None);
    }

    #[test]
    fn the_background_is_off_by_the_most_that_any_channel_is() {
        let reference = RgbImage::from_pixel(4, 4, Rgb([100, 100, 100]));
        let mask = GrayImage::from_fn(4, 4, |x, _| Luma([if x == 0 { 0 } else { 1 }]));
        let mut made = reference.clone();
        made.put_pixel(1, 1, Rgb([0, 255, 0]));
        assert_eq!(background_error(&made, &reference, &mask), Some(0.0));
        made.put_pixel(0, 1, Rgb([101, 97, 100]));
        assert_eq!(background_error(&made, &reference, &mask), Some(3.0));
        assert_eq!(background_error(&RgbImage::new(4, 5), &reference, &mask), None);
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
