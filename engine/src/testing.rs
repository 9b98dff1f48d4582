//! Random tensors of tests, the same at every run and beside any other test.

use std::cell::RefCell;

use burn::module::{ModuleMapper, Param};
use burn::tensor::{Device, Tensor, TensorData};

use crate::random::Generator;

/// Draws from N(0, std²), for tensors or, as a mapper, for every weight of a module.
pub(crate) struct Draws {
    generator: Generator,
    std: f64,
}

impl Draws {
    pub(crate) fn new(seed: u64, std: f64) -> Self {
        Self { generator: Generator::new(seed), std }
    }

    /// On the CPU.
    pub(crate) fn tensor<const D: usize>(&mut self, shape: [usize; D]) -> Tensor<D> {
        let values = self.generator.normal(shape.iter().product());
        Tensor::from_data(TensorData::new(values, shape), &Device::flex()) * self.std
    }
}

/// The next from N(0, 1) of the test that asks.
pub(crate) fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    thread_local! {
        static DRAWS: RefCell<Draws> = RefCell::new(Draws::new(0, 1.0));
    }
    DRAWS.with_borrow_mut(|draws| draws.tensor(shape))
}

impl ModuleMapper for Draws {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|x| self.tensor(x.dims()))
    }
}
