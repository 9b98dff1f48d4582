//! Products of f32 matrices: a safe face of the `gemm` crate.

use gemm::Parallelism;

/// A view of a matrix inside a slice.
#[derive(Debug, Clone, Copy)]
pub(super) struct Matrix<'a> {
    pub(super) values: &'a [f32],
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Distance in memory from one row, and one column, to the next.
    pub(super) strides: [usize; 2],
}

impl<'a> Matrix<'a> {
    /// A matrix in row-major order.
    pub(super) fn new(values: &'a [f32], rows: usize, columns: usize) -> Self {
        Self { values, rows, columns, strides: [columns, 1] }
    }

    /// A row-major matrix whose rows are `stride` apart.
    pub(super) fn strided(values: &'a [f32], rows: usize, columns: usize, stride: usize) -> Self {
        Self { values, rows, columns, strides: [stride, 1] }
    }

    pub(super) fn transposed(self) -> Self {
        let [row, column] = self.strides;
        Self { rows: self.columns, columns: self.rows, strides: [column, row], ..self }
    }

    /// One past the last element that is read.
    fn end(&self) -> usize {
        let last = |count: usize, stride: usize| count.saturating_sub(1) * stride;
        last(self.rows, self.strides[0]) + last(self.columns, self.strides[1]) + 1
    }
}

/// Multiplications below which one thread does a product.
const PARALLEL: usize = 1 << 21;

/// `c = a · b`, or `c += a · b`, for `c` in rows that are `stride` apart.
///
/// With `parallel`, large products are shared among threads.
#[allow(unsafe_code)]
pub(super) fn multiply(
    c: &mut [f32],
    stride: usize,
    a: Matrix<'_>,
    b: Matrix<'_>,
    accumulate: bool,
    parallel: bool,
) {
    let (m, k, n) = (a.rows, a.columns, b.columns);
    assert_eq!(k, b.rows, "inner dimensions");
    if m == 0 || n == 0 {
        return;
    }
    assert!(a.end() <= a.values.len() && b.end() <= b.values.len(), "operands within their memory");
    assert!((m - 1) * stride + n <= c.len() && stride >= n, "the product within its memory");
    let work = m.saturating_mul(n).saturating_mul(k);
    let threads = match parallel && work >= PARALLEL && rayon::current_num_threads() > 1 {
        true => Parallelism::Rayon(0),
        false => Parallelism::None,
    };
    let [ars, acs] = a.strides.map(|stride| stride as isize);
    let [brs, bcs] = b.strides.map(|stride| stride as isize);
    // SAFETY: the asserts above keep all accesses inside the slices, and `c` is borrowed alone.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            stride as isize,
            accumulate,
            a.values.as_ptr(),
            acs,
            ars,
            b.values.as_ptr(),
            bcs,
            brs,
            1.0,
            1.0,
            false,
            false,
            false,
            threads,
        );
    }
}
