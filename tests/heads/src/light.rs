//! Where the light of a picture comes from, told from the picture.

use image::RgbImage;
use nalgebra::{Matrix4, Vector4};

use crate::head::Material;
use crate::picture::linear;
use crate::shape::V3;
use crate::{Picture, Sample};

/// Colours darker than this without light say little about it.
const DARK: f32 = 0.02;

/// The direction of light in `picture`, of length 1: x to the picture's right, y up, z to the viewer. Spherical harmonics of the first order
/// are fitted by least squares to how light the skin is, as a part of how light it would be in full light; which skin is where is known from
/// `known`, a picture of the same person, pose and size in any light. None if there is too little skin, or no direction.
///
/// # Panics
/// If the sizes differ.
pub fn light_of(picture: &RgbImage, known: &Picture) -> Option<[f32; 3]> {
    assert_eq!(picture.dimensions(), known.rgb.dimensions(), "pictures of one size");
    let (mut squares, mut products) = (Matrix4::<f64>::zeros(), Vector4::zeros());
    for (pixel, sample) in picture.pixels().zip(&known.samples) {
        let Some(Sample { material: Material::Skin, albedo, normal, .. }) = sample else {
            continue;
        };
        let full = luminance(*albedo);
        if full > DARK {
            let part = f64::from(luminance(pixel.0.map(linear)) / full);
            let [x, y, z] = normal.map(f64::from);
            let row = Vector4::new(1.0, x, y, z);
            squares += row * row.transpose();
            products += row * part;
        }
    }
    let fitted = squares.cholesky()?.solve(&products);
    let direction = V3::new(fitted[1] as f32, fitted[2] as f32, fitted[3] as f32);
    direction.try_normalize(1e-6).map(Into::into)
}

/// The angle between two directions of length 1, in degrees.
pub fn angle(a: [f32; 3], b: [f32; 3]) -> f32 {
    let (a, b) = (V3::from(a), V3::from(b));
    // Exact near 0, where an arc cosine is not.
    libm::atan2f(a.cross(&b).norm(), a.dot(&b)).to_degrees()
}

pub(crate) fn luminance([red, green, blue]: [f32; 3]) -> f32 {
    0.2126 * red + 0.7152 * green + 0.0722 * blue
}

/// The luminance of each pixel, of stored values, 0 to 1.
pub(crate) fn luminances(picture: &RgbImage) -> impl Iterator<Item = f64> {
    picture
        .pixels()
        .map(|pixel| f64::from(luminance(pixel.0.map(|value| f32::from(value) / 255.0))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{HEAD, Head, Identity, Light, View, render};

    #[test]
    fn the_side_of_the_light_is_found() {
        let head = Head::open(HEAD).unwrap();
        let person = Identity::mean(&head);
        for [x, y, z] in [[-0.8, 0.0, 0.6], [0.8, 0.0, 0.6], [0.0, 0.6, 0.8], [0.0, -0.6, 0.8]] {
            let light = Light { direction: [x, y, z], strength: 0.8, ambient: 0.2, tint: [1.0; 3] };
            let picture = render(&head, &person, &View { light, ..View::default() }, 64);
            let found = light_of(&picture.rgb, &picture).unwrap();
            assert!(angle(found, light.direction) < 25.0, "{found:?}");
        }
    }
}
