//! Schedulers of diffusers: what their configuration says about process, sampler and placement of the steps.
//!
//! Every key has its effect, or is refused by name. Where diffusers itself does nothing with a key, such as with one of
//! another class, or the offset of a spacing that has none, a [`Notice`] says so.

use pyrograph_engine::diffusion::{
    Clip, Correction, DpmSolver, NoiseSchedule, Prediction, Process, Sampler, Shifting, Spacing,
    StepFunction, TimeInput, UniPcSolver, Variance,
};
use serde_json::Value;

use super::scheduler_keys::{Fault, Keys};
use crate::hooks::Notice;

/// What a scheduler says.
pub(super) struct Scheduler {
    pub(super) process: Process,
    pub(super) sampler: Sampler,
    pub(super) spacing: Option<Spacing>,
    pub(super) notices: Vec<Notice>,
}

/// The classes, by what they have in common.
#[derive(Debug, Clone, PartialEq)]
enum Class {
    Ddim,
    Ddpm,
    /// With σ of their own, and this sampler.
    Sigma(Sampler),
    Dpm,
    UniPc,
    /// Rectified flow, with this sampler.
    Flow(Sampler),
    /// The process of Karras et al. 2022, with this sampler or DPM-Solver.
    Edm(Option<Sampler>),
    /// A solver that is not here; this one goes along a similar grid.
    Similar(Sampler),
}

impl Class {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "DDIMScheduler" | "DDIMParallelScheduler" => Self::Ddim,
            "DDPMScheduler" | "DDPMParallelScheduler" => Self::Ddpm,
            "EulerDiscreteScheduler" => Self::Sigma(Sampler::Euler),
            "EulerAncestralDiscreteScheduler" => Self::Sigma(Sampler::EulerAncestral),
            "HeunDiscreteScheduler" => Self::Sigma(Sampler::Heun { churn: None }),
            "DPMSolverMultistepScheduler" => Self::Dpm,
            "UniPCMultistepScheduler" => Self::UniPc,
            "FlowMatchEulerDiscreteScheduler" => Self::Flow(Sampler::Euler),
            "EDMEulerScheduler" => Self::Edm(Some(Sampler::Euler)),
            "EDMDPMSolverMultistepScheduler" => Self::Edm(None),
            "PNDMScheduler"
            | "LMSDiscreteScheduler"
            | "DEISMultistepScheduler"
            | "DPMSolverSinglestepScheduler" => Self::Similar(Sampler::DpmPp2m),
            "SASolverScheduler" | "DPMSolverSDEScheduler" => Self::Similar(Sampler::DpmPp2mSde),
            "KDPM2DiscreteScheduler" => Self::Similar(Sampler::Heun { churn: None }),
            "KDPM2AncestralDiscreteScheduler" => Self::Similar(Sampler::EulerAncestral),
            _ => return None,
        })
    }
}

/// Reads a configuration for a network with a learned variance, or without.
pub(super) fn read(config: Value, learned_variance: bool) -> Result<Scheduler, Fault> {
    let keys = Keys::new(config)?;
    let class = Class::named(&keys.class).ok_or_else(|| Fault::Class(keys.class.clone()))?;
    let (process, spacing) = match &class {
        Class::Flow(_) => flow(&keys)?,
        Class::Edm(_) => edm(&keys)?,
        class => discrete(&keys, class)?,
    };
    let sampler = match &class {
        Class::Ddim => Sampler::Ddim { eta: 0.0 },
        Class::Ddpm => Sampler::Ddpm { variance: variance(&keys, learned_variance)? },
        Class::Dpm | Class::Edm(None) => dpm_solver(&keys)?,
        Class::UniPc => unipc(&keys)?,
        Class::Sigma(sampler)
        | Class::Flow(sampler)
        | Class::Edm(Some(sampler))
        | Class::Similar(sampler) => sampler.clone(),
    };
    let similar = matches!(class, Class::Similar(_));
    let mut notices = keys.finish(similar)?;
    if similar {
        let class = keys.class.clone();
        notices.push(Notice::OtherSampler { class, sampler: sampler.to_string() });
    }
    Ok(Scheduler { process, sampler, spacing, notices })
}

