//! What happens to queries and keys before attention: a norm of each head, and rotary positions.

use burn::tensor::{FloatDType, Tensor};
use serde::{Deserialize, Serialize};

use super::attention::{AttentionSpec, Packed};
use super::available;
use super::cpu::bridge::{Operand, run};
use super::cpu::rotary::NormAndRotate;
use super::magnitude::in_f32;

/// RMS norm of each head of queries and keys (Zhang & Sennrich 2019; Henry et al. 2020).
#[derive(Debug, Clone)]
pub struct HeadNorm {
    /// Factors on the normalised queries and keys, each `[d]`.
    pub gains: [Tensor<1>; 2],
    /// Added to the mean square.
    pub epsilon: f64,
}

/// Which two channels of a head of width `d` turn together, as pair `i`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Pairs {
    /// `2 i` and `2 i + 1` (Su et al. 2021).
    Interleaved,
    /// `i` and `i + d / 2` (GPT-NeoX, Llama).
    Halves,
}

/// Rotary positions (Su et al. 2021): pair `i` of every head of a token turns by an angle of its own, so that the
/// product of a query and a key depends on the difference of their angles only.
#[derive(Debug, Clone)]
pub struct Rotary {
    /// Cosines of the angles, `[batch | 1, tokens, d / 2]`, in f32.
    pub cos: Tensor<3>,
    /// Their sines, likewise.
    pub sin: Tensor<3>,
    /// The pairs that turn.
    pub pairs: Pairs,
}

/// Each head of queries and keys through the norm, if there is one, then turned to its position, if there is one;
/// values stay as they are. No gradient reaches the angles.
///
/// # Shapes
/// Rows: `[batch, tokens, width of the parts]` to the same
///
/// # Panics
/// If heads, gains and angles do not fit the rows.
pub fn norm_and_rotate(
    packed: Packed,
    spec: &AttentionSpec,
    norm: Option<&HeadNorm>,
    rotary: Option<&Rotary>,
) -> Packed {
    if norm.is_none() && rotary.is_none() {
        return packed;
    }
    let ([batch, tokens, _], head) = (packed.rows.dims(), spec.head_width(&packed));
    if let Some(norm) = norm {
        let widths = norm.gains.each_ref().map(|gain| gain.dims()[0]);
        assert_eq!(widths, [head; 2], "gains for heads of width {head}");
    }
    if let Some(rotary) = rotary {
        let angles = rotary.cos.dims();
        let fits = angles[0] == batch || angles[0] == 1;
        assert!(
            fits && angles[1..] == [tokens, head / 2] && head % 2 == 0,
            "angles of {angles:?} for {batch} x {tokens} tokens with heads of width {head}"
        );
    }
    let Packed { rows, parts, bias } = packed.settled();
    let [queries, held] = spec.heads_of(parts);
    let heads = [queries, held / 2];
    #[cfg(feature = "gpu")]
    if super::gpu::changes_heads(&rows, head, norm, rotary) {
        let rows = super::gpu::norm_and_rotate(rows, heads, head, norm, rotary);
        return Packed { rows, parts, bias };
    }
    let rows = match available(&rows) {
        true => fused(rows, heads, head, norm, rotary),
        false => plain(rows, heads, head, norm, rotary),
    };
    Packed { rows, parts, bias }
}

fn fused(
    rows: Tensor<3>,
    heads: [usize; 2],
    head: usize,
    norm: Option<&HeadNorm>,
    rotary: Option<&Rotary>,
) -> Tensor<3> {
    let kernel = NormAndRotate {
        heads,
        head,
        norm: norm.map(|norm| norm.epsilon as f32),
        pairs: rotary.map(|rotary| rotary.pairs),
    };
    let gains = norm.into_iter().flat_map(|norm| norm.gains.clone());
    let gains = gains.map(|gain| Operand::from(gain.cast(FloatDType::F32)));
    let angles = rotary.into_iter().flat_map(|rotary| [rotary.cos.clone(), rotary.sin.clone()]);
    let angles = angles.map(|angles| Operand::from(angles.without_autodiff()));
    run(kernel, std::iter::once(rows.into()).chain(gains).chain(angles).collect())
}

