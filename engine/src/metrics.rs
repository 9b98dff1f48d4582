//! How far two sets of images are apart, by the features of a network, in f64.

mod probe;

use std::fmt;

pub use probe::Probe;

use nalgebra::linalg::SVD;
use nalgebra::{DMatrix, DVector};
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::random::Generator;

/// Rows of a block of pairs.
const BLOCK: usize = 512;
/// Features are f32: rows that are nearer to each other than this share of their length are those of the same picture.
const SAME: f64 = 1e-5;

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
    /// Half the width of the interval; `None` where fewer than two samples were to give one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub margin: Option<f64>,
}

/// Standard deviations of the normal distribution within which 95 % lie.
const WITHIN: f64 = 1.96;

impl Estimate {
    /// The mean of what values were drawn from; there must be one.
    pub fn mean(values: &[f64]) -> Self {
        let count = values.len() as f64;
        Self { value: values.iter().sum::<f64>() / count, margin: margin(values, 1.0 / count) }
    }
}

impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.value, f)?;
        self.margin.map_or(Ok(()), |margin| {
            f.write_str(" ± ")?;
            fmt::Display::fmt(&margin, f)
        })
    }
}

/// Half the width of the interval of a value that varies as its samples, with this share of their variance.
fn margin(samples: &[f64], share: f64) -> Option<f64> {
    let count = samples.len() as f64;
    let mean = samples.iter().sum::<f64>() / count;
    let squares: f64 = samples.iter().map(|sample| (sample - mean).powi(2)).sum();
    (samples.len() > 1).then(|| WITHIN * (squares / (count - 1.0) * share).sqrt())
}

/// The Fréchet distance of two sets (Heusel et al. 2017), with an interval from `resamples` bootstrap samples of
/// both; exact for sets of any rank.
///
/// # Errors
/// [`Error::SingularValues`] if they are not found.
pub fn frechet(a: &Features, b: &Features, resamples: usize, seed: u64) -> Result<Estimate> {
    let value = Gaussian::new(a).distance(&Gaussian::new(b))?;
    let sampled: Result<Vec<f64>> = (0..resamples as u64)
        .into_par_iter()
        .map(|i| {
            let mut random = Generator::new(seed.wrapping_add(i));
            let mut draw = |x: &Features| Gaussian::new(&x.draw(x.count(), true, &mut random));
            draw(a).distance(&draw(b))
        })
        .collect();
    Ok(Estimate { value, margin: margin(&sampled?, 1.0) })
}

/// Mean and covariance of a set.
struct Gaussian {
    mean: DVector<f64>,
    /// A matrix `R` with `Rᵀ R` the covariance, of as many columns as there are features and no more rows.
    root: DMatrix<f64>,
}

impl Gaussian {
    fn new(features: &Features) -> Self {
        let x = &features.0;
        let mean = x.row_mean().transpose();
        let scale = (x.nrows() as f64 - 1.0).sqrt().recip();
        let mut root = x.clone();
        for (mut column, mean) in root.column_iter_mut().zip(mean.iter()) {
            column.apply(|value| *value = (*value - mean) * scale);
        }
        if root.nrows() > root.ncols() {
            root = factor(&(root.transpose() * &root));
        }
        Self { mean, root }
    }

    /// `|m - n|² + tr(A + B - 2 √(A B))`. With `A = Rᵀ R` and `B = Sᵀ S`, the eigenvalues of `A B` are the squares of
    /// the singular values of `R Sᵀ`, so that no root is taken of rounding errors where the rank is low, and a few
    /// images need small matrices only.
    fn distance(&self, other: &Self) -> Result<f64> {
        let means = (&self.mean - &other.mean).norm_squared();
        let traces = self.root.norm_squared() + other.root.norm_squared();
        let distance = means + traces - 2.0 * nuclear_norm(&self.root * other.root.transpose())?;
        // Rounding takes equal sets below 0, by 1e-14 of their traces.
        Ok(if distance < 0.0 { 0.0 } else { distance })
    }
}

