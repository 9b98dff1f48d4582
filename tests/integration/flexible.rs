//! Several patch sizes in one network (FlexiDiT).

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use burn::module::Module;
use burn::tensor::Tensor;
use pyrograph::model::{Model, ModelConfig};
use pyrograph::patches::PatchPlan;
use pyrograph::settings::Settings;
use pyrograph::train::TrainConfig;
use pyrograph::{ClassPipeline, Progress, Request};
use pyrograph_engine::diffusion::{NoiseSource, Sampler};
use pyrograph_engine::nets::{Conditioning, Dit, DitConfig, Flexible, Sharing, flexify};
use pyrograph_engine::random::Generator;
use pyrograph_engine::train::{
    Batch, Denoising, LearningRate, Target, Trainer, TrainerConfig, params,
};

use crate::util::{assert_close, device, identical, opened, tolerance};

const CLASSES: usize = 3;

/// Small networks of both kinds, 16 x 16 with patches of 2, with random weights everywhere.
fn nets() -> [Dit; 2] {
    [DitConfig::dit(64, 2, 4), DitConfig::mp_dit(64, 2, 4)].map(|config| {
        opened(DitConfig { size: [16, 16], classes: CLASSES, ..config }.init(1, &device()))
    })
}

fn shared(patches: &[usize], underlying: usize) -> Flexible {
    let sharing = Sharing::Kernels { underlying };
    Flexible { patches: patches.to_vec(), sharing, corners: false }
}

fn adapted(patches: &[usize]) -> Flexible {
    let sharing = Sharing::Adapters { rank: 4 };
    Flexible { patches: patches.to_vec(), sharing, corners: false }
}

fn flexified(net: &Dit, flexible: Flexible) -> Dit {
    flexify(net.clone(), flexible, 5).expect("sizes that fit")
}

fn call(net: &Dit, x: &Tensor<4>, patch: usize) -> Tensor<4> {
    let device = x.device();
    let time = Tensor::<1>::from_floats([30.0, 700.0], &device);
    net.forward(x.clone(), time, &Conditioning::classes(&[0, CLASSES], &device), patch)
}

fn random([count, channels, height, width]: [usize; 4]) -> Tensor<4> {
    NoiseSource::new(11, count).draw([channels, height, width], &device())
}

#[test]
fn the_native_size_is_as_it_was() {
    for net in nets() {
        for size in [[16, 16], [16, 32]] {
            let x = random([2, 4, size[0], size[1]]);
            let before = call(&net, &x, 2);
            for patches in [&[4][..], &[4, 8]] {
                let after = call(&flexified(&net, adapted(patches)), &x, 2);
                assert!(identical(before.clone(), after), "with adapters");
                for underlying in [2, 4] {
                    let flexible = flexified(&net, shared(patches, underlying));
                    let after = call(&flexible, &x, 2);
                    assert_close("shared", after.clone(), before.clone(), tolerance(1e-6));
                    let folded = call(&flexible.folded(), &x, 2);
                    assert_close("folded", folded, after, tolerance(2e-5));
                }
            }
        }
    }
}

#[test]
fn every_size_makes_whole_images_and_folding_changes_none() {
    for net in nets() {
        for flexible in [shared(&[4, 8], 4), adapted(&[4, 8])] {
            let net = opened(flexified(&net, flexible));
            assert_eq!(net.config().parameters(), net.num_params() - frozen(&net));
            let folded = net.clone().folded();
            for patch in [2, 4, 8] {
                let x = random([2, 4, 16, 32]);
                let y = call(&net, &x, patch);
                assert_eq!(y.dims()[2..], [16, 32]);
                assert_close("folded", call(&folded, &x, patch), y, tolerance(2e-5));
            }
        }
    }
}

/// Numbers in a network that are drawn once and never trained.
fn frozen(net: &Dit) -> usize {
    net.embedder.time.fourier.as_ref().map_or(0, Module::num_params)
}

