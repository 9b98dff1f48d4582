//! Whether a GPU computes what the CPU computes.
//!
//! Kernel fusion and autotuning have given wrong numbers on some drivers, silently. Small networks, a plain one and a
//! magnitude-preserving one, are run on both, whole and with a cache of keys and values, which is where that happened.

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use crate::layers::{Attend, KvCache};
use crate::nets::{BlockMode, Conditioning, Dit, DitConfig};

/// Largest difference between CPU and GPU that a healthy device shows, as a share of the largest value.
pub const TOLERANCE: f64 = 1e-3;

/// Largest difference of small networks' outputs on `device` from those on the CPU, as a share of the
/// largest value; infinite if the device gives numbers that are not finite.
pub fn difference(device: &Device) -> f64 {
    let kinds = [DitConfig::dit(64, 2, 4), DitConfig::mp_dit(64, 2, 4)];
    kinds.map(|kind| of_network(kind, device)).into_iter().fold(0.0, f64::max)
}

/// That of one kind of network.
fn of_network(kind: DitConfig, device: &Device) -> f64 {
    let host = Device::flex();
    let net = opened(small(kind).init(1, &host));
    let (expected, found) = (outputs(&net, &host), outputs(&net.fork(device), device));
    let compare =
        |(expected, found): (Vec<f32>, Vec<f32>)| {
            let scale = expected.iter().fold(f32::MIN_POSITIVE, |max, value| max.max(value.abs()));
            let worst =
                expected.iter().zip(&found).map(|(a, b)| (a - b).abs()).fold(0.0, |max: f32, d| {
                    if d.is_finite() { max.max(d) } else { f32::INFINITY }
                });
            f64::from(worst / scale)
        };
    expected.into_iter().zip(found).map(compare).fold(0.0, f64::max)
}

fn small(kind: DitConfig) -> DitConfig {
    DitConfig { channels: 4, patch: 2, size: [16, 16], classes: 3, ..kind }
}

/// Layers that start at zero are given the weights of others, so that every operation matters.
fn opened(net: Dit) -> Dit {
    use burn::module::{ModuleMapper, Param};
    struct Open(u64);
    impl ModuleMapper for Open {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            self.0 += 1;
            let device = param.lazy_device();
            let init = crate::layers::Init::new(self.0, &device);
            let shape: [usize; D] = param.lazy_shape().dims();
            init.param(crate::layers::Fresh::Normal(0.1), shape)
        }
    }
    net.map(&mut Open(0))
}

/// The network's output, and that of a block fed token by token group with a cache.
fn outputs(net: &Dit, device: &Device) -> [Vec<f32>; 2] {
    // Sines of large angles are inexact on a GPU, and not what is checked.
    let wave = |shape: [usize; 4]| {
        let count = shape.iter().product::<usize>();
        let values: Vec<f32> = (0..count).map(|i| (i as f32 * 0.37).sin()).collect();
        Tensor::<1>::from_floats(values.as_slice(), device).reshape(shape)
    };
    let time = Tensor::<1>::from_floats([3.0, 700.0], device);
    let (told, patch) = (Conditioning::classes(&[0, 2], device), net.config().patch);
    let whole = net.forward(wave([2, 4, 16, 16]), time, &told, patch);

    let tokens = net.embed(wave([2, 4, 16, 16]), patch);
    let condition = wave([2, 1, 1, 64]).reshape([2, 1, 64]);
    let mut cache = KvCache::default();
    let groups = (0..4).map(|i| {
        let group = tokens.clone().narrow(1, 16 * i, 16);
        net.blocks[0].forward(
            group,
            condition.clone(),
            Attend::Cached { cache: &mut cache, keep: true },
            BlockMode::default(),
        )
    });
    let cached: Tensor<3> = Tensor::cat(groups.collect(), 1);
    let values = |data: burn::tensor::TensorData| data.try_to_vec().expect("f32 tensors");
    [values(whole.into_data()), values(cached.into_data())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_agrees_with_itself_and_the_check_is_not_blind() {
        assert_eq!(difference(&Device::flex()), 0.0);
        let device = Device::flex();
        for kind in [DitConfig::dit(64, 2, 4), DitConfig::mp_dit(64, 2, 4)] {
            let [whole, cached] = outputs(&opened(small(kind).init(1, &device)), &device);
            let largest =
                |values: &[f32]| values.iter().fold(0.0f32, |max, value| max.max(value.abs()));
            assert!(largest(&whole) > 0.01 && largest(&cached) > 0.1);
        }
    }
}