/// A schedule of `β`.
fn discrete(keys: &Keys, class: &Class) -> Result<(Process, Option<Spacing>), Fault> {
    if *class == Class::Similar(Sampler::DpmPp2m) || *class == Class::Similar(Sampler::DpmPp2mSde) {
        keys.expect("use_flow_sigmas", &Value::Bool(false))?;
    }
    let prediction = match keys.text("prediction_type")? {
        None | Some("epsilon") => Prediction::Noise,
        Some("v_prediction") => Prediction::Velocity,
        Some("sample" | "original_sample") => Prediction::Clean,
        _ => return Err(keys.unknown("prediction_type")),
    };
    let time = match keys.text("timestep_type")? {
        None | Some("discrete") => TimeInput::Timestep,
        Some("continuous") if prediction == Prediction::Velocity => TimeInput::LogSigma,
        _ => return Err(keys.unknown("timestep_type")),
    };
    let first = match class {
        Class::Ddim => !keys.flag("set_alpha_to_one")?,
        _ => false,
    };
    let schedule = schedule(keys)?;
    if schedule.ends_in_noise() && prediction == Prediction::Noise {
        return Err(Fault::PureNoise);
    }
    let process = Process {
        clip: clip(keys)?,
        ends_noisy: first || ends_noisy(keys)?,
        ..Process::new(schedule, prediction, time)
    };
    let spacing = spacing(keys)?;
    // There it is the end of the curve, not that of the schedule.
    if *class == Class::UniPc && process.ends_noisy && ends_low(&spacing) {
        return Err(keys.unknown("final_sigmas_type"));
    }
    Ok((process, Some(spacing)))
}

/// Whether the lowest σ of a curve is given.
fn ends_low(spacing: &Spacing) -> bool {
    matches!(spacing, Spacing::Ranged { sigmas: [Some(_), _], .. })
}

fn schedule(keys: &Keys) -> Result<NoiseSchedule, Fault> {
    let steps = keys.required_count("num_train_timesteps")?;
    let zero_snr = keys.flag("rescale_betas_zero_snr")?;
    if let Some(betas) = keys.numbers("trained_betas")? {
        return match betas.len() == steps {
            true => Ok(NoiseSchedule::Betas { betas, zero_snr }),
            false => Err(Fault::Betas { found: betas.len(), steps }),
        };
    }
    let ends = || -> Result<(f64, f64), Fault> {
        Ok((keys.required_beta("beta_start")?, keys.required_beta("beta_end")?))
    };
    match keys.text("beta_schedule")? {
        Some("linear") => {
            ends().map(|(first, last)| NoiseSchedule::Linear { steps, first, last, zero_snr })
        }
        Some("scaled_linear") => {
            ends().map(|(first, last)| NoiseSchedule::ScaledLinear { steps, first, last, zero_snr })
        }
        Some("squaredcos_cap_v2") => Ok(NoiseSchedule::SquaredCosine { steps, zero_snr }),
        _ => Err(keys.unknown("beta_schedule")),
    }
}

fn clip(keys: &Keys) -> Result<Option<Clip>, Fault> {
    // Read in either case: where thresholding is on, it takes its place, and that it is off is what happens.
    let fixed = keys.flag("clip_sample")?;
    if keys.flag("thresholding")? {
        let quantile = keys.required("dynamic_thresholding_ratio")?;
        return Ok(Some(Clip::Dynamic { quantile, highest: keys.required("sample_max_value")? }));
    }
    match fixed {
        true => Ok(Some(Clip::Fixed(keys.required("clip_sample_range")?))),
        false => Ok(None),
    }
}

fn ends_noisy(keys: &Keys) -> Result<bool, Fault> {
    match keys.text("final_sigmas_type")? {
        None | Some("zero") => Ok(false),
        Some("sigma_min") => Ok(true),
        _ => Err(keys.unknown("final_sigmas_type")),
    }
}

/// Timesteps, or a curve of σ between the ends of their levels.
fn spacing(keys: &Keys) -> Result<Spacing, Fault> {
    let range = match keys.text("timestep_spacing")? {
        Some("leading") => Spacing::Leading { offset: keys.count("steps_offset")?.unwrap_or(0) },
        Some("trailing") => Spacing::Trailing,
        None | Some("linspace") => Spacing::Linspace,
        _ => return Err(keys.unknown("timestep_spacing")),
    };
    Ok(curve(keys, &range)?.unwrap_or(range))
}

/// The curve of σ that is asked for.
fn curve(keys: &Keys, range: &Spacing) -> Result<Option<Spacing>, Fault> {
    let curves = [
        ("use_karras_sigmas", Spacing::Karras { rho: 7.0 }),
        ("use_exponential_sigmas", Spacing::Exponential),
        ("use_beta_sigmas", Spacing::Beta),
    ];
    let mut asked = Vec::new();
    for (key, curve) in curves {
        if keys.flag(key)? {
            asked.push((key, curve));
        }
    }
    match asked.as_slice() {
        [] => Ok(None),
        [(_, curve)] => {
            // diffusers reads these of any class.
            let sigmas = [keys.stray("sigma_min")?, keys.stray("sigma_max")?];
            Ok(Some(match (sigmas, range) {
                ([None, None], Spacing::Linspace) => curve.clone(),
                (sigmas, range) => Spacing::Ranged {
                    curve: Box::new(curve.clone()),
                    sigmas,
                    range: Box::new(range.clone()),
                },
            }))
        }
        [(first, _), (second, _), ..] => Err(Fault::Both { first, second }),
    }
}

