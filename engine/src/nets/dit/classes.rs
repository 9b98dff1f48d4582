//! Other classes for a network that was trained.

use burn::tensor::{Device, Int, Tensor, TensorData};

use super::{Dit, Embedder};
use crate::layers::time::Table;
use crate::random::Generator;

impl Dit {
    /// The network for other classes: class `i` has the vector of the old class `rows[i]` or, where there is none, one
    /// drawn at random like the old ones, channel by channel with their mean and deviation; the null class keeps its
    /// own.
    ///
    /// # Panics
    /// If the network is told no class, or an old class is past its last.
    pub fn with_classes(mut self, rows: &[Option<usize>], seed: u64) -> Self {
        assert!(self.config.classes > 0, "a network without classes");
        self.embedder = self.embedder.with_classes(rows, seed);
        for block in &mut self.blocks {
            block.embedder = block.embedder.take().map(|own| own.with_classes(rows, seed));
        }
        self.config.classes = rows.len();
        self
    }
}

impl Embedder {
    fn with_classes(self, rows: &[Option<usize>], seed: u64) -> Self {
        Self { label: self.label.map(|table| table.with_rows(rows, seed)), ..self }
    }
}

impl Table {
    /// See [`Dit::with_classes`]; the last row is that of the null class.
    fn with_rows(mut self, rows: &[Option<usize>], seed: u64) -> Self {
        self.weight = self.weight.map(|old| {
            let [count, hidden] = old.dims();
            let (classes, device) = (count - 1, old.device());
            let known = old.clone().narrow(0, 0, classes);
            let mean = known.clone().mean_dim(0); // [1, hidden]
            let deviation = (known - mean.clone()).square().mean_dim(0).sqrt();
            let z = Generator::new(seed).normal(rows.len() * hidden);
            let z = Tensor::<2>::from_data(TensorData::new(z, [rows.len(), hidden]), &device);
            let table = Tensor::cat(vec![old, z * deviation + mean], 0);
            let at = rows.iter().enumerate().map(|(i, row)| match row {
                Some(row) => {
                    assert!(*row < classes, "class {row} of {classes}");
                    *row
                }
                None => count + i,
            });
            let chosen: Vec<usize> = at.chain([classes]).collect();
            table.select(0, indices(&chosen, &device))
        });
        self
    }
}

fn indices(rows: &[usize], device: &Device) -> Tensor<1, Int> {
    let rows: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
    let count = rows.len();
    Tensor::from_data(TensorData::new(rows, [count]), device)
}

#[cfg(test)]
mod tests {
    use burn::module::Module;
    use burn::tensor::{Device, Tensor};

    use crate::nets::{Conditioning, Dit, DitConfig};
    use crate::testing::Draws;

    fn net(preserved: bool) -> Dit {
        let base = match preserved {
            true => DitConfig::mp_dit(32, 2, 4),
            false => DitConfig { embedder_per_block: true, ..DitConfig::dit(32, 2, 4) },
        };
        let config = DitConfig { size: [8, 8], classes: 3, learned_variance: false, ..base };
        config.init(0, &Device::flex()).map(&mut Draws::new(4, 0.3))
    }

    fn call(net: &Dit, class: usize) -> Tensor<4> {
        let x = Draws::new(5, 1.0).tensor([1, 4, 8, 8]);
        let time = Tensor::full([1], 0.3, &Device::flex());
        net.forward(x, time, &Conditioning::classes(&[class], &Device::flex()), 2)
    }

    #[test]
    fn kept_classes_and_the_null_class_answer_as_before() {
        for preserved in [true, false] {
            let old = net(preserved);
            let new = old.clone().with_classes(&[Some(2), None, Some(0), None, Some(2)], 7);
            assert_eq!(new.config().classes, 5);
            let same = |a: usize, b: usize| {
                let (new, old) = (call(&new, a).into_data(), call(&old, b).into_data());
                new == old
            };
            assert!(same(0, 2) && same(4, 2) && same(2, 0) && same(5, 3), "{preserved}");
            // A new class is like none of the old ones, nor like another new one.
            assert!([1, 3].iter().all(|&new| (0..4).all(|class| !same(new, class))), "{preserved}");
            assert!(call(&new, 1).into_data() != call(&new, 3).into_data(), "{preserved}");
        }
    }
}
