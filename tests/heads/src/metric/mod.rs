//! Who is in a picture: a measure of likeness that knows the pose and needs no network.
//!
//! A picture is read at fixed points of the inner face of the mean head, turned as the pose says. What is read there is compared in the directions
//! that tell people apart, found by a linear discriminant analysis of pictures of other people.

mod discriminant;
mod features;
pub(crate) mod report;

use image::RgbImage;
use nalgebra::{DMatrix, DVector};

use crate::{Head, View};
use features::Grid;
pub(crate) use features::is_inner_face;

/// Tells people apart.
#[derive(Debug, Clone)]
pub struct Recogniser {
    grid: Grid,
    /// Of what is read, over all examples.
    mean: DVector<f64>,
    /// `[features, width]`
    directions: DMatrix<f64>,
}

impl Recogniser {
    /// Learns from pictures of people, which are given by numbers. Of the views, only pose and place count. None if the examples
    /// are fewer than two people, or all alike.
    pub fn fit(head: &Head, examples: &[(usize, &RgbImage, &View)]) -> Option<Self> {
        let grid = Grid::new(head);
        let read: Vec<_> =
            examples.iter().map(|(_, picture, view)| grid.read(picture, view)).collect();
        let people: Vec<_> = examples.iter().map(|(person, ..)| *person).collect();
        let mean = discriminant::mean(&read)?;
        let centred: Vec<_> =
            read.iter().map(|values| discriminant::centred(values, &mean)).collect();
        let directions = discriminant::directions(&DMatrix::from_columns(&centred), &people)?;
        Some(Self { grid, mean, directions })
    }

    /// What tells the person in a picture from others, of length 1; of a picture that says nothing, 0.
    pub fn read(&self, picture: &RgbImage, view: &View) -> DVector<f64> {
        let centred = discriminant::centred(&self.grid.read(picture, view), &self.mean);
        let code = self.directions.tr_mul(&centred);
        let norm = code.norm();
        if norm > 1e-12 { code / norm } else { code }
    }
}

/// How alike two people are: 1 for the same picture, around 0 for different people.
pub fn similarity(a: &DVector<f64>, b: &DVector<f64>) -> f64 {
    a.dot(b)
}