/// The Cholesky factor `R` of `Rᵀ R`, a matrix that may be singular.
fn factor(matrix: &DMatrix<f64>) -> DMatrix<f64> {
    let scale = matrix.trace() / matrix.nrows() as f64;
    // Of images that are all the same.
    if scale == 0.0 {
        return matrix.clone();
    }
    let mut ridge = 0.0;
    loop {
        let raised = matrix + DMatrix::identity(matrix.nrows(), matrix.ncols()) * (ridge * scale);
        if let Some(found) = raised.cholesky() {
            return found.unpack().transpose();
        }
        ridge = if ridge == 0.0 { 1e-14 } else { ridge * 10.0 };
    }
}

/// Sum of the singular values of a matrix of finite numbers.
fn nuclear_norm(matrix: DMatrix<f64>) -> Result<f64> {
    /// Rotations per singular value after which there is no hope.
    const ROTATIONS: usize = 100;
    let squares = matrix.norm_squared();
    let most = ROTATIONS * matrix.nrows().min(matrix.ncols());
    let found = SVD::try_new_unordered(matrix, false, false, 5.0 * f64::EPSILON, most);
    let values = found.ok_or(Error::SingularValues)?.singular_values;
    // Their squares add up to those of the elements: a wrong value is not passed on.
    match (values.norm_squared() - squares).abs() <= 1e-9 * squares {
        true => Ok(values.sum()),
        false => Err(Error::SingularValues),
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
    Estimate { value, margin: margin(&sampled, share) }
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

/// Squared distances of each row of `x` to all of `y`, handed to `each`; 0 between rows that are the [`SAME`].
fn distances<T: Send>(x: &Features, y: &Features, each: impl Fn(Vec<f64>) -> T + Sync) -> Vec<T> {
    let lengths =
        |f: &Features| -> Vec<f64> { f.0.row_iter().map(|row| row.norm_squared()).collect() };
    let (own, others) = (lengths(x), lengths(y));
    let of_block = |first: usize, dots: DMatrix<f64>| -> Vec<T> {
        let row = |i: usize| {
            let to = |j: usize| {
                let lengths = own[first + i] + others[j];
                let squared = lengths - 2.0 * dots[(i, j)];
                if squared > SAME * SAME * lengths { squared } else { 0.0 }
            };
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

/// The distance of each row to the nearest other one; 0 for duplicates.
pub fn nearest_others(x: &Features) -> Vec<f64> {
    distances(x, x, |mut row| row.select_nth_unstable_by(1, f64::total_cmp).1.sqrt())
}

/// How well one set covers another.
///
/// A neighbourhood of an image reaches up to its `k`-th neighbour in its own set, which is not inside any more, as in
/// the reference implementation of Naeem et al. (2020): equal sets have a density of 1. So the neighbourhood of an image
/// with `k` duplicates or more is empty.
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
    /// Images of both sets with so many duplicates in their set that their neighbourhood is empty.
    pub duplicated: usize,
}

/// Precision, recall, density and coverage, with neighbourhoods that reach to the `k`-th neighbour, or to the last where
/// there are fewer.
pub fn coverage(real: &Features, generated: &Features, k: usize) -> Coverage {
    let size = |x: &Features| k.min(x.count() - 1);
    let radii = |x: &Features| {
        // The nearest is the row itself.
        distances(x, x, |mut row| *row.select_nth_unstable_by(size(x), f64::total_cmp).1)
    };
    let (around_real, around_generated) = (radii(real), radii(generated));
    let inside = |row: &[f64], radii: &[f64]| row.iter().zip(radii).filter(|(d, r)| d < r).count();
    let hits = distances(generated, real, |row| inside(&row, &around_real));
    let per_real = distances(real, generated, |row| {
        let nearest = row.iter().copied().fold(f64::INFINITY, f64::min);
        (inside(&row, &around_generated), nearest)
    });
    let empty = around_real.iter().chain(&around_generated).filter(|radius| **radius == 0.0);
    let covered = per_real.iter().zip(&around_real).filter(|((_, near), radius)| near < radius);
    let (reals, made) = (real.count() as f64, generated.count() as f64);
    Coverage {
        precision: hits.iter().filter(|hits| **hits > 0).count() as f64 / made,
        recall: per_real.iter().filter(|(hits, _)| *hits > 0).count() as f64 / reals,
        density: hits.iter().sum::<usize>() as f64 / (size(real) as f64 * made),
        coverage: covered.count() as f64 / reals,
        duplicated: empty.count(),
    }
}

#[cfg(test)]
mod tests;
