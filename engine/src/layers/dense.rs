//! Linear layers, free or magnitude-preserving.

use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::{FloatDType, Tensor};

use super::init::{Fresh, Init};
use super::lora::{Lora, LowRank};
use crate::ops::{self, Activation, Compressed, activated};

/// `x · W (+ b)`, with the weight's units optionally of unit length.
///
/// Weights are `[in, out]`. A preserved layer uses `W̃ = normalize(W) · gain / √in` (EDM2 Eq. 47), so
/// that unit-variance input gives output of RMS `gain`. With `ones`, the input is extended by a constant
/// channel of 1, whose weights are the last row.
#[derive(Module, Debug)]
pub struct Dense {
    /// `[in, out]`, or `[in + 1, out]` with a ones channel.
    pub weight: Param<Tensor<2>>,
    /// `[out]`.
    pub bias: Option<Param<Tensor<1>>>,
    /// `[1]`: magnitude of the output, learned.
    pub gain: Option<Param<Tensor<1>>>,
    preserved: bool,
    ones: bool,
    #[module(skip)]
    form: Form,
    /// What [`Dense::folded_by`] has multiplied the outputs by.
    #[module(skip)]
    factor: Option<Tensor<1>>,
    #[module(skip)]
    /// See [`Dense::put_on`].
    pub(super) adapter: Option<Lora>,
}

/// How a layer holds its weight.
#[derive(Debug, Clone, Default)]
enum Form {
    /// As it is.
    #[default]
    Plain,
    /// As [`ops::pack`] has rearranged it, of these inputs and outputs.
    Packed([usize; 2]),
    /// Here; the parameter is empty.
    Compressed(Arc<dyn Compressed>),
}

/// How to make a [`Dense`].
#[derive(Debug, Clone)]
pub struct DenseConfig {
    /// Width of the input, without the ones channel.
    pub inputs: usize,
    /// Width of the output.
    pub outputs: usize,
    /// A learned bias.
    pub bias: bool,
    /// A constant input channel in place of a bias.
    pub ones: bool,
    /// Weight normalisation in the forward pass.
    pub preserved: bool,
    /// A learned gain that starts at this value.
    pub gain: Option<f64>,
    /// Distribution of fresh weights.
    pub fresh: Fresh,
}

impl DenseConfig {
    /// A free layer, or a preserved one with weights from N(0, 1) and without a bias.
    pub fn new(inputs: usize, outputs: usize, preserved: bool) -> Self {
        let fresh = match preserved {
            true => Fresh::Normal(1.0),
            false => Fresh::xavier(inputs, outputs),
        };
        Self { inputs, outputs, bias: !preserved, ones: false, preserved, gain: None, fresh }
    }

    /// Sets the distribution of fresh weights, unless the layer is preserved.
    pub fn with_free_weights(mut self, fresh: Fresh) -> Self {
        if !self.preserved {
            self.fresh = fresh;
        }
        self
    }

    /// Makes the layer.
    pub fn init(&self, init: &Init<'_>) -> Dense {
        let inputs = self.inputs + usize::from(self.ones);
        Dense {
            weight: init.param(self.fresh, [inputs, self.outputs]),
            bias: self.bias.then(|| init.param(Fresh::Constant(0.0), [self.outputs])),
            gain: self.gain.map(|gain| init.param(Fresh::Constant(gain), [1])),
            preserved: self.preserved,
            ones: self.ones,
            form: Form::Plain,
            factor: None,
            adapter: None,
        }
    }
}

