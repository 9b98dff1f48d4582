//! What is taken from one picture to control another: outlines, light, layout (MegaPortrait, Yang et al. 2024; the forms of
//! section 4 of its specification).
//!
//! Pictures are `[batch, 3, height, width]` in [-1, 1].

use burn::tensor::Tensor;
use burn::tensor::module::avg_pool2d;
use burn::tensor::ops::AvgPoolOptions;
use serde::{Deserialize, Serialize};

/// Shares of red, green and blue in the luminance of ITU-R BT.601.
const SHARES: [f64; 3] = [0.299, 0.587, 0.114];
/// Least luminance, of 1, that light is divided by.
const DARKEST: f64 = 1e-3;
/// Bounds of the factor by which light is changed.
const FACTORS: [f64; 2] = [0.15, 3.0];
/// Difference of luminance across an edge, of 1, from which on it counts in full.
const STRONG: f64 = 0.25;

/// Width of a window over which light is blurred, as a share of the picture's.
const WINDOW: f64 = 1.0 / 7.0;
/// Least number of cells across a picture whose layout is kept.
const CELLS: usize = 16;

/// What of a picture controls another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlKind {
    /// Outlines: [`edges`].
    Edges,
    /// Where it is light and dark: its blurred [`luminance`].
    Luminance,
    /// Colours and where they are: [`cells`], 16 or more across.
    Tile,
    /// All of it: a picture that was drawn to control.
    Picture,
}

impl ControlKind {
    /// What controls, of a picture, both `[batch, 3, height, width]` in [-1, 1].
    pub fn of(self, x: Tensor<4>) -> Tensor<4> {
        let [batch, _, height, width] = x.dims();
        let gray = |y: Tensor<4>| y.expand([batch, 3, height, width]);
        match self {
            Self::Edges => gray(edges(&x)),
            Self::Luminance => gray(blurred(luminance(&x), window(width))),
            Self::Tile => {
                let side = height.min(width);
                let divides = |cell: &usize| height % cell == 0 && width % cell == 0;
                let cell = (1..=(side / CELLS).max(1)).rev().find(divides).unwrap_or(1);
                cells(x, cell)
            }
            Self::Picture => x,
        }
    }
}

/// The odd number of pixels over which the light of a picture of this width is blurred: 9 of 64.
pub fn window(width: usize) -> usize {
    2 * (width as f64 * WINDOW / 2.0) as usize + 1
}

/// Luminance, `[batch, 1, height, width]` in [-1, 1].
pub fn luminance(x: &Tensor<4>) -> Tensor<4> {
    let channel = |i: usize| x.clone().narrow(1, i, 1) * SHARES[i];
    channel(0) + channel(1) + channel(2)
}

/// The mean over a square of `window` pixels, an odd number, around each; beyond the border there is nothing.
///
/// # Shapes
/// `[batch, channels, height, width]` to the same
///
/// # Panics
/// For an even window.
pub fn blurred(x: Tensor<4>, window: usize) -> Tensor<4> {
    assert!(window % 2 == 1, "a window of {window} has no middle");
    let options = AvgPoolOptions::new([window; 2])
        .with_stride([1; 2])
        .with_padding([window / 2; 2])
        .with_count_include_pad(false);
    avg_pool2d(x, options)
}

/// The picture in cells of one colour, each `cell` pixels wide.
///
/// # Panics
/// Unless cells divide height and width.
pub fn cells(x: Tensor<4>, cell: usize) -> Tensor<4> {
    let [batch, channels, height, width] = x.dims();
    assert!(height % cell == 0 && width % cell == 0, "cells of {cell} in {height} x {width}");
    let (rows, columns) = (height / cell, width / cell);
    let parts: Tensor<6> = x.reshape([batch, channels, rows, cell, columns, cell]);
    let means = parts.mean_dim(3).mean_dim(5);
    means
        .expand([batch, channels, rows, cell, columns, cell])
        .reshape([batch, channels, height, width])
}

