//! Forward passes, gradients and pipelines against the reference implementations.

use std::collections::HashMap;
use std::path::Path;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor, TensorData};
use pyrograph::model::Model;
use pyrograph::{ClassPipeline, Noise, Request};
use pyrograph_engine::denoisers::DitDenoiser;
use pyrograph_engine::diffusion::{Denoiser, Guided, GuidedChannels, Level, Sampler, Together};
use pyrograph_engine::nets::{
    Appearance, Conditioning, Control, Dit, DitConfig, IcPortrait, IcPortraitConfig, Sight,
};
use pyrograph_engine::portrait::conditions::ControlKind;
use pyrograph_engine::random::Generator;
use pyrograph_weights::{Checkpoint, write_safetensors};

use crate::util::{
    Case, assert_close, assert_same_parameters, cases, device, files, json, open_changed, stirred,
    tolerance,
};

fn open(path: &Path) -> Model {
    open_changed(path, |_| ())
}

fn told(classes: &[usize]) -> Conditioning {
    Conditioning::classes(classes, &device())
}

#[test]
fn diffusers_transformer_and_autoencoder() {
    for folder in cases("dit-pipeline") {
        let (model, case, device) = (open(&folder), Case::open(&folder), device());
        let output = model.net.trunk().forward(
            case.tensor("forward_latents", &device),
            case.tensor("forward_timestep", &device),
            &told(&case.ids("forward_class")),
            model.config.net.dit.patch,
        );
        let expected = case.tensor("forward_output", &device);
        assert_close("transformer", output, expected, tolerance(1e-5));

        let vae = model.vae.expect("a pipeline has an autoencoder");
        let posterior = vae.encode(case.tensor("vae_image", &device));
        let tolerance = tolerance(1e-4);
        assert_close("mean", posterior.mean, case.tensor("vae_mean", &device), tolerance);
        let log_variance = case.tensor("vae_logvar", &device);
        let found = posterior.log_variance.expect("a Gaussian");
        assert_close("log-variance", found, log_variance, tolerance);
        let decoded = vae.decode(case.tensor("vae_latent", &device));
        assert_close("decoded", decoded, case.tensor("vae_decoded", &device), tolerance);
    }
}

#[test]
fn diffusers_pipeline_from_given_noise() {
    for folder in cases("dit-pipeline") {
        let (case, device) = (Case::open(&folder), device());
        let settings_of_case = json(&folder.join("case.json"));
        let pipeline = ClassPipeline::new(open(&folder), &device).expect("a class model");
        let mut settings = pipeline.config().defaults.settings(0);
        settings.steps = settings_of_case["steps"].as_u64().expect("a number") as usize;
        settings.guidance.scale = settings_of_case["guidance_scale"].as_f64().expect("a number");
        if let Sampler::Ddim { eta } = &mut settings.sampler {
            *eta = settings_of_case["eta"].as_f64().expect("a number");
        }
        let noise = Some(Noise::Values(case.tensor("pipe_noise", &device)));
        let request = Request { noise, ..Request::with(case.ids("pipe_class"), &settings) };
        let mut trajectory = Vec::new();
        let generated = pipeline
            .generate(&request, &mut |progress| {
                trajectory.push(progress.x.clone());
                std::ops::ControlFlow::Continue(())
            })
            .expect("pictures");
        let expected: Tensor<5> = case.tensor("pipe_latents_per_step", &device);
        let trajectory: Tensor<5> = Tensor::stack(trajectory, 0);
        assert_close("latents", trajectory, expected, tolerance(1e-4));

        let pixels = pipeline.pixels(generated.latents, &settings);
        let image = (pixels * 0.5 + 0.5).clamp(0.0, 1.0).permute([0, 2, 3, 1]);
        let reference: Tensor<4> = case.tensor("pipe_image", &device);
        let worst: f32 = (image - reference).abs().max().into_scalar();
        println!("image: {worst:.1e}");
        assert!(worst <= 1e-3, "image differs by {worst}");
        assert_eq!(generated.images.len(), case.ids("pipe_class").len());
    }
}

