//! Portraits of a person from one picture of them, in the light and pose of another (IC-Portrait, Yang et al. 2025).

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use serde::{Deserialize, Serialize};

use super::{Conditioning, Control, Dit, DitConfig, InContext, Panel, TextAttention};
use crate::layers::patch::{patchify, unpatchify};
use crate::portrait::{best_matches, relocate};

/// What determines an [`IcPortrait`] but its weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IcPortraitConfig {
    /// Blocks of the branch that finds matches, copies of the network's first ones; none if no matches are found.
    pub matching: Option<usize>,
    /// How the network comes to see the person; none while the branch that finds matches is trained.
    pub appearance: Option<Appearance>,
    /// Whether the network itself sees the profile, too, beside the portrait that it makes.
    pub panel: bool,
}

/// How a network comes to see a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Appearance {
    /// By a branch as deep as the one that finds matches.
    Branch,
    /// By attention to the pictures themselves, and to the profile moved by the matches, if any are found.
    InContext {
        /// Of the adapters of their tokens.
        rank: usize,
    },
}

impl IcPortraitConfig {
    /// Says what cannot be with a network.
    ///
    /// # Errors
    /// What it is.
    pub fn check(&self, net: &DitConfig) -> Result<(), String> {
        net.check_branches()?;
        let joint = net.text.as_ref().is_some_and(|text| text.attention == TextAttention::Joint);
        let depth = self.matching.unwrap_or(1);
        match (self.matching, self.appearance) {
            _ if !(1..=net.depth).contains(&depth) => {
                Err(format!("branches of {depth} blocks, expected 1 to {}", net.depth))
            }
            (None, None) => Err("nothing that finds matches, and no appearance".into()),
            (None, Some(Appearance::Branch)) => {
                Err("a branch of the appearance without one that finds matches".into())
            }
            (_, Some(Appearance::InContext { rank })) if !(1..=net.hidden).contains(&rank) => {
                Err(format!("adapters of rank {rank}, expected 1 to {}", net.hidden))
            }
            (_, Some(Appearance::InContext { .. })) if self.panel => {
                Err("the profile both as a panel and in context".into())
            }
            (_, Some(Appearance::InContext { .. })) if joint => {
                Err("pictures in context for a network that attends jointly to a text".into())
            }
            _ => Ok(()),
        }
    }
}

/// What shows a trained network a profile, who it is, beside a reference, of which most is hidden.
///
/// A branch finds for each token of the reference the token of the profile that shows the same. The profile, or another
/// branch's features of it, is brought to these places, where the network sees it.
#[derive(Module, Debug)]
pub struct IcPortrait {
    /// Its features are compared.
    pub matching: Option<Control>,
    /// Its features are moved, added to those of the reference, and linked to the network.
    pub appearance: Option<Control>,
    /// In place of such a branch: through these the network attends to both pictures, and to the profile moved.
    pub in_context: Option<InContext>,
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
    /// Whether the profile stays in its place, in place of going to what it matches: shows what matching is worth.
    pub still: bool,
}

impl Sight {
    /// Of pictures, `[batch, channels, height, width]`, pixels in [-1, 1] or scaled latents; `scale` and `time` are those of
    /// [`Process::quiet`](crate::diffusion::Process::quiet).
    pub fn new(profile: Tensor<4>, reference: Tensor<4>, (scale, time): (f64, f64)) -> Self {
        Self { profile: profile * scale, reference: reference * scale, time, still: false }
    }

    fn panel(&self) -> Panel {
        let [.., width] = self.profile.dims();
        // Beside each other, so that the same place is not the first guess.
        Panel { image: self.profile.clone(), origin: [0.0, -(width as f64)], time: self.time }
    }

