//! The photos that a person is learnt from.

use std::path::{Path, PathBuf};

use image::RgbImage;

use crate::data;
use crate::error::{Error, Result};
use crate::faces::{Faces, Photograph, distance};
use crate::image::read_picture;

/// Photos of a person, and those that are no use, each with the reason.
#[derive(Debug)]
pub struct Photos {
    /// Squares with the face in the middle, or pictures as they are.
    pub pictures: Vec<RgbImage>,
    /// What was left out.
    pub left_out: Vec<(PathBuf, Error)>,
}

/// How much farther from the middle than most a photo is that shows somebody else: so many times the median of all distances'
/// deviations.
const FAR: f32 = 3.0;

impl Photos {
    /// All pictures in a folder. With `faces`, the largest in each is cut out as a square of `side` pixels, and what shows no
    /// face, or that of somebody else, is left out: whose descriptor is farther from the others than most are.
    ///
    /// # Errors
    /// A folder without pictures; if none is of use, what is wrong with the first.
    pub fn read(folder: &Path, faces: Option<(&Faces, usize)>) -> Result<Self> {
        let (mut shown, mut left_out) = (Vec::new(), Vec::new());
        for path in data::pictures_in(folder)? {
            let one = || {
                let picture = read_picture(&path)?;
                let Some((faces, side)) = faces else { return Ok((picture, None)) };
                let photo = Photograph::new(picture, faces, None, side)?;
                let descriptor = faces.descriptor(photo.picture(), photo.face())?;
                Ok((photo.crop(), Some(descriptor)))
            };
            match one() {
                Ok(one) => shown.push((path, one)),
                Err(error) => left_out.push((path, error)),
            }
        }
        let descriptors: Vec<_> = shown.iter().filter_map(|(_, (_, own))| *own).collect();
        let far = outliers(&descriptors, distance);
        let mut pictures = Vec::new();
        for (index, (path, (picture, _))) in shown.into_iter().enumerate() {
            match far.contains(&index) {
                false => pictures.push(picture),
                true => {
                    let reason = "it shows somebody else than the others".into();
                    left_out.push((path, Error::Picture { reason }));
                }
            }
        }
        if pictures.is_empty() && !left_out.is_empty() {
            return Err(left_out.remove(0).1);
        }
        Ok(Self { pictures, left_out })
    }
}

/// Numbers of the points whose median distance to the others is larger than most; of fewer than four none.
fn outliers<P>(points: &[P], distance: impl Fn(&P, &P) -> f32) -> Vec<usize> {
    if points.len() < 4 {
        return Vec::new();
    }
    let apart = |(i, own): (usize, &P)| {
        let others = points.iter().enumerate().filter(|(j, _)| *j != i);
        median(others.map(|(_, other)| distance(own, other)).collect())
    };
    let apart: Vec<f32> = points.iter().enumerate().map(apart).collect();
    let middle = median(apart.clone());
    let deviation = median(apart.iter().map(|apart| (apart - middle).abs()).collect());
    let far = |apart: &f32| *apart > middle + FAR * deviation && *apart > middle;
    (0..points.len()).filter(|&i| far(&apart[i])).collect()
}

fn median(mut values: Vec<f32>) -> f32 {
    values.sort_by(f32::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        0 => (values[middle - 1] + values[middle]) / 2.0,
        _ => values[middle],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn somebody_else_is_told_from_the_rest() {
        let apart = |a: &f32, b: &f32| (a - b).abs();
        assert_eq!(outliers(&[0.0, 0.1, 0.2, 5.0, 0.15], apart), [3]);
        // All alike, or too few to tell.
        assert!(outliers(&[1.0; 6], apart).is_empty());
        assert!(outliers(&[0.0, 0.1, 9.0], apart).is_empty());
        assert_eq!([median(vec![3.0, 1.0, 2.0]), median(vec![4.0, 1.0, 2.0, 3.0])], [2.0, 2.5]);
    }
}
