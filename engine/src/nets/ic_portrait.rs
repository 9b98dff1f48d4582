//! Portraits of a person from one picture of them, in the light and pose of another (IC-Portrait, Yang et al. 2025).

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use serde::{Deserialize, Serialize};

use super::{Conditioning, Control, Dit, DitConfig, Panel};
use crate::portrait::{best_matches, relocate};

/// What determines an [`IcPortrait`] but its weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IcPortraitConfig {
    /// Blocks of each branch: copies of the network's first ones.
    pub depth: usize,
    /// Whether there is a branch that carries the appearance, or so far only the one that finds matches.
    pub appearance: bool,
    /// Whether the network itself sees the profile, too, beside the portrait that it makes.
    pub panel: bool,
}

/// Two branches of a trained network, which see a profile, who it is, beside a reference, of which most is hidden.
///
/// One finds for each token of the reference the token of the profile that shows the same; the other's features of the
/// profile are brought to these places and steer the network.
#[derive(Module, Debug)]
pub struct IcPortrait {
    /// Its features are compared.
    pub matching: Control,
    /// Its features are moved, added to those of the reference, and linked to the network.
    pub appearance: Option<Control>,
    panel: bool,
}

/// What the branches look at, and what the network is told of both.
#[derive(Debug, Clone)]
pub struct Sight {
    /// `[batch, channels, height, width]`: the person, as a network input of little noise.
    pub profile: Tensor<4>,
    /// The same of the picture whose light and pose are wanted, most of it hidden.
    pub reference: Tensor<4>,
    /// What the network is told of the noise level of both.
    pub time: f64,
}

impl Sight {
    /// Of pictures, `[batch, channels, height, width]`, pixels in [-1, 1] or scaled latents; `scale` and `time` are those of
    /// [`Process::quiet`](crate::diffusion::Process::quiet).
    pub fn new(profile: Tensor<4>, reference: Tensor<4>, (scale, time): (f64, f64)) -> Self {
        Self { profile: profile * scale, reference: reference * scale, time }
    }

    fn panel(&self) -> Panel {
        let [.., width] = self.profile.dims();
        // Beside each other, so that the same place is not the first guess.
        Panel { image: self.profile.clone(), origin: [0.0, -(width as f64)], time: self.time }
    }

    fn times(&self) -> Tensor<1> {
        Tensor::full([self.profile.dims()[0]], self.time, &self.profile.device())
    }

    /// What one branch makes of both, each level `[batch, tokens of the reference, those of the profile, hidden]`.
    fn states(
        &self,
        branch: &Control,
        net: &Dit,
        told: &Conditioning,
        patch: usize,
    ) -> Vec<Halves> {
        let told = Conditioning { panels: vec![self.panel()], ..told.clone() };
        let states = branch.states(net, self.reference.clone(), self.times(), &told, patch);
        states.into_iter().map(Halves::new).collect()
    }
}

/// Tokens of both pictures.
struct Halves {
    reference: Tensor<3>,
    profile: Tensor<3>,
}

impl Halves {
    fn new(tokens: Tensor<3>) -> Self {
        let [reference, profile] = tokens.chunk(2, 1).try_into().expect("two pictures");
        Self { reference, profile }
    }

    /// The reference alone, or with the profile behind it.
    fn joined(self, both: bool) -> Tensor<3> {
        match both {
            true => Tensor::cat(vec![self.reference, self.profile], 1),
            false => self.reference,
        }
    }
}

impl IcPortrait {
    /// Branches with the weights of a network's first blocks, and links that are zero.
    ///
    /// # Panics
    /// As [`Control::new`].
    pub fn new(net: &Dit, config: IcPortraitConfig, device: &Device) -> Self {
        let branch = || Control::new(net, config.depth, device);
        Self { matching: branch(), appearance: config.appearance.then(branch), panel: config.panel }
    }

    /// Branches with fresh weights, for those of a file.
    ///
    /// # Panics
    /// As [`Control::new`].
    pub fn fresh(net: &DitConfig, config: IcPortraitConfig, device: &Device) -> Self {
        let branch = || Control::fresh(net, config.depth, device);
        Self { matching: branch(), appearance: config.appearance.then(branch), panel: config.panel }
    }

    /// What it was made from.
    pub fn config(&self) -> IcPortraitConfig {
        let (depth, appearance) = (self.matching.blocks.len(), self.appearance.is_some());
        IcPortraitConfig { depth, appearance, panel: self.panel }
    }

    /// With all frozen but the newest branch: that of the appearance if there is one, else the one that finds matches.
    pub fn newest(self) -> Self {
        match self.appearance {
            None => self,
            Some(_) => Self { matching: self.matching.no_grad(), ..self },
        }
    }

    /// For each token of the reference the one of the profile that is most like it, by the features after each block of the
    /// matching branch: each `[batch, tokens]`. Gradients are not recorded.
    pub fn matches(
        &self,
        net: &Dit,
        sight: &Sight,
        told: &Conditioning,
        patch: usize,
    ) -> Vec<Tensor<2, Int>> {
        let sight = Sight {
            profile: sight.profile.clone().without_autodiff(),
            reference: sight.reference.clone().without_autodiff(),
            ..*sight
        };
        let (branch, net) = (self.matching.valid(), net.valid());
        let states = sight.states(&branch, &net, &told.without_autodiff(), patch);
        // What has been through no block knows nothing of the other picture.
        let seen = states.into_iter().skip(1);
        seen.map(|Halves { reference, profile }| best_matches(reference, profile)).collect()
    }

