//! Linear probes: what can be read off the features of an image (Alain & Bengio 2016).

use nalgebra::{DMatrix, DVector};

use super::Features;

/// A linear classifier on standardised features: ridge regression onto the classes, each of which weighs the same however
/// many images it has.
#[derive(Debug, Clone)]
pub struct Probe {
    mean: DVector<f64>,
    /// One over the standard deviation.
    scale: DVector<f64>,
    /// `[width, classes]`
    weights: DMatrix<f64>,
    /// Scores of an average image.
    offset: DVector<f64>,
}

impl Probe {
    /// Fits a probe for `classes` classes; `labels` are those of the images, `ridge` is the strength of the ridge in variances of
    /// a feature, above 0. `None` if the features are such that nothing can be fitted.
    ///
    /// # Panics
    /// If a label is not below `classes`, or there is not one for each image.
    pub fn fit(features: &Features, labels: &[usize], classes: usize, ridge: f64) -> Option<Self> {
        let x = &features.0;
        let (images, width) = x.shape();
        assert_eq!(images, labels.len(), "a label for each image");
        let mut counts = vec![0.0; classes];
        labels.iter().for_each(|label| counts[*label] += 1.0);
        let present = counts.iter().filter(|count| **count > 0.0).count() as f64;
        let weigh = |label: &usize| 1.0 / (present * counts[*label]);
        let weight = DVector::from_iterator(images, labels.iter().map(weigh));
        let mean: DVector<f64> = x.tr_mul(&weight);
        let mut centred = x.clone();
        centred.row_iter_mut().for_each(|mut row| row -= mean.transpose());
        let deviation = |column: usize| {
            let values = centred.column(column);
            let squares = values.iter().zip(&weight).map(|(value, weight)| weight * value * value);
            squares.sum::<f64>().sqrt()
        };
        // A feature that never changes says nothing.
        let inverse = |deviation: f64| if deviation > 0.0 { 1.0 / deviation } else { 0.0 };
        let scale = DVector::from_iterator(width, (0..width).map(|i| inverse(deviation(i))));
        for (mut column, scale) in centred.column_iter_mut().zip(scale.iter()) {
            column *= *scale;
        }
        let mut weighted = centred.clone();
        weighted.row_iter_mut().zip(weight.iter()).for_each(|(mut row, weight)| row *= *weight);
        // Transposed first: a product in blocks is ten times as fast.
        let mut products = weighted.transpose() * &centred; // [width, width]
        (0..width).for_each(|i| products[(i, i)] += ridge);
        // Of centred images, the mean of the target does not matter.
        let mut target = DMatrix::zeros(width, classes);
        for (row, label) in weighted.row_iter().zip(labels) {
            let mut column = target.column_mut(*label);
            column += row.transpose();
        }
        let offset =
            DVector::from_iterator(classes, counts.iter().map(|n| f64::from(*n > 0.0) / present));
        let weights = products.cholesky()?.solve(&target);
        Some(Self { mean, scale, weights, offset })
    }

    /// For each image, how many classes the probe finds more likely than its label; 0 is a hit.
    ///
    /// # Panics
    /// If the features have another width, a label is out of range or one is missing.
    pub fn ranks(&self, features: &Features, labels: &[usize]) -> Vec<usize> {
        assert_eq!(features.count(), labels.len(), "a label for each image");
        let mut x = features.0.clone();
        for (mut column, (mean, scale)) in
            x.column_iter_mut().zip(self.mean.iter().zip(self.scale.iter()))
        {
            column.apply(|value| *value = (*value - mean) * scale);
        }
        let scores = x * &self.weights; // [images, classes]
        let rank = |(image, label): (usize, &usize)| {
            let score = |class: usize| scores[(image, class)] + self.offset[class];
            (0..self.offset.len()).filter(|class| score(*class) > score(*label)).count()
        };
        labels.iter().enumerate().map(rank).collect()
    }
}
