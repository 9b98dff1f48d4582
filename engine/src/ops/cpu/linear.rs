//! Linear layers.

use burn::backend::flex::FlexTensor;
use rayon::prelude::*;

use super::activation::activate;
use super::bridge::Kernel;
use super::buffers::{buffer, shape, tensor, values};
use super::math::{add_scaled, column_sums, simd};
use super::matrix::{Matrix, multiply};
use super::mixed;
use super::packed::{self, product};
use crate::ops::activation::Activation;
use crate::ops::compressed::Compressed;

/// `f(x · W + b)` for `x` of `[.., in]`, `W` of `[in, out]` and, if given, `b` of `[out]`.
#[derive(Debug, Clone)]
pub(in crate::ops) struct Linear {
    /// `f`; only without gradients.
    pub(in crate::ops) activation: Option<Activation>,
    /// Products in bf16.
    pub(in crate::ops) mixed: bool,
}

impl Linear {
    /// `a · b`.
    fn product(&self, a: Matrix<'_>, b: Matrix<'_>) -> Vec<f32> {
        if self.mixed {
            return mixed::multiply(a, b);
        }
        let mut out = buffer(a.rows * b.columns);
        multiply(&mut out, b.columns, a, b, false, true);
        out
    }
}

/// Rows of the output that one task finishes.
const ROWS: usize = 16;

impl Kernel for Linear {
    fn forward(&self, inputs: Vec<FlexTensor>) -> FlexTensor {
        let x = inputs[0].to_contiguous();
        let bias = inputs.get(2).map(FlexTensor::to_contiguous);
        let mut dims = shape(&x);
        let weight = matrix(&inputs[1]);
        let (width, rows) = (weight.columns, values(&x).len() / weight.rows.max(1));
        let mut y = self.product(Matrix::new(values(&x), rows, weight.rows), weight);
        let bias = bias.as_ref().map(values);
        Finish { bias, activation: self.activation }.rows(&mut y, width);
        *dims.last_mut().expect("at least one dimension") = width;
        tensor(y, &dims)
    }

    fn backward(
        &self,
        inputs: Vec<FlexTensor>,
        gradient: FlexTensor,
        wanted: &[bool],
    ) -> Vec<Option<FlexTensor>> {
        assert!(self.activation.is_none(), "an activation of its own when gradients are recorded");
        let (x, gradient) = (inputs[0].to_contiguous(), gradient.to_contiguous());
        let weight = matrix(&inputs[1]);
        let (inner, width) = (weight.rows, weight.columns);
        let rows = values(&x).len() / inner.max(1);
        let given = Matrix::new(values(&gradient), rows, width);
        let for_x = wanted[0].then(|| tensor(self.product(given, weight.transposed()), &shape(&x)));
        let for_weight = wanted[1].then(|| {
            let x = Matrix::new(values(&x), rows, inner).transposed();
            tensor(self.product(x, given), &[inner, width])
        });
        let mut found = vec![for_x, for_weight];
        if wanted.len() > 2 {
            let sums = || tensor(column_sums(values(&gradient), None, width), &[width]);
            found.push(wanted[2].then(sums));
        }
        found
    }
}

/// What is done with a product: a bias is added to each row, then the activation is applied.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::ops) struct Finish<'a> {
    /// One number per column.
    pub(in crate::ops) bias: Option<&'a [f32]>,
    pub(in crate::ops) activation: Option<Activation>,
}

impl Finish<'_> {
    pub(in crate::ops) fn is_nothing(self) -> bool {
        self.bias.is_none() && self.activation.is_none()
    }

    /// In place, for whole rows.
    pub(in crate::ops) fn rows(self, y: &mut [f32], width: usize) {
        if !self.is_nothing() {
            y.par_chunks_mut(ROWS * width).for_each(|rows| self.part(rows, width, 0, width));
        }
    }

    /// In place, for `count` columns from `first` on, in rows that are `stride` apart and end with the memory.
    pub(in crate::ops) fn part(self, y: &mut [f32], stride: usize, first: usize, count: usize) {
        if let Some(bias) = self.bias {
            let bias = &bias[first..first + count];
            simd(
                #[inline(always)]
                || {
                    for row in y.chunks_exact_mut(stride) {
                        add_scaled(&mut row[..count], 1.0, bias);
                    }
                },
            );
        }
        if let Some(activation) = self.activation {
            activate(activation, y);
        }
    }
}

/// `f(x · W + b)` with a weight packed by [`pack`](super::packed::pack).
pub(in crate::ops) fn packed(
    x: &FlexTensor,
    weight: &FlexTensor,
    outputs: usize,
    bias: Option<FlexTensor>,
    activation: Option<Activation>,
) -> FlexTensor {
    let x = x.to_contiguous();
    let mut dims = shape(&x);
    let inputs = std::mem::replace(dims.last_mut().expect("a dimension"), outputs);
    let finish = Finish { bias: bias.as_ref().map(values), activation };
    tensor(product(values(&x), inputs, weight, outputs, finish), &dims)
}

/// The same with a weight that is unpacked as it is multiplied.
pub(in crate::ops) fn compressed(
    x: &FlexTensor,
    weight: &dyn Compressed,
    bias: Option<FlexTensor>,
    activation: Option<Activation>,
) -> FlexTensor {
    let x = x.to_contiguous();
    let mut dims = shape(&x);
    *dims.last_mut().expect("a dimension") = weight.widths()[1];
    let finish = Finish { bias: bias.as_ref().map(values), activation };
    tensor(packed::compressed(values(&x), weight, finish), &dims)
}

/// A weight of any strides, such as a transposed or narrowed one.
fn matrix(weight: &FlexTensor) -> Matrix<'_> {
    let layout = weight.layout();
    let strides = [0, 1].map(|i| usize::try_from(layout.strides()[i]).expect("not flipped"));
    Matrix {
        values: &weight.storage::<f32>()[layout.start_offset()..],
        rows: layout.shape()[0],
        columns: layout.shape()[1],
        strides,
    }
}
