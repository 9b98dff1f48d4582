//! Diffusion transformers on [burn]: networks, samplers and training.
//!
//! Three things make a sample: a noise schedule, a denoiser and a sampler. Here the denoiser is exact, as the
//! data are numbers from a known normal distribution; [`denoisers`] has those that ask a network.
//!
//! ```
//! use burn::tensor::{Device, Tensor};
//! use pyrograph_engine::diffusion::{Denoised, Denoiser, Level, NoiseSchedule, NoiseSource, Sampler};
//! use std::ops::ControlFlow;
//!
//! /// Data of this mean and standard deviation.
//! struct Normal(f64, f64);
//!
//! impl Denoiser for Normal {
//!     fn denoise(&mut self, x_t: Tensor<4>, &Level { alpha, sigma, .. }: &Level, _: usize) -> Denoised {
//!         // E[x_0 given x_t = alpha x_0 + sigma z], by the rule of Bayes.
//!         let Normal(mean, deviation) = *self;
//!         let gain = alpha * deviation.powi(2) / ((alpha * deviation).powi(2) + sigma.powi(2));
//!         Denoised { clean: (x_t - alpha * mean) * gain + mean, unclipped: None, variance: None }
//!     }
//! }
//!
//! let sampler = Sampler::Heun { churn: None };
//! let schedule = NoiseSchedule::RectifiedFlow { shift: 1.0 };
//! let grid = sampler.grid(&schedule, None, 25).expect("25 steps of the flow");
//! let mut source = NoiseSource::new(7, 4);
//! let noise = source.draw([1, 32, 32], &Device::flex()); // [images, channels, height, width]
//! let mut on_step = |_: pyrograph_engine::diffusion::Step<'_>| ControlFlow::Continue(());
//! let images = sampler
//!     .sample(&mut Normal(0.5, 0.2), noise, &grid, &mut source, &mut on_step)
//!     .expect("nobody cancels");
//!
//! let (variance, mean) = images.reshape([4 * 32 * 32]).var_mean(0);
//! assert!((mean.into_scalar::<f64>() - 0.5).abs() < 0.01);
//! assert!((variance.into_scalar::<f64>().sqrt() - 0.2).abs() < 0.01);
//! ```

pub mod denoisers;
pub mod device;
pub mod diffusion;
pub mod error;
pub mod layers;
pub mod metrics;
pub mod nets;
pub mod ops;
pub mod portrait;
pub mod random;
pub mod read;
pub mod selfcheck;
#[cfg(test)]
mod testing;
pub mod train;

pub use error::{Error, Result};
