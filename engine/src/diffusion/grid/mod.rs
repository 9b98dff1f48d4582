//! Placement of the steps of a sampler.

mod error;
mod spacing;

pub use error::GridError;
pub use spacing::{KARRAS_RHO, Spacing};

use super::schedule::{FLOW_TIMESTEPS, preserving, shifted};
use super::{Level, NoiseSchedule};
use spacing::{karras, linspace};

/// The levels that a sampler passes, noisiest first.
#[derive(Debug, Clone, PartialEq)]
pub struct Grid {
    /// Each step's level and the level it goes to; the last goes to [`Level::CLEAN`], if the process does not say
    /// otherwise.
    pub steps: Vec<[Level; 2]>,
    /// Noisier steps that were left out, as they are from a picture on.
    pub skipped: usize,
    /// Unit-variance noise times this is the first state.
    pub initial_scale: f64,
    /// Timesteps of levels between those of the steps.
    pub clock: Clock,
}

/// What timestep a noise level has.
#[derive(Debug, Clone, PartialEq)]
pub enum Clock {
    /// Variance-exploding σ of each timestep, rising; between them by `ln σ`.
    Table(Vec<f64>),
    /// `ln(σ) / 4`.
    LogSigma,
    /// `1000 σ / (1 + σ)`.
    Flow,
}

impl Clock {
    /// Timestep, possibly fractional, of a variance-exploding σ; outside a table that of its end.
    pub fn timestep(&self, sigma: f64) -> f64 {
        match self {
            Self::Table(sigmas) => timestep_of(sigmas, sigma),
            Self::LogSigma => sigma.ln() / 4.0,
            Self::Flow => FLOW_TIMESTEPS * sigma / (1.0 + sigma),
        }
    }
}

/// Most steps of a continuous schedule.
const STEP_LIMIT: usize = 10_000;

/// Largest relative difference of one σ computed in two ways.
const ROUNDING: f64 = 1e-9;

/// How a family of solvers places and scales its steps; the conventions are those of diffusers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    /// Variance-preserving: DDIM and DDPM.
    Preserving,
    /// `N + 1` timesteps of which the last is left out; variance-preserving: DPM-Solver.
    Dpm,
    /// The same: UniPC.
    UniPc,
    /// Fractional timesteps; variance-exploding.
    Exploding,
}

impl Family {
    fn is_multistep(self) -> bool {
        matches!(self, Self::Dpm | Self::UniPc)
    }

    /// Placement where none is asked for.
    fn own(self) -> Spacing {
        match self {
            Self::Preserving => Spacing::Leading { offset: 0 },
            _ => Spacing::Linspace,
        }
    }

    /// The timestep that a network is told of a fractional one on a curve of σ.
    fn told(self, timestep: f64, spacing: &Spacing, schedule: &NoiseSchedule) -> f64 {
        let cosine = matches!(schedule, NoiseSchedule::SquaredCosine { .. });
        // Not one less where σ is that of a timestep but for rounding.
        let whole = (timestep + 1e-6).trunc();
        match (self, spacing) {
            (Self::Preserving | Self::Exploding, _) => timestep,
            (Self::Dpm, Spacing::Karras { .. }) if cosine => whole,
            (_, Spacing::Exponential | Spacing::Beta) => whole,
            _ => timestep.round_ties_even(),
        }
    }
}

impl Grid {
    /// The levels of `steps` steps; without a spacing, at the family's own places.
    pub(super) fn new(
        family: Family,
        schedule: &NoiseSchedule,
        spacing: Option<&Spacing>,
        steps: usize,
    ) -> Result<Self, GridError> {
        let limit = schedule.steps().unwrap_or(STEP_LIMIT);
        match spacing {
            // Before the steps, which are those of the list.
            Some(Spacing::Sigmas(sigmas)) if without_last_zero(sigmas).is_empty() => {
                return Err(GridError::Order { found: sigmas.clone() });
            }
            _ if steps == 0 || steps > limit => return Err(GridError::Steps { steps, limit }),
            _ => schedule.check()?,
        }
        if let Some(spacing @ (Spacing::Sigmas(listed) | Spacing::Timesteps(listed))) = spacing {
            let listed = match spacing {
                Spacing::Sigmas(sigmas) => without_last_zero(sigmas).len(),
                _ => listed.len(),
            };
            if listed != steps {
                return Err(GridError::Count { steps, listed, spacing: spacing.clone() });
            }
        }
        let grid = match schedule {
            NoiseSchedule::RectifiedFlow { shift } => Self::flow(*shift, spacing, steps)?,
            NoiseSchedule::Edm { sigma_min, sigma_max, rho, .. } => {
                Self::edm([*sigma_min, *sigma_max], *rho, spacing, steps)?
            }
            _ => {
                let own = family.own();
                Self::discrete(family, schedule, spacing.unwrap_or(&own), steps)?
            }
        };
        grid.check_order()?;
        Ok(grid)
    }