    /// What the network is told of a portrait, besides what it is told otherwise.
    ///
    /// Before there is an appearance branch, the matching branch steers the network itself: so it learns to see what the
    /// two pictures have in common.
    ///
    /// # Shapes
    /// [`Conditioning::control`] of `depth + 1` levels
    pub fn told(&self, net: &Dit, sight: &Sight, told: Conditioning, patch: usize) -> Conditioning {
        let (branch, fused) = match &self.appearance {
            None => (&self.matching, sight.states(&self.matching, net, &told, patch)),
            Some(appearance) => {
                let matches = self.matches(net, sight, &told, patch);
                let states = sight.states(appearance, net, &told, patch);
                // The tokens before the first block move as those after it.
                let matches = std::iter::once(matches[0].clone()).chain(matches);
                let fused = states.into_iter().zip(matches).map(|(halves, matches)| Halves {
                    reference: relocate(halves.profile.clone(), matches) + halves.reference,
                    ..halves
                });
                (appearance, fused.collect())
            }
        };
        let fused = fused.into_iter().map(|halves| halves.joined(self.panel)).collect();
        let panels = if self.panel { vec![sight.panel()] } else { Vec::new() };
        Conditioning { control: branch.residuals(fused, 1.0), panels, ..told }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nets::Steered;
    use crate::nets::control::tests::{DEPTH, images, net};
    use crate::testing::Draws;
    use crate::train::params;

    fn sight(profile: u64, reference: u64) -> Sight {
        Sight { profile: images(profile), reference: images(reference), time: 0.0 }
    }

    fn classes() -> Conditioning {
        Conditioning::classes(&[0, 2], &Device::flex())
    }

    fn fresh(net: &Dit, appearance: bool, panel: bool) -> IcPortrait {
        let config = IcPortraitConfig { depth: DEPTH, appearance, panel };
        let branches = IcPortrait::new(net, config, &Device::flex());
        assert_eq!(branches.config(), config);
        branches
    }

    fn with_links(branches: IcPortrait, std: f64) -> IcPortrait {
        let trained = |control: Control| Control {
            links: control.links.map(&mut Draws::new(9, std)),
            ..control
        };
        IcPortrait {
            matching: trained(branches.matching),
            appearance: branches.appearance.map(trained),
            ..branches
        }
    }

    fn output(net: &Dit, told: &Conditioning) -> Tensor<4> {
        let time = Tensor::from_floats([30.0, 700.0], &Device::flex());
        net.forward(images(7), time, told, 2)
    }

    fn worst(a: &Tensor<4>, b: &Tensor<4>) -> f32 {
        (a.clone() - b.clone()).abs().max().into_scalar()
    }

    /// Where the network does not see the profile itself, fresh branches leave it as it is.
    #[test]
    fn fresh_branches_change_nothing() {
        let net = net();
        let plain = output(&net, &classes());
        for appearance in [false, true] {
            let told = |panel| {
                let branches = fresh(&net, appearance, panel);
                branches.told(&net, &sight(5, 6), classes(), 2)
            };
            assert_eq!(worst(&output(&net, &told(false)), &plain), 0.0);
            assert!(worst(&output(&net, &told(true)), &plain) > 1e-3);
        }
    }

    #[test]
    fn both_pictures_steer_the_network() {
        let net = net();
        for (appearance, panel) in [(false, false), (true, false), (true, true)] {
            let branches = with_links(fresh(&net, appearance, panel), 0.1);
            let of = |profile, reference| {
                output(&net, &branches.told(&net, &sight(profile, reference), classes(), 2))
            };
            let found = of(5, 6);
            assert!(worst(&found, &of(8, 6)) > 1e-4, "profile, {appearance}, {panel}");
            assert!(worst(&found, &of(5, 8)) > 1e-4, "reference, {appearance}, {panel}");
            assert_eq!(worst(&found, &of(5, 6)), 0.0);
        }
    }

    #[test]
    fn every_level_has_matches_in_the_profile() {
        let net = net();
        let branches = fresh(&net, true, false);
        let found = branches.matches(&net, &sight(5, 6), &classes(), 2);
        assert_eq!(found.len(), DEPTH);
        for matches in found {
            assert_eq!(matches.dims(), [2, 16]);
            let (low, high): (i64, i64) =
                (matches.clone().min().into_scalar(), matches.max().into_scalar());
            assert!(low >= 0 && high < 16, "{low}, {high}");
        }
    }

    /// In each stage one branch learns; nothing reaches the other one, or the network.
    #[test]
    fn the_newest_branch_alone_learns() {
        let net = net();
        let block = net.blocks[..DEPTH].to_vec().num_params();
        let links = (DEPTH + 1) * (32 * 32 + 32);
        for appearance in [false, true] {
            let branches = with_links(fresh(&net, appearance, false), 0.1);
            let steered = Steered::new(net.clone(), branches.newest()).train();
            let count: usize = params::values(&steered).iter().map(|value| value.dims()[0]).sum();
            assert_eq!(count, block + links);
            let names = params::names(&steered);
            let own = if appearance { "branches.appearance" } else { "branches.matching" };
            assert!(names.iter().all(|name| name.starts_with(own)), "{names:?}");

            let sight = sight(5, 6);
            let sight = Sight {
                profile: sight.profile.autodiff(),
                reference: sight.reference.autodiff(),
                ..sight
            };
            let told = steered.branches.told(&steered.net, &sight, classes(), 2);
            let time = Tensor::from_floats([30.0, 700.0], &Device::flex()).autodiff();
            let y = steered.net.forward(images(7).autodiff(), time, &told, 2);
            let gradients = params::gradients(&steered, &y.square().sum().backward());
            for (name, gradient) in names.iter().zip(gradients) {
                let size: f32 = gradient.abs().max().into_scalar();
                assert!(size > 0.0, "{name}");
            }
        }
    }
}
