//! Patch layers of one size from those of another (FlexiViT, Beyer et al. 2023; FlexiDiT, Anagnostidis et
//! al. 2025, section 3).
//!
//! All matrices act on the positions of a patch, row by row, in the same way for every channel.

use burn::module::{Param, ParamId};
use burn::tensor::{FloatDType, Tensor, TensorData};
use nalgebra::DMatrix;

use super::dense::Dense;
use super::lora::Lora;

type Matrix = DMatrix<f64>;

/// Bilinear resizing of a side of `from` pixels to `to`, `[to, from]`: half-pixel centres, edges clamped,
/// no antialiasing.
fn bilinear(from: usize, to: usize) -> Matrix {
    let mut matrix = Matrix::zeros(to, from);
    for i in 0..to {
        let at = (i as f64 + 0.5) * from as f64 / to as f64 - 0.5;
        let at = at.clamp(0.0, (from - 1) as f64);
        let (low, share) = (at.floor() as usize, at.fract());
        matrix[(i, low)] = 1.0 - share;
        if share > 0.0 {
            matrix[(i, low + 1)] = share;
        }
    }
    matrix
}

/// Moore-Penrose inverse of a matrix of full rank.
fn pseudo_inverse(a: &Matrix) -> Matrix {
    if a.nrows() < a.ncols() {
        return pseudo_inverse(&a.transpose()).transpose();
    }
    // (AᵀA)⁻¹ Aᵀ
    let at = a.transpose();
    (&at * a).lu().solve(&at).expect("full rank")
}

/// The matrix, `[to², from²]`, that resizes the kernel of a patch embedding so that larger patches give the
/// same tokens: `(Bᵀ)⁺` of the bilinear `B` (FlexiViT section 3.4).
fn embedding(from: usize, to: usize) -> Matrix {
    let side = pseudo_inverse(&bilinear(from, to).transpose());
    side.kronecker(&side)
}

/// The matrix, `[to², from²]`, that resizes the kernel of a projection to pixels: `Q` of FlexiDiT section
/// 3.3, transposed.
fn projection(from: usize, to: usize) -> Matrix {
    let side = pseudo_inverse(&bilinear(to, from));
    side.kronecker(&side)
}

fn tensor(matrix: &Matrix, like: &Tensor<2>) -> Tensor<2> {
    // nalgebra stores columns.
    let values: Vec<f32> = matrix.transpose().iter().map(|value| *value as f32).collect();
    let data = TensorData::new(values, [matrix.nrows(), matrix.ncols()]);
    Tensor::<2>::from_data(data, &like.device()).cast(FloatDType::from(like.dtype()))
}

/// The embedding of patches of `to` from that of `from`, both sides in pixels.
pub fn resize_embedding(dense: &Dense, from: usize, to: usize) -> Dense {
    with_embedding(dense, from, to, &embedding(from, to))
}

/// The embedding of patches of `to` from which [`resize_embedding`] makes that of `from` again: each weight
/// spread over the pixels that its own becomes.
pub fn extend_embedding(dense: &Dense, from: usize, to: usize) -> Dense {
    with_embedding(dense, from, to, &pseudo_inverse(&embedding(to, from)))
}

/// The projection to patches of `to` from that to patches of `from`.
pub fn resize_projection(dense: &Dense, from: usize, to: usize) -> Dense {
    with_projection(dense, from, to, &projection(from, to))
}

/// The projection to patches of `to` from which [`resize_projection`] makes that to `from` again: its
/// output is that of `dense`, bilinearly enlarged.
pub fn extend_projection(dense: &Dense, from: usize, to: usize) -> Dense {
    with_projection(dense, from, to, &pseudo_inverse(&projection(to, from)))
}