#[test]
fn original_dit_with_three_channel_guidance() {
    for folder in cases("dit-original") {
        let (case, device) = (Case::open(&folder), device());
        for file in ["model.pt", "checkpoint.pt"] {
            let model = open(&folder.join(file));
            let (x, time): (Tensor<4>, Tensor<1>) =
                (case.tensor("input", &device), case.tensor("timestep", &device));
            let labels = case.ids("label");
            if file == "model.pt" {
                let (net, patch) = (model.net.trunk(), model.config.net.dit.patch);
                let output = net.forward(x.clone(), time, &told(&labels), patch);
                assert_close(file, output, case.tensor("output", &device), tolerance(1e-5));
            }
            let net = &model.config.net.dit;
            let grid = net.grid(net.size, net.patch);
            let position = net.position.table(grid, [[0.0; 2], [1.0; 2]], net.hidden, &device);
            assert_close("positions", position, case.tensor("pos_embed", &device), 1e-6);
        }
        guided_output(&folder, &case);
    }
}

/// Branches on the device under test, two portraits at once, against each alone on the CPU.
#[test]
fn portraits_are_steered_alike_on_every_device() {
    let (host, device) = (Device::flex(), device());
    let config = DitConfig { size: [16, 16], channels: 3, classes: 2, ..DitConfig::dit(32, 3, 2) };
    // Not so much that tokens become all alike, and matches are by chance.
    let net = stirred(config.init(1, &host), 0.1);
    let of = |appearance, panel| IcPortraitConfig { matching: Some(2), appearance, panel };
    let configs =
        [of(Some(Appearance::Branch), true), of(Some(Appearance::InContext { rank: 4 }), false)];
    let branches = configs.map(|own| stirred(IcPortrait::new(&net, own, 1, &host), 0.1));
    let pictures = |seed: u64| {
        let values = Generator::new(seed).normal(2 * 3 * 16 * 16);
        Tensor::<4>::from_data(TensorData::new(values, [2, 3, 16, 16]), &host)
    };
    let [profile, reference, x] = [2, 3, 4].map(pictures);
    let made = |net: &Dit, branches: &IcPortrait, images: [Tensor<4>; 3], class: &[usize]| {
        let device = images[0].device();
        let [profile, reference, x] = images;
        let sight = Sight { profile, reference, time: 0.0, still: false };
        let told = Conditioning::classes(class, &device);
        let told = branches.told(net, &sight, told, config.patch);
        net.forward(x, Tensor::full([class.len()], 300.0, &device), &told, config.patch)
    };
    for branches in branches {
        let images = [&profile, &reference, &x];
        let alone = [0, 1].map(|i| {
            made(&net, &branches, images.map(|images| images.clone().narrow(0, i, 1)), &[i])
        });
        let images = images.map(|images| images.clone().to_device(&device));
        let name = format!("portraits by {:?}", branches.config().appearance);
        let found = made(&net.clone().fork(&device), &branches.fork(&device), images, &[0, 1]);
        assert_close(&name, found, Tensor::cat(alone.to_vec(), 0), tolerance(1e-5));
    }
}

/// A branch on the device under test, by pictures for two images at once, against each alone on the CPU.
#[test]
fn pictures_control_alike_on_every_device() {
    let (host, device) = (Device::flex(), device());
    let config = DitConfig { size: [16, 16], channels: 3, classes: 2, ..DitConfig::dit(32, 3, 2) };
    let net = stirred(config.init(1, &host), 0.1);
    let branch = stirred(Control::new(&net, 2, &host), 0.1);
    let process = pyrograph::train::TrainConfig::default().process;
    let pictures = |seed: u64| {
        let values = Generator::new(seed).normal(2 * 3 * 16 * 16);
        Tensor::<4>::from_data(TensorData::new(values, [2, 3, 16, 16]), &host)
    };
    let [picture, x] = [2, 4].map(pictures);
    let made = |net: &Dit, branch: &Control, [picture, x]: [Tensor<4>; 2], class: &[usize]| {
        let device = x.device();
        let seen = ControlKind::Edges.of(picture);
        let nothing = Conditioning::classes(&vec![2; class.len()], &device);
        let control = branch.of_picture(net, &process, seen, &nothing, config.patch);
        let told = Conditioning { control, ..Conditioning::classes(class, &device) };
        net.forward(x, Tensor::full([class.len()], 0.3, &device), &told, config.patch)
    };
    let alone = [0, 1].map(|i| {
        let images = [&picture, &x].map(|images| images.clone().narrow(0, i, 1));
        made(&net, &branch, images, &[i])
    });
    let images = [picture, x].map(|images| images.to_device(&device));
    let (net, branch) = (net.clone().fork(&device), branch.clone().fork(&device));
    let found = made(&net, &branch, images, &[0, 1]);
    assert_close("controlled", found, Tensor::cat(alone.to_vec(), 0), tolerance(1e-5));
}

