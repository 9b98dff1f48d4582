use super::*;

/// Exact denoiser of data from N(mean, std²) per pixel.
struct Gaussian {
    mean: f64,
    std: f64,
}

impl Denoiser for Gaussian {
    fn denoise(&mut self, x_t: Tensor<4>, level: &Level, _: usize) -> Denoised {
        let Level { alpha, sigma, .. } = *level;
        let variance = (alpha * self.std).powi(2) + sigma * sigma;
        let gain = alpha * self.std * self.std / variance;
        let clean = (x_t - alpha * self.mean) * gain + self.mean;
        Denoised { clean, unclipped: None, variance: None }
    }
}

const DATA: Gaussian = Gaussian { mean: 0.5, std: 0.3 };

fn linear() -> NoiseSchedule {
    NoiseSchedule::Linear { steps: 1000, first: 1e-4, last: 0.02, zero_snr: false }
}

fn run(
    sampler: &Sampler,
    denoiser: &mut dyn Denoiser,
    grid: &Grid,
    noise: &Tensor<4>,
) -> Tensor<4> {
    let mut source = NoiseSource::new(1, noise.dims()[0]);
    let go_on = &mut |_: Step<'_>| ControlFlow::Continue(());
    sampler.sample(denoiser, noise.clone(), grid, &mut source, go_on).expect("not cancelled")
}

fn noise() -> Tensor<4> {
    NoiseSource::new(0, 2).draw([1, 8, 8], &Device::flex())
}

fn deterministic() -> Vec<Sampler> {
    ["ddim", "euler", "heun", "dpmpp_2m", "dpmpp_3m", "unipc"]
        .map(|name| name.parse().expect("known"))
        .into()
}

/// Error on the exact solution, which maps noise z at the first level linearly to the data. The last
/// level before the data carries little noise, so that the steps above it decide.
fn error(sampler: &Sampler, steps: usize) -> f64 {
    let schedule = NoiseSchedule::Edm {
        sigma_min: 0.02,
        sigma_max: 10.0,
        rho: 7.0,
        log_mean: 0.0,
        log_std: 1.0,
    };
    let mut grid = sampler.grid(&schedule, None, steps + 1).expect("a grid");
    // Stop at the last level with noise: the exact flow from there on is the same for all.
    grid.steps.pop();
    let z = noise();
    let found = run(sampler, &mut Gaussian { ..DATA }, &grid, &z);
    let (first, last) = (grid.steps[0][0], grid.steps[grid.steps.len() - 1][1]);
    let spread = |level: &Level| (DATA.std.powi(2) + level.sigma.powi(2)).sqrt();
    let start = z * first.sigma - DATA.mean;
    let exact = start * (spread(&last) / spread(&first)) + DATA.mean;
    (found - exact).abs().max().into_scalar::<f32>().into()
}

#[test]
fn errors_fall_with_the_order_of_the_solver() {
    for (name, order) in [("ddim", 1.0), ("euler", 1.0), ("heun", 2.0), ("dpmpp_2m", 2.0)] {
        let sampler: Sampler = name.parse().expect("known");
        let errors: Vec<f64> = [16, 32, 64].map(|steps| error(&sampler, steps)).into();
        println!("{name}: {errors:?}");
        for pair in errors.windows(2) {
            let measured = (pair[0] / pair[1]).log2();
            assert!(
                (measured - order).abs() < 0.4,
                "{name}: order {measured:.2}, errors {errors:?}"
            );
        }
    }
}

#[test]
fn a_single_point_is_reached_exactly() {
    for sampler in deterministic() {
        for schedule in [linear(), NoiseSchedule::RectifiedFlow { shift: 1.0 }] {
            let grid = sampler.grid(&schedule, None, 7).expect("a grid");
            let found = run(&sampler, &mut Gaussian { mean: 0.7, std: 0.0 }, &grid, &noise());
            let worst: f32 = (found - 0.7).abs().max().into_scalar();
            assert!(worst < 1e-5, "{sampler}: {worst}");
        }
    }
}

#[test]
fn every_sampler_keeps_the_distribution() {
    let z = NoiseSource::new(3, 4).draw([1, 64, 64], &Device::flex());
    let all = ["ddim", "ddpm", "euler", "euler_a", "heun", "dpmpp_2m", "dpmpp_2m_sde", "unipc"];
    for name in all {
        let sampler: Sampler = name.parse().expect("known");
        let grid = sampler.grid(&linear(), Some(&Spacing::Trailing), 200).expect("a grid");
        let found = run(&sampler, &mut Gaussian { ..DATA }, &grid, &z);
        let mean: f32 = found.clone().mean().into_scalar();
        let std: f32 = (found - DATA.mean).square().mean().sqrt().into_scalar();
        assert!((mean - 0.5).abs() < 0.02 && (std - 0.3).abs() < 0.02, "{name}: {mean} {std}");
    }
}

