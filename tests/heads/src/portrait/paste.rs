//! Faces that are put into references, without a network: what portraits have to be better than.

use std::array::from_fn;

use image::{GrayImage, Rgb, RgbImage};

use super::face::sums;
use super::pair::Pair;
use crate::light::luminances;
use crate::{Head, View, render};

/// Half a side of the squares over which luminance is averaged, as a part of the picture's: these are of 9x9 pixels at 64x64.
const AROUND: f64 = 0.0625;
/// How much lighter or darker a face becomes at most.
const RATIOS: [f64; 2] = [0.15, 3.0];
/// What divides is not below this, which is less than any difference of stored values.
const FAINT: f64 = 1e-6;

/// Stored values of red, green and blue, 0 to 255, before they are rounded.
type Colour = [f64; 3];

impl Pair {
    /// Draws the person in the pose, expression and place of the reference but in the even light of the profile, and puts their face into the
    /// reference where its mask is ([`face_mask`](crate::face_mask)): as it is; with the mean and standard deviation that each channel has in
    /// the reference's face; and with luminance, averaged over squares of 9x9 pixels at 64x64 of the face, as in the reference's. Where the mask
    /// is 0, they are the reference.
    ///
    /// # Panics
    /// If the reference or the mask is of another size than the pair.
    pub fn pasted(&self, head: &Head, reference: &RgbImage, mask: &GrayImage) -> [RgbImage; 3] {
        let size = (self.size, self.size);
        assert_eq!((reference.dimensions(), mask.dimensions()), (size, size), "the pair's size");
        let [person, _] = self.people(head);
        let view = View { light: self.profile_view.light, ..self.reference_view.clone() };
        let drawn = render(head, &person, &view, self.size as usize).rgb;
        [colours(&drawn), toned(&drawn, reference, mask), lit(&drawn, reference, mask)]
            .map(|face| put(reference, &face, mask))
    }
}

fn colours(picture: &RgbImage) -> Vec<Colour> {
    picture.pixels().map(|pixel| pixel.0.map(f64::from)).collect()
}

/// How much each pixel counts, 0 to 1.
fn parts(mask: &GrayImage) -> impl Iterator<Item = f64> {
    mask.iter().map(|value| f64::from(*value) / 255.0)
}

/// A face with the mean and standard deviation that each channel has in another.
fn toned(face: &RgbImage, like: &RgbImage, mask: &GrayImage) -> Vec<Colour> {
    let moments = |picture: &RgbImage, channel: usize| {
        let mean = |value: &dyn Fn(f64) -> f64| {
            let pixels = picture.pixels().map(|pixel| value(f64::from(pixel.0[channel])));
            let sum: f64 = pixels.zip(parts(mask)).map(|(value, part)| value * part).sum();
            sum / parts(mask).sum::<f64>().max(FAINT)
        };
        let middle = mean(&|value| value);
        (middle, mean(&|value| (value - middle) * (value - middle)).sqrt())
    };
    let tones: [_; 3] = from_fn(|channel| (moments(face, channel), moments(like, channel)));
    let brought = |colour: Colour| {
        from_fn(|channel| {
            let ((mean, deviation), (asked, to_deviation)) = tones[channel];
            (colour[channel] - mean) * to_deviation / deviation.max(FAINT) + asked
        })
    };
    colours(face).into_iter().map(brought).collect()
}

/// A face with luminance, averaged over squares, as in another.
fn lit(face: &RgbImage, like: &RgbImage, mask: &GrayImage) -> Vec<Colour> {
    let side = face.width() as usize;
    let radius = (AROUND * side as f64).round() as usize;
    // Both are divided by as much of the mask.
    let averaged = |picture: &RgbImage| {
        let light: Vec<f64> =
            luminances(picture).zip(parts(mask)).map(|(light, part)| light * part).collect();
        sums(&light, side, radius)
    };
    let ratios = averaged(like).into_iter().zip(averaged(face));
    let ratios = ratios.map(|(asked, own)| (asked / own.max(FAINT)).clamp(RATIOS[0], RATIOS[1]));
    let relit = |(colour, ratio): (Colour, f64)| colour.map(|value| value * ratio);
    colours(face).into_iter().zip(ratios).map(relit).collect()
}