/// The reference guides the first three channels of the noise with both halves at timestep 500.
fn guided_output(folder: &Path, case: &Case) {
    let device = device();
    let model = open(&folder.join("model.pt"));
    let half = case.ids("label").len() / 2;
    let x: Tensor<4> = case.tensor::<4>("input", &device).narrow(0, 0, half);
    let process = &model.config.process;
    let level = process.schedule.level(500.0).expect("a timestep of the schedule");
    let labels = &case.ids("label")[..half];
    let null = vec![model.config.net.dit.classes; half];
    let bind = |classes: &[usize]| DitDenoiser::new(model.net.trunk(), process, told(classes));
    let mut guided = Guided {
        estimates: Together { main: bind(labels), all: bind(&[labels, &null].concat()), count: 2 },
        scales: vec![4.0],
        channels: GuidedChannels::First(3),
        interval: None,
        rescale: 0.0,
        normalized: false,
    };
    let found = noise_of(&mut guided, x.clone(), &level);
    let expected: Tensor<4> = case.tensor("cfg_output", &device);
    let channels = x.dims()[1];
    let expected = expected.narrow(0, 0, half).narrow(1, 0, channels);
    assert_close("guided noise", found, expected, tolerance(1e-4));
}

/// Noise prediction behind a clean estimate: `z = (x_t − α x̂) / σ`.
fn noise_of(denoiser: &mut dyn Denoiser, x_t: Tensor<4>, level: &Level) -> Tensor<4> {
    let clean = denoiser.denoise(x_t.clone(), level, 0).clean;
    (x_t - clean * level.alpha) * (1.0 / level.sigma)
}

#[test]
fn mp_dit_forward_blocks_and_gradients() {
    for folder in cases("mp-dit") {
        let name = folder.file_name().expect("a name").to_string_lossy().into_owned();
        let (case, device) = (Case::open(&folder), device());
        let model = open(&folder.join("model.safetensors"));
        let parameters = json(&folder.join("config.json"))["parameters"].as_u64();
        assert_eq!(Some(model.config.net.parameters() as u64), parameters, "{name}");

        let net = model.net.train();
        let autodiff = device.clone().autodiff();
        let mut blocks = Vec::new();
        let output = net.trunk().forward_with(
            case.tensor("input", &autodiff),
            case.tensor("timestep", &autodiff),
            &told(&case.ids("label")),
            model.config.net.dit.patch,
            &mut |_, tokens| {
                blocks.push(tokens.clone().inner());
                tokens
            },
        );
        for (i, block) in blocks.into_iter().enumerate() {
            let expected = case.tensor(&format!("block_{i}"), &device);
            assert_close(&format!("{name} block {i}"), block, expected, tolerance(1e-5));
        }
        let expected = case.tensor("output", &device);
        assert_close(&format!("{name} output"), output.clone().inner(), expected, tolerance(1e-5));

        let loss = output.square().mean();
        let gradients = loss.backward();
        let mut found =
            Gradients { path: Vec::new(), gradients: &gradients, found: HashMap::new() };
        net.visit(&mut found);
        compare_gradients(&name, &case, &found.found, &model.config);
    }
}

struct Gradients<'a> {
    path: Vec<String>,
    gradients: &'a burn::tensor::Gradients,
    found: HashMap<String, Tensor<2>>,
}

impl ModuleVisitor for Gradients<'_> {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(grad) = param.val().grad(self.gradients) {
            let columns = grad.dims()[D - 1];
            self.found.insert(self.path.join("."), grad.reshape([-1, columns as i64]));
        }
    }
}

