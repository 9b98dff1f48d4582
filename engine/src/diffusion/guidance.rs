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

/// Several estimates of the same images.
pub trait Estimates {
    /// The one to improve.
    ///
    /// # Shapes
    /// `[batch, channels, height, width]` to the same
    fn main(&mut self, x_t: Tensor<4>, level: &Level, step: usize) -> Denoised;

    /// That one, and those to move away from, each weaker than the one before.
    ///
    /// # Shapes
    /// `[batch, channels, height, width]` to the same, for each
    fn all(&mut self, x_t: Tensor<4>, level: &Level, step: usize) -> Vec<Denoised>;
}

/// Two denoisers, each asked on its own.
#[derive(Debug, Clone)]
pub struct Apart<M, G> {
    /// The one to improve.
    pub main: M,
    /// The one to move away from.
    pub guide: G,
}

/// One network under several conditions, asked once for all.
#[derive(Debug, Clone)]
pub struct Together<D> {
    /// Bound to the condition to improve.
    pub main: D,
    /// Bound to all conditions: those of `main`, then those to move away from.
    pub all: D,
    /// Number of these.
    pub count: usize,
}

impl<M: Denoiser, G: Denoiser> Estimates for Apart<M, G> {
    fn main(&mut self, x_t: Tensor<4>, level: &Level, step: usize) -> Denoised {
        self.main.denoise(x_t, level, step)
    }

    fn all(&mut self, x_t: Tensor<4>, level: &Level, step: usize) -> Vec<Denoised> {
        vec![self.main.denoise(x_t.clone(), level, step), self.guide.denoise(x_t, level, step)]
    }
}

impl<D: Denoiser> Estimates for Together<D> {
    fn main(&mut self, x_t: Tensor<4>, level: &Level, step: usize) -> Denoised {
        self.main.denoise(x_t, level, step)
    }

    fn all(&mut self, x_t: Tensor<4>, level: &Level, step: usize) -> Vec<Denoised> {
        let batch = x_t.dims()[0];
        let repeated = Tensor::cat(vec![x_t; self.count], 0); // [count · batch, channels, height, width]
        let all = self.all.denoise(repeated, level, step);
        let of = |i: usize| {
            let part = |x: &Tensor<4>| x.clone().narrow(0, i * batch, batch);
            Denoised {
                clean: part(&all.clean),
                unclipped: None,
                variance: all.variance.as_ref().map(part),
            }
        };
        (0..self.count).map(of).collect()
    }
}

/// `xₙ + Σ scaleᵢ · (xᵢ − xᵢ₊₁)`: a denoiser built from several, of which the first is the one to improve.
///
/// Of two, with a null condition on the second, this is classifier-free guidance (Ho & Salimans 2022); with a smaller or
/// less trained network it is autoguidance (Karras et al. 2024). Of three, each told less than the one before, every part of
/// the condition has a scale of its own (InstructPix2Pix, Brooks et al. 2023). With scales of 1, or outside `interval`,
/// the result is the first exactly and the others are not asked.
#[derive(Debug, Clone)]
pub struct Guided<P> {
    /// The denoisers.
    pub estimates: P,
    /// Extrapolation factors: from each to the one before.
    pub scales: Vec<f64>,
    /// Channels that are guided; the others are those of `main`.
    pub channels: GuidedChannels,
    /// Noise levels σ (variance-exploding) above the first and up to the second at which guidance acts
    /// (Kynkäänniemi et al. 2024).
    pub interval: Option<[f64; 2]>,
    /// Share, in [0, 1], of the guided noise rescaled to the standard deviation of `main`'s (Lin et al.
    /// 2024, section 3.4).
    pub rescale: f64,
    /// Each row of what leads from the guided image to noise is as long as `main`'s (Lumina Image 2.0, Qin et al. 2025).
    pub normalized: bool,
}

