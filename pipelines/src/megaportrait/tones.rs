//! The colours of one face for another, by their means and deviations in CIE L*a*b* (Reinhard et al. 2001).

use image::{Rgb, RgbImage};
use palette::{FromColor, IntoColor, Lab, Srgb};

/// Bounds of the factor on what differs from the mean: beyond, noise would be what is seen.
const FACTORS: [f32; 2] = [0.5, 2.0];
/// Least deviation that is divided by.
const FLAT: f32 = 1e-3;

/// A picture whose face has mean and deviation of another's, in each channel; `face` is how much of each pixel of both is
/// face, row by row, 0 to 1, and where it is 0 the picture stays.
pub(super) fn in_tones_of(picture: &RgbImage, reference: &RgbImage, face: &[f32]) -> RgbImage {
    let [own, other] = [picture, reference].map(|picture| Tones::of(picture, face));
    let mut changed = picture.clone();
    for (pixel, share) in changed.pixels_mut().zip(face).filter(|(_, share)| **share > 0.0) {
        let before = pixel.0.map(f32::from);
        let lab = lab(*pixel);
        let moved: [f32; 3] = std::array::from_fn(|i| {
            let factor = other.deviation[i] / own.deviation[i].max(FLAT);
            (lab[i] - own.mean[i]) * factor.clamp(FACTORS[0], FACTORS[1]) + other.mean[i]
        });
        let rgb: Srgb = Lab::new(moved[0], moved[1], moved[2]).into_color();
        let rgb = [rgb.red, rgb.green, rgb.blue].map(|value| (value * 255.0).clamp(0.0, 255.0));
        let between = |i: usize| (before[i] + (rgb[i] - before[i]) * share).round() as u8;
        pixel.0 = std::array::from_fn(between);
    }
    changed
}

fn lab(Rgb(pixel): Rgb<u8>) -> [f32; 3] {
    let [r, g, b] = pixel.map(|value| f32::from(value) / 255.0);
    let lab: Lab = Lab::from_color(Srgb::new(r, g, b));
    [lab.l, lab.a, lab.b]
}

/// Of the face in a picture.
#[derive(Debug)]
struct Tones {
    mean: [f32; 3],
    deviation: [f32; 3],
}

impl Tones {
    fn of(picture: &RgbImage, face: &[f32]) -> Self {
        let total = face.iter().sum::<f32>().max(f32::MIN_POSITIVE);
        let weighted = |value: &dyn Fn([f32; 3], usize) -> f32| -> [f32; 3] {
            let mut sum = [0.0; 3];
            for (pixel, share) in picture.pixels().zip(face).filter(|(_, share)| **share > 0.0) {
                let lab = lab(*pixel);
                sum.iter_mut().enumerate().for_each(|(i, sum)| *sum += share * value(lab, i));
            }
            sum.map(|sum| sum / total)
        };
        let mean = weighted(&|lab, i| lab[i]);
        let square = weighted(&|lab, i| (lab[i] - mean[i]).powi(2));
        Self { mean, deviation: square.map(f32::sqrt) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Soft colours, so that none is cut off.
    fn picture(base: [f32; 3], spread: f32) -> RgbImage {
        RgbImage::from_fn(16, 16, |x, y| {
            let wave = ((x * 5 + y * 3) as f32).sin();
            let other = ((x * 2 + y * 7) as f32).cos();
            Rgb([base[0] + spread * wave, base[1] + spread * other, base[2] - spread * wave]
                .map(|value| value.round() as u8))
        })
    }

    #[test]
    fn mean_and_deviation_are_those_of_the_reference() {
        let (own, other) =
            (picture([120.0, 90.0, 80.0], 12.0), picture([150.0, 130.0, 140.0], 20.0));
        let all = vec![1.0; 256];
        let found = Tones::of(&in_tones_of(&own, &other, &all), &all);
        let expected = Tones::of(&other, &all);
        for i in 0..3 {
            // Of L*, a*, b*, which go to about 100; colours of 8 bits.
            assert!((found.mean[i] - expected.mean[i]).abs() < 0.5, "{found:?}, {expected:?}");
            assert!((found.deviation[i] - expected.deviation[i]).abs() < 0.5, "{found:?}");
        }
        let same = in_tones_of(&own, &own, &all);
        assert!(same.iter().zip(own.iter()).all(|(a, b)| a.abs_diff(*b) <= 1));
        // Outside nothing changes, and what is there has no say.
        let half: Vec<f32> = (0..256).map(|i| if i % 16 < 8 { 1.0 } else { 0.0 }).collect();
        let found = in_tones_of(&own, &other, &half);
        for (x, y, pixel) in found.enumerate_pixels().filter(|(x, ..)| *x >= 8) {
            assert_eq!(pixel, own.get_pixel(x, y));
        }
        // A flat face takes the colour, and no noise is made of rounding.
        let flat = RgbImage::from_pixel(16, 16, Rgb([90, 80, 70]));
        let found = in_tones_of(&flat, &other, &all);
        assert!(found.pixels().all(|pixel| pixel == found.get_pixel(0, 0)));
    }
}
