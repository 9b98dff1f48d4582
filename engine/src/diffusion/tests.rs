//! Laws of schedules and grids, over all kinds of them.

use proptest::prelude::*;

use super::*;

/// Schedules with timesteps, whose last keeps some signal or, with `zero_snr`, none.
fn discrete(zero_snr: impl Strategy<Value = bool>) -> impl Strategy<Value = NoiseSchedule> {
    let linear = (2..1001usize, 1e-5..1e-3f64, 2e-3..0.04f64);
    (0..3, linear, zero_snr).prop_map(|(kind, (steps, first, last), zero_snr)| match kind {
        0 => NoiseSchedule::Linear { steps, first, last, zero_snr },
        1 => NoiseSchedule::ScaledLinear { steps, first, last, zero_snr },
        _ => NoiseSchedule::SquaredCosine { steps, zero_snr },
    })
}

/// Shifts below 1 are left out: rounding can take their first level past pure noise.
fn flow() -> impl Strategy<Value = NoiseSchedule> {
    (1.0..8.0).prop_map(|shift| NoiseSchedule::RectifiedFlow { shift })
}

fn edm() -> impl Strategy<Value = NoiseSchedule> {
    (1e-4..0.1, 1.0..500.0, 1.0..10.0).prop_map(|(sigma_min, sigma_max, rho)| NoiseSchedule::Edm {
        sigma_min,
        sigma_max,
        rho,
        log_mean: -0.4,
        log_std: 1.0,
    })
}

fn sampler() -> impl Strategy<Value = Sampler> {
    let names = vec!["ddim", "ddpm", "euler", "heun", "dpmpp_2m", "dpmpp_3m", "unipc"];
    prop::sample::select(names).prop_map(|name| name.parse().expect("known"))
}

/// Spacings that place any number of steps.
fn spacing() -> impl Strategy<Value = Option<Spacing>> {
    prop_oneof![
        Just(None),
        Just(Some(Spacing::Leading { offset: 0 })),
        Just(Some(Spacing::Leading { offset: 1 })),
        Just(Some(Spacing::Trailing)),
        Just(Some(Spacing::Linspace)),
        Just(Some(Spacing::Respaced)),
        (1.0..10.0).prop_map(|rho| Some(Spacing::Karras { rho })),
        Just(Some(Spacing::Exponential)),
    ]
}

