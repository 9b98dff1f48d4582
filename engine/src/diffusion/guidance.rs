//! Guidance: steer one denoiser away from a worse one.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::{Denoised, Denoiser, Level};

/// Channels that guidance changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuidedChannels {
    /// All.
    #[default]
    All,
    /// The first ones; the original DiT guides three of four.
    First(usize),
}

/// `guide + scale · (main − guide)`, a denoiser built from two.
///
/// With a null conditioning on `guide` this is classifier-free guidance (Ho & Salimans 2022); with a
/// smaller or less trained network it is autoguidance (Karras et al. 2024). With `scale = 1`, or outside
/// `interval`, the result is `main` exactly and `guide` is not called.
#[derive(Debug, Clone)]
pub struct Guided<M, G> {
    /// The denoiser to improve.
    pub main: M,
    /// The denoiser to move away from. `None`: it is part of `main`, which is then called once for twice
    /// the images, those of the guide behind its own.
    pub guide: Option<G>,
    /// Extrapolation factor.
    pub scale: f64,
    /// Channels that are guided; the others are those of `main`.
    pub channels: GuidedChannels,
    /// Noise levels σ (variance-exploding) above the first and up to the second at which guidance acts
    /// (Kynkäänniemi et al. 2024).
    pub interval: Option<[f64; 2]>,
    /// Share, in [0, 1], of the guided noise rescaled to the standard deviation of `main`'s (Lin et al.
    /// 2024, section 3.4).
    pub rescale: f64,
}

impl<M: Denoiser, G: Denoiser> Denoiser for Guided<M, G> {
    fn denoise(&mut self, x_t: Tensor<4>, level: &Level) -> Denoised {
        let sigma = level.ve_sigma();
        let inside = self.interval.is_none_or(|[low, high]| low < sigma && sigma <= high);
        if self.scale == 1.0 || !inside {
            return self.main.denoise(x_t, level);
        }
        let (main, guide) = match &mut self.guide {
            Some(guide) => {
                (self.main.denoise(x_t.clone(), level), guide.denoise(x_t.clone(), level))
            }
            None => {
                halves(self.main.denoise(Tensor::cat(vec![x_t.clone(), x_t.clone()], 0), level))
            }
        };
        let guide = guide.clean;
        let mut clean = guide.clone() + (main.clean.clone() - guide) * self.scale;
        if self.rescale > 0.0 && level.alpha > 0.0 {
            clean = self.rescaled(clean, &main.clean, x_t, level);
        }
        let channels = clean.dims()[1];
        if let GuidedChannels::First(count) = self.channels
            && count < channels
        {
            let rest = main.clean.narrow(1, count, channels - count);
            clean = Tensor::cat(vec![clean.narrow(1, 0, count), rest], 1);
        }
        Denoised { clean, variance: main.variance }
    }
}

/// The first half of the images, and the second.
fn halves(both: Denoised) -> (Denoised, Denoised) {
    let batch = both.clean.dims()[0] / 2;
    let half = |i: usize| {
        let part = |x: &Tensor<4>| x.clone().narrow(0, i * batch, batch);
        Denoised { clean: part(&both.clean), variance: both.variance.as_ref().map(part) }
    };
    (half(0), half(1))
}