    /// Only the first level may have no signal, where the scaling allows it.
    fn check_order(&self) -> Result<(), GridError> {
        let sigmas: Vec<f64> = self.steps.iter().map(|[from, _]| from.ve_sigma()).collect();
        let possible = |sigma: f64| sigma > 0.0 && (sigma.is_finite() || sigma == sigmas[0]);
        if let Some(sigma) = sigmas.iter().find(|sigma| !possible(**sigma)) {
            return Err(GridError::Order { found: vec![*sigma] });
        }
        match sigmas.windows(2).find(|pair| pair[0] <= pair[1]) {
            Some(pair) => Err(GridError::Order { found: pair.to_vec() }),
            None => Ok(()),
        }
    }

    /// Lets the last step go to a level that has noise.
    pub(super) fn ending_at(mut self, sigma: f64) -> Result<Self, GridError> {
        let Some([from, to]) = self.steps.last_mut() else { return Ok(self) };
        let ratio = from.ve_sigma() / sigma;
        if ratio < 1.0 - ROUNDING {
            return Err(GridError::Order { found: vec![from.ve_sigma(), sigma] });
        }
        let level = preserving(1.0 / (1.0 + sigma * sigma), self.clock.timestep(sigma));
        *to = match from.alpha == 1.0 {
            // It is there, but for rounding.
            _ if ratio < 1.0 + ROUNDING => *from,
            true => level.exploding(),
            false => level,
        };
        Ok(self)
    }

    /// All steps but the `count` noisiest, from a state that has its noise already.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn without(mut self, count: usize) -> Self {
        self.steps.drain(..count);
        Self { skipped: self.skipped + count, initial_scale: 1.0, ..self }
    }

    /// Levels one after the other, then no noise.
    fn chain(levels: Vec<Level>, initial_scale: f64, clock: Clock) -> Self {
        let next = levels.iter().skip(1).copied().chain([Level::CLEAN]);
        let steps = levels.iter().copied().zip(next).map(|(a, b)| [a, b]).collect();
        Self { steps, skipped: 0, initial_scale, clock }
    }

    /// The shift applies to the ends of the grid, and again to the points between.
    fn flow(shift: f64, spacing: Option<&Spacing>, steps: usize) -> Result<Self, GridError> {
        let level =
            |sigma: f64| Level { alpha: 1.0 - sigma, sigma, timestep: FLOW_TIMESTEPS * sigma };
        let last = shifted(1e-3, shift);
        let sigmas: Vec<f64> = match spacing {
            None | Some(Spacing::Linspace) => {
                let even = linspace(1.0, last, steps);
                even.into_iter().map(|s| shifted(s, shift)).collect()
            }
            Some(Spacing::Trailing) => {
                (0..steps).map(|i| shifted(1.0 - i as f64 / steps as f64, shift)).collect()
            }
            Some(Spacing::Sigmas(sigmas)) => {
                let sigmas = without_last_zero(sigmas);
                positive(sigmas)?;
                sigmas.iter().map(|s| s / (1.0 + s)).collect()
            }
            Some(Spacing::Timesteps(timesteps)) => {
                within(timesteps, FLOW_TIMESTEPS)?;
                timesteps.iter().map(|t| t / FLOW_TIMESTEPS).collect()
            }
            Some(spacing) => curve(spacing, [shifted(last, shift), 1.0], steps)?,
        };
        if let Some(sigma) = sigmas.iter().find(|sigma| **sigma > 1.0) {
            return Err(GridError::Order { found: vec![*sigma] });
        }
        Ok(Self::chain(sigmas.into_iter().map(level).collect(), 1.0, Clock::Flow))
    }

    fn edm(
        [low, high]: [f64; 2],
        rho: f64,
        spacing: Option<&Spacing>,
        steps: usize,
    ) -> Result<Self, GridError> {
        let sigmas: Vec<f64> = match spacing {
            None => karras(high, low, steps, rho),
            Some(Spacing::Sigmas(sigmas)) => {
                let sigmas = without_last_zero(sigmas);
                positive(sigmas)?;
                sigmas.to_vec()
            }
            Some(spacing) => curve(spacing, [low, high], steps)?,
        };
        let clock = Clock::LogSigma;
        let level = |sigma: f64| Level { alpha: 1.0, sigma, timestep: clock.timestep(sigma) };
        let (levels, initial_scale) = (sigmas.iter().copied().map(level).collect(), sigmas[0]);
        Ok(Self::chain(levels, initial_scale, clock))
    }

    fn discrete(
        family: Family,
        schedule: &NoiseSchedule,
        spacing: &Spacing,
        steps: usize,
    ) -> Result<Self, GridError> {
        let exact = family == Family::Preserving && by_timesteps(spacing);
        let table = if exact { schedule.sigmas() } else { schedule.finite_sigmas() };
        let clock = Clock::Table(table.expect("a discrete schedule"));
        // Points of the grid as (timestep, σ).
        let points = points(family, schedule, spacing, steps, &clock)?;
        // A level that rounds to one without noise could not be told from it.
        if let Some((_, sigma)) = points.iter().find(|(_, sigma)| 1.0 + sigma * sigma == 1.0) {
            return Err(GridError::Range { sigma: *sigma });
        }
        let level = |(timestep, sigma): (f64, f64)| match sigma.is_infinite() {
            true => Level { alpha: 0.0, sigma: 1.0, timestep },
            false => preserving(1.0 / (1.0 + sigma * sigma), timestep),
        };
        let mut levels: Vec<Level> = points.into_iter().map(level).collect();
        let mut initial_scale = 1.0;
        if family == Family::Exploding {
            levels = levels.into_iter().map(Level::exploding).collect();
            let range = if let Spacing::Ranged { range, .. } = spacing { range } else { spacing };
            let highest = levels[0].sigma;
            let full = matches!(range, Spacing::Leading { .. });
            initial_scale = if full { highest.hypot(1.0) } else { highest };
        }
        Ok(Self::chain(levels, initial_scale, clock))
    }
}

