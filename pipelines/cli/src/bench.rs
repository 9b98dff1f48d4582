//! `pyrograph bench`: how fast a model runs on this machine, as JSON lines.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail};
use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Distribution, FloatDType, Tensor};
use clap::{Args, ValueEnum};
use cpu_time::ProcessTime;
use pyrograph::engine::device::is_host;
use pyrograph::engine::diffusion::{NoiseSchedule, Prediction, Process, TimeInput};
use pyrograph::engine::nets::{Conditioning, Dit, DitConfig, Text};
use pyrograph::engine::ops::{self, products};
use pyrograph::engine::random::Generator;
use pyrograph::engine::train::{
    Batch, Denoising, LearningRate, Precision, Rule, Target, Trainer, TrainerConfig, Weighting,
};
use pyrograph::model::{self, Model};
use pyrograph::pipeline::Pipeline;
use pyrograph::task::{ClassTask, PromptTask, TextTask};
use pyrograph::train::TrainConfig;
use pyrograph::weights::FloatDtype;
use pyrograph::{Guidance, Request, WeightType, memory};
use serde_json::{Map, Value, json};

use crate::common::{Common, parse_steps, whole};

#[derive(Args)]
pub(crate) struct Bench {
    /// What to time
    #[arg(value_enum, required = true)]
    what: Vec<What>,
    /// Bundle, diffusers folder, checkpoint file, or the name of a shipped model
    #[arg(long, short, default_value = crate::generate::DEFAULT_MODEL)]
    model: PathBuf,
    /// Type of the weights: f32, f16, bf16, stored or, on the CPU, int8
    #[arg(long, default_value = "f32")]
    dtype: WeightType,
    /// Images per network call, or per training step
    #[arg(long, default_value_t = 1, value_parser = whole(1, 65_536))]
    batch: usize,
    /// Timed runs, after one that is not
    #[arg(long, default_value_t = 7, value_parser = whole(1, 1_000_000))]
    runs: usize,
    /// Sampling steps of a generation [default: the model's]
    #[arg(long, value_parser = parse_steps)]
    steps: Option<usize>,
    /// Guidance scale of a generation [default: the model's]
    #[arg(long)]
    cfg_scale: Option<f64>,
    /// Time `forward` of a network of the sizes below, with random weights, in place of a model
    #[arg(long, conflicts_with = "model")]
    random: bool,
    /// Width of the network that `train` and `--random` make
    #[arg(long, default_value_t = 192, value_parser = whole(1, 8192))]
    hidden: usize,
    /// Its blocks
    #[arg(long, default_value_t = 6, value_parser = whole(1, 256))]
    depth: usize,
    /// Its attention heads
    #[arg(long, default_value_t = 3, value_parser = whole(1, 256))]
    heads: usize,
    /// Its tokens, a square number
    #[arg(long, default_value_t = 64, value_parser = parse_tokens)]
    tokens: usize,
    /// A magnitude-preserving network
    #[arg(long)]
    mp: bool,
    /// Tokens of the text that `encode` and `forward` are of, for a model that reads texts
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = whole(1, 65_536))]
    text_tokens: usize,
}

fn parse_tokens(text: &str) -> anyhow::Result<usize> {
    let square = |count: &usize| (1..=65_536).contains(count) && count.isqrt().pow(2) == *count;
    text.parse().ok().filter(square).context("expected a square number up to 65536")
}

/// What a model of texts is asked.
const PROMPT: &str = "a small boat on a lake in the morning light, mountains behind it";

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// The machine's own speed at a large f32 matrix product
    Gemm,
    /// Opening the model
    Load,
    /// The text encoder, on one text
    Encode,
    /// One call of the network
    Forward,
    /// A whole generation
    Generate,
    /// The autoencoder's decoder
    Decode,
    /// One training step of a fresh network
    Train,
}

impl What {
    /// Whether a network alone will do.
    fn is_of_network(self) -> bool {
        matches!(self, What::Gemm | What::Forward | What::Train)
    }
}

