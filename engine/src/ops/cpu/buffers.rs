//! Reading and making the CPU backend's tensors.

use burn::backend::flex::{FlexTensor, Layout};
use burn::tensor::{Bytes, DType, Shape};

/// Memory for `count` numbers, to be written before it is read.
#[allow(unsafe_code, clippy::uninit_vec)]
pub(in crate::ops) fn buffer(count: usize) -> Vec<f32> {
    let mut values = Vec::with_capacity(count);
    // SAFETY: the capacity is `count`, any bits are an f32, and every kernel writes each element of
    // its buffers before it reads it. Clearing first would cost as much as many of the kernels.
    unsafe { values.set_len(count) };
    values
}

/// A tensor from values in row-major order.
pub(in crate::ops) fn tensor(values: Vec<f32>, shape: &[usize]) -> FlexTensor {
    let layout = Layout::contiguous(Shape::from(shape.to_vec()));
    FlexTensor::new(Bytes::from_elems(values), layout, DType::F32)
}

/// The tensor as the only contents of its memory, to be changed in place.
pub(in crate::ops) fn whole(x: FlexTensor) -> FlexTensor {
    match x.is_contiguous() && x.storage::<f32>().len() == x.layout().num_elements() {
        true => x,
        false => tensor(values(&x.to_contiguous()).to_vec(), &shape(&x)),
    }
}

pub(in crate::ops) fn shape(x: &FlexTensor) -> Vec<usize> {
    x.layout().shape().to_vec()
}

/// Elements in row-major order of a tensor that is contiguous.
pub(in crate::ops) fn values(x: &FlexTensor) -> &[f32] {
    let start = x.layout().start_offset();
    &x.storage::<f32>()[start..start + x.layout().num_elements()]
}

/// A tensor `[batch, tokens, width]` whose rows lie in memory whole, read row by row. Both leading
/// dimensions may be broadcast.
pub(in crate::ops) struct Rows {
    tensor: FlexTensor,
    start: usize,
    strides: [usize; 2],
    /// `[batch, tokens, width]`.
    pub(in crate::ops) shape: [usize; 3],
}

impl Rows {
    pub(in crate::ops) fn new(x: FlexTensor) -> Self {
        let layout = x.layout();
        let plain = layout.strides().iter().all(|&stride| stride >= 0);
        let x = match plain && (layout.strides()[2] == 1 || layout.shape()[2] == 1) {
            true => x,
            false => x.to_contiguous(),
        };
        let layout = x.layout();
        let dims: [usize; 3] = layout.shape().to_vec().try_into().expect("three dimensions");
        // A dimension of length 1 is repeated.
        let stride = |i: usize| if dims[i] == 1 { 0 } else { layout.strides()[i] as usize };
        let (start, strides) = (layout.start_offset(), [stride(0), stride(1)]);
        Self { start, strides, shape: dims, tensor: x }
    }

    pub(in crate::ops) fn row(&self, batch: usize, token: usize) -> &[f32] {
        let start = self.start + batch * self.strides[0] + token * self.strides[1];
        &self.tensor.storage::<f32>()[start..start + self.shape[2]]
    }
}
