//! Faces in photographs: where they are, whose they are, and cutting them out and putting them back.
//!
//! ```no_run
//! use pyrograph::burn::tensor::Device;
//! use pyrograph::faces::{Faces, Photograph};
//! use pyrograph::image::read_picture;
//!
//! let faces = Faces::open(&Device::flex())?;
//! let photo = read_picture("photo.jpg".as_ref())?;
//! let photo = Photograph::new(photo, &faces, None, 512)?; // the largest face
//! let crop = photo.crop();
//! // ... change the crop ...
//! let changed = photo.with_face(&crop)?;
//! # Ok::<(), pyrograph::Error>(())
//! ```

mod align;
mod expression;
mod likeness;
mod look;
mod mask;
mod photograph;
mod sample;
#[cfg(test)]
mod tests;

use std::path::Path;

use burn::module::Module;
use burn::tensor::Device;
use image::RgbImage;
use pyrograph_engine::nets::face::{
    self, Bounds, DESCRIPTOR, FaceDetector, FaceReader, FaceRecogniser, FoldedFaceDetector,
    FoldedFaceReader, FoldedFaceRecogniser, LANDMARKS, READER_SIDE, RECOGNISER_SIDE,
};
use pyrograph_engine::read;
use pyrograph_weights::{Checkpoint, FloatDtype, Layout, convert};

use crate::error::{FaceError, Result};
use crate::image::rgb_tensor;
use crate::model;

pub use align::{Alignment, Framing, Similarity};
pub use expression::Expressions;
pub use likeness::{Compared, Likeness};
use look::Look;
pub use mask::Mask;
pub use photograph::Photograph;

/// The shipped networks.
const DETECTOR: &str = "face/detector.safetensors";
const READER: &str = "face/landmarks.safetensors";
const RECOGNISER: &str = "face/recogniser.safetensors";
/// How a photograph is looked at; the next way only where the one before finds nothing. The second sees it smaller and
/// with a margin, for faces that fill it.
const LOOKS: [Look; 2] = [Look { side: 416, margin: 0 }, Look { side: 192, margin: 32 }];
/// Two descriptors farther apart than this are usually of two persons.
pub const SAME_PERSON: f32 = 0.6;
/// How far the tip of a nose stands out before the eyes, as a share of the distance between them.
const NOSE: f32 = 0.5;

/// A point of a picture, x before y, in pixels from the left and upper edge.
pub type Point = [f32; 2];

/// What is asked of a face.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Least probability that it is one.
    pub score: f32,
    /// Least width of its box in pixels: below, nobody is recognised.
    pub width: f32,
    /// Most degrees by which it may be turned to either side.
    pub turn: f32,
}

/// A face in a photograph.
#[derive(Debug, Clone, PartialEq)]
pub struct Face {
    /// Where the detector saw it, in pixels; may reach beyond the photograph.
    pub bounds: Bounds,
    /// Probability that it is one.
    pub score: f32,
    /// In the order of the annotation of 300-W: jaw from 0, brows from 17, nose from 27, eyes from 36, mouth from 48.
    pub landmarks: [Point; LANDMARKS],
}

/// The networks.
#[derive(Debug)]
pub struct Faces {
    detector: FoldedFaceDetector,
    reader: FoldedFaceReader,
    recogniser: FoldedFaceRecogniser,
    device: Device,
    limits: Limits,
}

impl Default for Limits {
    fn default() -> Self {
        Self { score: 0.5, width: 24.0, turn: 45.0 }
    }
}

impl Face {
    /// Centres of the eye at the left of the picture and of the other, tip of the nose, corners of the mouth, left first.
    pub fn five(&self) -> [Point; 5] {
        let at = |i: usize| self.landmarks[i];
        [self.centre(36..42), self.centre(42..48), at(30), at(48), at(54)]
    }

    /// Mean of some landmarks.
    pub(crate) fn centre(&self, range: std::ops::Range<usize>) -> Point {
        let points = &self.landmarks[range];
        [0, 1].map(|axis| points.iter().map(|p| p[axis]).sum::<f32>() / points.len() as f32)
    }

    /// About how far it is turned to a side, in degrees; above 0 where the nose points to the right of the picture.
    ///
    /// Seen from the side by an angle, eyes of a distance d are d cos apart, and a nose that stands out by h is h sin
    /// away from their middle, along the line through them.
    pub fn turn(&self) -> f32 {
        let [left, right, nose, ..] = self.five();
        let [x, y] = [0, 1].map(|axis| right[axis] - left[axis]);
        let off = [0, 1].map(|axis| nose[axis] - (left[axis] + right[axis]) / 2.0);
        let square = x * x + y * y;
        match square > 0.0 {
            true => ((off[0] * x + off[1] * y) / square / NOSE).atan().to_degrees(),
            false => 90.0,
        }
    }
}

