//! Where the face of a picture is.

use image::{GrayImage, Luma};

use crate::head::Material;
use crate::metric::is_inner_face;
use crate::paint::Marks;
use crate::{Head, Picture, Sample};

/// How far a mask grows, as a part of the face's width.
const GROWTH: f64 = 0.1;
/// Over how much a mask fades, as a part of the picture's side.
const FEATHER: f64 = 0.0625;

/// Where the inner face is: of each pixel, row by row, whether it shows the face's half with x below 0, or the other; or none.
pub(super) fn halves(head: &Head, picture: &Picture) -> Vec<Option<bool>> {
    let half = |sample: &Option<Sample>| {
        let Sample { material, triangle, weights, .. } = (*sample)?;
        let corners = head.triangles[triangle as usize].map(|at| &head.marks[at as usize]);
        let rest = Marks::between(corners, weights).rest;
        let bare = !matches!(material, Material::Hair | Material::Cloth);
        (bare && is_inner_face(rest)).then_some(rest.x < 0.0)
    };
    picture.samples.iter().map(half).collect()
}

/// A mask of the face, `[size, size]`: 255 where a picture shows the inner face and around it, as far as a tenth of the face's width; fading to 0
/// within a sixteenth of the picture's side; 0 elsewhere, and at the border of the picture. All 0 if no face is seen.
pub fn face_mask(head: &Head, picture: &Picture) -> GrayImage {
    let side = picture.size();
    let inner = halves(head, picture);
    let columns = || (0..inner.len()).filter(|at| inner[*at].is_some()).map(|at| at % side);
    let wide = columns().max().zip(columns().min()).map_or(0, |(last, first)| last - first + 1);
    let growth = (GROWTH * wide as f64).round() as usize;
    let fade = (FEATHER / 2.0 * side as f64).round() as usize;
    let inner: Vec<f64> = inner.iter().map(|half| f64::from(u8::from(half.is_some()))).collect();
    let within = |at: usize| at > fade && at + fade + 1 < side;
    let grown = sums(&inner, side, growth).into_iter().enumerate();
    let grown: Vec<f64> = grown
        .map(|(at, sum)| sum > 0.0 && within(at / side) && within(at % side))
        .map(|inside| f64::from(u8::from(inside)))
        .collect();
    let most = ((2 * fade + 1) * (2 * fade + 1)) as f64;
    let faded = sums(&grown, side, fade);
    GrayImage::from_fn(side as u32, side as u32, |x, y| {
        Luma([(255.0 * faded[y as usize * side + x as usize] / most).round() as u8])
    })
}

/// The sums of values, `[side, side]`, over the squares of `2 * radius + 1` pixels around each, as far as these are in the picture.
pub(super) fn sums(values: &[f64], side: usize, radius: usize) -> Vec<f64> {
    // Along the rows, then along the columns, which are rows of what is turned.
    let turned = |values: &[f64]| {
        let mut turned = vec![0.0; side * side];
        for (row, line) in values.chunks_exact(side).enumerate() {
            let mut before = vec![0.0];
            for (at, value) in line.iter().enumerate() {
                before.push(before[at] + value);
            }
            for column in 0..side {
                let (from, to) = (column.saturating_sub(radius), (column + radius + 1).min(side));
                turned[column * side + row] = before[to] - before[from];
            }
        }
        turned
    };
    turned(&turned(values))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::portrait::pair::Pairing;
    use crate::{HEAD, Identity, View, render};

    #[test]
    fn sums_are_of_squares_in_the_picture() {
        let values: Vec<f64> = (0..25).map(|at| f64::from(at * at % 7)).collect();
        for radius in [0, 1, 3, 9] {
            for (at, found) in sums(&values, 5, radius).into_iter().enumerate() {
                let near = |other: &usize| {
                    (at / 5).abs_diff(other / 5) <= radius && (at % 5).abs_diff(other % 5) <= radius
                };
                let sum: f64 = (0..25).filter(near).map(|other| values[other]).sum();
                assert_eq!(found, sum, "{radius} {at}");
            }
        }
    }

    /// Whoever is seen, from where, and how large.
    #[test]
    fn a_mask_is_white_on_the_face_and_black_at_the_border() {
        let head = Head::open(HEAD).unwrap();
        for size in [8, 48, 64, 100] {
            let asked = Pairing {
                people: 4,
                references: 2,
                size,
                tilted: true,
                expressions: true,
                seed: 1,
                ..Pairing::default()
            };
            for pair in asked.pairs() {
                let [_, reference, _] = pair.pictures(&head);
                let mask = face_mask(&head, &reference);
                for at in 0..size {
                    for (x, y) in [(at, 0), (at, size - 1), (0, at), (size - 1, at)] {
                        assert_eq!(mask.get_pixel(x, y).0, [0], "{size}: {x} {y}");
                    }
                }
                let inner = halves(&head, &reference);
                let white = inner.iter().zip(mask.iter()).filter(|(half, _)| half.is_some());
                assert!(size < 48 || white.clone().count() > 100);
                assert!(white.clone().all(|(_, value)| *value == 255), "{size}");
            }
        }
    }

    #[test]
    fn a_mask_fades_over_a_sixteenth_of_the_side() {
        let head = Head::open(HEAD).unwrap();
        let picture = render(&head, &Identity::mean(&head), &View::default(), 128);
        let mask = face_mask(&head, &picture);
        let row: Vec<u8> = (0..64).map(|x| mask.get_pixel(x, 64).0[0]).collect();
        assert!(row.is_sorted() && row[0] == 0 && row[63] == 255, "{row:?}");
        let fading = row.iter().filter(|value| (1..255).contains(*value)).count();
        assert!((7..=9).contains(&fading), "{row:?}");
        // As wide on both sides as the face has grown, half of the feather less.
        let inner = halves(&head, &picture);
        let wide = |found: &dyn Fn(usize) -> bool| (0..128).filter(|x| found(64 * 128 + x)).count();
        let (face, white) = (wide(&|at| inner[at].is_some()), wide(&|at| mask.as_raw()[at] == 255));
        assert!(white > face && white < face + face / 5, "{face} {white}");
    }
}
