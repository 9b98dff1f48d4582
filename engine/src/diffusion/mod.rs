//! Diffusion: noise schedules, what networks predict, guidance, and samplers.
//!
//! `x_t = α x_0 + σ z` on the way from an image `x_0` to noise `z`. A [`NoiseSchedule`] gives `(α, σ)` at
//! each time, a [`Denoiser`] estimates `x_0` from `x_t`, and a [`Sampler`] goes back along a [`Grid`] of
//! [`Level`]s. A sampler sees nothing but the denoiser: conditioning and guidance are bound before.

mod clip;
pub mod denoiser;
pub mod grid;
pub mod guidance;
mod inpaint;
mod noise;
pub mod prediction;
pub mod process;
pub mod sampler;
pub mod schedule;

pub use clip::{Clip, Clipped};
pub use denoiser::{Denoised, Denoiser, Phased};
pub use grid::{Clock, Grid, GridError, Spacing};
pub use guidance::{Apart, Estimates, Guided, GuidedChannels, Together};
pub use inpaint::Inpaint;
pub use noise::NoiseSource;
pub use prediction::{Coefficients, Prediction};
pub use process::{Process, ProcessError, Shifting, TimeInput};
pub use sampler::{
    Cancelled, Churn, Correction, DpmSolver, Sampler, Step, StepFunction, UniPcSolver, Variance,
    parse_sampler,
};
pub use schedule::{Level, NoiseSchedule, ScheduleError};

#[cfg(test)]
mod tests;
