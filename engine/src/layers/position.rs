//! Two-dimensional sin-cos position table.

use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::ops::magnitude::normalize;

/// Wavelengths run from 2π to 2π times this.
const MAX_PERIOD: f64 = 10_000.0;

/// How the table of positions is prepared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Position {
    /// As it is (DiT).
    Plain,
    /// Each token normalised to unit RMS.
    Normalized,
    /// The mean over a token's channels removed, then normalised (MP-DiT).
    Centred,
    /// No table: tokens know their places otherwise.
    Absent,
}

impl Position {
    /// The table of a grid of tokens.
    ///
    /// `[sin(q ω), cos(q ω), sin(r ω), cos(r ω)]` for row `r` and column `q`, the column first, with
    /// `ω_k = 10000^(-k / (hidden / 4))`, computed in f64. Token `i` of a side stands at `step · i + start`,
    /// both given for the rows and for the columns.
    ///
    /// # Shapes
    /// `[1, rows · columns, hidden]`
    pub fn table(
        self,
        [rows, columns]: [usize; 2],
        [start, step]: [[f64; 2]; 2],
        hidden: usize,
        device: &Device,
    ) -> Tensor<3> {
        let quarter = hidden / 4;
        let mut values = Vec::with_capacity(rows * columns * hidden);
        for row in 0..rows {
            for column in 0..columns {
                for (at, axis) in [(column, 1), (row, 0)] {
                    let angle = |k: usize| {
                        let at = at as f64 * step[axis] + start[axis];
                        at * MAX_PERIOD.powf(-(k as f64) / quarter as f64)
                    };
                    values.extend((0..quarter).map(|k| angle(k).sin() as f32));
                    values.extend((0..quarter).map(|k| angle(k).cos() as f32));
                }
            }
        }
        let data = TensorData::new(values, [1, rows * columns, hidden]);
        let table = Tensor::<3>::from_data(data, device);
        match self {
            Position::Plain | Position::Absent => table,
            Position::Normalized => normalize(table, 2),
            Position::Centred => {
                let mean = table.clone().mean_dim(2);
                normalize(table - mean, 2)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn column_comes_first() {
        let table = Position::Plain
            .table([1, 2], [[0.0; 2], [1.0; 2]], 16, &Device::flex())
            .narrow(1, 1, 1);
        let expected = [
            0.841471, 0.099833, 0.01, 0.001, 0.540302, 0.995004, 0.99995, 1.0, 0.0, 0.0, 0.0, 0.0,
            1.0, 1.0, 1.0, 1.0,
        ];
        let expected = Tensor::<1>::from_floats(expected, &Device::flex()).reshape([1, 1, 16]);
        assert!(table.all_close(expected, None, Some(1e-6)));
    }

    #[test]
    fn a_coarse_patch_stands_at_its_centre() {
        let table =
            Position::Plain.table([1, 2], [[0.5; 2], [2.0; 2]], 8, &Device::flex()).narrow(1, 1, 1);
        let expected =
            [0.598472, 0.024997, -0.801144, 0.999688, 0.479426, 0.005000, 0.877583, 0.999988];
        let expected = Tensor::<1>::from_floats(expected, &Device::flex()).reshape([1, 1, 8]);
        assert!(table.all_close(expected, None, Some(1e-6)));
    }
}
