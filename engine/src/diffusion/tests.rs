//! Laws of schedules and grids, over all kinds of them.

use proptest::prelude::*;

use super::*;

/// Schedules with timesteps, whose last keeps some signal or, with `zero_snr`, none.
fn discrete(zero_snr: impl Strategy<Value = bool>) -> impl Strategy<Value = NoiseSchedule> {
    let linear = (2..1001usize, 1e-5..1e-3f64, 2e-3..0.04f64);
    (0..4, linear, zero_snr).prop_map(|(kind, (steps, first, last), zero_snr)| match kind {
        0 => NoiseSchedule::Linear { steps, first, last, zero_snr },
        1 => NoiseSchedule::ScaledLinear { steps, first, last, zero_snr },
        2 => {
            let beta = |i: usize| if i.is_multiple_of(2) { first } else { last };
            NoiseSchedule::Betas { betas: (0..steps).map(beta).collect(), zero_snr }
        }
        _ => NoiseSchedule::SquaredCosine { steps, zero_snr },
    })
}

fn flow() -> impl Strategy<Value = NoiseSchedule> {
    (0.05..8.0).prop_map(|shift| NoiseSchedule::RectifiedFlow { shift })
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

/// With more timesteps than any list here has levels.
fn long() -> impl Strategy<Value = NoiseSchedule> {
    discrete(Just(false)).prop_filter("more steps", |s| s.steps().is_some_and(|steps| steps > 20))
}

fn sampler() -> impl Strategy<Value = Sampler> {
    let names = vec![
        "ddim",
        "ddpm",
        "ddpm_small",
        "ddpm_large",
        "euler",
        "euler_a",
        "heun",
        "dpmpp_2m",
        "dpmpp_2m_sde",
        "dpmpp_3m",
        "unipc",
    ];
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
        Just(Some(Spacing::Beta)),
        Just(Some(ranged(Spacing::Exponential, Spacing::Trailing))),
        Just(Some(ranged(Spacing::Karras { rho: 7.0 }, Spacing::Leading { offset: 1 }))),
    ]
}

fn ranged(curve: Spacing, range: Spacing) -> Spacing {
    Spacing::Ranged { curve: Box::new(curve), sigmas: [None; 2], range: Box::new(range) }
}

