//! How far two sets of images are apart, by the features of a network, in f64.

use nalgebra::{DMatrix, DVector};
use rayon::prelude::*;

use crate::random::Generator;

/// Rows of a block of pairs.
const BLOCK: usize = 512;

/// One row of features per image.
#[derive(Debug, Clone, PartialEq)]
pub struct Features(DMatrix<f64>);

impl Features {
    /// From `[images, width]`, row by row; `None` if the rows are not of one length, are fewer than two, or
    /// hold values that are not finite.
    pub fn new(rows: &[Vec<f32>]) -> Option<Self> {
        let width = rows.first()?.len();
        let whole = rows.len() > 1 && width > 0;
        let same = rows.iter().all(|row| row.len() == width && row.iter().all(|v| v.is_finite()));
        (whole && same)
            .then(|| Self(DMatrix::from_fn(rows.len(), width, |i, j| f64::from(rows[i][j]))))
    }

    /// Number of images.
    pub fn count(&self) -> usize {
        self.0.nrows()
    }

    /// Features per image.
    pub fn width(&self) -> usize {
        self.0.ncols()
    }

    /// The rows of these indices.
    fn select(&self, indices: &[usize]) -> Self {
        Self(self.0.select_rows(indices))
    }

    /// `count` rows, drawn with replacement or without.
    fn draw(&self, count: usize, replace: bool, random: &mut Generator) -> Self {
        let mut pick = |end: usize| (random.uniform() * end as f64) as usize;
        let mut indices: Vec<usize> = (0..self.count()).collect();
        if replace {
            indices.iter_mut().for_each(|index| *index = pick(self.count()));
        } else {
            (0..count).for_each(|i| indices.swap(i, i + pick(self.count() - i)));
        }
        indices.truncate(count);
        self.select(&indices)
    }
}

/// A value and half the width of its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Estimate {
    /// Of all images.
    pub value: f64,
    /// Half the width of the interval.
    pub margin: f64,
}

/// Standard deviations of the normal distribution within which 95 % lie.
const WITHIN: f64 = 1.96;

impl Estimate {
    /// The mean of what values were drawn from.
    pub fn mean(values: &[f64]) -> Self {
        let count = values.len() as f64;
        let value = values.iter().sum::<f64>() / count;
        Self { value, margin: WITHIN * deviation(values) / count.sqrt() }
    }
}

fn deviation(values: &[f64]) -> f64 {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (squares / (values.len() - 1).max(1) as f64).sqrt()
}

/// The Fréchet distance of two sets (Heusel et al. 2017), with an interval from `resamples` bootstrap samples of
/// both.
pub fn frechet(a: &Features, b: &Features, resamples: usize, seed: u64) -> Estimate {
    let value = Gaussian::new(a).distance(&Gaussian::new(b));
    let sampled: Vec<f64> = (0..resamples as u64)
        .into_par_iter()
        .map(|i| {
            let mut random = Generator::new(seed.wrapping_add(i));
            let mut draw = |x: &Features| Gaussian::new(&x.draw(x.count(), true, &mut random));
            draw(a).distance(&draw(b))
        })
        .collect();
    Estimate { value, margin: WITHIN * deviation(&sampled) }
}

/// Mean and covariance of a set.
struct Gaussian {
    mean: DVector<f64>,
    covariance: DMatrix<f64>,
}

impl Gaussian {
    fn new(features: &Features) -> Self {
        let x = &features.0;
        let mean = x.row_mean().transpose();
        let mut centred = x.clone();
        for (mut column, mean) in centred.column_iter_mut().zip(mean.iter()) {
            column.add_scalar_mut(-mean);
        }
        let covariance = centred.transpose() * &centred / (x.nrows() as f64 - 1.0);
        Self { mean, covariance }
    }

    /// `|m - n|² + tr(A + B - 2 √(A B))`.
    fn distance(&self, other: &Self) -> f64 {
        let means = (&self.mean - &other.mean).norm_squared();
        // With A = L Lᵀ, the eigenvalues of A B are those of the symmetric Lᵀ B L.
        let factor = factor(&self.covariance);
        let product = factor.transpose() * &other.covariance * &factor;
        let root: f64 =
            product.symmetric_eigenvalues().iter().map(|value| value.max(0.0).sqrt()).sum();
        means + self.covariance.trace() + other.covariance.trace() - 2.0 * root
    }
}

