//! Images that a trained transformer sees beside the one that it makes, through low-rank adapters of their tokens alone
//! (OminiControl, Tan et al. 2024; section 7.5 of the IC-Portrait specification).

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use super::{BlockAdapters, Conditioning, Dit, DitConfig};
use crate::layers::{Init, KvCache};

/// Adapters of every block for the tokens of images that are seen.
///
/// These see each other and not the image that is made, so that what it attends to, their keys and values, is the same at
/// every step. The tokens of the image itself go through the network as it is.
#[derive(Module, Debug)]
pub struct InContext {
    /// One per block.
    pub blocks: Vec<BlockAdapters>,
}

impl InContext {
    /// Adapters of this rank, which add nothing yet.
    pub fn new(net: &DitConfig, rank: usize, seed: u64, device: &Device) -> Self {
        Self { blocks: net.init_adapters(rank, &Init::new(seed, device)) }
    }

    /// Their rank.
    pub fn rank(&self) -> usize {
        self.blocks[0].qkv.down.dims()[1]
    }

    /// What the network attends to, for [`Conditioning::seen`], of an image that stands where the one stands that is made,
    /// and of panels.
    ///
    /// # Shapes
    /// As of [`Dit::forward`]
    pub fn seen(
        &self,
        net: &Dit,
        x: Tensor<4>,
        time: Tensor<1>,
        told: &Conditioning,
        patch: usize,
    ) -> Vec<KvCache> {
        net.seen_with(&self.blocks, x, time, told, patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nets::Panel;
    use crate::nets::control::tests::{images, net};
    use crate::testing::Draws;

    fn time(value: f32) -> Tensor<1> {
        Tensor::from_floats([value; 2], &Device::flex())
    }

    fn classes() -> Conditioning {
        Conditioning::classes(&[0, 2], &Device::flex())
    }

    fn worst(a: &Tensor<4>, b: &Tensor<4>) -> f32 {
        (a.clone() - b.clone()).abs().max().into_scalar()
    }

    /// Through the first block the image sees the panel as it would see it in one pass, where the panel sees the image, too;
    /// behind it no longer.
    #[test]
    fn what_was_seen_before_is_attended_to_as_in_one_pass() {
        for depth in [1, 2] {
            let mut net = net();
            net.blocks.truncate(depth);
            let panel = Panel { image: images(5), origin: [0.0; 2], time: 30.0 };
            let together = Conditioning { panels: vec![panel], ..classes() };
            let expected = net.forward(images(7), time(700.0), &together, 2);
            let adapters = InContext::new(net.config(), 4, 1, &Device::flex());
            assert_eq!(adapters.rank(), 4);
            let seen = adapters.seen(&net, images(5), time(30.0), &classes(), 2);
            assert_eq!(seen.len(), depth);
            let told = Conditioning { seen, ..classes() };
            let found = net.forward(images(7), time(700.0), &told, 2);
            assert_eq!(worst(&found, &expected) < 1e-5, depth == 1);
            let alone = net.forward(images(7), time(700.0), &classes(), 2);
            assert!(worst(&found, &alone) > 1e-3);
        }
    }

    #[test]
    fn adapters_act_on_what_is_seen_and_rows_can_be_chosen() {
        let net = net();
        let fresh = InContext::new(net.config(), 4, 1, &Device::flex());
        let trained = fresh.clone().map(&mut Draws::new(3, 0.3));
        let told = |adapters: &InContext| {
            let seen = adapters.seen(&net, images(5), time(30.0), &classes(), 2);
            Conditioning { seen, ..classes() }
        };
        let made = |told: &Conditioning| net.forward(images(7), time(700.0), told, 2);
        let (told, found) = (told(&trained), made(&told(&fresh)));
        assert!(worst(&made(&told), &found) > 1e-3);
        let again = told.select(&[0]).followed_by(told.select(&[1]));
        assert_eq!(worst(&made(&again), &made(&told)), 0.0);
    }
}
