//! Rotary positions on one or several axes.

use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::ops::{Pairs, Rotary};

/// How the channels of a head are shared among the axes of a position, and how fast they turn
/// (Su et al. 2021; on two axes Heo et al. 2024).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rope {
    /// Channels of each axis, in their order within a head: even numbers whose sum is the head's width.
    pub axes: Vec<usize>,
    /// Pair `k` of an axis of `n` channels turns by `theta^(-2 k / n)` radians per step.
    pub theta: f64,
    /// Which channels are a pair.
    pub pairs: Pairs,
}

impl Rope {
    /// Cosines and sines of tokens at some positions, computed in f64. A position has a coordinate per axis,
    /// whole or not.
    ///
    /// # Shapes
    /// `[1, tokens, sum of the axes / 2]`
    ///
    /// # Panics
    /// If a position has not as many coordinates as there are axes.
    pub fn table<P: AsRef<[f64]>>(&self, positions: &[P], device: &Device) -> Rotary {
        let mut angles = Vec::new();
        for position in positions {
            let position = position.as_ref();
            assert_eq!(position.len(), self.axes.len(), "coordinates of a position");
            for (at, &channels) in position.iter().zip(&self.axes) {
                let speed = |k: usize| self.theta.powf(-2.0 * k as f64 / channels as f64);
                angles.extend((0..channels / 2).map(|k| at * speed(k)));
            }
        }
        let shape = [1, positions.len(), self.axes.iter().map(|channels| channels / 2).sum()];
        let table = |f: fn(f64) -> f64| {
            let values: Vec<f32> = angles.iter().map(|&angle| f(angle) as f32).collect();
            Tensor::from_data(TensorData::new(values, shape), device)
        };
        Rotary { cos: table(f64::cos), sin: table(f64::sin), pairs: self.pairs }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{AttentionSpec, Packed, norm_and_rotate};
    use crate::testing::random;

    const AXES: [usize; 2] = [4, 12];

    fn rope(pairs: Pairs) -> Rope {
        Rope { axes: AXES.to_vec(), theta: 100.0, pairs }
    }

    /// A head of 16 channels per token, at its position.
    fn placed(x: Tensor<3>, rope: &Rope, positions: &[[f64; 2]]) -> Tensor<3> {
        let table = rope.table(positions, &Device::flex());
        norm_and_rotate(Packed::q(x), &AttentionSpec::new(1), None, Some(&table)).rows
    }

    /// The product of the first token at one position and of the second at another.
    fn product(x: &Tensor<3>, rope: &Rope, positions: [[f64; 2]; 2]) -> f32 {
        let y = placed(x.clone(), rope, &positions);
        (y.clone().narrow(1, 0, 1) * y.narrow(1, 1, 1)).sum().into_scalar()
    }

    #[test]
    fn angles_are_the_published_ones() {
        let rope = Rope { axes: vec![4], theta: 10_000.0, pairs: Pairs::Interleaved };
        let table = rope.table(&[[3.0]], &Device::flex());
        let expected = [3.0, 0.03].map(|angle: f64| angle.cos() as f32);
        let expected = Tensor::<1>::from_floats(expected, &Device::flex()).reshape([1, 1, 2]);
        assert!(table.cos.all_close(expected, None, Some(1e-7)));
        let x = Tensor::<1>::from_floats([1.0, 0.0, 0.0, 1.0], &Device::flex()).reshape([1, 1, 4]);
        let table = rope.table(&[[3.0]], &Device::flex());
        let y = norm_and_rotate(Packed::q(x), &AttentionSpec::new(1), None, Some(&table)).rows;
        let (a, b) = (3.0_f32, 0.03_f32);
        let expected = [a.cos(), a.sin(), -b.sin(), b.cos()];
        let expected = Tensor::<1>::from_floats(expected, &Device::flex()).reshape([1, 1, 4]);
        assert!(y.all_close(expected, None, Some(1e-6)));
    }

    #[test]
    fn lengths_stay_and_the_origin_does_not_turn() {
        let x = random([3, 2, 16]);
        for rope in [Pairs::Interleaved, Pairs::Halves].map(rope) {
            let y = placed(x.clone(), &rope, &[[0.0, 0.0], [7.0, -2.5]]);
            let lengths = |x: Tensor<3>| x.square().sum_dim(2);
            assert!(lengths(y.clone()).all_close(lengths(x.clone()), Some(1e-5), None));
            let [still, turned] = [0, 1].map(|token| {
                let (x, y) = (x.clone().narrow(1, token, 1), y.clone().narrow(1, token, 1));
                y.equal(x).all().into_scalar::<bool>()
            });
            assert!(still && !turned);
        }
    }

    #[test]
    fn products_depend_on_the_difference_of_positions_on_each_axis() {
        let x = random([1, 2, 16]);
        for rope in [Pairs::Interleaved, Pairs::Halves].map(rope) {
            let near = |a: f32, b: f32| (a - b).abs() < 1e-4;
            let expected = product(&x, &rope, [[1.0, 5.0], [3.0, 2.5]]);
            assert!(near(product(&x, &rope, [[11.0, 5.0], [13.0, 2.5]]), expected));
            assert!(near(product(&x, &rope, [[1.0, 15.5], [3.0, 13.0]]), expected));
            assert!(!near(product(&x, &rope, [[1.0, 5.0], [4.0, 2.5]]), expected));
            assert!(!near(product(&x, &rope, [[1.0, 5.0], [3.0, 3.5]]), expected));
        }
    }

    #[test]
    fn axes_turn_channels_of_their_own() {
        let (x, rope) = (random([1, 2, 16]), rope(Pairs::Interleaved));
        let y = placed(x.clone(), &rope, &[[2.0, 0.0], [0.0, 3.0]]);
        for (token, axis, same) in [(0, 0, false), (0, 1, true), (1, 0, true), (1, 1, false)] {
            let own = |x: &Tensor<3>| x.clone().narrow(1, token, 1).narrow(2, axis * 4, AXES[axis]);
            let equal: bool = own(&x).equal(own(&y)).all().into_scalar();
            assert_eq!(equal, same, "token {token}, axis {axis}");
        }
    }

    #[test]
    fn interleaved_pairs_and_halves_are_the_same_in_another_order() {
        let x = random([2, 3, 16]);
        let positions = [[1.0, 0.5], [0.0, 4.0], [9.0, 2.0]];
        let halves = |x: Tensor<3>| {
            let pairs: Tensor<4> = x.reshape([2, 3, 8, 2]);
            pairs.swap_dims(2, 3).reshape([2, 3, 16])
        };
        let found = halves(placed(x.clone(), &rope(Pairs::Interleaved), &positions));
        let expected = placed(halves(x), &rope(Pairs::Halves), &positions);
        assert!(found.all_close(expected, None, Some(1e-6)));
    }

    #[test]
    #[should_panic(expected = "coordinates of a position")]
    fn positions_have_a_coordinate_per_axis() {
        rope(Pairs::Halves).table(&[[1.0]], &Device::flex());
    }
}