/// Timesteps and σ of a grid on a discrete schedule.
fn points(
    family: Family,
    schedule: &NoiseSchedule,
    spacing: &Spacing,
    steps: usize,
    clock: &Clock,
) -> Result<Vec<(f64, f64)>, GridError> {
    let Clock::Table(table) = clock else { unreachable!("a discrete schedule has a table") };
    let last = (table.len() - 1) as f64;
    let sigmas = match spacing {
        _ if by_timesteps(spacing) => {
            let timesteps = timesteps(family, spacing, table.len(), steps);
            within(&timesteps, last)?;
            return Ok(timesteps.iter().map(|&t| (t, interpolate(table, t))).collect());
        }
        Spacing::Sigmas(sigmas) => {
            let sigmas = without_last_zero(sigmas);
            positive(sigmas)?;
            sigmas.to_vec()
        }
        Spacing::Ranged { range, .. } if family == Family::Exploding && by_timesteps(range) => {
            let timesteps = timesteps(family, range, table.len(), steps);
            within(&timesteps, last)?;
            let [high, low] = [timesteps[0], timesteps[timesteps.len() - 1]];
            curve(spacing, [low, high].map(|t| interpolate(table, t)), steps)?
        }
        _ => curve(spacing, [table[0], table[table.len() - 1]], steps)?,
    };
    let shape = if let Spacing::Ranged { curve, .. } = spacing { curve } else { spacing };
    let told = |sigma: f64| family.told(clock.timestep(sigma), shape, schedule);
    Ok(sigmas.into_iter().map(|sigma| (told(sigma), sigma)).collect())
}

/// Points of a curve of σ between the ends that it names, or else these, lowest first.
fn curve(spacing: &Spacing, ends: [f64; 2], steps: usize) -> Result<Vec<f64>, GridError> {
    let (shape, [low, high]) = match spacing {
        Spacing::Ranged { curve, sigmas, .. } => {
            let found = [sigmas[0].unwrap_or(ends[0]), sigmas[1].unwrap_or(ends[1])];
            (&**curve, found)
        }
        shape => (shape, ends),
    };
    // A single step starts at the upper end, whatever the lower.
    let falls = low < high || (steps == 1 && low == high);
    if !(0.0 < low && falls && high.is_finite()) {
        return Err(GridError::Order { found: vec![high, low] });
    }
    match shape.curve(high, low, steps) {
        Some(points) => Ok(points),
        None if by_timesteps(shape) => Err(GridError::Continuous { spacing: shape.clone() }),
        None => Err(GridError::Curve { spacing: shape.clone() }),
    }
}

