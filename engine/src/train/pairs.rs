//! Two pictures of a person as an example of a portrait (IC-Portrait, Yang et al. 2025, section 5 of the specification).

use burn::tensor::{Bool, Tensor, TensorData};

use crate::diffusion::Process;
use crate::nets::Sight;
use crate::portrait::CellMask;
use crate::random::Generator;

/// What branches see of a pair, while they learn to make the second picture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pairs {
    /// What is hidden of the second picture.
    pub mask: CellMask,
    /// Share of examples whose profile is black, in [0, 1]: makes guidance towards the person possible.
    pub profile_dropout: f64,
    /// Share of examples of whose reference all is hidden, in [0, 1]: makes guidance towards light and pose possible.
    pub reference_dropout: f64,
}

impl Pairs {
    /// What the branches see; all randomness comes from `random`, on the host.
    ///
    /// # Shapes
    /// `profile`, `target`: `[batch, channels, height, width]`, pixels in [-1, 1] or scaled latents
    pub fn sight(
        &self,
        profile: Tensor<4>,
        target: Tensor<4>,
        process: &Process,
        random: &mut Generator,
    ) -> Sight {
        let [count, ..] = target.dims();
        let mut dropped =
            |share: f64| -> Vec<bool> { (0..count).map(|_| random.uniform() < share).collect() };
        let (no_profile, no_reference) =
            (dropped(self.profile_dropout), dropped(self.reference_dropout));
        let seeds: Vec<u64> =
            (0..count).map(|_| (random.uniform() * (1u64 << 52) as f64) as u64).collect();
        let reference = self.mask.apply(target, &seeds);
        let (profile, reference) =
            (self.hidden(profile, no_profile), self.hidden(reference, no_reference));
        Sight::new(profile, reference, process.quiet())
    }

    /// The images, of some of which nothing is seen.
    fn hidden(&self, images: Tensor<4>, all: Vec<bool>) -> Tensor<4> {
        let data = TensorData::new(all, [images.dims()[0], 1, 1, 1]);
        let all = Tensor::<4, Bool>::from_data(data, &images.device());
        images.clone().mask_fill(all.expand(images.dims()), self.mask.hidden)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::{NoiseSchedule, Prediction, TimeInput};
    use crate::testing::Draws;

    fn process() -> Process {
        let schedule = NoiseSchedule::Edm {
            sigma_min: 0.1,
            sigma_max: 80.0,
            rho: 7.0,
            log_mean: 0.0,
            log_std: 1.0,
        };
        Process::new(schedule, Prediction::Clean, TimeInput::LogSigma)
    }

    #[test]
    fn the_share_is_hidden_and_whole_pictures_are_left_out() {
        let [profile, target] =
            [1, 2].map(|seed| Draws::new(seed, 1.0).tensor::<4>([200, 1, 8, 8]));
        let scale = (1.0_f64 + 0.01).sqrt();
        let pairs = Pairs {
            mask: CellMask { ratio: 0.75, cell: 2, hidden: -1.0 },
            profile_dropout: 0.25,
            reference_dropout: 0.5,
        };
        let sight =
            pairs.sight(profile.clone(), target.clone(), &process(), &mut Generator::new(3));
        assert_eq!(sight.time, 0.1_f64.ln() / 4.0);
        let [profile, target, seen, reference] =
            [profile, target, sight.profile * scale, sight.reference * scale].map(|images| {
                let values: Vec<f32> = images.into_data().try_into_vec().expect("floats");
                values
            });
        let near = |a: f32, b: f32| (a - b).abs() < 1e-6;
        let (mut black, mut none) = (0, 0);
        for i in (0..profile.len()).step_by(64) {
            let own = |all: &[f32]| all[i..i + 64].to_vec();
            let dark = own(&seen).iter().all(|value| near(*value, -1.0));
            let same = own(&seen).iter().zip(own(&profile)).all(|(a, b)| near(*a, b));
            assert!(dark != same);
            black += usize::from(dark);
            let kept =
                own(&reference).iter().zip(own(&target)).filter(|(a, b)| near(**a, *b)).count();
            assert!(kept == 0 || kept == 16, "{kept}");
            none += usize::from(kept == 0);
        }
        assert!((30..70).contains(&black) && (75..125).contains(&none), "{black}, {none}");
    }

    #[test]
    fn a_seed_decides() {
        let image = || Draws::new(1, 1.0).tensor::<4>([4, 3, 8, 8]);
        let mask = CellMask { ratio: 0.8, cell: 1, hidden: -1.0 };
        let pairs = Pairs { mask, profile_dropout: 0.1, reference_dropout: 0.1 };
        let of = |seed| {
            let sight = pairs.sight(image(), image(), &process(), &mut Generator::new(seed));
            sight.reference.into_data()
        };
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
    }
}