/// The network of the published traces: `F(x) = 0.3 x + 0.1`.
struct Published(super::super::Prediction);

impl Denoiser for Published {
    fn denoise(&mut self, x_t: Tensor<4>, level: &Level, _: usize) -> Denoised {
        let c = self.0.coefficients(level);
        let output = x_t.clone() * (0.3 * c.c_in) + 0.1;
        Denoised { clean: x_t * c.c_skip + output * c.c_out, unclipped: None, variance: None }
    }
}

#[test]
fn traces_match_the_published_numbers() {
    use super::super::Prediction::{Flow, Noise};
    let start = Tensor::<1>::from_floats([1.0, -0.5, 0.25], &Device::flex()).reshape([1, 1, 1, 3]);
    let flow = NoiseSchedule::RectifiedFlow { shift: 3.0 };
    let leading = Some(Spacing::Leading { offset: 0 });
    let cases = [
        ("ddim", Noise, linear(), leading, [9.3248828, -6.9571711, 1.1838559]),
        ("dpmpp_2m", Noise, linear(), None, [32.0626615, -24.0080750, 4.0272926]),
        ("euler", Noise, linear(), None, [47.1966373, -35.3678229, 5.9144091]),
        ("heun", Noise, linear(), None, [-0.7000706, 0.6054494, -0.0473106]),
        ("euler", Flow, flow, None, [0.6381477, -0.4547684, 0.0916896]),
    ];
    for (name, prediction, schedule, spacing, expected) in cases {
        let sampler: Sampler = name.parse().expect("known");
        let grid = sampler.grid(&schedule, spacing.as_ref(), 5).expect("a grid");
        let found = run(&sampler, &mut Published(prediction), &grid, &start);
        let found: Vec<f32> = found.into_data().try_to_vec().expect("floats");
        for (found, expected) in found.iter().zip(expected) {
            let error = (f64::from(*found) - expected).abs();
            assert!(error < 1e-4 * expected.abs().max(1.0), "{name}: {found} not {expected}");
        }
    }
}

#[test]
fn names_of_other_programs_are_understood() {
    for (name, sampler) in [
        ("Euler a", "euler_a"),
        ("dpm++2m", "dpmpp_2m"),
        ("uni_pc", "unipc"),
        ("DDIMScheduler", "ddim"),
        ("DPM++ 2M SDE", "dpmpp_2m_sde"),
    ] {
        assert_eq!(name.parse::<Sampler>().expect("known").to_string(), sampler);
    }
    let (sampler, spacing) = parse_sampler("DPM++ 2M Karras").expect("known");
    assert_eq!((sampler, spacing), (Sampler::DpmPp2m, Some(Spacing::Karras { rho: 7.0 })));
    assert!("plms".parse::<Sampler>().expect_err("unknown").to_string().contains("dpmpp_2m"));
}

