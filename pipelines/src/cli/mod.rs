//! The command line: what was typed, and what it means.
#![allow(clippy::print_stdout)]

mod bench;
mod convert;
mod devices;
mod distill;
mod eval;
mod flexify;
mod generate;
mod health;
mod inspect;
mod merge;
mod patches;
mod request;
mod sweep;
mod train;
mod weight_type;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use burn::tensor::Device;
use clap::{Args, Parser, Subcommand};
use pyrograph::error::Error;
use pyrograph_engine::device::{self, DeviceChoice, Opened};

/// Diffusion transformers: make images, train models, open checkpoints.
#[derive(Parser)]
#[command(name = "pyrograph", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: Common,
}

#[derive(Subcommand)]
enum Command {
    /// Make images
    #[command(subcommand)]
    Generate(Generate),
    /// Train a model from a folder of images
    #[command(subcommand)]
    Train(Train),
    /// Make a few-step student of a model: record its trajectories, train the student on them
    Distill(Box<distill::Distill>),
    /// Show what a model or a weight file holds
    Inspect(inspect::Inspect),
    /// Write a model as a native bundle
    Convert(convert::Convert),
    /// Measure how far generated images are from real ones
    Eval(Box<eval::Eval>),
    /// Measure quality against compute, over patch schedules, steps, guidance and solvers
    Sweep(Box<sweep::Sweep>),
    /// Give a model further patch sizes
    Flexify(flexify::Flexify),
    /// Average the weights of several models
    Merge(merge::Merge),
    /// Time a model on this machine, as JSON lines
    Bench(bench::Bench),
    /// Show the settings stored in an image
    Metadata {
        /// PNG file
        image: PathBuf,
    },
    /// List the GPUs of this machine
    Devices {
        /// Print how far the device is from the CPU on a small network
        #[arg(long)]
        check: bool,
        /// Check without kernel fusion
        #[arg(long)]
        no_fusion: bool,
    },
}

#[derive(Subcommand)]
enum Generate {
    /// Images of given classes
    Class(Box<generate::Class>),
}

#[derive(Subcommand)]
enum Train {
    /// A class-conditional model
    Class(train::Class),
    /// Average the weights of a finished run with another width
    Average(train::AverageArgs),
}

/// Options of every command.
#[derive(Args)]
struct Common {
    /// auto, cpu, gpu or gpu:N
    #[arg(long, global = true, default_value = "auto")]
    device: String,
    /// CPU threads [default: all cores]
    #[arg(long, short = 't', global = true)]
    threads: Option<usize>,
    /// Print machine-readable JSON lines on standard output
    #[arg(long, global = true)]
    json: bool,
    /// Print errors only
    #[arg(long, short, global = true)]
    quiet: bool,
    /// Print more
    #[arg(long, short, global = true)]
    verbose: bool,
}

impl Common {
    /// Opens the device asked for; says so when `auto` found no GPU.
    fn open(&self) -> anyhow::Result<Opened> {
        let choice: DeviceChoice = self.device.parse()?;
        let adapter = device::find(choice)?;
        let fusion = match &adapter {
            Some(adapter) => health::use_fusion(adapter, self)?,
            None => true,
        };
        let opened = device::open(adapter, fusion)?;
        let _ = OPENED.set(opened.device.clone());
        if choice == DeviceChoice::Auto && opened.adapter.is_none() {
            self.say("no GPU found, running on the CPU");
        }
        if self.verbose {
            self.say(&format!("device: {opened}"));
        }
        Ok(opened)
    }

    /// A line for people, on standard error.
    fn say(&self, line: &str) {
        if !self.quiet {
            eprintln!("{line}");
        }
    }

    fn progress_bar(&self, length: u64, template: &str) -> indicatif::ProgressBar {
        if self.quiet || self.json {
            return indicatif::ProgressBar::hidden();
        }
        let style = indicatif::ProgressStyle::with_template(template)
            .unwrap_or_else(|_| indicatif::ProgressStyle::default_bar());
        indicatif::ProgressBar::new(length).with_style(style)
    }
}

