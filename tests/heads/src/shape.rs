//! Small formulas for points, colours and weights.

/// A point, a direction or a colour.
pub(crate) type V3 = nalgebra::Vector3<f32>;

/// From 0 at `low` smoothly to 1 at `high`.
pub(crate) fn step(value: f32, low: f32, high: f32) -> f32 {
    let part = ((value - low) / (high - low)).clamp(0.0, 1.0);
    part * part * (3.0 - 2.0 * part)
}

/// 1 where all parts are 0, and less the larger they are.
pub(crate) fn bump<const N: usize>(parts: [f32; N]) -> f32 {
    let square: f32 = parts.iter().map(|part| part * part).sum();
    if square > 16.0 { 0.0 } else { libm::expf(-square) }
}

/// A line through points whose `x` ascend, level beyond both ends.
pub(crate) fn along(points: &[(f32, f32)], x: f32) -> f32 {
    let after = points.partition_point(|point| point.0 <= x);
    if after == 0 || after == points.len() {
        return points[after.saturating_sub(1)].1;
    }
    let ((x0, y0), (x1, y1)) = (points[after - 1], points[after]);
    y0 + (y1 - y0) * (x - x0) / (x1 - x0)
}

/// In the direction of a vector, of length 1; 0 stays 0.
pub(crate) fn unit(vector: V3) -> V3 {
    vector / (vector.norm() + 1e-9)
}

pub(crate) fn mixed(base: V3, other: V3, amount: f32) -> V3 {
    base + (other - base) * amount
}

/// The smallest and the largest coordinates of some points; of none, `(0, 0)`.
pub(crate) fn extent(points: impl Iterator<Item = V3>) -> (V3, V3) {
    let grown = |known: Option<(V3, V3)>, point: V3| {
        let (low, high) = known.unwrap_or((point, point));
        Some((low.inf(&point), high.sup(&point)))
    };
    points.fold(None, grown).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_passes_through_its_points() {
        let points = [(0.0, 1.0), (1.0, 3.0), (2.0, 0.0)];
        for (x, y) in [(-1.0, 1.0), (0.0, 1.0), (0.5, 2.0), (1.0, 3.0), (2.0, 0.0), (9.0, 0.0)] {
            assert_eq!(along(&points, x), y);
        }
    }
}
