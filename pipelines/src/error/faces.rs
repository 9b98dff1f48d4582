//! Errors of faces in photographs.

/// What is wrong with the faces of a photograph, which are numbered from 1, the largest first.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FaceError {
    /// No face was found.
    #[error("no face found in {}x{} pixels", size[1], size[0])]
    NotFound {
        /// `[height, width]` of the photograph.
        size: [usize; 2],
    },
    /// A face that is not there.
    #[error("face {number} asked for, of {found}")]
    Number {
        /// The number.
        number: usize,
        /// Faces that were found.
        found: usize,
    },
    /// Too small to tell whose it is.
    #[error("face {number} is {width:.0} pixels wide, expected at least {least:.0}")]
    Small {
        /// Which face.
        number: usize,
        /// Of its box, in pixels.
        width: f32,
        /// Narrowest allowed.
        least: f32,
    },
    /// Turned away from the camera.
    #[error("face {number} is turned by {:.0} degrees, expected at most {most:.0}", degrees.abs())]
    Turned {
        /// Which face.
        number: usize,
        /// Estimate; above 0 where the nose points to the right of the picture.
        degrees: f32,
        /// Most allowed to either side.
        most: f32,
    },
    /// Landmarks in one place, which say nothing about how a face lies.
    #[error("the landmarks of the face lie in one place")]
    Landmarks,
}