impl Dense {
    /// Applies the layer.
    ///
    /// # Shapes
    /// `[.., in]` to `[.., out]`
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        self.activated(x, None)
    }

    /// [`Dense::forward`], then the activation.
    pub fn activated<const D: usize>(
        &self,
        x: Tensor<D>,
        activation: Option<Activation>,
    ) -> Tensor<D> {
        match &self.adapter {
            Some(adapter) => joined(self.own(x.clone(), None), adapter, x, activation),
            None => self.own(x, activation),
        }
    }

    /// [`Dense::activated`] with what an adapter of the network adds before the activation.
    pub fn adapted<const D: usize>(
        &self,
        x: Tensor<D>,
        activation: Option<Activation>,
        adapter: Option<&Lora>,
    ) -> Tensor<D> {
        match adapter {
            Some(adapter) => joined(self.forward(x.clone()), adapter, x, activation),
            None => self.activated(x, activation),
        }
    }

    /// The layer without what is put on it.
    fn own<const D: usize>(&self, x: Tensor<D>, activation: Option<Activation>) -> Tensor<D> {
        let bias = || self.bias.as_ref().map(Param::val);
        match &self.form {
            Form::Plain => {
                let (weight, bias) = self.weight_and_bias();
                ops::linear(x, weight, bias, activation)
            }
            Form::Packed([_, outputs]) => {
                ops::packed_linear(x, self.weight.val(), *outputs, bias(), activation)
            }
            Form::Compressed(weight) => ops::compressed_linear(x, &**weight, bias(), activation),
        }
    }

    /// Width of the input, without the ones channel, and of the output.
    pub fn widths(&self) -> [usize; 2] {
        match &self.form {
            Form::Plain => {
                let shape = self.weight.lazy_shape();
                [shape[0] - usize::from(self.ones), shape[1]]
            }
            Form::Packed(widths) => *widths,
            Form::Compressed(weight) => weight.widths(),
        }
    }

    /// Puts on the sum of these terms, in place of what was on; nothing if there are none.
    ///
    /// The output is `activation(x · W + b + Σ x · down · up)` with the effective weight `W`, so that a
    /// preserved layer no longer has units of unit length. The weight itself stays as it is, packed or not;
    /// what is put on is neither saved nor trained, and stays on its device.
    ///
    /// # Panics
    /// If a term does not fit the [widths](Dense::widths).
    pub fn put_on(&mut self, terms: &[LowRank]) {
        let sum = LowRank::sum(terms, self.widths());
        self.adapter = sum.map(|sum| self.scaled(sum).cast(self.dtype()));
    }

    /// What is put on, as the outputs of a folded layer take it.
    fn scaled(&self, lora: Lora) -> Lora {
        match &self.factor {
            Some(factor) => lora.times(factor.clone()),
            None => lora,
        }
    }

    /// Puts on an adapter in training, in place of what was on.
    pub(crate) fn tune(&mut self, lora: Lora) {
        self.adapter = Some(lora);
    }

    /// Whether [`Dense::merge`] can add to the weight.
    pub(crate) fn merges(&self) -> bool {
        self.is_plain() && !self.preserved && !self.ones
    }

    /// Adds what is put on to the weight, and takes it off.
    pub(crate) fn merge(&mut self) {
        if let Some(Lora { down, up }) = self.adapter.take() {
            let (down, up) = (down.val(), up.val());
            self.weight = self.weight.clone().map(|weight| weight + down.matmul(up));
        }
    }

    /// The weight that multiplies the input without the ones channel, and what is added.
    fn weight_and_bias(&self) -> (Tensor<2>, Option<Tensor<1>>) {
        let weight = self.effective_weight();
        if !self.ones {
            return (weight, self.bias.as_ref().map(Param::val));
        }
        let [rows, outputs] = weight.dims();
        let bias = weight.clone().narrow(0, rows - 1, 1).reshape([outputs]);
        (weight.narrow(0, 0, rows - 1), Some(bias))
    }

    /// The weight and the bias of a layer that is no more than that.
    pub(crate) fn linear(&self) -> Option<(Tensor<2>, Tensor<1>)> {
        let bias = self.bias.as_ref().filter(|_| self.merges() && !self.is_adapted())?;
        Some((self.weight.val(), bias.val()))
    }

    /// The product alone, and the bias, which an operation that follows adds.
    pub(crate) fn deferred(&self, x: &Tensor<3>) -> Option<(Tensor<3>, Tensor<1>)> {
        let (weight, bias) = self.linear()?;
        Some((ops::linear(x.clone(), weight, None, None), bias))
    }

    /// Whether something is put on.
    pub(crate) fn is_adapted(&self) -> bool {
        self.adapter.is_some()
    }

    /// Type in which the layer computes: that of its weight, or f32 if only its products are smaller.
    pub fn dtype(&self) -> FloatDType {
        match self.form {
            Form::Plain => FloatDType::from(self.weight.val().dtype()),
            Form::Packed(_) | Form::Compressed(_) => FloatDType::F32,
        }
    }

    /// Whether the layer rounds what it multiplies to bf16: see [`ops::rounds`].
    pub fn rounds(&self) -> bool {
        match self.form {
            Form::Plain => false,
            Form::Packed(_) => ops::rounds(&self.weight.val()),
            Form::Compressed(_) => ops::compressed_rounds(),
        }
    }

    /// Whether the weight is there as it is, and can be saved, trained and changed.
    pub(crate) fn is_plain(&self) -> bool {
        matches!(self.form, Form::Plain)
    }

    /// Whether [`Dense::hold`] is for this layer: what is normalised, or extended, needs its weight as a whole.
    pub fn holds(&self) -> bool {
        self.merges()
    }

    /// Multiplies by this weight from now on, for inference alone; the layer's own is no longer there.
    ///
    /// # Panics
    /// For a layer that does not [hold](Dense::holds) one, and for other [widths](Dense::widths).
    pub fn hold(&mut self, weight: Arc<dyn Compressed>) {
        assert!(self.holds(), "a layer whose weight is needed as a whole");
        assert_eq!(weight.widths(), self.widths(), "inputs and outputs");
        self.weight = Param::from_tensor(Tensor::zeros([0, 0], &self.weight.lazy_device()));
        self.form = Form::Compressed(weight);
    }

    /// Adds numbers to all outputs from now on, `[out]`.
    pub(crate) fn add(&mut self, numbers: Tensor<1>) {
        let dtype = self.dtype();
        let numbers = numbers.to_device(&self.weight.lazy_device()).cast(dtype);
        self.bias = Some(match self.bias.take() {
            Some(bias) => bias.map(|bias| bias.cast(dtype) + numbers),
            None => Param::from_tensor(numbers),
        });
    }

    /// The weight that multiplies the input, `[in (+ 1), out]`, unless it was packed.
    pub fn effective_weight(&self) -> Tensor<2> {
        let weight = self.weight.val();
        if let Form::Compressed(compressed) = &self.form {
            return ops::unpacked(&**compressed, &weight.device());
        }
        if !self.preserved {
            return weight;
        }
        ops::normalized_weight(weight, self.gain.as_ref().map(Param::val))
    }

    /// The same function for inference: normalisation and gain are multiplied into the weight once, and
    /// on the CPU the weight is laid out for its kernel.
    pub fn folded(self) -> Self {
        self.folded_by(None)
    }

    /// The same with the outputs, and what is put on, times a factor each, `[out]`.
    ///
    /// # Panics
    /// With a factor, if the weight is not there as it is.
    pub(super) fn folded_by(mut self, factor: Option<Tensor<1>>) -> Self {
        if !self.is_plain() {
            assert!(factor.is_none(), "a factor for a weight that is not there");
            return self;
        }
        let widths = self.widths();
        let (mut weight, mut bias) = self.weight_and_bias();
        if let Some(factor) = factor {
            let factor = factor.to_device(&weight.device()).cast(FloatDType::F32);
            weight = times(weight, factor.clone().unsqueeze());
            bias = bias.map(|bias| times(bias, factor.clone()));
            // In its place below.
            self.bias = None;
            self.factor = Some(factor);
            self.adapter = self.adapter.take().map(|adapter| self.scaled(adapter));
        }
        self.weight = self.weight.map(|old| {
            // So that a weight that is folded already can be packed in its place.
            drop(old);
            match ops::packs(&weight) {
                true => {
                    self.form = Form::Packed(widths);
                    ops::pack(weight)
                }
                false => weight,
            }
        });
        if let (None, Some(bias)) = (&self.bias, bias) {
            self.bias = Some(Param::from_tensor(bias));
        }
        if self.preserved {
            self.gain = None;
        }
        self.preserved = false;
        self.ones = false;
        let dtype = self.dtype();
        self.adapter = self.adapter.map(|adapter| adapter.cast(dtype));
        self
    }
}

