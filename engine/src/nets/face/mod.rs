//! Faces in photographs: where they are, their landmarks, whose they are and what they express.
//!
//! These are the networks of [face-api](https://github.com/vladmandic/face-api) for inference only: a detector after
//! YOLOv2 (Redmon & Farhadi 2017) with separable convolutions, a reader of aligned faces with dense blocks, and the residual
//! recogniser of [dlib](http://dlib.net). Parameters have the shapes that TensorFlow stores.

mod boxes;
mod conv;
mod detector;
mod reader;
mod recogniser;
#[cfg(test)]
mod tests;

pub use boxes::{Bounds, Found, found};
pub use conv::{Conv, Separable};
pub use detector::{DETECTOR_STEP, FaceDetector, FoldedFaceDetector};
pub use reader::{EXPRESSIONS, FaceReader, FoldedFaceReader, LANDMARKS, READER_SIDE};
pub use recogniser::{
    DESCRIPTOR, FaceRecogniser, FoldedFaceRecogniser, Layer, RECOGNISER_SIDE, Residual,
};
