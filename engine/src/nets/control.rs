//! Branches that control a trained transformer, which itself stays as it is (ControlNet, Zhang et al. 2023; for
//! transformers PixArt-δ, Chen et al. 2024).

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use super::{Conditioning, Dit, DitBlock, DitConfig};
use crate::diffusion::Process;
use crate::layers::dense::DenseConfig;
use crate::layers::{Dense, Fresh, Init};

/// Copies of the first blocks of a network, which see something else, and links from their states to the network, which
/// are zero at first.
#[derive(Module, Debug)]
pub struct Control {
    /// The copies.
    pub blocks: Vec<DitBlock>,
    /// `[hidden, hidden]` each: from the state before the first block, and after every one.
    pub links: Vec<Dense>,
}

impl Control {
    /// A branch of `depth` blocks, with the weights of the network's.
    ///
    /// # Panics
    /// For no block, or more than the network has.
    pub fn new(net: &Dit, depth: usize, device: &Device) -> Self {
        let (blocks, hidden) = (net.blocks.len(), net.config().hidden);
        assert!((1..=blocks).contains(&depth), "a branch of {depth} blocks of {blocks}");
        let init = &Init::new(0, device);
        let link =
            DenseConfig { fresh: Fresh::Constant(0.0), ..DenseConfig::new(hidden, hidden, false) };
        Self {
            blocks: net.blocks[..depth].to_vec(),
            links: (0..=depth).map(|_| link.init(init)).collect(),
        }
    }

    /// A branch of `depth` blocks with fresh weights, for those of a file.
    ///
    /// # Panics
    /// As [`Control::new`].
    pub fn fresh(config: &DitConfig, depth: usize, device: &Device) -> Self {
        let config = DitConfig { depth: depth.min(config.depth), ..config.clone() };
        Self::new(&config.init(0, device), depth, device)
    }

    /// What the branch makes of an image and its panels: the tokens before its first block, and after each.
    ///
    /// # Shapes
    /// As of [`Dit::forward`]; output: each `[batch, tokens with those of panels, hidden]`
    pub fn states(
        &self,
        net: &Dit,
        x: Tensor<4>,
        time: Tensor<1>,
        told: &Conditioning,
        patch: usize,
    ) -> Vec<Tensor<3>> {
        net.states_of(&self.blocks, x, time, told, patch)
    }

    /// What a picture is worth to the network, for [`Conditioning::control`]; that of several branches can be added.
    ///
    /// The branch sees the picture alone, as an image of least noise, and is told what `told` says: it need not be asked
    /// anew at every step, as a ControlNet is, which sees the noisy image, too (T2I-Adapter, Mou et al. 2023).
    ///
    /// # Shapes
    /// `picture`: `[batch, channels, height, width]`, pixels in [-1, 1] or scaled latents
    pub fn of_picture(
        &self,
        net: &Dit,
        process: &Process,
        picture: Tensor<4>,
        told: &Conditioning,
        patch: usize,
    ) -> Vec<Tensor<3>> {
        let (scale, time) = process.quiet();
        let times = Tensor::full([picture.dims()[0]], time, &picture.device());
        let states = self.states(net, picture * scale, times, told, patch);
        self.residuals(states, 1.0)
    }

    /// What states are worth to the network, for [`Conditioning::control`]; those of several branches can be added.
    ///
    /// # Panics
    /// Unless there is a state for each link.
    pub fn residuals(&self, states: Vec<Tensor<3>>, scale: f64) -> Vec<Tensor<3>> {
        assert_eq!(states.len(), self.links.len(), "a state for each link");
        self.links.iter().zip(states).map(|(link, state)| link.forward(state) * scale).collect()
    }
}

/// A frozen network with branches that steer it, which alone are trained.
#[derive(Module, Debug)]
pub struct Steered<B: Module> {
    /// The network, which stays as it is.
    pub net: Dit,
    /// What is trained, as far as it has gradients.
    pub branches: B,
}