/// How much the luminance changes around each pixel: the magnitude of Sobel's derivatives, 1 where it is strong and -1
/// where there is no change, `[batch, 1, height, width]`.
pub fn edges(x: &Tensor<4>) -> Tensor<4> {
    let y = bordered(luminance(x) * 0.5);
    let [_, _, height, width] = x.dims();
    let at =
        |down: usize, across: usize| y.clone().narrow(2, down, height).narrow(3, across, width);
    let side = |a: [usize; 2], b: [usize; 2], c: [usize; 2]| {
        at(a[0], a[1]) + at(b[0], b[1]) * 2.0 + at(c[0], c[1])
    };
    let across = side([0, 2], [1, 2], [2, 2]) - side([0, 0], [1, 0], [2, 0]);
    let down = side([2, 0], [2, 1], [2, 2]) - side([0, 0], [0, 1], [0, 2]);
    // The weights of a side sum to 4.
    let size = (across.square() + down.square()).sqrt() * 0.25;
    (size * (1.0 / STRONG)).clamp_max(1.0) * 2.0 - 1.0
}

/// A picture in the light of another: its luminance is multiplied by the ratio of the two, both blurred over a square of
/// `window` pixels within the `mask`. Outside it, the picture stays as it is.
///
/// # Shapes
/// `mask`: `[batch, 1, height, width]` in [0, 1]
pub fn in_light_of(
    x: Tensor<4>,
    reference: &Tensor<4>,
    mask: Tensor<4>,
    window: usize,
) -> Tensor<4> {
    let within = blurred(mask.clone(), window).clamp_min(1e-6);
    let low = |picture: &Tensor<4>| {
        let light = luminance(picture) * 0.5 + 0.5;
        blurred(light * mask.clone(), window) / within.clone()
    };
    let ratio = (low(reference) / low(&x).clamp_min(DARKEST)).clamp(FACTORS[0], FACTORS[1]);
    let changed = ((x.clone() * 0.5 + 0.5) * ratio).clamp_max(1.0) * 2.0 - 1.0;
    x.clone() + (changed - x) * mask
}