/// The Cholesky factor of a matrix that may be singular.
fn factor(matrix: &DMatrix<f64>) -> DMatrix<f64> {
    let scale = (matrix.trace() / matrix.nrows() as f64).max(f64::MIN_POSITIVE);
    let mut ridge = 0.0;
    loop {
        let raised = matrix + DMatrix::identity(matrix.nrows(), matrix.ncols()) * (ridge * scale);
        if let Some(found) = raised.cholesky() {
            return found.unpack();
        }
        ridge = if ridge == 0.0 { 1e-14 } else { ridge * 10.0 };
    }
}

/// The kernel distance of two sets (Binkowski et al. 2018): the unbiased squared MMD with the kernel
/// `(x · y / width + 1)³`, with an interval from `subsets` random parts.
pub fn kernel(a: &Features, b: &Features, subsets: usize, seed: u64) -> Estimate {
    let value = squared_mmd(a, b);
    let count = a.count().min(b.count());
    let part = (count / 4).clamp(2, 1000);
    let sampled: Vec<f64> = (0..subsets as u64)
        .map(|i| {
            let mut random = Generator::new(seed.wrapping_add(i));
            let mut draw = |x: &Features| x.draw(part, false, &mut random);
            squared_mmd(&draw(a), &draw(b))
        })
        .collect();
    let share = part as f64 / count as f64;
    Estimate { value, margin: WITHIN * deviation(&sampled) * share.sqrt() }
}

fn squared_mmd(a: &Features, b: &Features) -> f64 {
    let width = a.width() as f64;
    let kernel = |dot: f64| (dot / width + 1.0).powi(3);
    let sum = |x: &Features, y: &Features, diagonal: bool| -> f64 {
        let add = |first: usize, dots: DMatrix<f64>| -> f64 {
            let own = |i: usize| if diagonal { kernel(dots[(i, first + i)]) } else { 0.0 };
            let all: f64 = dots.iter().map(|dot| kernel(*dot)).sum();
            all - (0..dots.nrows()).map(own).sum::<f64>()
        };
        blocks(x, y, add).into_iter().sum()
    };
    let (m, n) = (a.count() as f64, b.count() as f64);
    sum(a, a, true) / (m * (m - 1.0)) + sum(b, b, true) / (n * (n - 1.0))
        - 2.0 * sum(a, b, false) / (m * n)
}

/// Calls `each` with the products `x · y` of blocks of rows of `x`, and the index of the first row.
fn blocks<T: Send>(
    x: &Features,
    y: &Features,
    each: impl Fn(usize, DMatrix<f64>) -> T + Sync,
) -> Vec<T> {
    let turned = y.0.transpose();
    let starts: Vec<usize> = (0..x.count()).step_by(BLOCK).collect();
    let block = |&first: &usize| {
        let rows = x.0.rows(first, BLOCK.min(x.count() - first));
        each(first, rows * &turned)
    };
    starts.par_iter().map(block).collect()
}

/// Squared distances of each row of `x` to all of `y`, handed to `each`.
fn distances<T: Send>(x: &Features, y: &Features, each: impl Fn(Vec<f64>) -> T + Sync) -> Vec<T> {
    let lengths =
        |f: &Features| -> Vec<f64> { f.0.row_iter().map(|row| row.norm_squared()).collect() };
    let (own, others) = (lengths(x), lengths(y));
    let of_block = |first: usize, dots: DMatrix<f64>| -> Vec<T> {
        let row = |i: usize| {
            let to = |j: usize| (own[first + i] + others[j] - 2.0 * dots[(i, j)]).max(0.0);
            each((0..others.len()).map(to).collect())
        };
        (0..dots.nrows()).map(row).collect()
    };
    blocks(x, y, of_block).into_iter().flatten().collect()
}

/// The nearest row of `y` for each of `x`, and its distance.
pub fn nearest(x: &Features, y: &Features) -> Vec<(usize, f64)> {
    distances(x, y, |row| {
        let nearest = row.iter().enumerate().min_by(|a, b| a.1.total_cmp(b.1));
        nearest.map_or((0, f64::NAN), |(index, squared)| (index, squared.sqrt()))
    })
}

/// The distance of each row to the nearest other one.
pub fn nearest_others(x: &Features) -> Vec<f64> {
    distances(x, x, |mut row| row.select_nth_unstable_by(1, f64::total_cmp).1.sqrt())
}