impl<B: Module> Steered<B> {
    /// Freezes the network.
    pub fn new(net: Dit, branches: B) -> Self {
        Self { net: net.no_grad(), branches }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::nets::Panel;
    use crate::testing::Draws;

    pub(in crate::nets) const DEPTH: usize = 2;

    /// A tiny network of three blocks.
    pub(in crate::nets) fn net() -> Dit {
        let base = DitConfig { size: [8, 8], classes: 3, ..DitConfig::dit(32, 3, 4) };
        base.init(0, &Device::flex()).map(&mut Draws::new(3, 0.2))
    }

    /// Two images for it.
    pub(in crate::nets) fn images(seed: u64) -> Tensor<4> {
        Draws::new(seed, 1.0).tensor([2, 4, 8, 8])
    }

    fn time(values: [f32; 2]) -> Tensor<1> {
        Tensor::from_floats(values, &Device::flex())
    }

    /// A profile to the left of the image, at a time of its own.
    fn told(profile: u64) -> Conditioning {
        let panel = Panel { image: images(profile), origin: [0.0, -8.0], time: 0.0 };
        Conditioning { panels: vec![panel], ..Conditioning::classes(&[0, 2], &Device::flex()) }
    }

    /// Of both panels, at time 0.
    fn states(control: &Control, net: &Dit, profile: u64) -> Vec<Tensor<3>> {
        control.states(net, images(5), time([0.0; 2]), &told(profile), 2)
    }

    fn worst(a: &Tensor<4>, b: &Tensor<4>) -> f32 {
        (a.clone() - b.clone()).abs().max().into_scalar()
    }

    #[test]
    fn a_fresh_branch_changes_nothing_and_its_copies_are_the_blocks() {
        let net = net();
        let control = Control::new(&net, DEPTH, &Device::flex());
        let states = states(&control, &net, 6);
        assert_eq!(states.len(), DEPTH + 1);
        let mut seen = Vec::new();
        net.forward_with(images(5), time([0.0; 2]), &told(6), 2, &mut |_, tokens| {
            seen.push(tokens.clone());
            tokens
        });
        for (state, seen) in states[1..].iter().zip(&seen) {
            assert!(state.clone().equal(seen.clone()).all().into_scalar::<bool>());
        }
        let (x, at) = (images(7), || time([30.0, 700.0]));
        let plain = net.forward(x.clone(), at(), &told(6), 2);
        let told = Conditioning { control: control.residuals(states, 1.0), ..told(6) };
        let found = net.forward(x, at(), &told, 2);
        assert_eq!(worst(&found, &plain), 0.0);
    }

    /// Every link acts, with the scale 0 none does, and two branches are the sum of their residuals in any order.
    #[test]
    fn links_act_by_their_scale_and_branches_add_up() {
        let net = net();
        let other = Control::new(&net, DEPTH, &Device::flex()).map(&mut Draws::new(8, 0.1));
        let control = Control::new(&net, DEPTH, &Device::flex()).map(&mut Draws::new(9, 0.1));
        let (x, at) = (images(7), || time([30.0, 700.0]));
        let plain = net.forward(x.clone(), at(), &told(6), 2);
        let steered = |residuals: &[Tensor<3>]| {
            let told = Conditioning { control: residuals.to_vec(), ..told(6) };
            net.forward(x.clone(), at(), &told, 2)
        };
        let full = control.residuals(states(&control, &net, 6), 1.0);
        for count in 0..=full.len() {
            let difference = worst(&steered(&full[..count]), &steered(&full[..count.max(1) - 1]));
            assert_eq!(difference > 1e-3, count > 0, "link {count}: {difference}");
        }
        let none = control.residuals(states(&control, &net, 6), 0.0);
        assert_eq!(worst(&steered(&none), &plain), 0.0);
        let second = other.residuals(states(&other, &net, 10), 0.5);
        let sum = |a: &[Tensor<3>], b: &[Tensor<3>]| -> Vec<Tensor<3>> {
            a.iter().zip(b).map(|(a, b)| a.clone() + b.clone()).collect()
        };
        assert_eq!(worst(&steered(&sum(&full, &second)), &steered(&sum(&second, &full))), 0.0);
    }

    /// At first only the links learn; the network never does.
    #[test]
    fn links_learn_first_and_blocks_through_them() {
        let net = net();
        let count = |control: &Control| control.num_params();
        let [fresh, trained] = [0.0, 0.1].map(|std| {
            let control = Control::new(&net, DEPTH, &Device::flex());
            let links = control.links.map(&mut Draws::new(4, std));
            Control { links, ..control }.train()
        });
        assert_eq!(count(&fresh), net.blocks[..DEPTH].to_vec().num_params() + 3 * (32 * 32 + 32));
        let slopes = |control: &Control| {
            let autodiff = net.clone().no_grad();
            let states = states(control, &autodiff, 6);
            let told = Conditioning { control: control.residuals(states, 1.0), ..told(6) };
            let y = autodiff.forward(images(7), time([30.0, 700.0]), &told, 2);
            let gradients = y.square().sum().backward();
            let size = |x: Tensor<2>| {
                x.grad(&gradients).map_or(0.0, |slope| slope.abs().max().into_scalar::<f32>())
            };
            let block = size(control.blocks[0].mlp.up.weight.val());
            (size(control.links[2].weight.val()), block)
        };
        let (link, block) = slopes(&fresh);
        assert!(link > 1e-4 && block == 0.0, "{link}, {block}");
        let (link, block) = slopes(&trained);
        assert!(link > 1e-4 && block > 1e-6, "{link}, {block}");
    }
}
