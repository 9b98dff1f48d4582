//! Products of f32 matrices: a safe face of the `gemm` crate.

use gemm::Parallelism;
use rayon::prelude::*;

/// A view of a matrix inside a slice.
#[derive(Debug, Clone, Copy)]
pub(in crate::ops) struct Matrix<'a> {
    pub(in crate::ops) values: &'a [f32],
    pub(in crate::ops) rows: usize,
    pub(in crate::ops) columns: usize,
    /// Distance in memory from one row, and one column, to the next.
    pub(in crate::ops) strides: [usize; 2],
}

impl<'a> Matrix<'a> {
    /// A matrix in row-major order.
    pub(in crate::ops) fn new(values: &'a [f32], rows: usize, columns: usize) -> Self {
        Self { values, rows, columns, strides: [columns, 1] }
    }

    /// A row-major matrix whose rows are `stride` apart.
    pub(in crate::ops) fn strided(
        values: &'a [f32],
        rows: usize,
        columns: usize,
        stride: usize,
    ) -> Self {
        Self { values, rows, columns, strides: [stride, 1] }
    }

    pub(in crate::ops) fn transposed(self) -> Self {
        let [row, column] = self.strides;
        Self { rows: self.columns, columns: self.rows, strides: [column, row], ..self }
    }

    /// `count` rows from `start` on.
    pub(in crate::ops) fn rows_at(self, start: usize, count: usize) -> Self {
        Self { values: &self.values[start * self.strides[0]..], rows: count, ..self }
    }

    /// One past the last element that is read.
    pub(super) fn end(&self) -> usize {
        let last = |count: usize, stride: usize| count.saturating_sub(1) * stride;
        last(self.rows, self.strides[0]) + last(self.columns, self.strides[1]) + 1
    }
}

/// Multiplications below which one thread does a product.
const PARALLEL: usize = 1 << 21;
/// Rows or columns of the least share: `gemm` sums smaller products in another order.
const SHARE: usize = 96;
/// Shares start at multiples of this, which suits every register.
const GRAIN: usize = 16;

/// `c = a · b`, or `c += a · b`, for `c` in rows that are `stride` apart.
///
/// With `parallel`, large products are shared among threads; the sums are the same for any number.
#[allow(unsafe_code)]
pub(in crate::ops) fn multiply(
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
    #[cfg(test)]
    count(m * n * k);
    let threads = rayon::current_num_threads();
    let work = m.saturating_mul(n).saturating_mul(k);
    let c = Output::new(c);
    if !parallel || threads == 1 || work < PARALLEL {
        // SAFETY: the asserts above keep all accesses inside the slices, and `c` is borrowed alone.
        return unsafe { c.product(stride, a, b, accumulate) };
    }
    // The longer side is shared out, so that each thread reads least.
    let (longer, shorter) = (m.max(n), m.min(n));
    let parts = threads.min(longer / SHARE.max(512 / shorter)).max(1);
    let start = |i: usize| match i == parts {
        true => longer,
        false => i * longer / parts / GRAIN * GRAIN,
    };
    (0..parts).into_par_iter().for_each(|i| {
        let (first, count) = (start(i), start(i + 1) - start(i));
        let (offset, a, b) = match m > n {
            true => (first * stride, a.rows_at(first, count), b),
            false => (first, a, b.transposed().rows_at(first, count).transposed()),
        };
        // SAFETY: as above; the rows or columns of `c` that each task writes are its own.
        unsafe { c.at(offset).product(stride, a, b, accumulate) };
    });
}

#[cfg(test)]
thread_local! {
    /// Multiplications with an addition in the products of this thread.
    static COUNTED: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// Notes a product of so many multiplications with an addition.
#[cfg(test)]
pub(in crate::ops) fn count(operations: usize) {
    COUNTED.set(COUNTED.get() + operations as u64);
}

/// Multiplications with an addition in the products of `f`, done on one thread.
#[cfg(test)]
pub(crate) fn counted(f: impl FnOnce() + Send) -> u64 {
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    one.install(|| {
        f();
        COUNTED.get()
    })
}

/// Where a product is written; several threads write disjoint parts of it.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Output(*mut f32);

// SAFETY: a pointer into memory that the caller of `multiply` has borrowed mutably for its duration.
#[allow(unsafe_code)]
unsafe impl Send for Output {}
// SAFETY: as above; tasks write to disjoint elements.
#[allow(unsafe_code)]
unsafe impl Sync for Output {}

#[allow(unsafe_code)]
impl Output {
    pub(in crate::ops) fn new(memory: &mut [f32]) -> Self {
        Self(memory.as_mut_ptr())
    }

    pub(in crate::ops) fn pointer(self) -> *mut f32 {
        self.0
    }

    /// # Safety
    /// `offset` is inside the memory, or one past it.
    pub(in crate::ops) unsafe fn at(self, offset: usize) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { self.0.add(offset) })
    }

    /// # Safety
    /// All elements of `a`, `b` and of the product lie in memory that is borrowed for them.
    pub(in crate::ops) unsafe fn product(
        self,
        stride: usize,
        a: Matrix<'_>,
        b: Matrix<'_>,
        accumulate: bool,
    ) {
        let [ars, acs] = a.strides.map(|stride| stride as isize);
        let [brs, bcs] = b.strides.map(|stride| stride as isize);
        // SAFETY: the caller's promise.
        unsafe {
            gemm::gemm(
                a.rows,
                b.columns,
                a.columns,
                self.0,
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
                Parallelism::None,
            );
        }
    }
}
