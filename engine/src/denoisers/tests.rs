//! Every combination of schedule, prediction, time and network makes numbers after a step, or is refused before it.

use std::ops::ControlFlow;

use burn::module::Module;
use burn::tensor::Device;

use super::*;
use crate::diffusion::{Churn, Clip, NoiseSource, Prediction, Sampler, Step};
use crate::nets::{Conditioning, DitConfig};
use crate::testing::Draws;

fn schedules() -> Vec<NoiseSchedule> {
    let mut all = vec![
        NoiseSchedule::Betas { betas: vec![0.01, 0.5, 0.1, 0.9], zero_snr: false },
        NoiseSchedule::Betas { betas: vec![0.01, 0.5, 0.1, 0.9], zero_snr: true },
    ];
    for zero_snr in [false, true] {
        for steps in [10, 1000, 10_000] {
            let (first, last) = (1e-4, 0.02);
            all.extend([
                NoiseSchedule::Linear { steps, first, last, zero_snr },
                NoiseSchedule::ScaledLinear { steps, first, last, zero_snr },
                NoiseSchedule::SquaredCosine { steps, zero_snr },
            ]);
        }
    }
    all.extend([0.05, 0.3, 1.0, 3.0].map(|shift| NoiseSchedule::RectifiedFlow { shift }));
    let ends = [(1e-3, 80.0), (1e-6, 1e6), (1e-30, 1e30)];
    all.extend(ends.map(|(sigma_min, sigma_max)| NoiseSchedule::Edm {
        sigma_min,
        sigma_max,
        rho: 7.0,
        log_mean: 0.0,
        log_std: 1.0,
    }));
    all
}

fn processes() -> Vec<Process> {
    let predictions = [
        Prediction::Noise,
        Prediction::Velocity,
        Prediction::Clean,
        Prediction::Flow,
        Prediction::Edm { sigma_data: 0.5 },
    ];
    let mut all = Vec::new();
    for schedule in schedules() {
        for prediction in predictions {
            for time in [TimeInput::Timestep, TimeInput::LogSigma] {
                let process = Process::new(schedule.clone(), prediction, time);
                let ended = Process { ends_noisy: true, ..process.clone() };
                all.extend([process, ended]);
            }
        }
    }
    all
}

fn samplers() -> Vec<Sampler> {
    let names = ["ddim", "ddpm", "euler", "euler_a", "heun", "dpmpp_2m_sde", "dpmpp_3m", "unipc"];
    let named = names.into_iter().map(|name| name.parse().expect("known"));
    named
        .chain([Sampler::Heun { churn: Some(Churn { amount: 5.0, ..Churn::default() }) }])
        .collect()
}

#[test]
fn every_combination_makes_numbers_or_is_refused() {
    let device = Device::flex();
    let codes = [
        TimeCode::Sinusoidal { channels: 8, frequency_shift: 0.0 },
        TimeCode::Fourier { channels: 8, unit_variance: true },
        TimeCode::Table { steps: 1000 },
    ];
    let base =
        DitConfig { channels: 1, size: [4, 4], patch: 2, classes: 1, ..DitConfig::dit(8, 1, 1) };
    let nets = codes.map(|time| DitConfig { time, learned_variance: true, ..base.clone() });
    let nets = nets.map(|config| config.init(0, &device).map(&mut Draws::new(1, 0.3)));
    let (mut made, mut refused) = (0, 0);
    for process in processes() {
        for (n, net) in nets.iter().enumerate() {
            if check(&process, net.config()).is_err() {
                refused += 1;
                continue;
            }
            // All samplers with the first network, some with the others.
            for (i, sampler) in samplers().into_iter().enumerate().skip(n).step_by(n + 1) {
                let steps = 1 + i % 3;
                let Ok(grid) = process.grid(&sampler, None, steps) else {
                    refused += 1;
                    continue;
                };
                let told = Conditioning::classes(&[0], &device);
                let mut denoiser = DitDenoiser::new(net, &process, told);
                let mut source = NoiseSource::new(0, 1);
                let noise = source.draw([1, 4, 4], &device);
                let x =
                    sampler.sample(&mut denoiser, noise, &grid, &mut source, &mut |_: Step<'_>| {
                        ControlFlow::Continue(())
                    });
                let largest: f32 = x.expect("not cancelled").abs().max().into_scalar();
                assert!(largest.is_finite(), "{process:?}, {sampler}, {:?}", net.config().time);
                made += 1;
            }
        }
    }
    assert!(made > 1000 && refused > 500, "{made} made, {refused} refused");
}

#[test]
fn what_cannot_work_is_refused_by_name() {
    let zero = NoiseSchedule::SquaredCosine { steps: 1000, zero_snr: true };
    let flow = NoiseSchedule::RectifiedFlow { shift: 1.0 };
    let net = |time| DitConfig { time, ..DitConfig::dit(8, 1, 1) };
    let plain = net(TimeCode::Sinusoidal { channels: 8, frequency_shift: 0.0 });
    let refused = |process: Process, net: &DitConfig, words: [&str; 2]| {
        let error = check(&process, net).expect_err("refused").to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    };
    let (timestep, log) = (TimeInput::Timestep, TimeInput::LogSigma);
    let process = Process::new;
    refused(process(zero.clone(), Prediction::Noise, timestep), &plain, ["noise", "zero SNR"]);
    refused(process(zero, Prediction::Velocity, log), &plain, ["ln(σ) / 4", "zero SNR"]);
    refused(process(flow.clone(), Prediction::Flow, log), &plain, ["ln(σ) / 4", "flow"]);
    refused(process(flow.clone(), Prediction::Noise, timestep), &plain, ["noise", "flow"]);
    let table = net(TimeCode::Table { steps: 1000 });
    refused(process(flow, Prediction::Flow, timestep), &table, ["1000", "1001"]);
    let cosine = NoiseSchedule::SquaredCosine { steps: 1000, zero_snr: false };
    refused(process(cosine.clone(), Prediction::Noise, log), &table, ["1000", "ln(σ) / 4"]);
    let good = process(cosine, Prediction::Noise, timestep);
    assert_eq!(check(&good, &table), Ok(()));
    let clip = |clip| Process { clip: Some(clip), ..good.clone() };
    refused(clip(Clip::Fixed(0.0)), &plain, ["clip", "0"]);
    let quantile = |quantile| clip(Clip::Dynamic { quantile, highest: 1.0 });
    refused(quantile(1.5), &plain, ["quantile", "1.5"]);
    refused(quantile(f64::NAN), &plain, ["quantile", "NaN"]);
}
