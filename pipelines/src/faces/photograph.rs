//! A photograph whose face is cut out, changed, and put back.

use image::RgbImage;

use super::{Alignment, Face, Faces, Framing, Mask, Point};
use crate::error::Result;

/// A photograph, and the face in it that is worked on.
#[derive(Debug, Clone)]
pub struct Photograph {
    picture: RgbImage,
    face: Face,
    place: Alignment,
}

impl Photograph {
    /// The face of this number, from 1, or the largest, to be worked on in a square of `side` pixels.
    ///
    /// # Errors
    /// [`FaceError`](crate::error::FaceError): no face, or none of this number; one that is too small or turned too far.
    pub fn new(
        picture: RgbImage,
        faces: &Faces,
        number: Option<usize>,
        side: usize,
    ) -> Result<Self> {
        let found = faces.find(&picture)?;
        let face = faces.pick(&picture, &found, number)?.clone();
        let place = Alignment::new(&face, Framing::PORTRAIT, side)?;
        Ok(Self { picture, face, place })
    }

    /// The photograph.
    pub fn picture(&self) -> &RgbImage {
        &self.picture
    }

    /// The face.
    pub fn face(&self) -> &Face {
        &self.face
    }

    /// The head upright, in a square.
    pub fn crop(&self) -> RgbImage {
        self.place.crop(&self.picture)
    }

    /// Where points of the photograph are in the square.
    pub(crate) fn place<const N: usize>(&self, points: &[Point; N]) -> [Point; N] {
        points.map(|point| self.place.place(point).map(|at| at as f32))
    }

    /// Where the face is in the square, fading over a `feather`, a share of its side.
    ///
    /// # Errors
    /// See [`Mask::of_face`].
    pub fn mask(&self, feather: f64) -> Result<Mask> {
        Mask::of_face(&self.face, &self.place, feather)
    }

    /// The photograph with the face of another square; pixels outside the face keep their bits.
    ///
    /// # Errors
    /// A square of another side.
    pub fn with_face(&self, crop: &RgbImage) -> Result<RgbImage> {
        self.place.paste_back(&self.picture, crop, &self.mask(Mask::FEATHER)?)
    }
}
