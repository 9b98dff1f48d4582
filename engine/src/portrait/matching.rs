//! Where the points of one picture are in another, by features of their tokens, and features brought there.

use burn::tensor::activation::softmax;
use burn::tensor::{Int, Tensor};

/// Tokens of the target that are compared at a time.
const ROWS: usize = 256;

/// Cosines between the features of each token of a target and each of a source: IC-Portrait's cost volume of a level.
///
/// # Shapes
/// `[batch, target, width]` and `[batch, source, width]` to `[batch, target, source]`
pub fn cost_volume(target: Tensor<3>, source: Tensor<3>) -> Tensor<3> {
    unit(target).matmul(unit(source).swap_dims(1, 2))
}

/// The source's token with the largest cosine, for each token of the target; no more than a part of the cost volume is in
/// memory at a time.
///
/// # Shapes
/// As of [`cost_volume`]; output: `[batch, target]`
pub fn best_matches(target: Tensor<3>, source: Tensor<3>) -> Tensor<2, Int> {
    let [_, tokens, _] = target.dims();
    let (target, source) = (unit(target), unit(source).swap_dims(1, 2));
    let best = |start: usize| {
        let rows = target.clone().narrow(1, start, ROWS.min(tokens - start));
        rows.matmul(source.clone()).argmax(2).squeeze_dim::<2>(2)
    };
    Tensor::cat((0..tokens).step_by(ROWS).map(best).collect(), 1)
}

/// For each token of a target the features of its match in the source, to which gradients go.
///
/// # Shapes
/// `[batch, source, width]` and `[batch, target]` to `[batch, target, width]`
pub fn relocate(features: Tensor<3>, matches: Tensor<2, Int>) -> Tensor<3> {
    let [batch, _, width] = features.dims();
    let tokens = matches.dims()[1];
    features.gather(1, matches.unsqueeze_dim::<3>(2).expand([batch, tokens, width]))
}

/// [`relocate`] by the mean of the source's features, weighted by a softmax over the cost volume: its limit where
/// `temperature` goes to 0.
///
/// # Shapes
/// `[batch, target, source]` and `[batch, source, width]` to `[batch, target, width]`
pub fn relocate_softly(volume: Tensor<3>, features: Tensor<3>, temperature: f64) -> Tensor<3> {
    softmax(volume / temperature, 2).matmul(features)
}

/// How far matches are from their targets on a grid that both pictures have, in tokens.
///
/// # Shapes
/// `[batch, rows · columns]` to `[batch, rows · columns, 2]`, down and to the right
pub fn displacement(matches: Tensor<2, Int>, [rows, columns]: [usize; 2]) -> Tensor<3, Int> {
    let [batch, tokens] = matches.dims();
    assert_eq!(tokens, rows * columns, "a match for each token of the grid");
    let own = Tensor::<1, Int>::arange(0..tokens as i64, &matches.device());
    let own = own.unsqueeze::<2>().expand([batch, tokens]);
    let columns = columns as i64;
    let place = |at: Tensor<2, Int>| [at.clone() / columns, at % columns];
    let ([row, column], [own_row, own_column]) = (place(matches), place(own));
    Tensor::stack(vec![row - own_row, column - own_column], 2)
}

/// Of length 1 along the width.
fn unit(x: Tensor<3>) -> Tensor<3> {
    let length = x.clone().square().sum_dim(2).sqrt();
    x / (length + 1e-12)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::random;
    use burn::tensor::{Device, TensorData};

    fn worst(a: Tensor<3>, b: Tensor<3>) -> f32 {
        (a - b).abs().max().into_scalar()
    }

    fn matches(values: &[i64]) -> Tensor<2, Int> {
        Tensor::from_data(TensorData::new(values.to_vec(), [1, values.len()]), &Device::flex())
    }

    /// Also of more tokens than are compared at a time.
    #[test]
    fn tokens_find_themselves_wherever_they_are() {
        let source = random([2, 300, 16]);
        let volume = cost_volume(source.clone(), source.clone());
        assert_eq!(volume.dims(), [2, 300, 300]);
        let largest: f32 = volume.clone().abs().max().into_scalar();
        assert!(largest <= 1.0 + 1e-5, "{largest}");
        let order: Vec<i64> = (0..300).map(|i| i * 7 % 300).collect();
        let order = matches(&order).expand([2, 300]);
        let moved = relocate(source.clone(), order.clone());
        // Other lengths are no other features.
        let found = best_matches(moved.clone() * 3.0, source.clone());
        assert!(found.clone().equal(order).all().into_scalar::<bool>());
        let whole = cost_volume(moved, source).argmax(2).squeeze_dim::<2>(2);
        assert!(found.equal(whole).all().into_scalar::<bool>());
    }

    #[test]
    fn features_move_by_the_displacement() {
        let features = random([1, 12, 5]);
        let own = matches(&(0..12).collect::<Vec<_>>());
        assert_eq!(worst(relocate(features.clone(), own.clone()), features.clone()), 0.0);
        let none: i64 = displacement(own, [3, 4]).abs().max().into_scalar();
        assert_eq!(none, 0);
        // One to the right and one up, where that is in the picture.
        let at = |i: i64| if i >= 4 && i % 4 < 3 { i - 3 } else { i };
        let moved = matches(&(0..12).map(at).collect::<Vec<_>>());
        let steps = displacement(moved.clone(), [3, 4]).into_data();
        let steps: Vec<i64> = steps.iter().collect();
        assert_eq!(steps[2 * 5..][..2], [-1, 1]);
        let found = relocate(features.clone(), moved);
        assert_eq!(worst(found.narrow(1, 5, 1), features.narrow(1, 2, 1)), 0.0);
    }

    #[test]
    fn soft_relocation_becomes_hard_and_gradients_reach_the_source() {
        let (source, features) = (random([1, 20, 16]), random([1, 20, 4]));
        let target = relocate(source.clone(), matches(&[3, 3, 17, 0]));
        let volume = cost_volume(target.clone(), source.clone());
        let hard = relocate(features.clone(), best_matches(target, source));
        let distance = |temperature: f64| {
            worst(relocate_softly(volume.clone(), features.clone(), temperature), hard.clone())
        };
        assert!(
            distance(1e-3) < 1e-3 && distance(1.0) > 0.1,
            "{} {}",
            distance(1e-3),
            distance(1.0)
        );

        let leaf = features.autodiff().require_grad();
        let moved = relocate(leaf.clone(), matches(&[3, 3, 17, 0]));
        let slope = leaf.grad(&moved.sum().backward()).expect("recorded");
        let uses: Vec<f32> = slope.narrow(2, 0, 1).into_data().try_into_vec().expect("floats");
        let expected: Vec<f32> =
            (0..20).map(|i| [0, 3, 3, 17].iter().filter(|at| **at == i).count() as f32).collect();
        assert_eq!(uses, expected);
    }
}
