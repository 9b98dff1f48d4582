//! Directions that tell classes apart.

use std::collections::BTreeMap;

use nalgebra::{DMatrix, DVector, SymmetricEigen};

/// Most principal components, and most directions.
const COMPONENTS: usize = 100;
const DIRECTIONS: usize = 40;
/// How much of the mean variance within classes is added to all of them.
const SHRINKAGE: f64 = 0.1;

/// The mean of each value over the examples that have it, and 0 if none has; none of no examples.
pub(super) fn mean(read: &[Vec<Option<f64>>]) -> Option<DVector<f64>> {
    let width = read.first()?.len();
    let of = |column: usize| {
        let own = read.iter().filter_map(|values| values[column]);
        let (count, sum) = own.fold((0.0, 0.0), |(count, sum), value| (count + 1.0, sum + value));
        if count > 0.0 { sum / count } else { 0.0 }
    };
    Some(DVector::from_iterator(width, (0..width).map(of)))
}

/// How far values are from the mean; what was not read is as the mean is.
pub(super) fn centred(values: &[Option<f64>], mean: &DVector<f64>) -> DVector<f64> {
    let apart = |(value, mean): (&Option<f64>, &f64)| value.map_or(0.0, |value| value - mean);
    DVector::from_iterator(mean.len(), values.iter().zip(mean.iter()).map(apart))
}

/// `[features, width]`, the best direction first, of centred examples `[features, examples]` and their classes: a linear discriminant analysis
/// of the principal components.
pub(super) fn directions(examples: &DMatrix<f64>, classes: &[usize]) -> Option<DMatrix<f64>> {
    let components = principal(examples)?;
    let codes = components.tr_mul(examples); // [components, examples]
    let mut sums = BTreeMap::<usize, (f64, DVector<f64>)>::new();
    for (code, class) in codes.column_iter().zip(classes) {
        let (count, sum) =
            sums.entry(*class).or_insert_with(|| (0.0, DVector::zeros(codes.nrows())));
        *count += 1.0;
        *sum += code;
    }
    let mean = |class: &usize| sums[class].1.clone() / sums[class].0;
    let means: Vec<_> = classes.iter().map(mean).collect();
    let means = DMatrix::from_columns(&means);
    let apart = &codes - &means;
    let mut within = &apart * apart.transpose();
    let more = SHRINKAGE * within.trace() / codes.nrows() as f64;
    (0..codes.nrows()).for_each(|at| within[(at, at)] += more);
    let between = &means * means.transpose();
    let lower = within.cholesky()?.l();
    // The directions that are largest between classes where the spread within is the same in all.
    let half = lower.solve_lower_triangular(&between)?;
    let whole = lower.solve_lower_triangular(&half.transpose())?;
    let best = largest(whole, DIRECTIONS.min(sums.len().checked_sub(1)?));
    Some(components * lower.transpose().solve_upper_triangular(&best)?)
}

/// `[features, components]`, of length 1 and the one with most variance first.
fn principal(examples: &DMatrix<f64>) -> Option<DMatrix<f64>> {
    let count = COMPONENTS.min(examples.ncols().checked_sub(1)?).min(examples.nrows());
    let parts = examples * largest(examples.tr_mul(examples), count);
    let kept = parts.column_iter().map(|part| part.into_owned());
    let longest = parts.column_iter().map(|part| part.norm()).fold(0.0, f64::max);
    let kept: Vec<_> =
        kept.filter(|part| part.norm() > 1e-6 * longest).map(|part| part.normalize()).collect();
    (!kept.is_empty()).then(|| DMatrix::from_columns(&kept))
}

/// The eigenvectors of the largest eigenvalues.
fn largest(matrix: DMatrix<f64>, count: usize) -> DMatrix<f64> {
    let found = SymmetricEigen::new(matrix);
    let mut order: Vec<usize> = (0..found.eigenvalues.len()).collect();
    order.sort_by(|a, b| found.eigenvalues[*b].total_cmp(&found.eigenvalues[*a]));
    found.eigenvectors.select_columns(&order[..count.min(order.len())])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Random;

    /// Classes differ a little in one feature, and all examples much in another.
    #[test]
    fn what_tells_classes_apart_comes_before_what_varies_most() {
        let mut random = Random::new(&[5]);
        let classes: Vec<usize> = (0..60).map(|at| at % 3).collect();
        let example = |class: &usize| {
            let own = *class as f32 - 1.0 + random.normal(0.0, 0.05);
            DVector::from_vec(
                [own, random.normal(0.0, 9.0), random.normal(0.0, 0.1)].map(f64::from).to_vec(),
            )
        };
        let examples: Vec<_> = classes.iter().map(example).collect();
        let found = directions(&DMatrix::from_columns(&examples), &classes).unwrap();
        let best = found.column(0).normalize();
        assert!(best[0].abs() > 0.95 && best[1].abs() < 0.1, "{best}");
    }

    #[test]
    fn nothing_to_learn_is_no_answer() {
        assert!(directions(&DMatrix::zeros(3, 0), &[]).is_none());
        assert!(directions(&DMatrix::zeros(3, 4), &[0, 0, 1, 1]).is_none());
    }
}