fn by_timesteps(spacing: &Spacing) -> bool {
    match spacing {
        Spacing::Leading { .. }
        | Spacing::Trailing
        | Spacing::Linspace
        | Spacing::Respaced
        | Spacing::Timesteps(_) => true,
        Spacing::Karras { .. }
        | Spacing::Exponential
        | Spacing::Beta
        | Spacing::Ranged { .. }
        | Spacing::Sigmas(_) => false,
    }
}

fn without_last_zero(sigmas: &[f64]) -> &[f64] {
    match sigmas {
        [sigmas @ .., 0.0] => sigmas,
        sigmas => sigmas,
    }
}

fn positive(sigmas: &[f64]) -> Result<(), GridError> {
    match sigmas.iter().find(|sigma| !(sigma.is_finite() && **sigma > 0.0)) {
        Some(sigma) => Err(GridError::Order { found: vec![*sigma] }),
        None => Ok(()),
    }
}

fn within(timesteps: &[f64], last: f64) -> Result<(), GridError> {
    match timesteps.iter().find(|t| !(0.0..=last).contains(*t)) {
        Some(timestep) => Err(GridError::Timestep { timestep: *timestep }),
        None => Ok(()),
    }
}

/// Timesteps of a spacing by them, highest first, out of `total`; a single one is the last.
fn timesteps(family: Family, spacing: &Spacing, total: usize, steps: usize) -> Vec<f64> {
    let (t, last) = (total as f64, (total - 1) as f64);
    let multistep = usize::from(family.is_multistep());
    let mut found: Vec<f64> = match spacing {
        Spacing::Timesteps(timesteps) => return timesteps.clone(),
        Spacing::Leading { offset } => {
            let stride = total / (steps + multistep);
            let first = *offset as f64;
            (multistep..steps + multistep).map(|i| first + (i * stride) as f64).collect()
        }
        Spacing::Trailing => {
            let point = |i: usize| (t - i as f64 * t / steps as f64).round_ties_even() - 1.0;
            (0..steps).rev().map(point).collect()
        }
        Spacing::Respaced => even(last, steps).into_iter().map(f64::round_ties_even).collect(),
        _ if family == Family::Exploding => even(last, steps),
        _ => {
            let all = even(last, steps + multistep).into_iter().map(f64::round_ties_even);
            all.skip(multistep).collect()
        }
    };
    found.reverse();
    found
}

/// `count` even points from 0 to `last`, of which a single one is the last.
fn even(last: f64, count: usize) -> Vec<f64> {
    if count == 1 { vec![last] } else { linspace(0.0, last, count) }
}

/// Linear interpolation of a table at a fractional index.
fn interpolate(table: &[f64], at: f64) -> f64 {
    let below = at.floor() as usize;
    match table.get(below + 1) {
        Some(above) if at > below as f64 => {
            table[below] + (above - table[below]) * (at - below as f64)
        }
        _ => table[below],
    }
}