/// Rows are ordered position, channel; the row of a ones channel comes last.
fn with_embedding(dense: &Dense, from: usize, to: usize, matrix: &Matrix) -> Dense {
    let apply = |weight: Tensor<2>| {
        let [rows, hidden] = weight.dims();
        let channels = rows / (from * from);
        let own = channels * from * from;
        let kernel = weight.clone().narrow(0, 0, own).reshape([from * from, channels * hidden]);
        let kernel = tensor(matrix, &kernel).matmul(kernel).reshape([to * to * channels, hidden]);
        match rows - own {
            0 => kernel,
            ones => Tensor::cat(vec![kernel, weight.narrow(0, own, ones)], 0),
        }
    };
    let mut resized = dense.clone();
    resized.weight = part(apply(dense.weight.val()));
    resized.adapter = resized.adapter.map(|on| Lora { down: part(apply(on.down.val())), ..on });
    resized
}

/// Columns are ordered position, channel.
fn with_projection(dense: &Dense, from: usize, to: usize, matrix: &Matrix) -> Dense {
    let apply = |columns: Tensor<2>| {
        let [inputs, outputs] = columns.dims();
        let channels = outputs / (from * from);
        let kernel: Tensor<3> = columns.reshape([inputs, from * from, channels]).swap_dims(0, 1);
        let kernel = kernel.reshape([from * from, inputs * channels]);
        let kernel = tensor(matrix, &kernel).matmul(kernel);
        let kernel: Tensor<3> = kernel.reshape([to * to, inputs, channels]).swap_dims(0, 1);
        kernel.reshape([inputs, to * to * channels])
    };
    let mut resized = dense.clone();
    resized.weight = part(apply(dense.weight.val()));
    resized.bias =
        dense.bias.as_ref().map(|bias| part(apply(bias.val().unsqueeze()).squeeze_dim(0)));
    resized.adapter = resized.adapter.map(|on| Lora { up: part(apply(on.up.val())), ..on });
    resized
}

