//! Small dense linear algebra on the host, in f64.

/// Solves a linear system by elimination with partial pivoting; `None` if it is singular.
pub(crate) fn solve(mut a: Vec<Vec<f64>>, mut b: Vec<f64>) -> Option<Vec<f64>> {
    let n = b.len();
    for column in 0..n {
        let pivot =
            (column..n).max_by(|&i, &j| a[i][column].abs().total_cmp(&a[j][column].abs()))?;
        if a[pivot][column].abs() < 1e-300 {
            return None;
        }
        a.swap(column, pivot);
        b.swap(column, pivot);
        for row in column + 1..n {
            let factor = a[row][column] / a[column][column];
            let (upper, lower) = a.split_at_mut(row);
            for (x, y) in lower[0][column..].iter_mut().zip(&upper[column][column..]) {
                *x -= factor * y;
            }
            b[row] -= factor * b[column];
        }
    }
    for row in (0..n).rev() {
        let known: f64 = (row + 1..n).map(|i| a[row][i] * b[i]).sum();
        b[row] = (b[row] - known) / a[row][row];
    }
    (n > 0).then_some(b)
}

/// A matrix by rows.
pub(crate) type Matrix = Vec<Vec<f64>>;

pub(crate) fn transpose(a: &Matrix) -> Matrix {
    (0..a[0].len()).map(|j| a.iter().map(|row| row[j]).collect()).collect()
}

pub(crate) fn multiply(a: &Matrix, b: &Matrix) -> Matrix {
    let columns = transpose(b);
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum();
    a.iter().map(|row| columns.iter().map(|column| dot(row, column)).collect()).collect()
}

/// Moore-Penrose inverse of a matrix of full rank.
pub(crate) fn pseudo_inverse(a: &Matrix) -> Matrix {
    if a.len() < a[0].len() {
        return transpose(&pseudo_inverse(&transpose(a)));
    }
    // (AᵀA)⁻¹ Aᵀ, column by column.
    let (at, gram) = (transpose(a), multiply(&transpose(a), a));
    let column = |j: usize| {
        let right = at.iter().map(|row| row[j]).collect();
        solve(gram.clone(), right).expect("full rank")
    };
    transpose(&(0..a.len()).map(column).collect())
}

/// Kronecker product of a matrix with itself.
pub(crate) fn kronecker_square(a: &Matrix) -> Matrix {
    let row =
        |i: &Vec<f64>, j: &Vec<f64>| i.iter().flat_map(|x| j.iter().map(move |y| x * y)).collect();
    a.iter().flat_map(|i| a.iter().map(move |j| row(i, j))).collect()
}