    /// The profile with its patches where they match those of the reference.
    fn moved(&self, matches: Tensor<2, Int>, patch: usize) -> Panel {
        let [_, _, height, width] = self.profile.dims();
        let patches = relocate(patchify(self.profile.clone(), patch), matches);
        let image = unpatchify(patches, patch, [height / patch, width / patch]);
        Panel { image, origin: [0.0; 2], time: self.time }
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
    /// Branches with the weights of a network's first blocks and links that are zero, or adapters from the random numbers of
    /// a seed, which add nothing yet.
    ///
    /// # Panics
    /// If [`IcPortraitConfig::check`] finds a fault.
    pub fn new(net: &Dit, config: IcPortraitConfig, seed: u64, device: &Device) -> Self {
        let branch = |depth| Control::new(net, depth, device);
        Self::of(net.config(), config, seed, device, branch)
    }

    /// The same with fresh weights, for those of a file.
    ///
    /// # Panics
    /// As [`IcPortrait::new`].
    pub fn fresh(net: &DitConfig, config: IcPortraitConfig, device: &Device) -> Self {
        let branch = |depth| Control::fresh(net, depth, device);
        Self::of(net, config, 0, device, branch)
    }

    fn of(
        net: &DitConfig,
        config: IcPortraitConfig,
        seed: u64,
        device: &Device,
        branch: impl Fn(usize) -> Control,
    ) -> Self {
        if let Err(fault) = config.check(net) {
            panic!("{fault}");
        }
        let IcPortraitConfig { matching, appearance, panel } = config;
        let (appearance, in_context) = match appearance {
            None => (None, None),
            Some(Appearance::Branch) => (matching.map(&branch), None),
            Some(Appearance::InContext { rank }) => {
                (None, Some(InContext::new(net, rank, seed, device)))
            }
        };
        Self { matching: matching.map(branch), appearance, in_context, panel }
    }

    /// What it was made from.
    pub fn config(&self) -> IcPortraitConfig {
        let branch = self.appearance.as_ref().map(|_| Appearance::Branch);
        let rank = self.in_context.as_ref().map(InContext::rank);
        IcPortraitConfig {
            matching: self.matching.as_ref().map(|branch| branch.blocks.len()),
            appearance: branch.or(rank.map(|rank| Appearance::InContext { rank })),
            panel: self.panel,
        }
    }

    /// With the branch that finds matches frozen, if there is something that carries the appearance.
    pub fn newest(self) -> Self {
        match self.config().appearance {
            None => self,
            Some(_) => Self { matching: self.matching.map(Control::no_grad), ..self },
        }
    }

    /// For each token of the reference the one of the profile that is most like it, by the features after each block of the
    /// matching branch: each `[batch, tokens]`; none without it. Gradients are not recorded. Of one that
    /// [is still](Sight::still), each token's own place.
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
        let Some(branch) = &self.matching else { return Vec::new() };
        if sight.still {
            let [batch, _, height, width] = sight.profile.dims();
            let tokens = (height / patch) * (width / patch);
            let own = Tensor::arange(0..tokens as i64, &sight.profile.device());
            let own = own.unsqueeze::<2>().expand([batch, tokens]);
            return vec![own; branch.blocks.len()];
        }
        let (branch, net) = (branch.valid(), net.valid());
        let states = sight.states(&branch, &net, &told.without_autodiff(), patch);
        // What has been through no block knows nothing of the other picture.
        let seen = states.into_iter().skip(1);
        seen.map(|Halves { reference, profile }| best_matches(reference, profile)).collect()
    }