fn named(what: What) -> String {
    what.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

pub(crate) fn run(args: &Bench, common: &Common) -> anyhow::Result<()> {
    let device = common.open()?.device;
    let bench = Timer { args, device: &device, peak: peak(&device) };
    if let Some(what) = args.what.iter().find(|what| args.random && !what.is_of_network()) {
        bail!("--random is for forward and train, not for {}", named(*what));
    }
    let needs_model = |what: &What| !(args.random || matches!(what, What::Gemm | What::Train));
    let path = match args.what.iter().any(needs_model) {
        true => common.find(&args.model)?,
        false => PathBuf::new(),
    };
    for what in &args.what {
        match what {
            What::Gemm => println!("{}", json!({ "bench": "gemm", "gflops": bench.peak / 1e9 })),
            What::Load => bench.report("load", None, || open(&path, args, &device))?,
            What::Forward if args.random => forward(&bench, &random(args, &device)?)?,
            What::Forward => forward(&bench, open(&path, args, &device)?.net.folded().trunk())?,
            What::Encode => encode(&bench, &path)?,
            What::Generate => match model::recognise(&path)?.config.text {
                None => generate::<ClassTask>(&bench, &path, 0)?,
                Some(_) => generate::<TextTask>(&bench, &path, PROMPT.to_owned())?,
            },
            What::Decode => decode(&bench, open(&path, args, &device)?)?,
            What::Train => train(&bench)?,
        }
    }
    Ok(())
}

fn open(path: &Path, args: &Bench, device: &Device) -> anyhow::Result<Model> {
    let recognised = model::recognise(path)?;
    recognised.config.check_trained()?;
    let model = recognised.load(args.dtype, device, &mut |_| ())?;
    crate::memory::give_back(args.dtype);
    Ok(model)
}

struct Timer<'a> {
    args: &'a Bench,
    device: &'a Device,
    /// Floating-point operations per second of a large matrix product.
    peak: f64,
}

impl Timer<'_> {
    /// Times a call and prints a line; `flops` are the operations of one call.
    fn report<T>(
        &self,
        name: &str,
        flops: Option<f64>,
        mut call: impl FnMut() -> anyhow::Result<T>,
    ) -> anyhow::Result<()> {
        let mut once = || -> anyhow::Result<(f64, f64)> {
            let (wall, cpu) = (Instant::now(), ProcessTime::now());
            // Held until the device is done: what nobody holds need not be computed.
            let _made = call()?;
            self.device.sync().ok().context("the device stopped")?;
            Ok((wall.elapsed().as_secs_f64(), cpu.elapsed().as_secs_f64()))
        };
        once()?;
        let runs = (0..self.args.runs).map(|_| once()).collect::<Result<Vec<_>, _>>()?;
        let (mut walls, mut cpus): (Vec<f64>, Vec<f64>) = runs.into_iter().unzip();
        walls.sort_by(f64::total_cmp);
        cpus.sort_by(f64::total_cmp);
        let median = walls[walls.len() / 2];
        let mut line = Map::from_iter([
            ("bench".to_owned(), json!(name)),
            ("batch".to_owned(), json!(self.args.batch)),
            ("dtype".to_owned(), json!(self.args.dtype)),
            ("threads".to_owned(), json!(rayon::current_num_threads())),
            ("wall_median_s".to_owned(), json!(median)),
            ("wall_min_s".to_owned(), json!(walls[0])),
            ("cpu_median_s".to_owned(), json!(cpus[cpus.len() / 2])),
            ("runs".to_owned(), json!(walls.len())),
            ("peak_rss_mb".to_owned(), peak_memory().map_or(Value::Null, |mb| json!(mb))),
        ]);
        if is_host(self.device) {
            let dtype = self.args.dtype.to_string();
            let form = products().into_iter().find(|(name, _)| *name == dtype);
            line.extend(form.map(|(_, form)| ("products".to_owned(), json!(form))));
        }
        if let Some(flops) = flops {
            line.insert("gflops".into(), json!(flops / median / 1e9));
            line.insert("share_of_gemm".into(), json!(flops / median / self.peak));
        }
        println!("{}", Value::Object(line));
        Ok(())
    }
}