/// `x · factor`, multiplied in f32.
fn times<const D: usize>(x: Tensor<D>, factor: Tensor<D>) -> Tensor<D> {
    let dtype = FloatDType::from(x.dtype());
    (x.cast(FloatDType::F32) * factor).cast(dtype)
}

/// `activation(y + x · down · up)`.
fn joined<const D: usize>(
    y: Tensor<D>,
    adapter: &Lora,
    x: Tensor<D>,
    activation: Option<Activation>,
) -> Tensor<D> {
    activated(y + adapter.forward(x), activation)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::random;
    use burn::tensor::Device;

    fn rms(x: &Tensor<2>) -> f32 {
        x.clone().square().mean().sqrt().into_scalar()
    }

    #[test]
    fn a_preserved_layer_keeps_unit_variance_at_any_width() {
        let device = Device::flex();
        for width in [32, 256, 1024] {
            let layer = DenseConfig::new(width, 256, true).init(&Init::new(0, &device));
            let x = random([512, width]);
            let y = rms(&layer.forward(x));
            assert!((y - 1.0).abs() < 0.03, "{width}: {y}");
        }
    }

    #[test]
    fn scale_of_stored_weights_does_not_matter() {
        let device = Device::flex();
        let layer = DenseConfig::new(64, 32, true).init(&Init::new(0, &device));
        let mut scaled = layer.clone();
        scaled.weight = scaled.weight.map(|w| w * 1000.0);
        let x = random([8, 64]);
        let (a, b) = (layer.forward(x.clone()), scaled.forward(x));
        assert!(a.all_close(b, Some(1e-3), Some(1e-3)));
    }

    #[test]
    fn gradients_are_orthogonal_to_each_unit() {
        let device = Device::flex().autodiff();
        let layer = DenseConfig::new(48, 24, true).init(&Init::new(0, &device));
        let x = random([16, 48]);
        let grads = layer.forward(x).square().sum().backward();
        let weight = layer.weight.val();
        let grad = weight.grad(&grads).expect("weights are trained");
        let weight = weight.inner();
        let dot = (grad.clone() * weight.clone()).sum_dim(0).abs();
        let norms = grad.square().sum_dim(0).sqrt() * weight.square().sum_dim(0).sqrt();
        let worst: f32 = (dot / norms).max().into_scalar();
        assert!(worst < 1e-3, "{worst}");
    }

    #[test]
    fn folding_keeps_the_function_and_ones_act_as_a_bias() {
        let device = Device::flex();
        let config = DenseConfig { ones: true, gain: Some(0.7), ..DenseConfig::new(20, 8, true) };
        let layer = config.init(&Init::new(0, &device));
        let x = random([4, 20]);
        let extended = Tensor::cat(vec![x.clone(), Tensor::ones([4, 1], &device)], 1);
        let expected = extended.matmul(layer.effective_weight());
        let y = layer.forward(x.clone());
        assert!(y.clone().all_close(expected, None, Some(1e-5)));
        assert!(layer.folded().forward(x).all_close(y, None, Some(1e-6)));
    }
}