fn flow(keys: &Keys) -> Result<(Process, Option<Spacing>), Fault> {
    keys.expect("num_train_timesteps", &Value::from(1000))?;
    let shifting = shifting(keys)?;
    // One by the size of the image comes in its place.
    let shift = if shifting.is_some() { 1.0 } else { keys.required("shift")? };
    let schedule = NoiseSchedule::RectifiedFlow { shift };
    let process =
        Process { shifting, ..Process::new(schedule, Prediction::Flow, TimeInput::Timestep) };
    Ok((process, curve(keys, &Spacing::Linspace)?))
}

/// The shift by the size of an image.
fn shifting(keys: &Keys) -> Result<Option<Shifting>, Fault> {
    if !keys.flag("use_dynamic_shifting")? {
        return Ok(None);
    }
    keys.expect("time_shift_type", &Value::from("exponential"))?;
    // diffusers does not read it, then.
    keys.required("shift")?;
    Ok(Some(Shifting::Tokens {
        tokens: [keys.required("base_image_seq_len")?, keys.required("max_image_seq_len")?],
        mu: [keys.required("base_shift")?, keys.required("max_shift")?],
    }))
}

/// Mean and standard deviation of `ln σ` in the training of Karras et al. 2022, which a scheduler does not name.
const EDM_TRAINING: [f64; 2] = [-1.2, 1.2];

fn edm(keys: &Keys) -> Result<(Process, Option<Spacing>), Fault> {
    let rho = keys.required("rho")?;
    let [log_mean, log_std] = EDM_TRAINING;
    let schedule = NoiseSchedule::Edm {
        sigma_min: keys.required("sigma_min")?,
        sigma_max: keys.required("sigma_max")?,
        rho,
        log_mean,
        log_std,
    };
    keys.expect("prediction_type", &Value::from("epsilon"))?;
    let prediction = Prediction::Edm { sigma_data: keys.required("sigma_data")? };
    let process = Process {
        clip: clip(keys)?,
        ends_noisy: ends_noisy(keys)?,
        ..Process::new(schedule, prediction, TimeInput::LogSigma)
    };
    match keys.text("sigma_schedule")? {
        None | Some("karras") => Ok((process, Some(Spacing::Karras { rho }))),
        Some("exponential") => Ok((process, Some(Spacing::Exponential))),
        _ => Err(keys.unknown("sigma_schedule")),
    }
}

fn variance(keys: &Keys, learned: bool) -> Result<Variance, Fault> {
    match keys.text("variance_type")? {
        // The logarithm is undone.
        Some("fixed_small" | "fixed_small_log") => Ok(Variance::Small),
        Some("fixed_large") => Ok(Variance::Large),
        Some("learned_range") if learned => Ok(Variance::Learned),
        Some("learned_range") => Err(Fault::NoVariance),
        _ => Err(keys.unknown("variance_type")),
    }
}

fn dpm_solver(keys: &Keys) -> Result<Sampler, Fault> {
    let order = keys.required_count("solver_order")?;
    let stochastic = match keys.text("algorithm_type")? {
        Some("dpmsolver++") => false,
        Some("sde-dpmsolver++") => true,
        _ => return Err(keys.unknown("algorithm_type")),
    };
    // Its stochastic form of third order is not one of that order in diffusers.
    if !(1..=3).contains(&order) || (order == 3 && stochastic) {
        return Err(keys.unknown("solver_order"));
    }
    let solver = DpmSolver {
        stochastic,
        correction: match keys.text("solver_type")? {
            Some("heun") => Correction::Heun,
            Some("midpoint") => Correction::Midpoint,
            // Those of other solvers become the default.
            Some("logrho" | "bh1" | "bh2") => {
                keys.idle("solver_type");
                Correction::Midpoint
            }
            _ => return Err(keys.unknown("solver_type")),
        },
        lower_order_final: keys.flag("lower_order_final")?,
        euler_at_final: keys.flag("euler_at_final")?,
        order,
    };
    let usual = DpmSolver { stochastic, ..DpmSolver::of_order(order) };
    Ok(match (solver == usual, order, stochastic) {
        (true, 2, false) => Sampler::DpmPp2m,
        (true, 2, true) => Sampler::DpmPp2mSde,
        (true, 3, false) => Sampler::DpmPp3m,
        _ => Sampler::DpmSolver(solver),
    })
}

fn unipc(keys: &Keys) -> Result<Sampler, Fault> {
    let order = keys.required_count("solver_order")?;
    if !(1..=3).contains(&order) {
        return Err(keys.unknown("solver_order"));
    }
    let step_function = match keys.text("solver_type")? {
        Some("bh1") => StepFunction::Bh1,
        Some("bh2") => StepFunction::Bh2,
        Some("midpoint" | "heun" | "logrho") => {
            keys.idle("solver_type");
            StepFunction::Bh2
        }
        _ => return Err(keys.unknown("solver_type")),
    };
    Ok(match (order, step_function) {
        (2, StepFunction::Bh2) => Sampler::UniPc,
        _ => Sampler::UniPcSolver(UniPcSolver { order, step_function }),
    })
}