/// With the pixels of the border once more around it.
fn bordered(x: Tensor<4>) -> Tensor<4> {
    let around = |x: Tensor<4>, axis: usize| {
        let last = x.dims()[axis] - 1;
        let [first, last] = [0, last].map(|at| x.clone().narrow(axis, at, 1));
        Tensor::cat(vec![first, x, last], axis)
    };
    around(around(x, 2), 3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::random;
    use burn::tensor::{Device, TensorData};

    fn worst(a: Tensor<4>, b: Tensor<4>) -> f32 {
        (a - b).abs().max().into_scalar()
    }

    fn flat(colour: [f32; 3]) -> Tensor<4> {
        let pixels =
            Tensor::<4>::from_data(TensorData::new(colour.to_vec(), [1, 3, 1, 1]), &Device::flex());
        pixels.expand([1, 3, 12, 10])
    }

    #[test]
    fn means_are_those_of_the_window_and_of_the_cells() {
        let x = random([1, 2, 6, 5]);
        let values: Vec<f32> = x.clone().into_data().try_into_vec().expect("floats");
        let at = |c: usize, y: usize, x: usize| f64::from(values[(c * 6 + y) * 5 + x]);
        let found: Vec<f32> = blurred(x.clone(), 3).into_data().try_into_vec().expect("floats");
        for (i, found) in found.into_iter().enumerate() {
            let (c, y, x) = (i / 30, i / 5 % 6, i % 5);
            let rows = y.saturating_sub(1)..=(y + 1).min(5);
            let columns = x.saturating_sub(1)..=(x + 1).min(4);
            let all: Vec<f64> =
                rows.flat_map(|y| columns.clone().map(move |x| at(c, y, x))).collect();
            let mean = all.iter().sum::<f64>() / all.len() as f64;
            assert!((f64::from(found) - mean).abs() < 1e-5, "{i}");
        }
        let tiled = cells(random([2, 3, 8, 12]), 4);
        let first = tiled.clone().narrow(2, 0, 1).narrow(3, 4, 1).expand([2, 3, 4, 4]);
        assert_eq!(worst(tiled.clone().narrow(2, 0, 4).narrow(3, 4, 4), first), 0.0);
        assert!(worst(cells(tiled.clone(), 4), tiled) < 1e-6);
    }

    #[test]
    fn kinds_have_the_shape_of_the_picture_and_forget_the_rest() {
        assert_eq!([window(64), window(48), window(512), window(8)], [9, 7, 73, 1]);
        let x = random([2, 3, 32, 48]);
        for kind in [ControlKind::Edges, ControlKind::Luminance, ControlKind::Tile] {
            let found = kind.of(x.clone());
            assert_eq!(found.dims(), x.dims(), "{kind:?}");
            assert!(worst(found, x.clone()) > 0.1, "{kind:?}");
        }
        assert_eq!(worst(ControlKind::Picture.of(x.clone()), x.clone()), 0.0);
        // 16 cells across the shorter side.
        let tiles = ControlKind::Tile.of(x.clone());
        assert_eq!(worst(tiles, cells(x, 2)), 0.0);
    }

    /// None in a flat picture, the same from all sides, and strong where dark meets light.
    #[test]
    fn edges_are_where_the_luminance_changes() {
        assert_eq!(worst(edges(&flat([0.3, -0.2, 0.9])), flat([-1.0; 3]).narrow(1, 0, 1)), 0.0);
        let x = random([1, 3, 9, 9]);
        let turned = |x: Tensor<4>| x.permute([0, 1, 3, 2]).flip([2]);
        assert!(worst(edges(&turned(x.clone())), turned(edges(&x))) < 1e-5);
        let half = Tensor::cat(vec![flat([-1.0; 3]), flat([1.0; 3])], 3);
        let found = edges(&half);
        assert_eq!(found.dims(), [1, 1, 12, 20]);
        let columns: Vec<f32> = found.narrow(2, 5, 1).into_data().try_into_vec().expect("floats");
        let strong: Vec<usize> = (0..20).filter(|i| columns[*i] > 0.99).collect();
        assert_eq!(strong, [9, 10]);
        assert!(columns.iter().enumerate().all(|(i, value)| strong.contains(&i) || *value == -1.0));
    }

    /// A flat picture takes the reference's luminance and keeps its own colour; outside the mask nothing changes.
    #[test]
    fn light_is_that_of_the_reference_within_the_mask() {
        let (x, reference) = (flat([0.0, -0.4, 0.2]), flat([0.1; 3]));
        let all = Tensor::ones([1, 1, 12, 10], &Device::flex());
        let changed = in_light_of(x.clone(), &reference, all.clone(), 5);
        let light = |x: &Tensor<4>| luminance(x) * 0.5 + 0.5;
        assert!(worst(light(&changed), light(&reference)) < 1e-5);
        let share = |x: &Tensor<4>| (x.clone() * 0.5 + 0.5) / light(x);
        assert!(worst(share(&changed), share(&x)) < 1e-5);
        assert!(worst(in_light_of(x.clone(), &x, all.clone(), 5), x.clone()) < 1e-6);

        // What is outside has no say, and stays.
        let half = all.clone().narrow(3, 0, 5);
        let mask = Tensor::cat(vec![half.clone(), half.zeros_like()], 3);
        let dark = Tensor::cat(vec![x.clone().narrow(3, 0, 5), flat([-1.0; 3]).narrow(3, 0, 5)], 3);
        let found = in_light_of(dark.clone(), &reference, mask, 5);
        assert!(worst(found.clone().narrow(3, 0, 5), changed.narrow(3, 0, 5)) < 1e-5);
        assert_eq!(worst(found.narrow(3, 5, 5), dark.narrow(3, 5, 5)), 0.0);
        // No more than three times as light.
        let black = in_light_of(flat([-0.9; 3]), &flat([1.0; 3]), all, 5);
        assert!(worst(black, flat([-0.7; 3])) < 1e-5);
    }
}
