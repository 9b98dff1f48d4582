//! The modulation of all blocks at once, for GPUs, on which every launch takes its time.

use std::collections::BTreeSet;

use burn::tensor::Tensor;

use super::block::DitBlock;
use crate::device::{is_host, on_gpus};

/// What all blocks add to their modulation, and what they multiply the condition by.
#[derive(Debug, Clone)]
pub(super) struct Stacked {
    /// `[blocks, condition, parts]`; absent where the condition has all parts already (adaLN-single).
    weight: Option<Tensor<3>>,
    /// `[blocks, 1, parts]`.
    added: Tensor<3>,
}

impl Stacked {
    /// Of [folded](super::Dit::folded) blocks on a GPU, if they have layers of one kind and size for the same condition. Their
    /// weights become views of what is stacked.
    pub(super) fn of(blocks: &mut [DitBlock]) -> Option<Self> {
        let device = blocks.first()?.mlp.down.weight.lazy_device();
        let shares = blocks.len() > 1 && blocks.iter().all(|block| block.embedder.is_none());
        (shares && on_gpus() && !is_host(&device)).then(|| Self::stack(blocks))?
    }

    fn stack(blocks: &mut [DitBlock]) -> Option<Self> {
        let parts: Option<Vec<_>> = blocks.iter().map(|block| block.modulation.linear()).collect();
        let (weights, added): (Vec<_>, Vec<_>) = parts?.into_iter().unzip();
        let shapes = weights
            .iter()
            .zip(&added)
            .map(|(weight, added)| (weight.as_ref().map(|weight| weight.dims()), added.dims()));
        let shapes: BTreeSet<_> = shapes.collect();
        if shapes.len() > 1 {
            return None;
        }
        let added = added.into_iter().map(|added| added.unsqueeze::<2>()).collect();
        let weights: Option<Vec<_>> = weights.into_iter().collect();
        let weight: Option<Tensor<3>> = weights.map(|weights| Tensor::stack(weights, 0));
        if let Some(all) = &weight {
            for (i, block) in blocks.iter_mut().enumerate() {
                block.modulation.view(all.clone().narrow(0, i, 1).squeeze_dim(0));
            }
        }
        Some(Self { weight, added: Tensor::stack(added, 0) })
    }

    /// The modulation of each block, `[batch, 1, parts]`, from a condition that is `[batch, 1, width]`; `None` for one of every
    /// token, and where something is put on a block's own layer.
    pub(super) fn forward(
        &self,
        blocks: &[DitBlock],
        condition: &Tensor<3>,
    ) -> Option<Vec<Tensor<3>>> {
        let [batch, rows, width] = condition.dims();
        if rows > 1 || blocks.iter().any(|block| block.modulation.is_adapted()) {
            return None;
        }
        let all = condition.clone().reshape([1, batch, width]);
        let all = match &self.weight {
            Some(weight) => all.matmul(weight.clone()),
            None => all,
        };
        let all = all + self.added.clone(); // [blocks, batch, parts]
        let [count, _, parts] = all.dims();
        let of_block = |i| all.clone().narrow(0, i, 1).reshape([batch, 1, parts]);
        Some((0..count).map(of_block).collect())
    }
}

#[cfg(test)]
mod tests {
    use burn::module::Module;
    use burn::tensor::Device;

    use super::*;
    use crate::layers::ModulationConfig;
    use crate::nets::DitConfig;
    use crate::testing::{Draws, random};

    /// Those of one layer after the other, with a projection each and with tables.
    #[test]
    fn all_at_once_are_each_by_itself() {
        for modulation in [ModulationConfig::ADALN_ZERO, ModulationConfig::ADALN_SINGLE] {
            let config = DitConfig { size: [8, 8], modulation, ..DitConfig::dit(32, 3, 4) };
            let net = config.init(0, &Device::flex()).map(&mut Draws::new(3, 0.2));
            let mut blocks = net.blocks.clone();
            let stacked = Stacked::stack(&mut blocks).expect("blocks of one kind");
            let width = if modulation.single { 6 * 32 } else { 32 };
            let condition = random([2, 1, width]);
            let all = stacked.forward(&blocks, &condition).expect("a condition of the image");
            assert_eq!(all.len(), 3);
            for (i, out) in all.into_iter().enumerate() {
                let expected = net.blocks[i].modulation.projected(condition.clone());
                assert!(out.all_close(expected.expect("parts"), Some(1e-5), Some(1e-5)), "{i}");
            }
            let of_tokens = condition.repeat_dim(1, 5);
            assert!(stacked.forward(&blocks, &of_tokens).is_none());
        }
    }
}
