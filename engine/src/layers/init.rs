//! Fresh weights: drawn on the host from a seed, the same on every device.

use std::cell::Cell;

use burn::module::{Param, ParamId};
use burn::tensor::{Device, Tensor, TensorData};

use crate::random::{Generator, derived_seed};

/// Distribution of the fresh values of a parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fresh {
    /// All the same.
    Constant(f64),
    /// Normal with mean 0 and this standard deviation.
    Normal(f64),
    /// Uniform between the two.
    Uniform(f64, f64),
}

impl Fresh {
    /// Uniform within `±√(6 / (in + out))` (Glorot & Bengio 2010).
    pub fn xavier(inputs: usize, outputs: usize) -> Self {
        let bound = (6.0 / (inputs + outputs) as f64).sqrt();
        Fresh::Uniform(-bound, bound)
    }

    /// Uniform within `±√(6 / in)` (He et al. 2015).
    pub fn kaiming(inputs: usize) -> Self {
        let bound = (6.0 / inputs as f64).sqrt();
        Fresh::Uniform(-bound, bound)
    }

    fn draw(self, seed: u64, count: usize) -> Vec<f32> {
        let mut random = Generator::new(seed);
        match self {
            Fresh::Constant(value) => vec![value as f32; count],
            Fresh::Normal(std) => {
                random.normal(count).into_iter().map(|z| z * std as f32).collect()
            }
            Fresh::Uniform(low, high) => {
                (0..count).map(|_| (low + (high - low) * random.uniform()) as f32).collect()
            }
        }
    }
}

/// Where and from which seed the parameters of a network are made.
///
/// Values are drawn when they are first needed, so that a network that is loaded draws none.
#[derive(Debug)]
pub struct Init<'a> {
    /// Device of the parameters.
    pub device: &'a Device,
    seed: u64,
    count: Cell<u64>,
}

impl<'a> Init<'a> {
    /// The parameters of one network.
    pub fn new(seed: u64, device: &'a Device) -> Self {
        Self { device, seed, count: Cell::new(0) }
    }

    /// The next parameter, from a stream of its own.
    pub fn param<const D: usize>(&self, fresh: Fresh, shape: [usize; D]) -> Param<Tensor<D>> {
        let number = self.count.get();
        self.count.set(number + 1);
        let seed = derived_seed(self.seed, number, 0);
        Param::uninitialized(
            ParamId::new(),
            move |device: &Device, trained: bool| {
                let values = fresh.draw(seed, shape.iter().product());
                let tensor = Tensor::<D>::from_data(TensorData::new(values, shape), device);
                tensor.set_require_grad(trained)
            },
            self.device.clone(),
            true,
            shape.into(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_means_the_same_weights_in_any_order_of_use() {
        let device = Device::flex();
        let make = |seed| {
            let init = Init::new(seed, &device);
            [0, 1].map(|_| init.param(Fresh::Normal(0.5), [64, 64]))
        };
        let ([a0, a1], [b0, b1]) = (make(3), make(3));
        let second = b1.val();
        assert!(a0.val().equal(b0.val()).all().into_scalar::<bool>());
        assert!(a1.val().equal(second).all().into_scalar::<bool>());
        assert!(!a0.val().equal(a1.val()).all().into_scalar::<bool>());
        let std: f32 = a0.val().square().mean().sqrt().into_scalar();
        assert!((std - 0.5).abs() < 0.02, "{std}");
    }
}
