//! How good a portrait is, as far as the packaged networks can tell.

use burn::tensor::{Device, Tensor, TensorData};
use image::RgbImage;
use image::buffer::ConvertBuffer;
use pyrograph_engine::nets::face::DESCRIPTOR;
use pyrograph_engine::portrait::conditions::{blurred, luminance};
use serde::Serialize;

use super::{Alignment, Face, Faces, Framing, Mask, distance};
use crate::error::Result;
use crate::image::{picture_tensor, stretched};

/// Side of the squares in which light is compared, and the window over which it is averaged there, in pixels.
const SIDE: usize = 64;
const WINDOW: usize = 9;

/// What a portrait has of a person and of its reference. What could not be measured, as no face was found, is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Likeness {
    /// Distance from the person's picture: below [`SAME_PERSON`](super::SAME_PERSON) it is usually one person.
    pub identity: Option<f32>,
    /// Distance from the reference: the larger, the less is left of who is there.
    pub leakage: Option<f32>,
    /// Mean difference of luminance from the reference inside its face, averaged over squares of 9 of 64 pixels, 0 to 1.
    pub light: Option<f64>,
}

/// The largest face in a picture, and its descriptor.
type Known = (Face, [f32; DESCRIPTOR]);

/// What portraits are compared with.
#[derive(Debug)]
pub struct Compared<'a> {
    faces: &'a Faces,
    person: Option<Known>,
    asked: Option<Known>,
    /// Of the size of the portraits.
    reference: RgbImage,
}

impl Faces {
    /// Prepares to compare portraits of this width and height with their reference, and with a picture of the person if there
    /// is one; the largest face in each counts.
    ///
    /// # Errors
    /// Landmarks in one place.
    pub fn compared(
        &self,
        person: Option<&RgbImage>,
        reference: &RgbImage,
        (width, height): (u32, u32),
    ) -> Result<Compared<'_>> {
        let reference = stretched(reference, width, height);
        let person = person.map(|person| self.known(person)).transpose()?.flatten();
        Ok(Compared { faces: self, person, asked: self.known(&reference)?, reference })
    }

    /// The largest face in a picture, if there is one.
    pub(crate) fn known(&self, picture: &RgbImage) -> Result<Option<Known>> {
        let found = self.find(picture)?.into_iter().next();
        found.map(|face| Ok((face.clone(), self.descriptor(picture, &face)?))).transpose()
    }
}

impl Compared<'_> {
    /// What a portrait has of both.
    ///
    /// # Errors
    /// Landmarks in one place.
    ///
    /// # Panics
    /// For a portrait of another size.
    pub fn likeness(&self, portrait: &RgbImage) -> Result<Likeness> {
        let Self { faces, person, asked, reference } = self;
        assert_eq!(portrait.dimensions(), reference.dimensions(), "the size of the portraits");
        let made = faces.known(portrait)?;
        let between = |a: &Option<Known>| {
            let (Some((_, a)), Some((_, b))) = (a, &made) else { return None };
            Some(distance(a, b))
        };
        let light = asked.as_ref().map(|(face, _)| light(face, reference, portrait)).transpose()?;
        Ok(Likeness { identity: between(person), leakage: between(asked), light })
    }
}

/// Mean difference of blurred luminance inside a face.
fn light(face: &Face, reference: &RgbImage, portrait: &RgbImage) -> Result<f64> {
    let device = &Device::flex();
    let place = Alignment::new(face, Framing::PORTRAIT, SIDE)?;
    let mask = Mask::of_face(face, &place, 0.0)?;
    let mask = TensorData::new(mask.values().to_vec(), [1, 1, SIDE, SIDE]);
    let mask = Tensor::<4>::from_data(mask, device);
    let within = blurred(mask.clone(), WINDOW).clamp_min(1e-6);
    let low = |picture: &RgbImage| {
        let pixels = picture_tensor(&place.crop(picture).convert(), [SIDE; 2], device);
        let light = luminance(&pixels) * 0.5 + 0.5;
        blurred(light * mask.clone(), WINDOW) / within.clone()
    };
    let apart = (low(reference) - low(portrait)).abs() * mask.clone();
    let [sum, count] = [apart, mask].map(|values| values.sum().into_scalar::<f32>());
    Ok(f64::from(sum) / f64::from(count.max(1.0)))
}
