//! The `pyrograph` command.
#![allow(clippy::print_stdout)]

mod bench;
mod common;
mod convert;
mod devices;
mod distill;
mod eval;
mod flexify;
mod generate;
mod hint;
mod inspect;
mod memory;
mod merge;
mod patches;
mod probe;
mod sweep;
mod train;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use pyrograph::{Error, threads};

use common::{Common, EXIT_INTERRUPTED};

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

/// Exit codes are 0 for success, 1 for a failed request, 2 for a wrong usage, 130 after Ctrl-C.
fn main() -> ExitCode {
    // `pyrograph inspect | head` ends without an error.
    sigpipe::reset();
    memory::keep();
    let cli = Cli::parse();
    common::catch_interrupt();
    let Err(error) = run(&cli) else { return ExitCode::SUCCESS };
    let own = error.downcast_ref::<Error>();
    match own.and_then(hint::hint) {
        Some(hint) => eprintln!("error: {error:#}: {hint}"),
        None => eprintln!("error: {error:#}"),
    }
    match own {
        Some(Error::Cancelled) => ExitCode::from(EXIT_INTERRUPTED),
        _ => ExitCode::FAILURE,
    }
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    threads::start(cli.common.threads)?;
    threads::run(|| {
        let result = dispatch(cli);
        common::settle();
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
        Command::Devices { check: true, no_fusion } => devices::check(&cli.common, !no_fusion),
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