/// Compares every reference gradient with the same rows and columns of ours.
fn compare_gradients(
    name: &str,
    case: &Case,
    found: &HashMap<String, Tensor<2>>,
    config: &pyrograph::model::ModelConfig,
) {
    let hidden = config.net.dit.hidden;
    let m = config.net.dit.modulation;
    let mods: Vec<usize> = [(m.scale, hidden), (m.shift, hidden), (m.rotation, hidden / 2)]
        .into_iter()
        .filter_map(|(on, width)| on.then_some(width))
        .collect();
    let mut compared = 0;
    // Of scalars: one near zero is off by the rounding of the others, so that all of them are compared together.
    let (mut gains, mut expected_gains) = (Vec::new(), Vec::new());
    for key in case.names().filter(|key| key.starts_with("grad.")) {
        let foreign = key.trim_start_matches("grad.");
        let (ours, columns) = our_place(foreign, &mods, hidden, m.gate);
        let grad = found.get(&ours).unwrap_or_else(|| panic!("no gradient of {ours} ({foreign})"));
        let grad = match columns {
            Some((start, width)) => grad.clone().narrow(1, start, width),
            None => grad.clone(),
        };
        compared += 1;
        if foreign.ends_with(".gain") {
            gains.push(grad.reshape([1]));
            expected_gains.push(case.scalar(key));
            continue;
        }
        let expected: Tensor<2> = case.tensor::<2>(key, &grad.device()).transpose();
        let grad = if foreign.starts_with("y_embedder") { grad.transpose() } else { grad };
        assert_close(&format!("{name} {key}"), grad, expected, tolerance(1e-4));
    }
    if !gains.is_empty() {
        let gains: Tensor<1> = Tensor::cat(gains, 0);
        let expected = Tensor::from_floats(expected_gains.as_slice(), &gains.device());
        assert_close(&format!("{name} gains"), gains, expected, tolerance(1e-4));
    }
    assert!(compared > 10, "{name}: only {compared} gradients");
}

/// Name of our parameter for a foreign one, with the columns it occupies there.
fn our_place(
    foreign: &str,
    mods: &[usize],
    hidden: usize,
    gate: bool,
) -> (String, Option<(usize, usize)>) {
    let plain = [
        ("x_embedder.weight", "patch.weight"),
        ("t_embedder.mlp.net.0.weight", "embedder.time.mlp.up.weight"),
        ("t_embedder.mlp.net.2.weight", "embedder.time.mlp.down.weight"),
        ("y_embedder.embedding.weight", "embedder.label.weight"),
        ("final_layer.linear.weight", "head.out.weight"),
        ("final_layer.linear.gain", "head.out.gain"),
    ];
    if let Some((_, ours)) = plain.iter().find(|(key, _)| *key == foreign) {
        return ((*ours).to_owned(), None);
    }
    let parts: Vec<&str> = foreign.split('.').collect();
    let gain = parts.last() == Some(&"gain");
    let place = |prefix: String, branch: usize, index: usize, gated: bool| {
        let per_branch: Vec<usize> =
            mods.iter().copied().chain((gate && gated).then_some(hidden)).collect();
        let number = branch * per_branch.len() + index;
        let before: usize = per_branch.iter().cycle().take(number).sum();
        match gain {
            true => (format!("{prefix}.modulation.gain"), Some((number, 1))),
            false => {
                (format!("{prefix}.modulation.dense.weight"), Some((before, per_branch[index])))
            }
        }
    };
    if parts[0] == "final_layer" {
        return place("head".into(), 0, parts[3].parse().expect("an index"), false);
    }
    let block = format!("blocks.{}", parts[1]);
    match parts[2] {
        "attn" if parts[3] == "qkv_proj" => (format!("{block}.attention.qkv.weight"), None),
        "attn" => (format!("{block}.attention.out.weight"), None),
        "mlp" if parts[4] == "0" => (format!("{block}.mlp.up.weight"), None),
        "mlp" => (format!("{block}.mlp.down.weight"), None),
        name => {
            let branch = usize::from(name.ends_with('2'));
            let index = match name.starts_with("gate") {
                true => mods.len(),
                false => parts[4].parse().expect("an index"),
            };
            place(block, branch, index, true)
        }
    }
}

/// An average of the weights in half precision is a model like any other.
#[test]
fn mp_dit_average_file_opens() {
    let mut averages = 0;
    for folder in cases("mp-dit") {
        for path in files(&folder).filter(|path| path.extension().is_some_and(|end| end == "pt")) {
            averages += 1;
            let found = open(&path);
            assert_eq!(found.net.config(), open(&folder.join("model.safetensors")).net.config());

            // The same weights in a file of the other kind.
            let checkpoint = Checkpoint::open(&path).expect("an average");
            let tensors: Vec<(String, TensorData)> = checkpoint
                .tensors()
                .keys()
                .map(|name| {
                    let (values, shape) = checkpoint.read_f32(name).expect("floats");
                    (name.clone(), TensorData::new(values, shape))
                })
                .collect();
            let copy = tempfile::tempdir().expect("a folder");
            let weights = copy.path().join("model.safetensors");
            write_safetensors(&weights, &tensors, &Default::default()).expect("written");
            std::fs::copy(folder.join("config.json"), copy.path().join("config.json"))
                .expect("copied");
            assert_same_parameters("average", &found.net.train(), &open(&weights).net.train());
        }
    }
    assert!(averages > 0, "no average among the cases");
}
