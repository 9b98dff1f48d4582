//! Linear layers whose weights stay as a file stores them.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};

use super::available;
use super::cpu::bridge::{device, host};
use super::cpu::{self, Method};
use super::{Activation, linear};

/// A weight whose numbers are made when they are needed, such as one in blocks of few bits with scales.
pub trait Compressed: Debug + Send + Sync {
    /// Inputs and outputs.
    fn widths(&self) -> [usize; 2];

    /// The weights of some inputs to some outputs, `[outputs, inputs]`.
    ///
    /// Inputs start at a multiple of [`GRAIN`], and end at one or with the last.
    fn read(&self, outputs: Range<usize>, inputs: Range<usize>, values: &mut [f32]);

    /// The weights of such inputs to one output in bytes, if they are stored as little-endian bf16.
    fn bf16(&self, _output: usize, _inputs: Range<usize>) -> Option<&[u8]> {
        None
    }

    /// The weight to read from in a product, where that is another, such as one that comes into memory for it.
    fn ready(&self) -> Option<Arc<dyn Compressed>> {
        None
    }
}

/// Inputs of a [`Compressed`] weight that are never apart.
pub const GRAIN: usize = 256;

/// `activation(x · weight + bias)` in f32. On the CPU the products are of bf16 where those are faster, and the weight is
/// unpacked part by part; elsewhere it is as a whole, each time.
///
/// # Shapes
/// `x`: `[.., in]`, `bias`: `[out]`, output: `[.., out]`
pub fn compressed_linear<const D: usize>(
    x: Tensor<D>,
    weight: &dyn Compressed,
    bias: Option<Tensor<1>>,
    activation: Option<Activation>,
) -> Tensor<D> {
    let x = x.cast(FloatDType::F32);
    let bias = bias.map(|bias| bias.cast(FloatDType::F32));
    if !available(&x) || x.is_autodiff() {
        let weight = unpacked(weight, &x.device());
        return linear(x, weight, bias, activation);
    }
    let ready = weight.ready();
    let weight = ready.as_deref().unwrap_or(weight);
    let bias = bias.map(host);
    device(cpu::linear::compressed(&host(x), weight, bias, activation))
}

/// All numbers of a weight, `[in, out]`.
pub fn unpacked(weight: &dyn Compressed, device: &Device) -> Tensor<2> {
    let [inputs, outputs] = weight.widths();
    let ready = weight.ready();
    let weight = ready.as_deref().unwrap_or(weight);
    let mut values = vec![0.0; inputs * outputs];
    weight.read(0..outputs, 0..inputs, &mut values);
    Tensor::<2>::from_data(TensorData::new(values, [outputs, inputs]), device).transpose()
}

/// Whether [`compressed_linear`] rounds both sides of its products to bf16, for the tile units.
pub fn compressed_rounds() -> bool {
    Method::of(DType::BF16) == Some(Method::Amx)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::packed_linear;
    use crate::ops::testing::ACTIVATIONS;
    use crate::testing::random;

    /// Small whole numbers, which any type holds, and whose sums are exact.
    #[derive(Debug)]
    struct Whole([usize; 2]);

    impl Compressed for Whole {
        fn widths(&self) -> [usize; 2] {
            self.0
        }

        fn read(&self, outputs: Range<usize>, inputs: Range<usize>, values: &mut [f32]) {
            assert!(inputs.start.is_multiple_of(GRAIN), "{inputs:?}");
            assert!(inputs.end.is_multiple_of(GRAIN) || inputs.end == self.0[0], "{inputs:?}");
            assert!(outputs.end <= self.0[1] && values.len() == outputs.len() * inputs.len());
            let places =
                outputs.flat_map(|output| inputs.clone().map(move |input| (output, input)));
            for (value, (output, input)) in values.iter_mut().zip(places) {
                *value = ((7 * output + 3 * input + output * input) % 11) as f32 - 5.0;
            }
        }
    }

    #[test]
    fn products_are_those_with_the_unpacked_weight() {
        // Parts of panels, of pairs and of what is summed at a time.
        for (rows, inputs, outputs) in [(1, 1, 1), (3, 33, 50), (40, 96, 96), (9, 3300, 49)] {
            let weight = Whole([inputs, outputs]);
            let x = (random([2, rows, inputs]) * 3.0).round();
            let bias = random([1, 1, outputs]).round().reshape([outputs as i32]);
            let whole = unpacked(&weight, &x.device());
            for activation in ACTIVATIONS.map(Some).into_iter().chain([None]) {
                let found = compressed_linear(x.clone(), &weight, Some(bias.clone()), activation);
                let expected = linear(x.clone(), whole.clone(), Some(bias.clone()), activation);
                let largest: f32 = expected.clone().abs().max().into_scalar();
                let worst: f32 = (found - expected).abs().max().into_scalar();
                assert!(worst <= 1e-6 * largest, "{rows} x {inputs} x {outputs}: {worst}");
            }
        }
    }

    /// On random numbers, which are rounded, they are those of a weight in bf16.
    #[test]
    fn products_are_rounded_like_those_of_bf16() {
        #[derive(Debug)]
        struct Halves {
            numbers: Vec<half::bf16>,
            bytes: Option<Vec<u8>>,
        }
        impl Compressed for Halves {
            fn widths(&self) -> [usize; 2] {
                [601, 70]
            }

            fn bf16(&self, output: usize, inputs: Range<usize>) -> Option<&[u8]> {
                let line = &self.bytes.as_ref()?[2 * 601 * output..];
                Some(&line[2 * inputs.start..2 * inputs.end])
            }

            fn read(&self, outputs: Range<usize>, inputs: Range<usize>, values: &mut [f32]) {
                let lines = outputs.zip(values.chunks_exact_mut(inputs.len()));
                for (output, line) in lines {
                    let numbers = &self.numbers[output * 601..][inputs.clone()];
                    line.iter_mut().zip(numbers).for_each(|(out, x)| *out = x.to_f32());
                }
            }
        }
        let numbers: Vec<f32> = random([70 * 601]).into_data().try_to_vec().expect("f32");
        let numbers: Vec<_> = numbers.into_iter().map(half::bf16::from_f32).collect();
        let bytes = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let read = Halves { numbers: numbers.clone(), bytes: None };
        let x = random([1, 20, 601]);
        let whole = unpacked(&read, &x.device()).cast(FloatDType::BF16);
        if !super::super::packs(&whole) {
            return;
        }
        let expected = packed_linear(x.clone(), super::super::pack(whole), 70, None, None);
        for weight in [read, Halves { numbers, bytes: Some(bytes) }] {
            let found = compressed_linear(x.clone(), &weight, None, None);
            assert_eq!(found.into_data(), expected.clone().into_data());
        }
    }
}
