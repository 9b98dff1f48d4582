//! Kernels of our own for GPUs, in CubeCL: each a form of an operation in `ops/`, for inference.
//!
//! burn's fusion keeps them in order among its own operations and does not look into them.

mod attention;
mod heads;
mod modulate;
mod rows;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::{DType, FloatDType, Tensor};
use burn_cubecl::CubeBackend;

use super::RowNorm;
use super::attention::{AttentionBias, AttentionSpec, HIDDEN, Packed, Parts, sides, together};
use super::rotary::{HeadNorm, Pairs, Rotary};
use crate::device::{is_host, on_gpus};

/// Most cubes along a side of a launch, on any graphics API.
const MOST_CUBES: usize = u16::MAX as usize;
/// Keys up to which [`attention()`] is for half precision, too, where burn multiplies it in matrix units.
const MOST_KEYS: usize = 512;

/// What runs on burn's GPU backend, lazily where that joins operations.
#[allow(clippy::too_many_arguments, reason = "burn takes each tensor as an argument")]
#[backend_extension(Cube, Fusion)]
trait Operations: Backend {
    /// Factors that are off are any tensor.
    #[fusion(dtype = x, shape = x)]
    fn modulate_rows(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        angles: FloatTensor<Self>,
        form: modulate::Form,
        epsilon: f32,
    ) -> FloatTensor<Self>;

    /// Gains and angles that are off are any tensor.
    #[fusion(dtype = rows, shape = rows)]
    fn change_heads(
        rows: FloatTensor<Self>,
        query_gain: FloatTensor<Self>,
        key_gain: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        form: heads::Form,
        epsilon: f32,
    ) -> FloatTensor<Self>;

    /// A bias that is off is any tensor; `of_queries` and `of_held` are those of the rows.
    #[fusion(dtype = queries, shape = {
        let mut shape = queries.clone();
        shape[2] = form.heads * form.width;
        shape
    })]
    fn attend(
        queries: FloatTensor<Self>,
        held: FloatTensor<Self>,
        of_queries: FloatTensor<Self>,
        of_held: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        form: attention::Form,
        scale: f32,
    ) -> FloatTensor<Self>;
}

#[allow(clippy::too_many_arguments, reason = "as above")]
impl Operations for CubeBackend {
    fn modulate_rows(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        angles: FloatTensor<Self>,
        form: modulate::Form,
        epsilon: f32,
    ) -> FloatTensor<Self> {
        modulate::launch(x, [scale, shift, angles], form, epsilon)
    }

    fn change_heads(
        rows: FloatTensor<Self>,
        query_gain: FloatTensor<Self>,
        key_gain: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        form: heads::Form,
        epsilon: f32,
    ) -> FloatTensor<Self> {
        heads::launch(rows, [query_gain, key_gain], [cos, sin], form, epsilon)
    }

    fn attend(
        queries: FloatTensor<Self>,
        held: FloatTensor<Self>,
        of_queries: FloatTensor<Self>,
        of_held: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        form: attention::Form,
        scale: f32,
    ) -> FloatTensor<Self> {
        attention::launch([queries, held], [of_queries, of_held], bias, form, scale)
    }
}

/// Whether tensors are on a GPU, of one type and without gradients.
fn on_gpu<'a, const D: usize>(mut tensors: impl Iterator<Item = &'a Tensor<D>>) -> bool {
    let Some(first) = tensors.next() else { return false };
    let device = first.device();
    on_gpus()
        && !is_host(&device)
        && !first.is_autodiff()
        && tensors.all(|other| other.dtype() == first.dtype() && !other.is_autodiff())
}

/// Whether [`modulate()`] takes these.
pub(super) fn modulates(x: &Tensor<3>, factors: &[Option<Tensor<3>>; 3]) -> bool {
    let [batch, tokens, _] = x.dims();
    batch.max(tokens) <= MOST_CUBES && on_gpu(std::iter::once(x).chain(factors.iter().flatten()))
}

/// [`super::modulate()`] in one launch, which sums in f32.
pub(super) fn modulate(
    x: Tensor<3>,
    norm: Option<RowNorm>,
    [scale, shift, angles]: [Option<Tensor<3>>; 3],
) -> Tensor<3> {
    let (is_centred, epsilon) = match norm {
        Some(RowNorm::Layer(epsilon)) => (true, epsilon),
        Some(RowNorm::Rms(epsilon)) => (false, epsilon),
        None => (false, 0.0),
    };
    let form = modulate::Form {
        normalizes: norm.is_some(),
        centres: is_centred,
        scales: scale.is_some(),
        shifts: shift.is_some(),
        turns: angles.is_some(),
    };
    let factor = |given: Option<Tensor<3>>| given.unwrap_or_else(|| x.clone()).into_dispatch();
    let [scale, shift, angles] = [scale, shift, angles].map(factor);
    let output =
        Dispatch::modulate_rows(x.into_dispatch(), scale, shift, angles, form, epsilon as f32);
    Tensor::from_dispatch(output)
}

/// Whether [`norm_and_rotate`] takes these.
pub(super) fn changes_heads(
    rows: &Tensor<3>,
    head: usize,
    norm: Option<&HeadNorm>,
    rotary: Option<&Rotary>,
) -> bool {
    let [batch, tokens, _] = rows.dims();
    let recorded = norm.is_some_and(|norm| norm.gains.iter().any(Tensor::is_autodiff))
        || rotary.is_some_and(|rotary| rotary.cos.is_autodiff() || rotary.sin.is_autodiff());
    head.is_multiple_of(2)
        && batch.max(tokens) <= MOST_CUBES
        && on_gpu(std::iter::once(rows))
        && !recorded
}