/// Set by Ctrl-C.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Bytes of the stack of each thread, as many as the first one of a process has.
const STACK: usize = 8 << 20;

/// The device in use.
static OPENED: OnceLock<Device> = OnceLock::new();

/// Stop as soon as possible, or go on.
fn interrupted() -> ControlFlow<()> {
    match INTERRUPTED.load(Ordering::Relaxed) {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    }
}

/// Exit code after Ctrl-C, as shells expect.
const EXIT_INTERRUPTED: u8 = 130;

/// Runs the command line; exit codes are 0 for success, 1 for a failed request, 2 for a wrong usage.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // A second Ctrl-C ends at once.
    let handler = ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(EXIT_INTERRUPTED));
        }
    });
    if let Err(error) = handler {
        eprintln!("warning: Ctrl-C will end at once: {error}");
    }
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            match error.downcast_ref::<Error>() {
                Some(Error::Cancelled) => ExitCode::from(EXIT_INTERRUPTED),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(cli.common.threads.unwrap_or(0))
        .stack_size(STACK)
        .build_global()
        .context("could not set the number of threads")?;
    // On a thread of the pool: any other would have to wake one for every short loop, and wait.
    rayon::scope(|_| {
        let result = dispatch(cli);
        // Drivers crash when the process ends under a GPU at work, as it may be after an error.
        if let Some(device) = OPENED.get() {
            let _ = device.sync();
        }
        result
    })
}

fn dispatch(cli: &Cli) -> anyhow::Result<()> {
    match &cli.command {
        Command::Generate(Generate::Class(class)) => generate::run(class, &cli.common),
        Command::Train(Train::Class(class)) => train::run(class, &cli.common),
        Command::Train(Train::Average(average)) => train::average(average, &cli.common),
        Command::Distill(distill) => distill::run(distill, &cli.common),
        Command::Inspect(inspect) => inspect::run(inspect, &cli.common),
        Command::Convert(convert) => convert::run(convert, &cli.common),
        Command::Eval(eval) => eval::run(eval, &cli.common),
        Command::Sweep(sweep) => sweep::run(sweep, &cli.common),
        Command::Flexify(flexify) => flexify::run(flexify, &cli.common),
        Command::Merge(merge) => merge::run(merge, &cli.common),
        Command::Bench(bench) => bench::run(bench, &cli.common),
        Command::Metadata { image } => metadata(image, &cli.common),
        Command::Devices { check: true, no_fusion } => health::check(&cli.common, !no_fusion),
        Command::Devices { .. } => devices::run(&cli.common),
    }
}

fn metadata(path: &Path, common: &Common) -> anyhow::Result<()> {
    let chunks = pyrograph::metadata::read(path)?;
    if chunks.is_empty() {
        anyhow::bail!("{} holds no text", path.display());
    }
    if common.json {
        println!("{}", serde_json::to_string(&chunks)?);
    } else {
        for (key, text) in chunks {
            println!("{key}:\n{text}\n");
        }
    }
    Ok(())
}

/// The models that come with the program: beside the executable, in the current folder, or in the
/// checkout it was built from.
fn find_model(name_or_path: &Path) -> anyhow::Result<PathBuf> {
    if name_or_path.exists() {
        return Ok(name_or_path.to_owned());
    }
    let mut roots = vec![PathBuf::from("assets/models")];
    if let Some(folder) = std::env::current_exe().ok().as_deref().and_then(Path::parent) {
        roots.extend(folder.ancestors().take(4).map(|folder| folder.join("assets/models")));
    }
    roots.into_iter().map(|root| root.join(name_or_path)).find(|path| path.exists()).with_context(
        || format!("no model at {}, nor among the shipped ones", name_or_path.display()),
    )
}
