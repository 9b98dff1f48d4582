//! The operations on the CPU backend: fused loops on f32 slices, forward and backward.

pub(in crate::ops) mod activation;
mod amx;
pub(in crate::ops) mod attention;
pub(in crate::ops) mod bridge;
pub(in crate::ops) mod buffers;
pub(in crate::ops) mod conv;
pub(in crate::ops) mod depthwise;
pub(in crate::ops) mod linear;
mod math;
pub(in crate::ops) mod matrix;
pub(in crate::ops) mod mixed;
pub(in crate::ops) mod modulate;
pub(in crate::ops) mod normalized_weight;
pub(in crate::ops) mod optimizer;
pub(in crate::ops) mod overlap;
pub(in crate::ops) mod packed;
pub(in crate::ops) mod rotary;
mod tile;

pub(in crate::ops) use tile::Method;