/// [`super::norm_and_rotate`] in one launch.
pub(super) fn norm_and_rotate(
    rows: Tensor<3>,
    heads: [usize; 2],
    width: usize,
    norm: Option<&HeadNorm>,
    rotary: Option<&Rotary>,
) -> Tensor<3> {
    let form = heads::Form {
        heads,
        width,
        normalizes: norm.is_some(),
        turns: rotary.is_some(),
        interleaved: rotary.is_some_and(|rotary| rotary.pairs == Pairs::Interleaved),
    };
    let none = || rows.clone().into_dispatch();
    let gain = |which: usize| {
        let gain = norm.map(|norm| norm.gains[which].clone().cast(FloatDType::F32));
        gain.map_or_else(none, Tensor::into_dispatch)
    };
    let angle = |angle: fn(&Rotary) -> &Tensor<3>| {
        let angle = rotary.map(|rotary| angle(rotary).clone().cast(FloatDType::F32));
        angle.map_or_else(none, Tensor::into_dispatch)
    };
    let [cos, sin] = [angle(|rotary| &rotary.cos), angle(|rotary| &rotary.sin)];
    let epsilon = norm.map_or(0.0, |norm| norm.epsilon as f32);
    let (query, key, rows) = (gain(0), gain(1), rows.clone().into_dispatch());
    Tensor::from_dispatch(Dispatch::change_heads(rows, query, key, cos, sin, form, epsilon))
}

/// See [`super::defers`].
pub(super) fn defers(x: &Tensor<3>) -> bool {
    on_gpu(std::iter::once(x))
}

/// What is to be added to the queries and to what they see, of sources that are one each.
fn biases(sources: &[Packed], spec: &AttentionSpec) -> Option<[Option<Tensor<1>>; 2]> {
    match sources {
        _ if spec.cosine => None,
        [one] if one.parts == Parts::Qkv => Some([one.bias.clone(), one.bias.clone()]),
        [queries, held] if (queries.parts, held.parts) == (Parts::Q, Parts::Kv) => {
            Some([queries.bias.clone(), held.bias.clone()])
        }
        _ => None,
    }
}

/// Whether [`attention()`] takes these.
pub(super) fn attends(sources: &[Packed], spec: &AttentionSpec, bias: &AttentionBias) -> bool {
    let width = spec.head_width(&sources[0]);
    let held = sources.iter().filter(|source| source.parts != Parts::Q);
    let keys: usize = held.map(|source| source.rows.dims()[1]).sum();
    let in_matrices = cfg!(feature = "vulkan") && sources[0].rows.dtype() == DType::F16;
    spec.softcap.is_none()
        && !(in_matrices && keys > MOST_KEYS)
        && width.is_multiple_of(attention::LANES)
        && width <= attention::WIDEST
        && on_gpu(sources.iter().map(|source| &source.rows))
        && bias.added.as_ref().is_none_or(|added| !added.is_autodiff())
        && spec.heads.max(sources[0].rows.dims()[0]) <= MOST_CUBES
}

/// [`super::attention()`] in one launch, but for what brings several sources together; its sums are in f32.
pub(super) fn attention(
    sources: Vec<Packed>,
    spec: &AttentionSpec,
    bias: AttentionBias,
) -> Tensor<3> {
    let width = spec.head_width(&sources[0]);
    let (sources, biases) = match biases(&sources, spec) {
        Some(biases) => (sources, biases),
        None => (sources.into_iter().map(Packed::settled).collect(), [None, None]),
    };
    let is_whole = |source: &Packed| source.parts == Parts::Qkv;
    let (queries, held, before_keys) = match sources.iter().all(is_whole) {
        // All in one, as it is.
        true => {
            let rows = together(sources.into_iter().map(|source| source.rows).collect());
            (rows.clone(), rows, spec.heads * width)
        }
        false => {
            let [queries, held] = sides(&sources, spec);
            (queries, held, 0)
        }
    };
    let scores = [queries.dims()[0], spec.heads, queries.dims()[1], held.dims()[1]];
    let added = bias.added.map(|added| added.cast(FloatDType::F32));
    let bias = AttentionBias { added, ..bias }.merged(HIDDEN);
    // Read by its strides.
    let bias = bias.map(|bias| bias.expand(scores));
    let form = attention::Form {
        heads: spec.heads,
        key_heads: spec.key_heads,
        width,
        before_keys,
        cosine: spec.cosine,
        shifted: biases.each_ref().map(Option::is_some),
        biased: bias.is_some(),
        keys: attention::block(width),
    };
    let scale = spec.scale.unwrap_or_else(|| (width as f64).sqrt().recip());
    let bias = bias.map_or_else(|| queries.clone().into_dispatch(), Tensor::into_dispatch);
    let dtype = FloatDType::from(queries.dtype());
    let [of_queries, of_held] = biases.map(|bias| match bias {
        Some(bias) => bias.cast(dtype).into_dispatch(),
        None => queries.clone().into_dispatch(),
    });
    let (queries, held) = (queries.into_dispatch(), held.into_dispatch());
    let scale = scale as f32;
    Tensor::from_dispatch(Dispatch::attend(queries, held, of_queries, of_held, bias, form, scale))
}
