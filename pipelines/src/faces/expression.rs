//! What faces express.

use std::path::Path;

use burn::tensor::{Device, activation};
use image::RgbImage;
use pyrograph_engine::nets::face::{EXPRESSIONS, FaceReader, FoldedFaceReader, READER_SIDE};
use pyrograph_engine::read;
use pyrograph_weights::convert;

use super::{Alignment, Face, Framing};
use crate::error::Result;
use crate::image::rgb_tensor;

/// The reader of expressions, whose weights are not shipped: `face_expression_model` of face-api as safetensors.
#[derive(Debug)]
pub struct Expressions {
    pub(super) reader: FoldedFaceReader,
    device: Device,
}

impl Expressions {
    /// Opens its weights.
    ///
    /// # Errors
    /// A file of anything else.
    pub fn open(path: &Path, device: &Device) -> Result<Self> {
        let fresh = FaceReader::expressions(device);
        let reader = super::load(path, fresh, &convert::face_reader(), device)?.folded();
        Ok(Self { reader, device: device.clone() })
    }

    /// Probability of each of [`EXPRESSIONS`].
    ///
    /// # Errors
    /// [`FaceError::Landmarks`](crate::error::FaceError::Landmarks); a device that fails.
    pub fn read(&self, photo: &RgbImage, face: &Face) -> Result<[f32; EXPRESSIONS.len()]> {
        let crop = Alignment::new(face, Framing::FACE, READER_SIDE)?.crop(photo);
        let logits = self.reader.forward(rgb_tensor(&[crop], &self.device));
        Ok(read::numbers(activation::softmax(logits, 1))?.try_into().expect("one face"))
    }
}