fn plain(
    rows: Tensor<3>,
    heads: [usize; 2],
    head: usize,
    norm: Option<&HeadNorm>,
    rotary: Option<&Rotary>,
) -> Tensor<3> {
    let [batch, tokens, width] = rows.dims();
    let change = |rows: Tensor<3>| {
        let rows: Tensor<4> = rows.reshape([batch, tokens, width / head, head]);
        let (mut first, mut parts) = (0, Vec::new());
        for (which, count) in heads.into_iter().enumerate().filter(|(_, count)| *count > 0) {
            let mut x = rows.clone().narrow(2, first, count);
            if let Some(HeadNorm { gains, epsilon }) = norm {
                let square = x.clone().square().mean_dim(3);
                let gain = gains[which].clone().cast(FloatDType::F32);
                x = x * (square + *epsilon).sqrt().recip() * gain.unsqueeze();
            }
            parts.push(match rotary {
                Some(rotary) => turn(x, rotary),
                None => x,
            });
            first += count;
        }
        if first < width / head {
            parts.push(rows.narrow(2, first, width / head - first));
        }
        Tensor::cat(parts, 2).reshape([batch, tokens, width])
    };
    in_f32(rows, change)
}

/// # Shapes
/// `[batch, tokens, heads, d]` to the same
fn turn(x: Tensor<4>, rotary: &Rotary) -> Tensor<4> {
    let [batch, tokens, heads, head] = x.dims();
    let (shape, axis) = match rotary.pairs {
        Pairs::Interleaved => ([batch, tokens, heads, head / 2, 2], 4),
        Pairs::Halves => ([batch, tokens, heads, 2, head / 2], 3),
    };
    let [cos, sin] = [&rotary.cos, &rotary.sin].map(|angles| -> Tensor<5> {
        let angles: Tensor<4> = angles.clone().without_autodiff().unsqueeze_dim(2);
        angles.unsqueeze_dim(axis)
    });
    let x: Tensor<5> = x.reshape(shape);
    let (u, v) = (x.clone().narrow(axis, 0, 1), x.narrow(axis, 1, 1));
    let turned = vec![u.clone() * cos.clone() - v.clone() * sin.clone(), u * sin + v * cos];
    Tensor::cat(turned, axis).reshape([batch, tokens, heads, head])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Parts;
    use crate::ops::testing::compare;
    use crate::testing::random;

    #[test]
    fn fused_equals_plain() {
        let spec = AttentionSpec { key_heads: 2, ..AttentionSpec::new(4) };
        for (parts, width) in [(Parts::Qkv, 80), (Parts::Q, 40), (Parts::Kv, 40)] {
            for (pairs, batch) in
                [(None, 1), (Some(Pairs::Interleaved), 1), (Some(Pairs::Halves), 3)]
            {
                let angles = random([batch, 37, 5]);
                let rotary = pairs.map(|pairs| Rotary {
                    cos: angles.clone().cos(),
                    sin: angles.clone().sin(),
                    pairs,
                });
                for epsilon in [None, Some(1e-6), Some(0.1)] {
                    let inputs = [random([3, 37, width]), random([1, 2, 10])];
                    let norm = |x: &[Tensor<3>]| {
                        let gain = |i: usize| x[1].clone().narrow(1, i, 1).reshape([10]);
                        epsilon.map(|epsilon| HeadNorm { gains: [gain(0), gain(1)], epsilon })
                    };
                    // Adding the gains gives them a gradient when there is no norm.
                    let extra = |x: &[Tensor<3>]| x[1].clone().sum_dim(2).sum_dim(1) * 0.1;
                    let fused = |x: &[Tensor<3>]| {
                        let packed = Packed { rows: x[0].clone(), parts, bias: None };
                        norm_and_rotate(packed, &spec, norm(x).as_ref(), rotary.as_ref()).rows
                    };
                    let [queries, held] = spec.heads_of(parts);
                    let plain = |x: &[Tensor<3>]| {
                        let heads = [queries, held / 2];
                        plain(x[0].clone(), heads, 10, norm(x).as_ref(), rotary.as_ref())
                    };
                    compare(&inputs, |x| fused(x) + extra(x), |x| plain(x) + extra(x));
                }
            }
        }
    }
}
