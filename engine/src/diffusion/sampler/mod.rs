//! Solvers from noise to data: plain functions of a denoiser and a grid.

mod ancestral;
mod heun;
mod multistep;
mod unipc;

use std::fmt;
use std::ops::ControlFlow;
use std::str::FromStr;

use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

pub use multistep::{Correction, DpmSolver};
pub use unipc::{StepFunction, UniPcSolver};

use super::grid::{Family, KARRAS_RHO};
use super::{Denoised, Denoiser, Grid, GridError, Level, NoiseSchedule, NoiseSource, Spacing};

/// A solver.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Sampler {
    /// Song et al. 2021, Eq. 12.
    Ddim {
        /// 0 is deterministic, 1 as random as DDPM.
        eta: f64,
    },
    /// Ancestral sampling (Ho et al. 2020).
    Ddpm {
        /// Of the noise that each step adds.
        variance: Variance,
    },
    /// First-order steps in σ.
    Euler,
    /// Euler steps to a lower σ, then new noise (Karras et al. 2022 with full churn).
    EulerAncestral,
    /// Second-order steps in σ (Karras et al. 2022, Algorithm 2).
    Heun {
        /// Noise added before each step; `None` is deterministic.
        #[serde(default)]
        churn: Option<Churn>,
    },
    /// DPM-Solver++(2M) (Lu et al. 2022, Algorithm 2).
    DpmPp2m,
    /// SDE-DPM-Solver++(2M).
    DpmPp2mSde,
    /// DPM-Solver++(3M).
    DpmPp3m,
    /// UniPC of order 2 with `B₂(h)` (Zhao et al. 2023).
    UniPc,
    /// DPM-Solver++ with settings of its own.
    DpmSolver(DpmSolver),
    /// UniPC with settings of its own.
    UniPcSolver(UniPcSolver),
}

/// Variance of a step of ancestral sampling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Variance {
    /// The network's, between the other two (Nichol & Dhariwal 2021); β̃ where it predicts none.
    #[default]
    Learned,
    /// β̃, that of the posterior.
    Small,
    /// β.
    Large,
}

/// Stochasticity of [`Sampler::Heun`] (Karras et al. 2022, Algorithm 2).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Churn {
    /// Amount over the whole run.
    pub amount: f64,
    /// Lowest and highest σ at which it acts.
    pub range: [f64; 2],
    /// Standard deviation of the noise, about 1.
    pub noise: f64,
}

impl Default for Churn {
    /// Noise of unit deviation, everywhere, in no amount.
    fn default() -> Self {
        Self { amount: 0.0, range: [0.0, f64::MAX], noise: 1.0 }
    }
}

/// State after a step.
#[derive(Debug)]
pub struct Step<'a> {
    /// Counted from 0.
    pub index: usize,
    /// Steps of the run.
    pub total: usize,
    /// Level at which the step started.
    pub level: Level,
    /// State after the step, in the scaling of the grid, `[batch, channels, height, width]`.
    pub x: &'a Tensor<4>,
    /// Estimate of the clean image at the start of the step.
    pub denoised: &'a Tensor<4>,
}

/// The run was stopped by its callback.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cancelled")]
pub struct Cancelled;

/// Sees every step and may stop the run.
pub type OnStep<'a> = &'a mut dyn FnMut(Step<'_>) -> ControlFlow<()>;

/// What every solver works with.
struct Solve<'a> {
    denoiser: &'a mut dyn Denoiser,
    grid: &'a Grid,
    source: &'a mut NoiseSource,
    on_step: OnStep<'a>,
}

impl Solve<'_> {
    fn report(
        &mut self,
        index: usize,
        x: &Tensor<4>,
        denoised: &Tensor<4>,
    ) -> Result<(), Cancelled> {
        let total = self.grid.steps.len();
        let level = self.grid.steps[index][0];
        match (self.on_step)(Step { index, total, level, x, denoised }) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Cancelled),
        }
    }

    fn noise(&mut self, like: &Tensor<4>) -> Tensor<4> {
        let [_, channels, height, width] = like.dims();
        let device: Device = like.device();
        self.source.draw([channels, height, width], &device)
    }
}