/// Fractional timestep of a σ, by interpolation of `ln σ`.
fn timestep_of(sigmas: &[f64], sigma: f64) -> f64 {
    let above = sigmas.partition_point(|s| *s <= sigma).clamp(1, sigmas.len() - 1);
    let (low, high) = (sigmas[above - 1].ln(), sigmas[above].ln());
    let share = ((sigma.ln() - low) / (high - low)).clamp(0.0, 1.0);
    (above - 1) as f64 + share
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linear() -> NoiseSchedule {
        NoiseSchedule::Linear { steps: 1000, first: 1e-4, last: 0.02, zero_snr: false }
    }

    fn of(family: Family, spacing: Spacing) -> Vec<f64> {
        let grid = Grid::new(family, &linear(), Some(&spacing), 5).expect("a grid");
        grid.steps.iter().map(|[from, _]| from.timestep).collect()
    }

    #[test]
    fn spacings_match_the_published_lists() {
        assert_eq!(
            of(Family::Preserving, Spacing::Leading { offset: 0 }),
            [800., 600., 400., 200., 0.]
        );
        assert_eq!(of(Family::Preserving, Spacing::Trailing), [999., 799., 599., 399., 199.]);
        assert_eq!(of(Family::Preserving, Spacing::Linspace), [999., 749., 500., 250., 0.]);
        assert_eq!(of(Family::Preserving, Spacing::Respaced), [999., 749., 500., 250., 0.]);
        assert_eq!(of(Family::Dpm, Spacing::Linspace), [999., 799., 599., 400., 200.]);
    }

    #[test]
    fn karras_grids_match_the_published_numbers() {
        let spacing = Spacing::Karras { rho: 7.0 };
        let grid = Grid::new(Family::Dpm, &linear(), Some(&spacing), 5).expect("a grid");
        let timesteps: Vec<f64> = grid.steps.iter().map(|[from, _]| from.timestep).collect();
        assert_eq!(timesteps, [999., 843., 593., 142., 0.]);
        for ([from, _], sigma) in
            grid.steps.iter().zip([157.407, 36.9092, 5.9113, 0.491319, 0.010001])
        {
            assert!((from.ve_sigma() / sigma - 1.0).abs() < 1e-4);
        }
    }

    #[test]
    fn the_flow_shift_is_applied_twice() {
        let schedule = NoiseSchedule::RectifiedFlow { shift: 3.0 };
        let grid = Grid::new(Family::Exploding, &schedule, None, 5).expect("a grid");
        let expected = [1.0, 0.900359, 0.751121, 0.502985, 0.0089286];
        for ([from, _], sigma) in grid.steps.iter().zip(expected) {
            assert!((from.sigma - sigma).abs() < 1e-6, "{}", from.sigma);
        }
    }

    /// `FlowMatchEulerDiscreteScheduler` with σ from 1 in steps of 1/N, as pipelines of flows hand them over.
    #[test]
    fn a_trailing_flow_is_shifted_once() {
        let schedule = NoiseSchedule::RectifiedFlow { shift: 3.0 };
        let grid = Grid::new(Family::Exploding, &schedule, Some(&Spacing::Trailing), 3);
        for ([from, _], sigma) in grid.expect("a grid").steps.iter().zip([1.0, 6.0 / 7.0, 0.6]) {
            assert!((from.sigma - sigma).abs() < 1e-12, "{}", from.sigma);
        }
    }

    #[test]
    fn solvers_in_sigma_start_a_zero_snr_schedule_at_a_finite_sigma() {
        let schedule =
            NoiseSchedule::Linear { steps: 1000, first: 1e-4, last: 0.02, zero_snr: true };
        let scale = |family, spacing| {
            let grid = Grid::new(family, &schedule, Some(&spacing), 5).expect("a grid");
            (grid.steps[0][0].alpha, grid.initial_scale)
        };
        assert_eq!(scale(Family::Preserving, Spacing::Trailing), (0.0, 1.0));
        let (_, start) = scale(Family::Exploding, Spacing::Trailing);
        assert!((start - 4096.0).abs() < 1e-3, "{start}");
        let (alpha, _) = scale(Family::Preserving, Spacing::Karras { rho: 7.0 });
        assert!((alpha * 4096.0 - 1.0).abs() < 1e-6, "{alpha}");
    }

    #[test]
    fn impossible_grids_are_errors() {
        let make = |spacing, steps| Grid::new(Family::Preserving, &linear(), Some(&spacing), steps);
        assert!(matches!(make(Spacing::Trailing, 0), Err(GridError::Steps { steps: 0, .. })));
        assert!(matches!(make(Spacing::Trailing, 1001), Err(GridError::Steps { .. })));
        for sigmas in [[1.0, 2.0], [f64::INFINITY, 1.0], [1.0, f64::NAN], [1.0, -1.0]] {
            let found = make(Spacing::Sigmas(sigmas.to_vec()), 2);
            assert!(matches!(found, Err(GridError::Order { .. })), "{sigmas:?}");
        }
        for (sigmas, said) in [
            (vec![0.0], "falling, found [0.0]"),
            (vec![], "falling, found []"),
            (vec![1e-9], "at noise level 1.000e-9 "),
            (vec![2.0, 1e-9, 0.0], "at noise level 1.000e-9 "),
        ] {
            let steps = without_last_zero(&sigmas).len();
            let error = make(Spacing::Sigmas(sigmas), steps).expect_err(said).to_string();
            assert!(error.contains(said), "{error}");
        }
        let late = Spacing::Timesteps(vec![1000.0, 3.0]);
        assert!(matches!(make(late, 2), Err(GridError::Timestep { .. })));
    }
}