/// A parameter of its own, or what the graph of gradients made of one.
fn part<const D: usize>(value: Tensor<D>) -> Param<Tensor<D>> {
    match value.is_autodiff() {
        true => Param::initialized(ParamId::new(), value),
        false => Param::from_tensor(value),
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::layers::Init;
    use crate::layers::dense::DenseConfig;
    use crate::layers::patch::{patchify, unpatchify};

    fn close(a: &Matrix, b: &[&[f64]]) {
        assert_eq!(a.shape(), (b.len(), b[0].len()));
        for (a, b) in a.transpose().iter().zip(b.iter().flat_map(|row| row.iter())) {
            assert!((a - b).abs() < 1e-12, "{a} is not {b}");
        }
    }

    #[test]
    fn matrices_are_the_published_ones() {
        close(&bilinear(2, 4), &[&[1.0, 0.0], &[0.75, 0.25], &[0.25, 0.75], &[0.0, 1.0]]);
        close(&bilinear(4, 2), &[&[0.5, 0.5, 0.0, 0.0], &[0.0, 0.0, 0.5, 0.5]]);
        let up = pseudo_inverse(&bilinear(2, 4).transpose());
        close(&up, &[&[0.65, -0.15], &[0.45, 0.05], &[0.05, 0.45], &[-0.15, 0.65]]);
        let down = pseudo_inverse(&bilinear(4, 2).transpose());
        close(&down, &[&[1.0, 1.0, 0.0, 0.0], &[0.0, 0.0, 1.0, 1.0]]);
        // What a size is taken from is found again.
        for (small, large) in [(2, 4), (2, 8), (3, 4), (4, 16)] {
            for q in [embedding(large, small), projection(large, small)] {
                let found = &q * pseudo_inverse(&q);
                let identity = Matrix::identity(q.nrows(), q.nrows());
                assert!((found - identity).amax() < 1e-9);
            }
        }
    }

    /// `sin(1.3 k + 0.37 n)` at flat index `n`.
    fn wave<const D: usize>(k: f64, shape: [usize; D]) -> Tensor<D> {
        let count = shape.iter().product::<usize>();
        let values: Vec<f32> =
            (0..count).map(|n| (1.3 * k + 0.37 * n as f64).sin() as f32).collect();
        Tensor::from_data(TensorData::new(values, shape), &Device::flex())
    }

    fn near<const D: usize>(found: Tensor<D>, expected: &[f64]) {
        let found: Vec<f32> = found.into_data().try_into_vec().expect("f32");
        assert_eq!(found.len(), expected.len());
        for (a, b) in found.iter().zip(expected) {
            assert!((f64::from(*a) - b).abs() < 2e-6, "{a} is not {b}");
        }
    }

    #[test]
    fn embeddings_of_two_sizes_match_the_golden_numbers() {
        let mut native = DenseConfig::new(4, 2, false).init(&Init::new(0, &Device::flex()));
        native.weight = part(wave::<2>(1.0, [2, 4]).transpose());
        native.bias = Some(part(wave(3.0, [2])));
        let flexible = extend_embedding(&native, 2, 4);
        let rows = flexible.weight.val().transpose().narrow(0, 0, 1);
        near(rows.clone().narrow(1, 0, 4), &[0.240890, 0.240890, 0.248771, 0.248771]);
        near(rows.narrow(1, 8, 4), &[0.222982, 0.222982, 0.167014, 0.167014]);

        let latent = wave(2.0, [1, 1, 4, 4]);
        let tokens =
            [-1.385774, 0.232379, -2.893402, 0.002693, -0.453921, -2.003098, 1.232308, -1.920261];
        near(resize_embedding(&flexible, 4, 2).forward(patchify(latent.clone(), 2)), &tokens);
        let weak = [-1.078722, -1.447449];
        near(flexible.forward(patchify(latent.clone(), 4)), &weak);
        let pooled: Tensor<6> = latent.reshape([1, 1, 2, 2, 2, 2]);
        let pooled = pooled.mean_dim(5).mean_dim(3).reshape([1, 1, 2, 2]);
        near(native.forward(patchify(pooled, 2)), &weak);
    }

    #[test]
    fn projections_to_two_sizes_match_the_golden_numbers() {
        let mut native = DenseConfig::new(2, 8, false).init(&Init::new(0, &Device::flex()));
        native.weight = part(wave::<2>(4.0, [8, 2]).transpose());
        native.bias = Some(part(wave(5.0, [8])));
        let hidden = Tensor::<3>::from_floats([[[0.5, -1.0]]], &Device::flex());
        let flexible = extend_projection(&native, 2, 4);
        let small = resize_projection(&flexible, 4, 2).forward(hidden.clone());
        let expected =
            [0.427639, 0.316757, 0.688770, 1.093467, 0.358656, 0.426079, 0.975834, 0.890336];
        near(unpatchify(small, 2, [1, 1]), &expected);
        let large = unpatchify(flexible.forward(hidden), 4, [1, 1]);
        let first = [
            0.427639, 0.399918, 0.344477, 0.316757, 0.492922, 0.497425, 0.506431, 0.510934,
            0.623487, 0.692438, 0.830339, 0.899289, 0.688770, 0.789945, 0.992293, 1.093467,
        ];
        near(large.clone().narrow(1, 0, 1), &first);
        let second = large.narrow(1, 1, 1).narrow(2, 1, 1);
        near(second, &[0.512950, 0.520249, 0.534845, 0.542144]);
    }

    #[test]
    fn resized_kernels_give_the_same_tokens_of_enlarged_patches() {
        let (b, q) = (bilinear(2, 4).kronecker(&bilinear(2, 4)), embedding(2, 4));
        let column = |values: [f64; 4]| Matrix::from_column_slice(4, 1, &values);
        let (x, w) = (column([0.3, -1.2, 0.8, 2.0]), column([1.1, 0.2, -0.7, 0.4]));
        assert!(((b * &x).dot(&(q * &w)) - x.dot(&w)).abs() < 1e-9);
    }

    #[test]
    fn fresh_projections_enlarge_their_output_bilinearly() {
        // The pseudo-inverse of what brings 4 x 4 down to 2 x 2.
        let up = pseudo_inverse(&projection(4, 2));
        let y = up * Matrix::from_column_slice(4, 1, &[1.0, 2.0, 3.0, 4.0]);
        let expected = [
            1.0, 1.25, 1.75, 2.0, 1.5, 1.75, 2.25, 2.5, 2.5, 2.75, 3.25, 3.5, 3.0, 3.25, 3.75, 4.0,
        ];
        y.iter().zip(expected).for_each(|(a, b)| assert!((a - b).abs() < 1e-9, "{a} is not {b}"));
    }
}