impl Sampler {
    /// Where the steps are; without a spacing, at the solver's own places.
    ///
    /// # Errors
    /// Impossible numbers of steps or noise levels, and timesteps asked of a continuous schedule.
    pub fn grid(
        &self,
        schedule: &NoiseSchedule,
        spacing: Option<&Spacing>,
        steps: usize,
    ) -> Result<Grid, GridError> {
        let family = match self {
            Sampler::Ddpm { .. } if schedule.steps().is_none() => {
                return Err(GridError::Sampler { sampler: self.to_string() });
            }
            Sampler::Ddim { .. } | Sampler::Ddpm { .. } => Family::Preserving,
            Sampler::Euler | Sampler::EulerAncestral | Sampler::Heun { .. } => Family::Exploding,
            Sampler::UniPc | Sampler::UniPcSolver(_) => Family::UniPc,
            _ => Family::Dpm,
        };
        if let (Sampler::Heun { churn: Some(churn) }, NoiseSchedule::RectifiedFlow { .. }) =
            (self, schedule)
            && churn.amount > 0.0
        {
            return Err(GridError::Churn { amount: churn.amount });
        }
        let (order, highest) = match self {
            Sampler::DpmSolver(solver) => (solver.order, solver.highest()),
            Sampler::UniPcSolver(solver) => (solver.order, unipc::HIGHEST_ORDER),
            _ => (1, 1),
        };
        match (1..=highest).contains(&order) {
            true => Grid::new(family, schedule, spacing, steps),
            false => Err(GridError::SolverOrder { order, highest }),
        }
    }

    /// Whether no noise is drawn after the first.
    pub fn is_deterministic(&self) -> bool {
        match self {
            Sampler::Ddim { eta } => *eta == 0.0,
            Sampler::Heun { churn } => churn.is_none(),
            Sampler::DpmSolver(solver) => !solver.stochastic,
            Sampler::Euler | Sampler::DpmPp2m | Sampler::DpmPp3m => true,
            Sampler::UniPc | Sampler::UniPcSolver(_) => true,
            Sampler::Ddpm { .. } | Sampler::EulerAncestral | Sampler::DpmPp2mSde => false,
        }
    }

    /// Solves from unit-variance noise to data.
    ///
    /// # Shapes
    /// `noise` and result: `[batch, channels, height, width]`
    ///
    /// # Errors
    /// [`Cancelled`] when `on_step` breaks.
    pub fn sample(
        &self,
        denoiser: &mut dyn Denoiser,
        noise: Tensor<4>,
        grid: &Grid,
        source: &mut NoiseSource,
        on_step: OnStep<'_>,
    ) -> Result<Tensor<4>, Cancelled> {
        let x = noise * grid.initial_scale;
        let mut solve = Solve { denoiser, grid, source, on_step };
        match self {
            Sampler::Ddim { eta } => ancestral::ddim(&mut solve, x, *eta),
            Sampler::Euler => ancestral::ddim(&mut solve, x, 0.0),
            Sampler::EulerAncestral => ancestral::ddim(&mut solve, x, 1.0),
            Sampler::Ddpm { variance } => ancestral::ddpm(&mut solve, x, *variance),
            Sampler::Heun { churn } => heun::heun(&mut solve, x, *churn),
            Sampler::DpmPp2m => DpmSolver::of_order(2).solve(&mut solve, x),
            Sampler::DpmPp3m => DpmSolver::of_order(3).solve(&mut solve, x),
            Sampler::DpmPp2mSde => {
                DpmSolver { stochastic: true, ..DpmSolver::of_order(2) }.solve(&mut solve, x)
            }
            Sampler::DpmSolver(solver) => solver.solve(&mut solve, x),
            Sampler::UniPc => {
                UniPcSolver { order: 2, step_function: StepFunction::Bh2 }.solve(&mut solve, x)
            }
            Sampler::UniPcSolver(solver) => solver.solve(&mut solve, x),
        }
    }
}

/// Our name, then those of A1111, ComfyUI, stable-diffusion.cpp and diffusers, in lower case.
const NAMES: [(&str, &[&str]); 11] = [
    ("ddim", &["ddimscheduler", "ddim_trailing"]),
    ("ddpm", &["ddpmscheduler"]),
    ("ddpm_small", &["fixed_small"]),
    ("ddpm_large", &["fixed_large"]),
    ("euler", &["eulerdiscretescheduler", "flowmatcheulerdiscretescheduler", "edmeulerscheduler"]),
    ("euler_a", &["euler_ancestral", "eulerancestraldiscretescheduler"]),
    ("heun", &["heundiscretescheduler"]),
    ("dpmpp_2m", &["dpmsolvermultistepscheduler"]),
    ("dpmpp_2m_sde", &["sde-dpmsolver++"]),
    ("dpmpp_3m", &[]),
    ("unipc", &["unipcmultistepscheduler"]),
];