#[test]
fn a_fresh_large_patch_is_embedded_as_its_mean_pooled_image() {
    let [net, _] = nets();
    let flexible = flexified(&net, shared(&[4], 4));
    let x = random([1, 4, 16, 16]);
    let pooled: Tensor<6> = x.clone().reshape([1, 4, 8, 2, 8, 2]);
    let pooled = pooled.mean_dim(5).mean_dim(3).reshape([1, 4, 8, 8]);
    // Without positions, whose grids differ.
    let at = |net: &Dit, x: &Tensor<4>, patch: usize| {
        net.embed(x.clone(), patch) - net.embed(x.zeros_like(), patch)
    };
    let (weak, native) = (at(&flexible, &x, 4), at(&net, &pooled, 2));
    assert_close("tokens", weak.clone(), native, tolerance(1e-5));
    let rms = |x: Tensor<3>| x.square().mean().sqrt().into_scalar::<f32>();
    let noise = rms(weak) / rms(at(&net, &x, 2));
    assert!((noise - 0.5).abs() < 0.06, "white noise: {noise}");
    let flat = Tensor::ones([1, 4, 16, 16], &device());
    let constant = rms(at(&flexible, &flat, 4)) / rms(at(&net, &flat, 2));
    assert!((constant - 1.0).abs() < 1e-4, "constant: {constant}");
}

#[test]
fn distilling_adapters_leaves_the_base_bit_for_bit() {
    for net in nets() {
        let x = random([2, 4, 16, 16]);
        let before = call(&net, &x, 2);
        let flexible = flexified(&net, adapted(&[4]));
        let config = ModelConfig { net: flexible.config().clone().into(), ..model_config() };
        let objective = Denoising {
            process: config.process,
            condition_dropout: 0.1,
            target: Target::Native,
            weighting: Default::default(),
            perceptual: None,
        };
        let mut trainer = Trainer::new(flexible.freeze_native(), trainer_config());
        let names = params::names(&trainer.model);
        let own = names.iter().all(|name| name.starts_with("modes."));
        assert!(own && names.len() > 10, "{names:?}");
        let told = |classes: [usize; 2]| Conditioning::classes(&classes, &device());
        let (clean, null) = (x.clone().autodiff(), told([CLASSES; 2]));
        let batch = Batch { clean, told: told([0, 1]), null };
        let losses: Vec<f32> = (0..12)
            .map(|_| {
                let random = || Generator::new(0);
                let loss = |net: &Dit, _| (objective.loss(net, &batch, 4, &mut random()), ());
                trainer.step(1, loss).0.loss.into_scalar()
            })
            .collect();
        assert!(losses[11] < 0.9 * losses[0], "{losses:?}");
        let trained = trainer.model.valid();
        assert!(identical(call(&trained, &x, 2), before));
    }
}

fn trainer_config() -> TrainerConfig {
    TrainerConfig {
        steps: 100,
        learning_rate: LearningRate { peak: 1e-2, warmup: 0, decay: Default::default() },
        optimizer: Default::default(),
        betas: [0.9, 0.99],
        epsilon: 1e-8,
        weight_decay: 0.0,
        clip: None,
        averages: Vec::new(),
        forced_normalization: true,
        precision: Default::default(),
    }
}

fn model_config() -> ModelConfig {
    let train = TrainConfig::default();
    ModelConfig {
        text: None,
        net: DitConfig::dit(64, 2, 4).into(),
        process: train.process,
        vae: None,
        defaults: train.defaults,
        labels: Default::default(),
    }
}

/// A pipeline on pixels with patches of 2, 4 and 8.
fn pipeline() -> ClassPipeline {
    let config =
        DitConfig { size: [16, 16], classes: CLASSES, channels: 3, ..DitConfig::dit(64, 2, 4) };
    let net = opened(flexified(
        &opened(DitConfig { learned_variance: false, ..config }.init(1, &device())),
        shared(&[4, 8], 4),
    ));
    let config = ModelConfig { net: net.config().clone().into(), ..model_config() };
    let model = Model::new(net.into(), None, config);
    ClassPipeline::new(model, &device()).expect("a class model")
}

fn latents(pipeline: &ClassPipeline, settings: &Settings) -> Tensor<4> {
    let on_step = &mut |_: Progress<'_>| ControlFlow::Continue(());
    let request = Request::with([0, 2], settings);
    pipeline.generate(&request, on_step).expect("pictures").latents
}

