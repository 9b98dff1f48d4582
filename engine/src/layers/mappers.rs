//! What changes the weights of all layers of a module.

use burn::module::{ModuleMapper, Param};
use burn::tensor::Tensor;

use crate::ops;
use crate::ops::magnitude::normalize;

/// Brings every weight of a preserved [`Dense`](super::Dense) back to unit RMS per unit (forced weight
/// normalisation, EDM2 Eq. 66).
///
/// Applied to a module with [`Module::map`](burn::module::Module::map) after each optimiser step. It finds the layers by type, so
/// that gains, biases and free layers are left alone; tables are normalised when they are
/// [`Table`](super::time::Table)s.
#[derive(Debug, Default)]
pub struct ForceNorm(Place);

/// Brings the weight of every [folded](super::Dense::folded) [`Dense`](super::Dense) on the CPU from f16 to 8 bits.
#[derive(Debug, Default)]
pub struct Quantize(Place);

/// Where a mapper is in a module.
#[derive(Debug, Default)]
struct Place {
    containers: Vec<&'static str>,
    names: Vec<bool>,
}

const DENSE: &str = "Struct:Dense";
const TABLE: &str = "Struct:Table";

impl Place {
    fn enter(&mut self, name: &str, container: &str) {
        let known = [DENSE, TABLE].into_iter().find(|known| *known == container);
        self.containers.push(known.unwrap_or_default());
        self.names.push(name == "weight");
    }

    fn exit(&mut self) {
        self.containers.pop();
        self.names.pop();
    }

    /// The kind of layer whose weight this is.
    fn weight_of(&self) -> Option<&'static str> {
        self.names.last()?.then(|| *self.containers.last().expect("one per name"))
    }
}

impl ModuleMapper for Quantize {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.0.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.0.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if D != 2 || self.0.weight_of() != Some(DENSE) {
            return param;
        }
        param.map(|weight| {
            let mut shape = weight.dims();
            let weight: Tensor<2> = weight.reshape([shape[0], shape[1]]);
            let weight = match ops::quantizes(&weight) {
                true => ops::quantize(weight),
                false => weight,
            };
            shape.copy_from_slice(&weight.dims());
            weight.reshape(shape)
        })
    }
}

impl ModuleMapper for ForceNorm {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.0.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.0.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let dim = match self.0.weight_of() {
            Some(DENSE) => 0,
            Some(TABLE) => 1,
            _ => return param,
        };
        if D != 2 {
            return param;
        }
        let value = param.val();
        if value.is_autodiff() && !value.is_require_grad() {
            // Frozen.
            return param;
        }
        drop(value);
        param.map(|weight| {
            let (tracked, autodiff) = (weight.is_require_grad(), weight.is_autodiff());
            let shape = weight.dims();
            let weight: Tensor<2> = weight.without_autodiff().reshape([shape[0], shape[1]]);
            let weight = match dim {
                0 => ops::unit_weight(weight),
                _ => normalize(weight, dim),
            };
            let weight = weight.reshape(shape);
            let weight = if autodiff { weight.autodiff() } else { weight };
            weight.set_require_grad(tracked)
        })
    }
}

#[cfg(test)]
mod tests {
    use burn::module::Module;
    use burn::tensor::Device;

    use super::*;
    use crate::layers::Init;
    use crate::layers::dense::DenseConfig;

    #[test]
    fn forced_normalisation_touches_preserved_weights_only() {
        let device = Device::flex();
        let mut layer = DenseConfig { gain: Some(3.0), ..DenseConfig::new(64, 16, true) }
            .init(&Init::new(0, &device));
        layer.weight = layer.weight.map(|w| w * 5.0);
        let layer = layer.map(&mut ForceNorm::default());
        let rms = layer.weight.val().square().mean_dim(0).sqrt();
        assert!((rms - 1.0).abs().max().into_scalar::<f32>() < 1e-3);
        assert_eq!(layer.gain.expect("a gain").val().into_scalar::<f32>(), 3.0);
    }
}