/// A name without what programs write otherwise: `DPM++ 2M`, `dpmpp-2m` and `dpmpp_2m` are one.
fn plain(name: &str) -> String {
    name.trim().to_lowercase().replace("++", "pp").replace([' ', '_', '-'], "")
}

impl FromStr for Sampler {
    type Err = GridError;

    fn from_str(text: &str) -> Result<Self, GridError> {
        let is_it = |known: &str| plain(known) == plain(text);
        let is_one = |other: &[&str]| other.iter().any(|other| is_it(other));
        let found = NAMES.iter().find(|(own, other)| is_it(own) || is_one(other));
        Ok(match found.map(|(own, _)| *own) {
            Some("ddim") => Sampler::Ddim { eta: 0.0 },
            Some("ddpm_large") => Sampler::Ddpm { variance: Variance::Large },
            Some("ddpm_small") => Sampler::Ddpm { variance: Variance::Small },
            Some("ddpm") => Sampler::Ddpm { variance: Variance::Learned },
            Some("euler") => Sampler::Euler,
            Some("euler_a") => Sampler::EulerAncestral,
            Some("heun") => Sampler::Heun { churn: None },
            Some("dpmpp_2m") => Sampler::DpmPp2m,
            Some("dpmpp_2m_sde") => Sampler::DpmPp2mSde,
            Some("dpmpp_3m") => Sampler::DpmPp3m,
            Some("unipc") => Sampler::UniPc,
            _ => {
                let known = NAMES.map(|(own, _)| own).join(", ");
                return Err(GridError::Name { what: "sampler", found: text.into(), known });
            }
        })
    }
}

impl fmt::Display for Sampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Sampler::Ddim { .. } => "ddim",
            Sampler::Ddpm { variance: Variance::Learned } => "ddpm",
            Sampler::Ddpm { variance: Variance::Small } => "ddpm_small",
            Sampler::Ddpm { variance: Variance::Large } => "ddpm_large",
            Sampler::Euler => "euler",
            Sampler::EulerAncestral => "euler_a",
            Sampler::Heun { .. } => "heun",
            Sampler::DpmPp2m => "dpmpp_2m",
            Sampler::DpmPp2mSde => "dpmpp_2m_sde",
            Sampler::DpmPp3m => "dpmpp_3m",
            Sampler::UniPc => "unipc",
            Sampler::DpmSolver(DpmSolver { order, stochastic, .. }) => {
                return write!(f, "dpmpp_{order}m{}", if *stochastic { "_sde" } else { "" });
            }
            Sampler::UniPcSolver(UniPcSolver { order, .. }) => return write!(f, "unipc_{order}"),
        })
    }
}

/// A sampler's name, possibly with that of a spacing behind it, as in A1111's `DPM++ 2M Karras`.
///
/// # Errors
/// A name that is not known.
pub fn parse_sampler(text: &str) -> Result<(Sampler, Option<Spacing>), GridError> {
    let name = text.trim().to_lowercase();
    if let Some(sampler) = name.strip_suffix("karras") {
        let spacing = Spacing::Karras { rho: KARRAS_RHO };
        return Ok((sampler.parse()?, Some(spacing)));
    }
    if let Some(sampler) = name.strip_suffix("exponential") {
        return Ok((sampler.parse()?, Some(Spacing::Exponential)));
    }
    let spacing = (plain(text) == plain("ddim_trailing")).then_some(Spacing::Trailing);
    Ok((text.parse()?, spacing))
}

/// Noise behind a clean estimate: `(x_t − α x̂) / σ`.
fn noise_of(x: &Tensor<4>, clean: &Tensor<4>, level: &Level) -> Tensor<4> {
    (x.clone() - clean.clone() * level.alpha) * (1.0 / level.sigma)
}

fn denoise(solve: &mut Solve<'_>, step: usize, x: &Tensor<4>, level: &Level) -> Denoised {
    solve.denoiser.denoise(x.clone(), level, step)
}

#[cfg(test)]
mod tests;