#[test]
fn schedules_of_patch_sizes_act_step_by_step() {
    let pipeline = pipeline();
    let net = pipeline.config().net.dit.clone();
    for sampler in ["ddim", "dpmpp_2m", "heun"] {
        let mut settings = pipeline.config().defaults.settings(3);
        settings.sampler = pyrograph_engine::diffusion::parse_sampler(sampler).expect("known").0;
        (settings.steps, settings.guidance.scale) = (6, 2.0);
        let run = |plan: Option<PatchPlan>| {
            latents(&pipeline, &Settings { patches: plan, ..settings.clone() })
        };
        let native = run(None);
        let none = PatchPlan::weak_first([2, 4], 0, 0, 6);
        assert!(identical(run(Some(none)), native.clone()), "{sampler}");
        // All weak, mixed, and weakly guided runs are all different, and start from the same noise.
        let weak = run(Some(PatchPlan::constant(4, 6)));
        let mixed = run(Some(PatchPlan::weak_first([2, 4], 3, 3, 6)));
        let guided = run(Some(PatchPlan::weak_first([2, 4], 3, 6, 6)));
        let all = [native, weak, mixed, guided];
        for (i, a) in all.iter().enumerate() {
            for b in &all[..i] {
                assert!(!identical(a.clone(), b.clone()), "{sampler}");
            }
        }
    }
    let plan = PatchPlan::parse("8:2,4:2,2:2", 6).expect("a plan");
    assert_eq!(plan.phases(&net, [16, 16], 6).expect("phases").len(), 3);
    assert!(plan.phases(&net, [12, 12], 6).is_err());
}

#[test]
fn every_call_of_the_network_is_counted() {
    let own = pipeline();
    let mut settings = own.config().defaults.settings(3);
    (settings.steps, settings.guidance.scale) = (6, 2.0);
    let count = |pipeline: &ClassPipeline, settings: &Settings| {
        pipeline.compute(&Request::with([0], settings)).expect("settings that fit")
    };
    let flops = |patch: usize| own.config().net.dit.flops([16, 16], patch, 0) / 2e9;

    let plan = PatchPlan::parse("8:2,4:2,2:2", 6).expect("a plan");
    let found = count(&own, &Settings { patches: Some(plan.clone()), ..settings.clone() });
    assert_eq!(found.calls, BTreeMap::from([(2, 4), (4, 4), (8, 4)]));
    let expected = 4.0 * (flops(2) + flops(4) + flops(8));
    assert!((found.gmacs / expected - 1.0).abs() < 1e-12, "{} {expected}", found.gmacs);
    let share = plan.share(&own.config().net.dit, [16, 16], 6);
    assert!((found.share - share).abs() < 1e-12, "{} {share}", found.share);

    // A solver of two calls per step, but for the last; guidance in the middle steps only.
    settings.sampler = Sampler::Heun { churn: None };
    assert_eq!(count(&own, &settings).calls, BTreeMap::from([(2, 22)]));
    settings.sampler = Sampler::DpmPp2m;
    let grid = settings.grid(&own.config().process).expect("a grid");
    let sigma = |step: usize| grid.steps[step][0].ve_sigma();
    settings.guidance.interval = Some([sigma(4), sigma(2)]);
    assert_eq!(count(&own, &settings).calls, BTreeMap::from([(2, 8)]));

    // A guide of another size.
    settings.guidance.interval = None;
    let small =
        DitConfig { size: [16, 16], classes: CLASSES, channels: 3, ..DitConfig::dit(32, 1, 2) };
    let net = DitConfig { learned_variance: false, ..small }.init(2, &device());
    let guide_flops = net.config().flops([16, 16], 2, 0) / 2e9;
    let config = ModelConfig { net: net.config().clone().into(), ..model_config() };
    let guide = Model::new(net.into(), None, config);
    let guided = pipeline().with_guide(guide).expect("a guide that fits");
    let found = count(&guided, &settings);
    let expected = 6.0 * (flops(2) + guide_flops);
    assert!((found.gmacs / expected - 1.0).abs() < 1e-12, "{} {expected}", found.gmacs);
}

#[test]
fn guidance_of_scale_one_is_the_conditional_call() {
    let pipeline = pipeline();
    let mut settings = pipeline.config().defaults.settings(3);
    (settings.steps, settings.guidance.scale) = (4, 1.0);
    settings.patches = Some(PatchPlan::weak_first([2, 4], 2, 4, 4));
    let plain = latents(&pipeline, &settings);
    settings.patches = Some(PatchPlan::weak_first([2, 4], 2, 2, 4));
    assert!(identical(plain, latents(&pipeline, &settings)));
}