impl Faces {
    /// The shipped networks, found as all shipped models are.
    ///
    /// # Errors
    /// Networks that are not there, or damaged.
    pub fn open(device: &Device) -> Result<Self> {
        let find = |name: &str| model::find(Path::new(name));
        let [detector, reader, recogniser] = [find(DETECTOR)?, find(READER)?, find(RECOGNISER)?];
        let detector =
            load(&detector, FaceDetector::new(device), &convert::face_detector(), device)?;
        let reader = load(&reader, FaceReader::landmarks(device), &convert::face_reader(), device)?;
        let recogniser =
            load(&recogniser, FaceRecogniser::new(device), &convert::face_recogniser(), device)?;
        Ok(Self {
            detector: detector.folded(),
            reader: reader.folded(),
            recogniser: recogniser.folded(),
            device: device.clone(),
            limits: Limits::default(),
        })
    }

    /// With other limits.
    pub fn with_limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// The faces of a photograph, the largest first; none is no error here.
    ///
    /// # Errors
    /// A device that fails.
    pub fn find(&self, photo: &RgbImage) -> Result<Vec<Face>> {
        let mut faces = Vec::new();
        for look in LOOKS {
            let square = look.square(photo);
            let answers = self.detector.forward(rgb_tensor(&[square], &self.device));
            let cells = answers.dims()[1];
            for found in face::found(&read::numbers(answers)?, cells, self.limits.score) {
                let bounds = look.in_photo(found.bounds, photo);
                if let Some(landmarks) = self.landmarks(photo, bounds)? {
                    faces.push(Face { bounds, score: found.score, landmarks });
                }
            }
            if !faces.is_empty() {
                break;
            }
        }
        faces.sort_by(|a, b| b.bounds.area().total_cmp(&a.bounds.area()));
        Ok(faces)
    }

    /// The face of this number, from 1, or the largest, of those that [`Faces::find`] found in the photograph.
    ///
    /// # Errors
    /// [`FaceError`]: no face, or none of this number; one that is too small or turned too far.
    pub fn pick<'a>(
        &self,
        photo: &RgbImage,
        faces: &'a [Face],
        number: Option<usize>,
    ) -> Result<&'a Face, FaceError> {
        if faces.is_empty() {
            let size = [photo.height(), photo.width()].map(|side| side as usize);
            return Err(FaceError::NotFound { size });
        }
        let number = number.unwrap_or(1);
        let unknown = FaceError::Number { number, found: faces.len() };
        let face = number.checked_sub(1).and_then(|i| faces.get(i)).ok_or(unknown)?;
        let Limits { width: least, turn: most, .. } = self.limits;
        let (width, degrees) = (face.bounds.width, face.turn());
        if width < least {
            return Err(FaceError::Small { number, width, least });
        }
        match degrees.abs() <= most {
            true => Ok(face),
            false => Err(FaceError::Turned { number, degrees, most }),
        }
    }

    /// What tells persons apart: descriptors are compared by their [`distance`].
    ///
    /// # Errors
    /// [`FaceError::Landmarks`]; a device that fails.
    pub fn descriptor(&self, photo: &RgbImage, face: &Face) -> Result<[f32; DESCRIPTOR]> {
        let crop = Alignment::new(face, Framing::FACE, RECOGNISER_SIDE)?.crop(photo);
        let descriptor = self.recogniser.forward(rgb_tensor(&[crop], &self.device));
        Ok(read::numbers(descriptor)?.try_into().expect("one descriptor"))
    }

    /// Landmarks of the face in a box; none where the box is outside the photograph, or the answer is not finite.
    fn landmarks(&self, photo: &RgbImage, bounds: Bounds) -> Result<Option<[Point; LANDMARKS]>> {
        let Some(inside) = look::inside(bounds, photo) else { return Ok(None) };
        let square = look::centred(photo, inside, READER_SIDE);
        let pixels = rgb_tensor(std::slice::from_ref(&square.picture), &self.device);
        let answers = read::numbers(self.reader.forward(pixels))?;
        let mut points = answers.as_chunks::<2>().0.iter().map(|point| square.in_photo(*point));
        let landmarks = std::array::from_fn(|_| points.next().unwrap_or([f32::NAN; 2]));
        let is_finite = landmarks.as_flattened().iter().all(|value| value.is_finite());
        Ok(is_finite.then_some(landmarks))
    }
}

/// Euclidean distance of two descriptors: below [`SAME_PERSON`] they are usually of one person.
pub fn distance(a: &[f32; DESCRIPTOR], b: &[f32; DESCRIPTOR]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt()
}

/// A network from a file, in f32.
fn load<M: Module>(path: &Path, net: M, layout: &Layout, device: &Device) -> Result<M> {
    let checkpoint = Checkpoint::open(path)?;
    Ok(pyrograph_weights::load(net, &checkpoint, layout, FloatDtype::F32, device)?.0)
}
