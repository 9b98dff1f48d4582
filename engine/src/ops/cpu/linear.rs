//! Linear layers.

use burn::backend::flex::FlexTensor;
use rayon::prelude::*;

use super::activation::activate;
use super::bridge::Kernel;
use super::buffers::{buffer, shape, tensor, values};
use super::math::{add_scaled, column_sums, simd};
use super::matrix::{Matrix, multiply};
use super::mixed;
use super::packed::product;
use crate::ops::activation::Activation;

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
        finish(&mut y, width, bias.as_ref().map(values), self.activation);
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

/// Adds the bias to each row and applies the activation, in place.
fn finish(y: &mut [f32], width: usize, bias: Option<&[f32]>, activation: Option<Activation>) {
    if bias.is_none() && activation.is_none() {
        return;
    }
    y.par_chunks_mut(ROWS * width).for_each(|rows| {
        if let Some(bias) = bias {
            simd(
                #[inline(always)]
                || rows.chunks_exact_mut(width).for_each(|row| add_scaled(row, 1.0, bias)),
            );
        }
        if let Some(activation) = activation {
            activate(activation, rows);
        }
    });
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
    let mut y = product(values(&x), inputs, weight, outputs);
    finish(&mut y, outputs, bias.as_ref().map(values), activation);
    tensor(y, &dims)
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