#[test]
fn a_callback_can_stop_the_run() {
    let sampler = Sampler::Euler;
    let grid = sampler.grid(&linear(), None, 5).expect("a grid");
    let mut seen = 0;
    let mut source = NoiseSource::new(0, 2);
    let result =
        sampler.sample(&mut Gaussian { ..DATA }, noise(), &grid, &mut source, &mut |step| {
            seen = step.index;
            if step.index == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
    assert!(matches!(result, Err(Cancelled)) && seen == 2);
}

/// The same run in the other scaling: `x / alpha`.
fn exploding(grid: &Grid) -> Grid {
    let steps = grid.steps.iter().map(|step| step.map(Level::exploding)).collect();
    let initial_scale =
        grid.steps[0][0].sigma.hypot(grid.steps[0][0].alpha) / grid.steps[0][0].alpha;
    Grid { steps, initial_scale: grid.initial_scale * initial_scale, ..grid.clone() }
}

fn farthest(a: &Tensor<4>, b: &Tensor<4>) -> f32 {
    let scale: f32 = b.clone().abs().max().into_scalar();
    (a.clone() - b.clone()).abs().max().into_scalar::<f32>() / scale
}

#[test]
fn ddim_equals_euler_and_the_first_order_on_every_grid() {
    let cosine = NoiseSchedule::SquaredCosine { steps: 1000, zero_snr: false };
    let first = Sampler::DpmSolver(DpmSolver::of_order(1));
    let (ddim, z) = (Sampler::Ddim { eta: 0.0 }, noise());
    let spacings = [
        Spacing::Leading { offset: 0 },
        Spacing::Leading { offset: 1 },
        Spacing::Trailing,
        Spacing::Linspace,
        Spacing::Respaced,
        Spacing::Karras { rho: 7.0 },
        Spacing::Exponential,
        Spacing::Beta,
    ];
    for schedule in [linear(), cosine] {
        for spacing in &spacings {
            for steps in [1, 2, 7, 13, 50, 333] {
                let grid = ddim.grid(&schedule, Some(spacing), steps).expect("a grid");
                let mut network = Published(super::super::Prediction::Velocity);
                let of_ddim = run(&ddim, &mut network, &grid, &z);
                let of_euler = run(&Sampler::Euler, &mut network, &exploding(&grid), &z);
                let of_first = run(&first, &mut network, &grid, &z);
                for (name, other) in [("euler", of_euler), ("first order", of_first)] {
                    let far = farthest(&other, &of_ddim);
                    assert!(far < 2e-5, "{name}, {spacing} of {steps}: {far}");
                }
            }
        }
    }
}

/// From the same level, all solvers go to the image that the exact flow leads to.
#[test]
fn solvers_meet_in_the_limit() {
    let flow = NoiseSchedule::RectifiedFlow { shift: 1.0 };
    let cosine = NoiseSchedule::SquaredCosine { steps: 1000, zero_snr: false };
    for schedule in [linear(), cosine, flow] {
        for name in ["heun", "dpmpp_2m", "dpmpp_3m", "unipc"] {
            let sampler: Sampler = name.parse().expect("known");
            let spacing = Some(Spacing::Karras { rho: 7.0 });
            let grid = sampler.grid(&schedule, spacing.as_ref(), 200).expect("a grid");
            let Level { alpha, sigma, .. } = grid.steps[0][0];
            let x = noise() * grid.initial_scale;
            let spread = (alpha * DATA.std).hypot(sigma);
            let exact = (x - alpha * DATA.mean) * (DATA.std / spread) + DATA.mean;
            let far = farthest(&run(&sampler, &mut Gaussian { ..DATA }, &grid, &noise()), &exact);
            assert!(far < 5e-3, "{name} on {schedule:?}: {far}");
        }
    }
}

/// With churn, a network is told the timestep of the noise that it sees.
#[test]
fn churn_raises_the_timestep() {
    struct Seen(Vec<Level>);
    impl Denoiser for Seen {
        fn denoise(&mut self, x_t: Tensor<4>, level: &Level, _: usize) -> Denoised {
            self.0.push(*level);
            Denoised { clean: x_t * 0.0, unclipped: None, variance: None }
        }
    }
    let churn = Some(Churn { amount: 10.0, ..Churn::default() });
    let sampler = Sampler::Heun { churn };
    let grid = sampler.grid(&linear(), None, 9).expect("a grid");
    let mut seen = Seen(Vec::new());
    run(&sampler, &mut seen, &grid, &noise());
    for (i, [from, _]) in grid.steps.iter().enumerate().skip(1) {
        let raised = seen.0[2 * i];
        assert!((raised.sigma / from.sigma - 2f64.sqrt()).abs() < 1e-12);
        assert!(raised.timestep > from.timestep + 0.5, "{raised:?} from {from:?}");
        let level = linear().level(raised.timestep).expect("inside");
        assert!((level.ve_sigma() / raised.sigma - 1.0).abs() < 1e-6, "{level:?} {raised:?}");
    }
    let flow = NoiseSchedule::RectifiedFlow { shift: 1.0 };
    assert!(matches!(sampler.grid(&flow, None, 9), Err(GridError::Churn { .. })));
}

/// Fixed variances are those asked for, whatever the network predicts.
#[test]
fn only_the_learned_variance_is_the_networks() {
    struct WithVariance(f64);
    impl Denoiser for WithVariance {
        fn denoise(&mut self, x_t: Tensor<4>, level: &Level, step: usize) -> Denoised {
            let variance = Some(x_t.zeros_like() + self.0);
            Denoised { variance, ..Gaussian { ..DATA }.denoise(x_t, level, step) }
        }
    }
    let made = |name: &str, predicted: f64| {
        let sampler: Sampler = name.parse().expect("known");
        let grid = sampler.grid(&linear(), Some(&Spacing::Trailing), 9).expect("a grid");
        run(&sampler, &mut WithVariance(predicted), &grid, &noise())
    };
    // 1 is the upper bound, β, and -1 the lower, β̃.
    for (fixed, predicted) in [("ddpm_small", -1.0), ("ddpm_large", 1.0)] {
        assert!(farthest(&made(fixed, 0.3), &made("ddpm", predicted)) < 1e-5, "{fixed}");
    }
    assert!(farthest(&made("ddpm_small", 0.0), &made("ddpm_large", 0.0)) > 1e-2);
}
