//! How well images show what they were asked for: what linear probes, which learned from real images, read off them, beside
//! what they read off other real images.

use std::collections::BTreeMap;

use image::RgbImage;
use pyrograph_engine::metrics::{Estimate, Features, Probe};
use serde::Serialize;

use crate::data::Dataset;
use crate::error::{Error, Result};

/// Strengths of the ridge that are tried for each probe.
const RIDGES: [f64; 4] = [0.01, 0.03, 0.1, 0.3];
/// One image of so many tries them, the others are learned from.
const TRIED: usize = 5;
/// Guesses of a probe that count in the second of its numbers.
const GUESSES: usize = 5;

/// A probe for each column of a list of images.
#[derive(Debug)]
pub struct Probes(Vec<Column>);

#[derive(Debug)]
struct Column {
    name: String,
    /// What stands there, each with its number.
    values: BTreeMap<String, usize>,
    probe: Probe,
}

/// How often a probe reads off an image what its list says.
#[derive(Debug, Clone, Serialize)]
pub struct Adherence {
    /// The column.
    pub column: String,
    /// Different values that the probe knows.
    pub values: usize,
    /// Images that have one of them.
    pub images: usize,
    /// Share of these of which the probe's first guess is right.
    pub first: Estimate,
    /// Share of these where it is among the first five, if there are more values than that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub five: Option<Estimate>,
}

impl Probes {
    /// Learns from some images of a dataset, by their numbers and their features; images without a value do not matter.
    ///
    /// # Errors
    /// A column with less than two values, or features from which nothing can be learned.
    pub fn fit(
        data: &Dataset,
        columns: &[String],
        images: &[usize],
        rows: &[Vec<f32>],
    ) -> Result<Self> {
        let fit = |(column, name): (usize, &String)| {
            let known = known(data, column, images, rows);
            let mut values: BTreeMap<String, usize> =
                known.iter().map(|(value, _)| ((*value).to_owned(), 0)).collect();
            values.values_mut().enumerate().for_each(|(number, value)| *value = number);
            let fault = |reason: String| Error::Eval { reason };
            if values.len() < 2 {
                let count = values.len();
                return Err(fault(format!("{count} values of `{name}`, expected at least 2")));
            }
            let labels: Vec<usize> = known.iter().map(|(value, _)| values[*value]).collect();
            let rows: Vec<Vec<f32>> = known.into_iter().map(|(_, row)| row.clone()).collect();
            let probe = fitted(&rows, &labels, values.len());
            let probe = probe.ok_or_else(|| fault(format!("no probe for `{name}`")))?;
            Ok(Column { name: name.clone(), values, probe })
        };
        columns.iter().enumerate().map(fit).collect::<Result<_>>().map(Self)
    }

    /// What the probes read off images that are or should be like these of a dataset, by the features of the former; nothing
    /// of a column in which fewer than two of them have a value that its probe knows.
    pub fn judge(&self, data: &Dataset, images: &[usize], rows: &[Vec<f32>]) -> Vec<Adherence> {
        let judge = |(number, column): (usize, &Column)| {
            let known = known(data, number, images, rows).into_iter();
            let numbered = known.filter_map(|(value, row)| Some((*column.values.get(value)?, row)));
            let (labels, rows): (Vec<usize>, Vec<Vec<f32>>) =
                numbered.map(|(label, row)| (label, row.clone())).unzip();
            let ranks = column.probe.ranks(&Features::new(&rows)?, &labels);
            let share = |within: usize| {
                let hits: Vec<f64> =
                    ranks.iter().map(|rank| f64::from(u8::from(*rank < within))).collect();
                Estimate::mean(&hits)
            };
            let values = column.values.len();
            Some(Adherence {
                column: column.name.clone(),
                values,
                images: labels.len(),
                first: share(1),
                five: (values > GUESSES).then(|| share(GUESSES)),
            })
        };
        self.0.iter().enumerate().filter_map(judge).collect()
    }
}

/// A probe with the ridge by which one that learned from most of the images is right about most of the others.
fn fitted(rows: &[Vec<f32>], labels: &[usize], classes: usize) -> Option<Probe> {
    let part = |tried: bool| -> Option<(Features, Vec<usize>)> {
        let own = (0..rows.len()).filter(|i| i.is_multiple_of(TRIED) == tried);
        let (rows, labels): (Vec<_>, Vec<_>) = own.map(|i| (rows[i].clone(), labels[i])).unzip();
        Some((Features::new(&rows)?, labels))
    };
    let hits = |ridge: f64| -> Option<usize> {
        let ((x, own), (tried, others)) = (part(false)?, part(true)?);
        let ranks = Probe::fit(&x, &own, classes, ridge)?.ranks(&tried, &others);
        Some(ranks.iter().filter(|rank| **rank == 0).count())
    };
    // Of too few images, any will do.
    let best = RIDGES.into_iter().rev().max_by_key(|ridge| hits(*ridge).unwrap_or(0))?;
    Probe::fit(&Features::new(rows)?, labels, classes, best)
}

/// The images that have a value in a column, with their features.
fn known<'a>(
    data: &'a Dataset,
    column: usize,
    images: &[usize],
    rows: &'a [Vec<f32>],
) -> Vec<(&'a str, &'a Vec<f32>)> {
    let pairs = images.iter().zip(rows);
    pairs.filter_map(|(&image, row)| Some((data.column(image, column)?, row))).collect()
}

/// Mean difference of pixels that a border between patches of this side parts, over that of neighbours within a patch: 1
/// without a texture of patches, on the whole. `None` where there is no difference, or no border.
pub fn seam_ratio(images: &[RgbImage], patch: usize) -> Option<f64> {
    let (mut across, mut within) = ([0.0; 2], [0.0; 2]);
    for image in images {
        let (width, height) = image.dimensions();
        let mut add = |a: [u32; 2], b: [u32; 2], place: u32| {
            let sum =
                if (place as usize).is_multiple_of(patch) { &mut across } else { &mut within };
            let [a, b] = [a, b].map(|[x, y]| image.get_pixel(x, y).0);
            let apart: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a.abs_diff(b))).sum();
            sum[0] += apart;
            sum[1] += 1.0;
        };
        for y in 0..height {
            (1..width).for_each(|x| add([x - 1, y], [x, y], x));
        }
        for x in 0..width {
            (1..height).for_each(|y| add([x, y - 1], [x, y], y));
        }
    }
    let [across, within] = [across, within].map(|[sum, count]| sum / count);
    Some(across / within).filter(|ratio| ratio.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    #[test]
    fn seams_are_told_from_what_is_smooth() {
        let smooth = RgbImage::from_fn(32, 32, |x, y| Rgb([(4 * x) as u8, (3 * y) as u8, 7]));
        let ratio = seam_ratio(&[smooth], 8).expect("differences");
        assert!((ratio - 1.0).abs() < 1e-9, "{ratio}");
        let squares = RgbImage::from_fn(32, 32, |x, y| {
            Rgb([(x + 40 * (x / 8)) as u8, (y + 40 * (y / 8)) as u8, 0])
        });
        let squares = [squares];
        assert!(seam_ratio(&squares, 8).expect("differences") > 30.0);
        assert_eq!(seam_ratio(&[RgbImage::new(8, 8)], 4), None);
        assert_eq!(seam_ratio(&squares, 64), None);
    }
}