/// A face in the place of another, as far as the mask says.
fn put(reference: &RgbImage, face: &[Colour], mask: &GrayImage) -> RgbImage {
    let mut made = reference.clone();
    for ((pixel, colour), part) in made.pixels_mut().zip(face).zip(parts(mask)) {
        let mixed = |channel: usize| {
            let behind = f64::from(pixel.0[channel]);
            (behind + part * (colour[channel].clamp(0.0, 255.0) - behind)).round() as u8
        };
        *pixel = Rgb(from_fn(mixed));
    }
    made
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::portrait::face::face_mask;
    use crate::{HEAD, Identity, Light};

    /// Two people in different light, and the mask of the second.
    fn two() -> ([RgbImage; 2], GrayImage) {
        let head = Head::open(HEAD).unwrap();
        let front = View::default();
        let light = Light { direction: [-0.8, 0.0, 0.6], ..front.light };
        let aside = View { light, ..front.clone() };
        let [a, b] = [(1, &front), (2, &aside)]
            .map(|(number, view)| render(&head, &Identity::numbered(&head, 4, number), view, 64));
        let mask = face_mask(&head, &b);
        ([a.rgb, b.rgb], mask)
    }

    #[test]
    fn a_face_brought_to_its_own_tone_and_light_stays() {
        let ([_, b], mask) = two();
        for face in [toned(&b, &b, &mask), lit(&b, &b, &mask)] {
            assert!(put(&b, &face, &mask) == b);
        }
    }

    #[test]
    fn tones_become_those_of_the_other() {
        let ([a, b], mask) = two();
        let face = toned(&a, &b, &mask);
        let moments = |face: &[Colour], channel: usize| {
            let of = |power: i32| -> f64 {
                let all = face.iter().zip(parts(&mask));
                all.map(|(colour, part)| part * colour[channel].powi(power)).sum()
            };
            [of(1), of(2)].map(|sum| sum / parts(&mask).sum::<f64>())
        };
        for channel in 0..3 {
            let (made, asked) = (moments(&face, channel), moments(&colours(&b), channel));
            assert!(made.iter().zip(asked).all(|(made, asked)| (made - asked).abs() < 1e-6));
        }
    }

    /// Whatever the mask, and however light is cut.
    #[test]
    fn what_is_of_one_colour_gets_the_luminance_of_the_other() {
        let (_, mask) = two();
        let gray = |value: u8| RgbImage::from_pixel(64, 64, Rgb([value; 3]));
        for (own, asked, made) in
            [(80, 120, 120.0), (200, 60, 60.0), (20, 250, 60.0), (200, 10, 30.0), (0, 9, 0.0)]
        {
            let face = lit(&gray(own), &gray(asked), &mask);
            for (colour, _) in face.iter().zip(parts(&mask)).filter(|(_, part)| *part > 0.0) {
                assert!((colour[0] - made).abs() < 1e-3, "{own} {asked} {colour:?}");
            }
        }
    }

    #[test]
    fn the_mask_says_how_much_is_put() {
        let ([a, b], mask) = two();
        let whole = put(&b, &colours(&a), &mask);
        for ((made, (a, b)), mask) in
            whole.pixels().zip(a.pixels().zip(b.pixels())).zip(mask.iter())
        {
            let between = |channel: usize| {
                let [made, a, b] = [made, a, b].map(|pixel| pixel.0[channel]);
                (a.min(b)..=a.max(b)).contains(&made)
            };
            match mask {
                0 => assert_eq!(made, b),
                255 => assert_eq!(made, a),
                _ => assert!((0..3).all(between)),
            }
        }
    }
}