/// How well one set covers another.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Coverage {
    /// Share of generated images within the neighbourhood of a real one (Kynkäänniemi et al. 2019).
    pub precision: f64,
    /// Share of real images within the neighbourhood of a generated one.
    pub recall: f64,
    /// Mean number of real neighbourhoods, over their size, that a generated image lies in (Naeem et al.
    /// 2020).
    pub density: f64,
    /// Share of real images whose neighbourhood holds a generated one.
    pub coverage: f64,
}

/// Precision, recall, density and coverage, with neighbourhoods that reach to the `k`-th neighbour.
pub fn coverage(real: &Features, generated: &Features, k: usize) -> Coverage {
    let radii = |x: &Features| {
        distances(x, x, |mut row| {
            // The nearest is the row itself.
            let k = k.min(row.len() - 1);
            *row.select_nth_unstable_by(k, f64::total_cmp).1
        })
    };
    let (around_real, around_generated) = (radii(real), radii(generated));
    let inside = |row: &[f64], radii: &[f64]| row.iter().zip(radii).filter(|(d, r)| d <= r).count();
    let hits = distances(generated, real, |row| inside(&row, &around_real));
    let per_real = distances(real, generated, |row| {
        let nearest = row.iter().copied().fold(f64::INFINITY, f64::min);
        (inside(&row, &around_generated), nearest)
    });
    let (real, generated) = (real.count() as f64, generated.count() as f64);
    let covered = per_real.iter().zip(&around_real).filter(|((_, near), radius)| near <= radius);
    Coverage {
        precision: hits.iter().filter(|hits| **hits > 0).count() as f64 / generated,
        recall: per_real.iter().filter(|(hits, _)| *hits > 0).count() as f64 / real,
        density: hits.iter().sum::<usize>() as f64 / (k as f64 * generated),
        coverage: covered.count() as f64 / real,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(count: usize, width: usize, scale: f64, shift: f64, seed: u64) -> Features {
        let mut random = Generator::new(seed);
        let values = random.normal(count * width);
        let row = |row: &[f32]| row.iter().map(|v| v * scale as f32 + shift as f32).collect();
        Features::new(&values.chunks(width).map(row).collect::<Vec<_>>()).expect("finite")
    }

    #[test]
    fn the_distance_of_known_gaussians() {
        let (a, b) = (normal(20_000, 4, 1.0, 0.0, 1), normal(20_000, 4, 2.0, 0.5, 2));
        // Means 0.5 apart in 4 dimensions, deviations 1 and 2: 4 · 0.25 + 4 · (2 − 1)².
        let found = frechet(&a, &b, 10, 0);
        assert!((found.value - 5.0).abs() < 0.15, "{found:?}");
        assert!(found.margin > 0.01 && found.margin < 0.3, "{found:?}");
        assert!(frechet(&a, &a, 2, 0).value.abs() < 1e-6);
        assert!(kernel(&a, &normal(2000, 4, 1.0, 0.0, 3), 5, 0).value.abs() < 0.01);
    }

    #[test]
    fn fewer_images_than_features_are_no_obstacle() {
        let (a, b) = (normal(20, 64, 1.0, 0.0, 1), normal(30, 64, 1.0, 0.0, 2));
        let found = frechet(&a, &b, 2, 0);
        assert!(found.value.is_finite() && found.value > 0.0, "{found:?}");
        assert!(frechet(&a, &a, 0, 0).value.abs() < 1e-4);
    }

    #[test]
    fn a_copy_covers_everything_and_something_else_nothing() {
        let a = normal(100, 8, 1.0, 0.0, 1);
        let same = coverage(&a, &a, 3);
        assert_eq!((same.precision, same.recall, same.coverage), (1.0, 1.0, 1.0));
        let far = coverage(&a, &normal(100, 8, 1.0, 50.0, 2), 3);
        assert_eq!((far.precision, far.recall, far.density, far.coverage), (0.0, 0.0, 0.0, 0.0));
        assert!(nearest(&a, &a).iter().enumerate().all(|(i, (j, d))| i == *j && *d < 1e-6));
    }

    #[test]
    fn rows_that_do_not_fit_are_refused() {
        assert!(Features::new(&[vec![1.0], vec![1.0, 2.0]]).is_none());
        assert!(Features::new(&[vec![1.0], vec![f32::NAN]]).is_none());
        assert!(Features::new(&[vec![1.0]]).is_none());
    }
}