    /// What the network is told of a portrait, besides what it is told otherwise.
    ///
    /// Before there is an appearance, the matching branch steers the network itself: so it learns to see what the two
    /// pictures have in common.
    ///
    /// # Shapes
    /// [`Conditioning::control`] of one level more than the branches have blocks, or [`Conditioning::seen`] of all blocks
    pub fn told(&self, net: &Dit, sight: &Sight, told: Conditioning, patch: usize) -> Conditioning {
        let matches = match self.config().appearance {
            None => Vec::new(),
            Some(_) => self.matches(net, sight, &told, patch),
        };
        if let Some(adapters) = &self.in_context {
            // The deepest are the surest.
            let moved = matches.last().map(|matches| sight.moved(matches.clone(), patch));
            let panels = std::iter::once(sight.panel()).chain(moved).collect();
            let context = Conditioning { panels, ..told.clone() };
            let (reference, times) = (sight.reference.clone(), sight.times());
            return Conditioning {
                seen: adapters.seen(net, reference, times, &context, patch),
                ..told
            };
        }
        let matching = self.matching.as_ref().expect("a branch that finds matches");
        let (branch, fused) = match &self.appearance {
            None => (matching, sight.states(matching, net, &told, patch)),
            Some(appearance) => {
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
        Sight { profile: images(profile), reference: images(reference), time: 0.0, still: false }
    }

    fn classes() -> Conditioning {
        Conditioning::classes(&[0, 2], &Device::flex())
    }

    const BRANCH: Option<Appearance> = Some(Appearance::Branch);
    const IN_CONTEXT: Option<Appearance> = Some(Appearance::InContext { rank: 3 });

    fn made(net: &Dit, config: IcPortraitConfig) -> IcPortrait {
        let branches = IcPortrait::new(net, config, 1, &Device::flex());
        assert_eq!(branches.config(), config);
        branches
    }

    fn fresh(net: &Dit, appearance: Option<Appearance>, panel: bool) -> IcPortrait {
        made(net, IcPortraitConfig { matching: Some(DEPTH), appearance, panel })
    }

    fn stirred(branches: IcPortrait, std: f64) -> IcPortrait {
        let trained = |control: Control| Control {
            links: control.links.map(&mut Draws::new(9, std)),
            ..control
        };
        IcPortrait {
            matching: branches.matching.map(trained),
            appearance: branches.appearance.map(trained),
            in_context: branches.in_context.map(|own| own.map(&mut Draws::new(9, std))),
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
        for appearance in [None, BRANCH] {
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
        let alone = IcPortraitConfig { matching: None, appearance: IN_CONTEXT, panel: false };
        let all = [
            fresh(&net, None, false),
            fresh(&net, BRANCH, false),
            fresh(&net, BRANCH, true),
            fresh(&net, IN_CONTEXT, false),
            made(&net, alone),
        ];
        for branches in all {
            let (config, branches) = (branches.config(), stirred(branches, 0.1));
            let of = |profile, reference| {
                output(&net, &branches.told(&net, &sight(profile, reference), classes(), 2))
            };
            let found = of(5, 6);
            assert!(worst(&found, &of(8, 6)) > 1e-4, "profile, {config:?}");
            assert!(worst(&found, &of(5, 8)) > 1e-4, "reference, {config:?}");
            assert_eq!(worst(&found, &of(5, 6)), 0.0);
        }
    }

    #[test]
    fn every_level_has_matches_in_the_profile() {
        let net = net();
        let branches = fresh(&net, BRANCH, false);
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
        let adapters = 3 * 3 * (32 + 96 + 32 + 32 + 32 + 128 + 128 + 32);
        let cases = [
            (None, block + links, "branches.matching"),
            (BRANCH, block + links, "branches.appearance"),
            (IN_CONTEXT, adapters, "branches.in_context"),
        ];
        for (appearance, expected, own) in cases {
            let branches = stirred(fresh(&net, appearance, false), 0.1);
            let steered = Steered::new(net.clone(), branches.newest()).train();
            let count: usize = params::values(&steered).iter().map(|value| value.dims()[0]).sum();
            assert_eq!(count, expected);
            let names = params::names(&steered);
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
                // What comes after the keys and values of the last block is not seen.
                let used = !["out", "up", "down"]
                    .iter()
                    .any(|layer| name.contains(&format!("in_context.blocks.2.{layer}.")));
                assert_eq!(size > 0.0, used, "{name}");
            }
        }
    }

    /// Matches act, and without them the profile stays where it is.
    #[test]
    fn what_is_still_goes_nowhere() {
        let net = net();
        for appearance in [BRANCH, IN_CONTEXT] {
            let branches = stirred(fresh(&net, appearance, false), 0.1);
            let of = |still| {
                let sight = Sight { still, ..sight(5, 6) };
                (
                    branches.matches(&net, &sight, &classes(), 2),
                    output(&net, &branches.told(&net, &sight, classes(), 2)),
                )
            };
            let ((_, moved), (matches, still)) = (of(false), of(true));
            assert!(worst(&moved, &still) > 1e-4, "{appearance:?}");
            let places: Vec<i64> = (0..32).map(|i| i % 16).collect();
            for own in matches {
                assert_eq!(own.into_data().iter::<i64>().collect::<Vec<_>>(), places);
            }
        }
    }

    /// Every token takes the patch of its match.
    #[test]
    fn patches_are_moved_to_their_matches() {
        let sight = sight(5, 6);
        let matches: Vec<i64> = (0..32).map(|i| (i % 16 + 5) % 16).collect();
        let matches = Tensor::<1, Int>::from_ints(matches.as_slice(), &Device::flex());
        let moved = sight.moved(matches.reshape([2, 16]), 2);
        assert_eq!((moved.origin, moved.time), ([0.0; 2], sight.time));
        // Token 1 * 4 + 1 of the profile came to token 0, token 2 * 4 + 2 to token 1 * 4 + 1.
        for (to, from) in [(0, 2), (2, 4)] {
            let part = |x: &Tensor<4>, at: usize| x.clone().narrow(2, at, 2).narrow(3, at, 2);
            assert_eq!(worst(&part(&moved.image, to), &part(&sight.profile, from)), 0.0);
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let net = net();
        let of = |matching, appearance, panel| {
            IcPortraitConfig { matching, appearance, panel }.check(net.config()).is_err()
        };
        let rank = |rank| Some(Appearance::InContext { rank });
        assert!(of(None, None, false) && of(None, BRANCH, false) && of(Some(1), IN_CONTEXT, true));
        assert!(of(Some(4), BRANCH, false) && of(Some(0), None, false));
        assert!(of(None, rank(0), false) && of(None, rank(33), false));
        assert!(!of(None, rank(32), false) && !of(Some(3), BRANCH, true));
    }
}
