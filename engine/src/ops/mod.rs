//! The operations that networks and training are made of, each defined once.
//!
//! A function here is the one way its operation is called. Its module has the contract; the plain
//! definition, a chain of burn's operations, which runs everywhere; and the choice of the fused form: in
//! `cpu/`, forward and backward, for f32 on the CPU, in `gpu/`, without gradients, for GPUs. They must agree, values
//! and gradients: the tests compare them. The environment variable `PYROGRAPH_KERNELS` sets which of them run
//! ([`Kernels`]).

mod activation;
mod attention;
mod compressed;
mod convolution;
mod cpu;
#[cfg(feature = "gpu")]
mod gpu;
mod linear;
pub mod magnitude;
mod modulate;
mod normalized_weight;
mod optimizer;
mod overlap;
mod rotary;
#[cfg(test)]
mod testing;

pub(crate) use activation::activated;
pub use activation::{Activation, gated};
pub use attention::{AttentionBias, AttentionSpec, Packed, Parts, attention, defers};
pub use compressed::{Compressed, GRAIN, compressed_linear, compressed_rounds, unpacked};
pub use convolution::{conv3x3, depthwise, norm_silu};
#[cfg(test)]
pub(crate) use cpu::matrix::counted;
pub use linear::{
    linear, mixed, mixes, pack, packed_linear, packs, products, quantize, quantizes, rounds,
};
pub use modulate::{RowNorm, join, modulate};
pub use normalized_weight::{normalized_weight, unit_weight};
pub use optimizer::{AdamStep, adam, blend, orthogonalized, sum_of_squares};
pub use overlap::overlap_add;
pub use rotary::{HeadNorm, Pairs, Rotary, norm_and_rotate};

use burn::backend::{DispatchAutodiffContext, GradientCheckpointingStrategy};
use burn::tensor::{DType, Tensor};

use crate::device::{Kernels, is_host};

/// Whether the fused forms take this tensor. Those of gradient checkpointing are left to burn.
fn available<const D: usize>(x: &Tensor<D>) -> bool {
    let checkpointed = DispatchAutodiffContext::Enabled(GradientCheckpointingStrategy::Balanced);
    Kernels::Portable.on()
        && x.dtype() == DType::F32
        && is_host(&x.device())
        && !(x.is_autodiff() && x.clone().into_dispatch().autodiff == checkpointed)
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor};

    use super::{Activation, available};
    use crate::testing::random;

    #[test]
    fn gradient_checkpointing_is_left_to_burn() {
        let device = Device::flex().autodiff().gradient_checkpointing();
        let x = Tensor::<3>::ones([2, 3, 8], &device).require_grad();
        let y = Activation::Silu.forward(x.clone());
        let gradient = x.grad(&y.sum().backward()).expect("recorded");
        let plain = random([2, 3, 8]).autodiff();
        assert!(!available(&x) && available(&plain));
        assert!(gradient.abs().sum().into_scalar::<f32>() > 0.0);
    }
}
