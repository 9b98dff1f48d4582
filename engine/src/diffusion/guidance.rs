//! Guidance: steer one denoiser away from a worse one.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::{Denoised, Denoiser, Level};

/// Channels that guidance changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum GuidedChannels {
    /// All.
    #[default]
    All,
    /// The first ones; the original DiT guides three of four.
    First(usize),
}

/// Two estimates of the same images.
pub trait Pair {
    /// The one to improve.
    ///
    /// # Shapes
    /// `[batch, channels, height, width]` to the same
    fn main(&mut self, x_t: Tensor<4>, level: &Level, step: usize) -> Denoised;

    /// That one, and the one to move away from.
    ///
    /// # Shapes
    /// `[batch, channels, height, width]` to the same, twice
    fn both(&mut self, x_t: Tensor<4>, level: &Level, step: usize) -> [Denoised; 2];
}

/// Two denoisers, each asked on its own.
#[derive(Debug, Clone)]
pub struct Apart<M, G> {
    /// The one to improve.
    pub main: M,
    /// The one to move away from.
    pub guide: G,
}

/// One network under two conditions, asked once for both.
#[derive(Debug, Clone)]
pub struct Together<D> {
    /// Bound to the condition to improve.
    pub main: D,
    /// Bound to both conditions: those of the guide behind those of `main`.
    pub both: D,
}

impl<M: Denoiser, G: Denoiser> Pair for Apart<M, G> {
    fn main(&mut self, x_t: Tensor<4>, level: &Level, step: usize) -> Denoised {
        self.main.denoise(x_t, level, step)
    }

    fn both(&mut self, x_t: Tensor<4>, level: &Level, step: usize) -> [Denoised; 2] {
        [self.main.denoise(x_t.clone(), level, step), self.guide.denoise(x_t, level, step)]
    }
}

impl<D: Denoiser> Pair for Together<D> {
    fn main(&mut self, x_t: Tensor<4>, level: &Level, step: usize) -> Denoised {
        self.main.denoise(x_t, level, step)
    }

    fn both(&mut self, x_t: Tensor<4>, level: &Level, step: usize) -> [Denoised; 2] {
        let batch = x_t.dims()[0];
        let twice = Tensor::cat(vec![x_t.clone(), x_t], 0); // [2 · batch, channels, height, width]
        let both = self.both.denoise(twice, level, step);
        [0, batch].map(|first| {
            let part = |x: &Tensor<4>| x.clone().narrow(0, first, batch);
            Denoised {
                clean: part(&both.clean),
                unclipped: None,
                variance: both.variance.as_ref().map(part),
            }
        })
    }
}

/// `guide + scale · (main − guide)`: a denoiser built from two.
///
/// With a null condition on the guide this is classifier-free guidance (Ho & Salimans 2022); with a smaller or
/// less trained network it is autoguidance (Karras et al. 2024). With `scale = 1`, or outside `interval`, the
/// result is `main` exactly and the guide is not asked.
#[derive(Debug, Clone)]
pub struct Guided<P> {
    /// The two denoisers.
    pub pair: P,
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

impl<P: Pair> Denoiser for Guided<P> {
    fn denoise(&mut self, x_t: Tensor<4>, level: &Level, step: usize) -> Denoised {
        let sigma = level.ve_sigma();
        let inside = self.interval.is_none_or(|[low, high]| low < sigma && sigma <= high);
        if self.scale == 1.0 || !inside {
            return self.pair.main(x_t, level, step);
        }
        let [main, guide] = self.pair.both(x_t.clone(), level, step);
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
        Denoised { clean, unclipped: None, variance: main.variance }
    }
}

impl<P> Guided<P> {
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
        fn denoise(&mut self, _: Tensor<4>, _: &Level, _: usize) -> Denoised {
            self.1 += 1;
            Denoised { clean: self.0.clone(), unclipped: None, variance: None }
        }
    }

    fn random() -> Tensor<4> {
        crate::testing::random([2, 4, 3, 3])
    }

    fn guided(scale: f64) -> Guided<Apart<Constant, Constant>> {
        let constant = || Constant(random(), 0);
        Guided {
            pair: Apart { main: constant(), guide: constant() },
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
        let clean = guided.denoise(random(), &level(2.0), 0).clean;
        assert!(same(clean, guided.pair.main.0.clone()));
        assert_eq!(guided.pair.guide.1, 0);
    }

    #[test]
    fn two_conditions_together_give_the_same() {
        let apart = &mut guided(3.0);
        let Apart { main, guide } = &apart.pair;
        let both = Tensor::cat(vec![main.0.clone(), guide.0.clone()], 0);
        let mut together = Guided {
            pair: Together { main: Constant(main.0.clone(), 0), both: Constant(both, 0) },
            scale: apart.scale,
            channels: apart.channels,
            interval: None,
            rescale: 0.0,
        };
        let clean = together.denoise(random(), &level(1.0), 0).clean;
        assert!(same(clean, apart.denoise(random(), &level(1.0), 0).clean));
        assert_eq!((together.pair.main.1, together.pair.both.1), (0, 1));
        together.scale = 1.0;
        let main = together.denoise(random(), &level(1.0), 0).clean;
        assert!(same(main, together.pair.main.0.clone()));
    }

    #[test]
    fn the_interval_excludes_its_lower_end_only() {
        let mut guided = guided(3.0);
        guided.interval = Some([1.0, 2.0]);
        for (sigma, calls) in [(1.0, 0), (1.5, 1), (2.0, 2), (2.1, 2)] {
            guided.denoise(random(), &level(sigma), 0);
            assert_eq!(guided.pair.guide.1, calls, "{sigma}");
        }
    }

    #[test]
    fn channels_beyond_the_guided_ones_are_mains() {
        let mut guided = guided(4.0);
        guided.channels = GuidedChannels::First(3);
        let clean = guided.denoise(random(), &level(1.0), 0).clean;
        let main = guided.pair.main.0.clone();
        assert!(same(clean.clone().narrow(1, 3, 1), main.clone().narrow(1, 3, 1)));
        assert!(!same(clean.narrow(1, 0, 3), main.narrow(1, 0, 3)));
        guided.channels = GuidedChannels::All;
        let all = guided.denoise(random(), &level(1.0), 0).clean;
        for count in [4, 5] {
            guided.channels = GuidedChannels::First(count);
            let clean = guided.denoise(random(), &level(1.0), 0).clean;
            assert!(same(clean, all.clone()), "{count}");
        }
    }

    #[test]
    fn full_rescaling_restores_the_standard_deviation() {
        let (mut guided, x_t, level) = (guided(5.0), random(), level(0.7));
        guided.rescale = 1.0;
        let noise = |clean: Tensor<4>| (x_t.clone() - clean).reshape([2, -1]).var(1).sqrt();
        let clean = guided.denoise(x_t.clone(), &level, 0).clean;
        assert!(noise(clean).all_close(noise(guided.pair.main.0.clone()), Some(1e-4), None));
    }
}