/// Whether a spacing counts timesteps that the schedule does not have.
fn is_continuous(schedule: &NoiseSchedule, spacing: Option<&Spacing>) -> bool {
    let is_flow = matches!(schedule, NoiseSchedule::RectifiedFlow { .. });
    match spacing {
        Some(Spacing::Linspace | Spacing::Trailing) => schedule.steps().is_none() && !is_flow,
        Some(Spacing::Leading { .. } | Spacing::Respaced) => schedule.steps().is_none(),
        _ => false,
    }
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
        // Lists of rounded timesteps repeat some of them where there are nearly as many steps.
        let most = schedule.steps().map_or(steps, |total| total / 4);
        let continuous = is_continuous(&schedule, spacing.as_ref());
        let discrete_only =
            matches!(sampler, Sampler::Ddpm { .. }) && schedule.steps().is_none();
        let grid = match sampler.grid(&schedule, spacing.as_ref(), steps) {
            Ok(grid) => grid,
            Err(error) => {
                let expected = match error {
                    GridError::Continuous { .. } => continuous,
                    GridError::Sampler { .. } => discrete_only,
                    _ => steps > most,
                };
                prop_assert!(expected, "{error}");
                return Ok(());
            }
        };
        prop_assert!(!continuous && !discrete_only);
        prop_assert_eq!(grid.steps.len(), steps);
        prop_assert!(grid.initial_scale.is_finite() && grid.initial_scale > 0.0);
        let from: Vec<Level> = grid.steps.iter().map(|[from, _]| *from).collect();
        prop_assert!(falls(&from), "{from:?}");
        prop_assert!(from.iter().all(|level| level.alpha >= 0.0), "{from:?}");
        for step in &grid.steps {
            prop_assert!(falls(step), "{step:?}");
        }
        prop_assert!(grid.steps.windows(2).all(|pair| pair[0][1] == pair[1][0]));
        prop_assert_eq!(grid.steps[steps - 1][1], Level::CLEAN);
        // Only leading spacings miss the last timestep.
        let leading = match &spacing {
            Some(Spacing::Ranged { range, .. }) => Some(&**range),
            None if matches!(sampler, Sampler::Ddim { .. } | Sampler::Ddpm { .. }) => {
                Some(&Spacing::Leading { offset: 0 })
            }
            spacing => spacing.as_ref(),
        };
        let is_leading = matches!(leading, Some(Spacing::Leading { .. }));
        if let (false, Some(total)) = (is_leading, schedule.steps()) {
            prop_assert!((from[0].timestep - (total - 1) as f64).abs() < 1e-6, "{from:?}");
        }
    }

    /// From DDIM's list to Euler's: the same levels in the other scaling.
    #[test]
    fn ddim_has_the_levels_of_euler(
        schedule in discrete(Just(false)),
        spacing in spacing().prop_map(|spacing| spacing.unwrap_or(Spacing::Trailing)),
        steps in 1..101usize,
    ) {
        // There, and only there, the two round the timesteps in different ways, as in diffusers.
        prop_assume!(!matches!(spacing, Spacing::Linspace | Spacing::Ranged { .. }));
        let grid = |name: &str| {
            let sampler: Sampler = name.parse().expect("known");
            sampler.grid(&schedule, Some(&spacing), steps)
        };
        match (grid("ddim"), grid("euler")) {
            (Ok(ddim), Ok(euler)) => {
                for (a, b) in ddim.steps.iter().flatten().zip(euler.steps.iter().flatten()) {
                    prop_assert!((a.timestep - b.timestep).abs() < 1e-9);
                    let near = (a.ve_sigma() / b.ve_sigma() - 1.0).abs() < 1e-9;
                    prop_assert!(near || a.sigma == b.sigma, "{a:?} {b:?}");
                }
            }
            (ddim, euler) => prop_assert_eq!(ddim.is_ok(), euler.is_ok()),
        }
    }

    /// Churn tells the network the timestep of the noise that it raised the image to.
    #[test]
    fn clocks_read_back_the_levels_of_a_grid(
        schedule in prop_oneof![long(), edm(), flow()],
        steps in 1..20usize,
    ) {
        let spacing = Some(Spacing::Karras { rho: 7.0 });
        let grid = Sampler::Euler.grid(&schedule, spacing.as_ref(), steps).expect("a grid");
        for [from, _] in grid.steps {
            let sigma = from.ve_sigma();
            if sigma.is_finite() {
                prop_assert!((grid.clock.timestep(sigma) - from.timestep).abs() < 1e-6);
                prop_assert!(grid.clock.timestep(1.3 * sigma) >= from.timestep);
            }
        }
    }

    #[test]
    fn explicit_noise_levels_are_passed_as_they_are(
        schedule in prop_oneof![long(), flow(), edm()],
        sampler in sampler().prop_filter("discrete only", |s| !matches!(s, Sampler::Ddpm { .. })),
        sigmas in prop::collection::btree_set(1..100_000u32, 1..20),
        zero in any::<bool>(),
    ) {
        let sigmas: Vec<f64> = sigmas.into_iter().rev().map(|s| f64::from(s) / 1000.0).collect();
        let listed = [&sigmas[..], if zero { &[0.0] } else { &[] }].concat();
        let spacing = Some(Spacing::Sigmas(listed));
        let grid = sampler.grid(&schedule, spacing.as_ref(), sigmas.len()).expect("falling");
        let other = sampler.grid(&schedule, spacing.as_ref(), sigmas.len() + 1);
        let told = matches!(other, Err(GridError::Count { .. } | GridError::Steps { .. }));
        prop_assert!(told, "{other:?}");
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

/// First σ of the tables of diffusers, whose cumulative product of 32-bit numbers is 0 where none is given.
#[test]
fn tables_start_where_those_of_the_reference_do() {
    let linear = [Some(0.3263642), Some(1.3230847), Some(157.40727), Some(6.139205e8), None];
    let scaled = [0.2798719, 1.0313102, 36.911922, 1850922.5, 4.650673e15].map(Some);
    let cosine = [203.73404, 2029.2112, 20291.303, 81165.13, 202912.88].map(Some);
    for (i, steps) in [10, 100, 1000, 4000, 10_000].into_iter().enumerate() {
        for zero_snr in [false, true] {
            let (first, last) = (1e-4, 0.02);
            let of = [
                (NoiseSchedule::Linear { steps, first, last, zero_snr }, linear[i]),
                (NoiseSchedule::ScaledLinear { steps, first, last, zero_snr }, scaled[i]),
                (NoiseSchedule::SquaredCosine { steps, zero_snr }, cosine[i]),
            ];
            for (schedule, expected) in of {
                assert_eq!(schedule.check(), Ok(()), "{schedule:?}");
                let sigmas = schedule.finite_sigmas().expect("discrete");
                assert!(sigmas.windows(2).all(|pair| pair[0] < pair[1]), "{schedule:?}");
                let expected = if zero_snr { Some(4096.0) } else { expected };
                let highest = sigmas[steps - 1];
                let near = |expected: f64| (highest / expected - 1.0).abs() < 1e-3;
                assert!(expected.is_none_or(near), "{schedule:?}: {highest}");
            }
        }
    }
}

#[test]
fn schedules_that_cannot_be_are_refused() {
    let linear = |steps, first, last| NoiseSchedule::Linear { steps, first, last, zero_snr: false };
    let edm = |sigma_min, sigma_max, rho| NoiseSchedule::Edm {
        sigma_min,
        sigma_max,
        rho,
        log_mean: 0.0,
        log_std: 1.0,
    };
    for schedule in [
        linear(0, 1e-4, 0.02),
        linear(1, 1e-4, 0.02),
        linear(1 << 40, 1e-4, 0.02),
        linear(1_000_000_000, 1e-4, 0.02),
        linear(100_000, 1e-4, 0.02),
        linear(1000, 0.0, 0.02),
        linear(1000, 1e-4, 1.0),
        linear(1000, f64::NAN, 0.02),
        NoiseSchedule::Betas { betas: vec![0.1, -0.1, 0.2], zero_snr: false },
        NoiseSchedule::RectifiedFlow { shift: 0.0 },
        NoiseSchedule::RectifiedFlow { shift: f64::INFINITY },
        edm(0.0, 80.0, 7.0),
        edm(0.1, 0.1, 7.0),
        edm(0.1, f64::INFINITY, 7.0),
        edm(0.1, 80.0, 0.0),
    ] {
        assert!(schedule.check().is_err(), "{schedule:?}");
        for name in ["ddim", "euler", "dpmpp_2m"] {
            let sampler: Sampler = name.parse().expect("known");
            assert!(sampler.grid(&schedule, None, 1).is_err(), "{schedule:?}");
        }
    }
}
