//! Sampler trajectories against diffusers, on an analytic network.

use std::ops::ControlFlow;

use burn::tensor::Tensor;
use pyrograph_engine::diffusion::{
    Denoised, Denoiser, Level, NoiseSchedule, NoiseSource, Prediction, Sampler, Spacing,
};
use serde_json::Value;

use crate::util::{Case, assert_close, cases, device, json, tolerance};

/// `F(x, t) = 0.35 x + 0.2 sin(3 x) + 0.1 cos(t / 1000)`, with a variance of `tanh(x)`.
struct Analytic {
    prediction: Prediction,
    variance: bool,
    timesteps: Vec<f64>,
}

impl Denoiser for Analytic {
    fn denoise(&mut self, x_t: Tensor<4>, level: &Level, _: usize) -> Denoised {
        self.timesteps.push(level.timestep);
        let c = self.prediction.coefficients(level);
        let x = x_t.clone() * c.c_in;
        let wave = (x.clone() * 3.0).sin() * 0.2;
        let output = x.clone() * 0.35 + wave + 0.1 * (level.timestep / 1000.0).cos();
        let variance = self.variance.then(|| x.tanh());
        Denoised { clean: x_t * c.c_skip + output * c.c_out, unclipped: None, variance }
    }
}

fn number(config: &Value, key: &str) -> f64 {
    config[key].as_f64().unwrap_or_else(|| panic!("{key} in {config}"))
}

fn schedule(name: &str, config: &Value) -> NoiseSchedule {
    if name.starts_with("flow") {
        return NoiseSchedule::RectifiedFlow { shift: number(config, "shift") };
    }
    let steps = number(config, "num_train_timesteps") as usize;
    let (first, last) = (number(config, "beta_start"), number(config, "beta_end"));
    let zero_snr = config["rescale_betas_zero_snr"] == true;
    match config["beta_schedule"].as_str() {
        Some("linear") => NoiseSchedule::Linear { steps, first, last, zero_snr },
        Some("scaled_linear") => NoiseSchedule::ScaledLinear { steps, first, last, zero_snr },
        Some("squaredcos_cap_v2") => NoiseSchedule::SquaredCosine { steps, zero_snr },
        other => panic!("beta schedule {other:?}"),
    }
}

fn sampler(name: &str, config: &Value) -> Sampler {
    let of = |name: &str| name.parse().expect("a known sampler");
    match name.split('-').next() {
        Some("dpmpp") if config["algorithm_type"] == "sde-dpmsolver++" => of("dpmpp_2m_sde"),
        Some("dpmpp") if number(config, "solver_order") == 3.0 => of("dpmpp_3m"),
        Some("dpmpp") => of("dpmpp_2m"),
        Some("flow") => of("euler"),
        Some("ddpm") if config["variance_type"] == "fixed_large" => of("ddpm_large"),
        Some(name) => of(name),
        None => unreachable!("a name has a first part"),
    }
}

fn spacing(config: &Value) -> Option<Spacing> {
    if config["use_karras_sigmas"] == true {
        return Some(Spacing::Karras { rho: 7.0 });
    }
    if config["use_exponential_sigmas"] == true {
        return Some(Spacing::Exponential);
    }
    let offset = config["steps_offset"].as_u64().unwrap_or(0) as usize;
    config["timestep_spacing"].as_str().map(|name| match name {
        "leading" => Spacing::Leading { offset },
        name => name.parse().expect("a known spacing"),
    })
}

#[test]
fn trajectories_equal_the_reference() {
    for folder in cases("samplers") {
        let (case, device) = (Case::open(&folder), device());
        let settings = json(&folder.join("case.json"));
        let all = settings.as_object().expect("an object of cases");
        assert!(!all.is_empty());
        let mut failures = Vec::new();
        for (name, settings) in all {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                one(&case, name, settings, &device);
            }));
            if result.is_err() {
                failures.push(name.clone());
            }
        }
        assert!(failures.is_empty(), "{failures:?}");
    }
}

fn one(case: &Case, name: &str, settings: &Value, device: &burn::tensor::Device) {
    let config = &settings["config"];
    let steps = number(settings, "steps") as usize;
    let (schedule, sampler) = (schedule(name, config), sampler(name, config));
    let grid = sampler.grid(&schedule, spacing(config).as_ref(), steps).expect("a grid");
    let prediction = match config["prediction_type"].as_str() {
        None => Prediction::Flow,
        Some("epsilon") => Prediction::Noise,
        Some("v_prediction") => Prediction::Velocity,
        Some(other) => panic!("prediction {other}"),
    };
    let learned = config["variance_type"] == "learned_range";
    let mut model = Analytic { prediction, variance: learned, timesteps: Vec::new() };

    let expected: Tensor<5> = case.tensor(&format!("{name}.trajectory"), device);
    let first: Tensor<4> = expected.clone().narrow(0, 0, 1).squeeze_dim(0);
    let noise: Tensor<4> = case.tensor("noise", device);
    assert_close(&format!("{name} start"), noise.clone() * grid.initial_scale, first, 1e-5);

    let noises = format!("{name}.noise");
    let mut source = match case.has(&noises) {
        false => NoiseSource::new(0, 1),
        true => {
            let draws: Tensor<5> = case.tensor(&noises, device);
            NoiseSource::Given(draws.iter_dim(0).map(|draw| draw.squeeze_dim(0)).collect())
        }
    };
    let mut states = Vec::new();
    sampler
        .sample(&mut model, noise, &grid, &mut source, &mut |step| {
            states.push(step.x.clone());
            ControlFlow::Continue(())
        })
        .expect("not cancelled");

    // The reference records Heun's predictions too: the corrected state follows every second one.
    let calls = expected.dims()[0] - 1;
    let rows: Vec<usize> = match calls > steps {
        true => (1..steps).map(|i| 2 * i).chain([calls]).collect(),
        false => (1..=steps).collect(),
    };
    for (i, (row, state)) in rows.iter().zip(&states).enumerate() {
        let expected: Tensor<4> = expected.clone().narrow(0, *row, 1).squeeze_dim(0);
        assert_close(&format!("{name} step {i}"), state.clone(), expected, tolerance(1e-4));
    }
    let expected: Tensor<1> = case.tensor(&format!("{name}.timesteps"), device);
    let expected: Vec<f32> = expected.into_data().try_to_vec().expect("floats");
    assert_eq!(model.timesteps.len(), expected.len(), "{name}");
    for (found, expected) in model.timesteps.iter().zip(expected) {
        assert!((found - f64::from(expected)).abs() < 1e-2, "{name}: {found} not {expected}");
    }
}