impl<M, G> Guided<M, G> {
    /// Brings the noise behind `clean` to the standard deviation of the noise behind `main`.
    fn rescaled(
        &self,
        clean: Tensor<4>,
        main: &Tensor<4>,
        x_t: Tensor<4>,
        level: &Level,
    ) -> Tensor<4> {
        let Level { alpha, sigma, .. } = *level;
        let noise = |clean: Tensor<4>| (x_t.clone() - clean * alpha) * (1.0 / sigma);
        let std = |z: Tensor<4>| {
            let [batch, ..] = z.dims();
            z.reshape([batch as i64, -1]).var(1).sqrt().reshape([batch, 1, 1, 1])
        };
        let guided = noise(clean);
        let ratio: Tensor<4> = std(noise(main.clone())) / std(guided.clone());
        let noise = guided * (ratio * self.rescale + (1.0 - self.rescale));
        (x_t - noise * sigma) * (1.0 / alpha)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Constant(Tensor<4>, usize);

    impl Denoiser for Constant {
        fn denoise(&mut self, _: Tensor<4>, _: &Level) -> Denoised {
            self.1 += 1;
            Denoised { clean: self.0.clone(), variance: None }
        }
    }

    fn random() -> Tensor<4> {
        crate::testing::random([2, 4, 3, 3])
    }

    fn guided(scale: f64) -> Guided<Constant, Constant> {
        let constant = || Constant(random(), 0);
        Guided {
            main: constant(),
            guide: Some(constant()),
            scale,
            channels: GuidedChannels::All,
            interval: None,
            rescale: 0.0,
        }
    }

    fn level(sigma: f64) -> Level {
        Level { alpha: 1.0, sigma, timestep: 0.0 }
    }

    fn same(a: Tensor<4>, b: Tensor<4>) -> bool {
        a.equal(b).all().into_scalar()
    }

    #[test]
    fn scale_one_is_main_and_the_guide_rests() {
        let mut guided = guided(1.0);
        let clean = guided.denoise(random(), &level(2.0)).clean;
        assert!(same(clean, guided.main.0.clone()));
        assert_eq!(guided.guide.as_ref().expect("a guide").1, 0);
    }

    #[test]
    fn a_guide_within_main_gives_the_same() {
        let apart = &mut guided(3.0);
        let guide = apart.guide.as_ref().expect("a guide").0.clone();
        let both = Tensor::cat(vec![apart.main.0.clone(), guide], 0);
        let mut within: Guided<Constant, Constant> = Guided {
            main: Constant(both, 0),
            guide: None,
            scale: apart.scale,
            channels: apart.channels,
            interval: None,
            rescale: 0.0,
        };
        let clean = within.denoise(random(), &level(1.0)).clean;
        assert!(same(clean, apart.denoise(random(), &level(1.0)).clean));
        assert_eq!(within.main.1, 1);
    }

    #[test]
    fn the_interval_excludes_its_lower_end_only() {
        let mut guided = guided(3.0);
        guided.interval = Some([1.0, 2.0]);
        for (sigma, calls) in [(1.0, 0), (1.5, 1), (2.0, 2), (2.1, 2)] {
            guided.denoise(random(), &level(sigma));
            assert_eq!(guided.guide.as_ref().expect("a guide").1, calls, "{sigma}");
        }
    }

    #[test]
    fn channels_beyond_the_guided_ones_are_mains() {
        let mut guided = guided(4.0);
        guided.channels = GuidedChannels::First(3);
        let clean = guided.denoise(random(), &level(1.0)).clean;
        let main = guided.main.0.clone();
        assert!(same(clean.clone().narrow(1, 3, 1), main.clone().narrow(1, 3, 1)));
        assert!(!same(clean.narrow(1, 0, 3), main.narrow(1, 0, 3)));
        guided.channels = GuidedChannels::All;
        let all = guided.denoise(random(), &level(1.0)).clean;
        for count in [4, 5] {
            guided.channels = GuidedChannels::First(count);
            assert!(same(guided.denoise(random(), &level(1.0)).clean, all.clone()), "{count}");
        }
    }

    #[test]
    fn full_rescaling_restores_the_standard_deviation() {
        let (mut guided, x_t, level) = (guided(5.0), random(), level(0.7));
        guided.rescale = 1.0;
        let noise = |clean: Tensor<4>| (x_t.clone() - clean).reshape([2, -1]).var(1).sqrt();
        let clean = guided.denoise(x_t.clone(), &level).clean;
        assert!(noise(clean).all_close(noise(guided.main.0.clone()), Some(1e-4), None));
    }
}