/// Refuses a call on so many images that takes more memory than there is; on a GPU, its driver does.
fn check_memory(bench: &Timer<'_>, size: [usize; 2], need: u64) -> anyhow::Result<()> {
    match is_host(bench.device) {
        true => Ok(memory::check(memory::of_images(bench.args.batch, size), need)?),
        false => Ok(()),
    }
}

/// Floating-point operations per second of an f32 product of 1024 x 1024 x 1024, the best of ten.
fn peak(device: &Device) -> f64 {
    const SIDE: usize = 1024;
    let matrix = || Tensor::<2>::random([SIDE, SIDE], Distribution::Normal(0.0, 1.0), device);
    let (a, b) = (matrix(), matrix());
    let once = || {
        let start = Instant::now();
        let c = ops::linear(a.clone(), b.clone(), None, None);
        // Reading one number waits for the device.
        let _: f32 = c.slice([0..1, 0..1]).into_scalar();
        start.elapsed().as_secs_f64()
    };
    let best = (0..11).map(|_| once()).skip(1).fold(f64::INFINITY, f64::min);
    2.0 * (SIDE as f64).powi(3) / best
}

/// Most memory this process has held, in MB, where the system tells.
pub(crate) fn peak_memory() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok()? / 1024.0)
}

fn input(config: &DitConfig, batch: usize, device: &Device) -> Tensor<4> {
    let shape = [batch, config.channels, config.size[0], config.size[1]];
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), device)
}

fn forward(bench: &Timer<'_>, net: &Dit) -> anyhow::Result<()> {
    let (config, batch, device) = (net.config(), bench.args.batch, bench.device);
    check_memory(bench, config.size, memory::network(config, batch, config.size))?;
    let x = input(config, batch, device);
    let time = Tensor::<1>::full([batch], 500.0, device);
    let tokens = bench.args.text_tokens;
    let random = |width| Tensor::random([batch, tokens, width], Distribution::Default, device);
    let told = Conditioning {
        class: Conditioning::classes(&vec![0; batch], device).class.filter(|_| config.classes > 0),
        text: config.text.as_ref().map(|text| Text {
            tokens: random(text.width),
            lengths: None,
            pooled: text.pooled.map(|width| Tensor::zeros([batch, width], device)),
        }),
        size: config.sized.then(|| Tensor::ones([batch, 3], device)),
        ..Conditioning::default()
    };
    for patch in config.patches() {
        let flops = config.flops(config.size, patch, tokens) * batch as f64;
        let name = match patch == config.patch {
            true => "forward".to_owned(),
            false => format!("forward/{patch}"),
        };
        bench.report(&name, Some(flops), || {
            Ok(net.forward(x.clone(), time.clone(), &told, patch))
        })?;
    }
    Ok(())
}

/// Times the encoder on a text of so many tokens, none of which is taken from disk.
fn encode(bench: &Timer<'_>, path: &Path) -> anyhow::Result<()> {
    let tokens = bench.args.text_tokens;
    let model = open(path, bench.args, bench.device)?;
    let reader = model.text.context("the model has no text encoder")?;
    // A word is one token or more.
    let texts = [vec!["lighthouse"; tokens].join(" ")];
    bench.report("encode", None, || Ok(reader.read_once(&texts, tokens)?))
}

fn generate<T: PromptTask>(
    bench: &Timer<'_>,
    path: &Path,
    prompt: T::Prompt,
) -> anyhow::Result<()> {
    let args = bench.args;
    let pipeline = Pipeline::<T>::new(open(path, args, bench.device)?, bench.device)?;
    let request = Request {
        steps: args.steps,
        guidance: Guidance { scale: args.cfg_scale, ..Guidance::default() },
        batch: Some(args.batch),
        ..Request::new(vec![prompt; args.batch])
    };
    bench.report("generate", None, || {
        // Random weights make no picture worth checking.
        Ok(pipeline.sketch(&request, &mut |_| ControlFlow::Continue(()))?)
    })
}