impl<P: Estimates> Denoiser for Guided<P> {
    fn denoise(&mut self, x_t: Tensor<4>, level: &Level, step: usize) -> Denoised {
        let sigma = level.ve_sigma();
        let inside = self.interval.is_none_or(|[low, high]| low < sigma && sigma <= high);
        if self.scales.iter().all(|scale| *scale == 1.0) || !inside {
            return self.estimates.main(x_t, level, step);
        }
        let mut all = self.estimates.all(x_t.clone(), level, step);
        let weakest = all[all.len() - 1].clean.clone();
        let steps = all.windows(2).zip(&self.scales).rev();
        let mut clean = steps.fold(weakest, |sum, (pair, scale)| {
            sum + (pair[0].clean.clone() - pair[1].clean.clone()) * *scale
        });
        let main = all.swap_remove(0);
        if self.normalized {
            clean = normalized(clean, &main.clean, x_t.clone(), level);
        }
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

/// Brings each row of the flow from `clean` to noise to the length of that from `main`.
fn normalized(clean: Tensor<4>, main: &Tensor<4>, x_t: Tensor<4>, level: &Level) -> Tensor<4> {
    let sum = level.alpha + level.sigma;
    // `α x + σ z` less `(α + σ) x` is the flow `z − x` times σ.
    let flow = |clean: Tensor<4>| x_t.clone() - clean * sum;
    let length = |flow: Tensor<4>| flow.square().sum_dim(3).sqrt();
    let guided = flow(clean);
    let ratio = length(flow(main.clone())) / length(guided.clone()).clamp_min(f32::MIN_POSITIVE);
    (x_t - guided * ratio) * (1.0 / sum)
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
            estimates: Apart { main: constant(), guide: constant() },
            scales: vec![scale],
            channels: GuidedChannels::All,
            interval: None,
            rescale: 0.0,
            normalized: false,
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
        assert!(same(clean, guided.estimates.main.0.clone()));
        assert_eq!(guided.estimates.guide.1, 0);
    }

    #[test]
    fn two_conditions_together_give_the_same() {
        let apart = &mut guided(3.0);
        let Apart { main, guide } = &apart.estimates;
        let both = Tensor::cat(vec![main.0.clone(), guide.0.clone()], 0);
        let mut together = Guided {
            estimates: Together {
                main: Constant(main.0.clone(), 0),
                all: Constant(both, 0),
                count: 2,
            },
            scales: apart.scales.clone(),
            channels: apart.channels,
            interval: None,
            rescale: 0.0,
            normalized: false,
        };
        let clean = together.denoise(random(), &level(1.0), 0).clean;
        assert!(same(clean, apart.denoise(random(), &level(1.0), 0).clean));
        assert_eq!((together.estimates.main.1, together.estimates.all.1), (0, 1));
        together.scales = vec![1.0];
        let main = together.denoise(random(), &level(1.0), 0).clean;
        assert!(same(main, together.estimates.main.0.clone()));
    }

    /// `v₀₀ + l (v₀ₗ − v₀₀) + p (vₚₗ − v₀ₗ)`; with equal scales the one in the middle has no say.
    #[test]
    fn every_part_of_a_condition_has_its_scale() {
        let estimates = [0, 1, 2].map(|_| random());
        let of = |scales: [f64; 2]| {
            let all = Tensor::cat(estimates.to_vec(), 0);
            let mut guided = Guided {
                estimates: Together {
                    main: Constant(estimates[0].clone(), 0),
                    all: Constant(all, 0),
                    count: 3,
                },
                scales: scales.to_vec(),
                channels: GuidedChannels::All,
                interval: None,
                rescale: 0.0,
                normalized: false,
            };
            guided.denoise(random(), &level(1.0), 0).clean
        };
        let [main, middle, weakest] = estimates.clone();
        assert!(same(of([1.0, 1.0]), main.clone()));
        let close = |a: Tensor<4>, b: Tensor<4>| a.all_close(b, Some(1e-5), Some(1e-5));
        let expected = weakest.clone()
            + (middle.clone() - weakest.clone()) * 1.5
            + (main.clone() - middle.clone()) * 3.0;
        assert!(close(of([3.0, 1.5]), expected));
        assert!(close(of([2.0, 2.0]), weakest.clone() + (main.clone() - weakest) * 2.0));
        assert!(close(of([2.0, 1.0]), middle.clone() + (main - middle) * 2.0));
    }

    #[test]
    fn the_interval_excludes_its_lower_end_only() {
        let mut guided = guided(3.0);
        guided.interval = Some([1.0, 2.0]);
        for (sigma, calls) in [(1.0, 0), (1.5, 1), (2.0, 2), (2.1, 2)] {
            guided.denoise(random(), &level(sigma), 0);
            assert_eq!(guided.estimates.guide.1, calls, "{sigma}");
        }
    }

    #[test]
    fn channels_beyond_the_guided_ones_are_mains() {
        let mut guided = guided(4.0);
        guided.channels = GuidedChannels::First(3);
        let clean = guided.denoise(random(), &level(1.0), 0).clean;
        let main = guided.estimates.main.0.clone();
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

    /// Where the flow vanishes with the noise, the image is still finite.
    #[test]
    fn normalized_flows_have_the_length_of_mains_row_by_row() {
        let (mut guided, x_t) = (guided(5.0), random());
        let level = Level { alpha: 0.4, sigma: 0.6, timestep: 0.0 };
        let plain = guided.denoise(x_t.clone(), &level, 0).clean;
        guided.normalized = true;
        let clean = guided.denoise(x_t.clone(), &level, 0).clean;
        let rows = |clean: Tensor<4>| (x_t.clone() - clean).square().sum_dim(3).sqrt();
        let main = rows(guided.estimates.main.0.clone());
        assert!(rows(clean.clone()).all_close(main.clone(), Some(1e-4), None));
        assert!(!rows(plain.clone()).all_close(main, Some(1e-1), None));
        // In its direction.
        let [a, b] = [clean, plain].map(|clean| x_t.clone() - clean);
        let cosine =
            (a.clone() * b.clone()).sum_dim(3) / (rows(x_t.clone() - a) * rows(x_t.clone() - b));
        assert!(cosine.clone().all_close(cosine.ones_like(), Some(1e-4), None));
        let still = guided.denoise(guided.estimates.main.0.clone() * 0.0, &level, 0).clean;
        assert!(still.sum().into_scalar::<f32>().is_finite());
    }

    #[test]
    fn full_rescaling_restores_the_standard_deviation() {
        let (mut guided, x_t, level) = (guided(5.0), random(), level(0.7));
        guided.rescale = 1.0;
        let noise = |clean: Tensor<4>| (x_t.clone() - clean).reshape([2, -1]).var(1).sqrt();
        let clean = guided.denoise(x_t.clone(), &level, 0).clean;
        assert!(noise(clean).all_close(noise(guided.estimates.main.0.clone()), Some(1e-4), None));
    }
}