fn falls(levels: &[Level]) -> bool {
    levels.windows(2).all(|pair| pair[0].ve_sigma() > pair[1].ve_sigma())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn signal_falls_at_every_timestep(schedule in discrete(any::<bool>())) {
        let steps = schedule.steps().expect("discrete");
        let bars = schedule.alpha_bars().expect("discrete");
        prop_assert_eq!(bars.len(), steps);
        prop_assert!(bars.windows(2).all(|pair| pair[1] < pair[0]), "{bars:?}");
        prop_assert!(bars[0] < 1.0 && bars[steps - 1] >= 0.0);
        for (t, bar) in bars.iter().enumerate() {
            let level = schedule.level(t as f64).expect("inside");
            prop_assert!((level.alpha.powi(2) - bar).abs() < 1e-12);
            prop_assert!((level.alpha.hypot(level.sigma) - 1.0).abs() < 1e-12);
        }
        prop_assert_eq!(schedule.level(steps as f64 - 0.5), None);
    }

    /// Also between timesteps; up to the last but one where the last is pure noise.
    #[test]
    fn log_snr_falls_with_time(
        schedule in prop_oneof![discrete(Just(false)), flow()],
        times in prop::collection::btree_set(0..1000u32, 2..40),
    ) {
        let last = schedule.steps().map_or(1000.0, |steps| (steps - 1) as f64);
        let level = |time: &u32| schedule.level(f64::from(*time) / 999.0 * last).expect("inside");
        let snr: Vec<f64> = times.iter().map(|time| level(time).log_snr()).collect();
        prop_assert!(snr.windows(2).all(|pair| pair[1] < pair[0]), "{snr:?}");
    }

    #[test]
    fn training_levels_lie_on_the_schedule(
        schedule in prop_oneof![discrete(any::<bool>()), flow()],
        seed in any::<u64>(),
    ) {
        let drawn = schedule.training_level(&mut crate::random::Generator::new(seed));
        let level = schedule.level(drawn.timestep).expect("inside");
        prop_assert!((level.alpha - drawn.alpha).abs() < 1e-12);
        prop_assert!((level.sigma - drawn.sigma).abs() < 1e-12);
    }

    #[test]
    fn grids_fall_from_noise_to_data_in_the_steps_asked_for(
        schedule in prop_oneof![3 => discrete(any::<bool>()), 1 => flow(), 1 => edm()],
        sampler in sampler(),
        spacing in spacing(),
        steps in 1..101usize,
    ) {
        let most = schedule.steps().map_or(steps, |total| total / 4);
        let grid = match sampler.grid(&schedule, spacing.as_ref(), steps) {
            Ok(grid) => grid,
            Err(error) => {
                let continuous =
                    matches!(error, GridError::Sampler { .. }) && schedule.steps().is_none();
                // The σ that stands for almost pure noise can be lower than those before it.
                let pure = schedule.alpha_bars().is_some_and(|bars| bars[bars.len() - 1] < 1e-7);
                let low = pure && matches!(error, GridError::Order { .. });
                prop_assert!(continuous || low || steps > most, "{error}");
                return Ok(());
            }
        };
        prop_assert_eq!(grid.steps.len(), steps);
        prop_assert!(grid.initial_scale.is_finite() && grid.initial_scale > 0.0);
        let from: Vec<Level> = grid.steps.iter().map(|[from, _]| *from).collect();
        prop_assert!(falls(&from), "{from:?}");
        for step in &grid.steps {
            prop_assert!(falls(step), "{step:?}");
        }
        let last = grid.steps[steps - 1][1];
        // The DDIM of diffusers goes down by whole strides, wherever it starts.
        let strides = matches!(sampler, Sampler::Ddim { .. })
            && schedule.steps().is_some_and(|total| !total.is_multiple_of(steps))
            || matches!(spacing, Some(Spacing::Leading { offset: 1 }));
        prop_assert!(last == Level::CLEAN || strides, "{last:?}");
    }

    #[test]
    fn explicit_noise_levels_are_passed_as_they_are(
        schedule in prop_oneof![discrete(Just(false)), flow(), edm()],
        sampler in sampler().prop_filter("discrete only", |s| !matches!(s, Sampler::Ddpm { .. })),
        sigmas in prop::collection::btree_set(1..100_000u32, 1..20),
        zero in any::<bool>(),
    ) {
        let sigmas: Vec<f64> = sigmas.into_iter().rev().map(|s| f64::from(s) / 1000.0).collect();
        let listed = [&sigmas[..], if zero { &[0.0] } else { &[] }].concat();
        let grid = sampler.grid(&schedule, Some(&Spacing::Sigmas(listed)), 1).expect("falling");
        prop_assert_eq!(grid.steps.len(), sigmas.len());
        for ([from, _], sigma) in grid.steps.iter().zip(&sigmas) {
            prop_assert!((from.ve_sigma() / sigma - 1.0).abs() < 1e-6);
        }
        prop_assert_eq!(grid.steps[sigmas.len() - 1][1], Level::CLEAN);
    }

    #[test]
    fn names_are_read_back(sampler in sampler(), spacing in spacing()) {
        prop_assert_eq!(sampler.to_string().parse::<Sampler>(), Ok(sampler));
        if let Some(spacing) = spacing {
            let again: Spacing = spacing.to_string().parse().expect("a name");
            prop_assert_eq!(again.to_string(), spacing.to_string());
        }
    }

    #[test]
    fn any_name_is_known_or_refused(text in "\\PC{0,24}") {
        let _ = (parse_sampler(&text), text.parse::<Spacing>());
    }
}