fn decode(bench: &Timer<'_>, model: Model) -> anyhow::Result<()> {
    let vae = model.vae.context("the model has no autoencoder")?;
    let size = model.config.net.dit.size.map(|side| side * vae.config().factor());
    check_memory(bench, size, memory::autoencoder(vae.config(), bench.args.batch, size))?;
    let latent = vae.unscale(input(&model.config.net.dit, bench.args.batch, bench.device));
    bench.report("decode", None, || Ok(vae.decode(latent.clone())))
}

/// A network of the sizes that were asked for.
fn described(args: &Bench) -> anyhow::Result<DitConfig> {
    let side = 2 * args.tokens.isqrt();
    let shape = match args.mp {
        true => DitConfig::mp_dit(args.hidden, args.depth, args.heads),
        false => DitConfig::dit(args.hidden, args.depth, args.heads),
    };
    let config = DitConfig { size: [side, side], ..shape };
    config.check()?;
    Ok(config)
}

/// Such a network with random weights, as it is used.
fn random(args: &Bench, device: &Device) -> anyhow::Result<Dit> {
    struct Cast(FloatDType);
    impl ModuleMapper for Cast {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.map(|values| values.cast(self.0))
        }
    }
    let WeightType::Float(dtype) = args.dtype else {
        bail!("random weights in {}, expected f32, f16 or bf16", args.dtype);
    };
    let mut cast = Cast(FloatDType::from(dtype.burn()));
    Ok(described(args)?.init(0, device).map(&mut cast).folded())
}

fn train(bench: &Timer<'_>) -> anyhow::Result<()> {
    let args = bench.args;
    let config = described(args)?;
    let averages = Vec::new();
    TrainConfig { batch: args.batch, micro_batches: 1, averages, ..TrainConfig::default() }
        .check_memory(&config, bench.device)?;
    let device = bench.device.clone().autodiff();
    let settings = TrainerConfig {
        steps: 1000,
        learning_rate: LearningRate { peak: 1e-4, warmup: 0, decay: Default::default() },
        optimizer: Rule::AdamW,
        betas: [0.9, 0.999],
        epsilon: 1e-8,
        weight_decay: 0.01,
        clip: None,
        averages: Vec::new(),
        forced_normalization: args.mp,
        precision: match args.dtype {
            WeightType::Float(FloatDtype::Bf16) => Precision::Bf16,
            WeightType::Float(FloatDtype::F32) => Precision::F32,
            other => bail!("training in {other}, expected f32 or bf16"),
        },
    };
    if settings.precision == Precision::Bf16 && !ops::mixes(bench.device) {
        bail!("no products of bf16 on this device");
    }
    let mut trainer = Trainer::new(config.init(0, &device), settings);
    let schedule = NoiseSchedule::SquaredCosine { steps: 1000, zero_snr: false };
    let process = Process::new(schedule, Prediction::Noise, TimeInput::Timestep);
    let objective = Denoising {
        process,
        condition_dropout: 0.1,
        target: Target::Data,
        weighting: Weighting::default(),
        perceptual: None,
    };
    let clean = input(&config, args.batch, bench.device).autodiff();
    let told = |class: usize| Conditioning::classes(&vec![class; args.batch], bench.device);
    let batch = Batch { clean, told: told(0), null: told(config.classes) };
    // Three times the products of a forward pass.
    let flops = 3.0 * config.flops(config.size, config.patch, 0) * args.batch as f64;
    bench.report("train", Some(flops), || {
        let random = || Generator::new(0);
        let loss = |net: &Dit, _| (objective.loss(net, &batch, config.patch, &mut random()), ());
        Ok(trainer.step(1, loss).0.loss.into_scalar::<f32>())
    })
}
