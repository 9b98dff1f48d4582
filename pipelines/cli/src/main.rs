//! The `pyrograph` command.
#![allow(clippy::print_stdout)]

#[macro_use]
mod print;

mod bench;
mod common;
mod convert;
mod devices;
mod distill;
mod eval;
mod flexify;
mod generate;
mod help;
mod hint;
mod inspect;
mod interrupt;
mod memory;
mod merge;
mod patches;
mod portrait;
mod probe;
mod silence;
mod sweep;
mod terminal;
mod train;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;
use pyrograph::device::Trust;
use pyrograph::{Error, threads};

use common::Common;

/// Diffusion transformers: make images, train models, open checkpoints.
#[derive(Parser)]
#[command(name = "pyrograph", version = env!("PYROGRAPH_VERSION"), propagate_version = true)]
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
    /// Learn a person from photos
    #[command(subcommand)]
    Portrait(portrait::Portraits),
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
        /// PNG, JPEG or WebP file
        image: PathBuf,
    },
    /// List the GPUs of this machine
    Devices {
        /// Print how far the device is from the CPU on a small network
        #[arg(long)]
        check: bool,
        /// Check without kernel fusion
        #[arg(long, requires = "check")]
        no_fusion: bool,
        /// Check without kernels of our own
        #[arg(long, requires = "check")]
        no_kernels: bool,
    },
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write a manual page of every command
    Man {
        /// Folder of the pages
        folder: PathBuf,
    },
}

#[derive(Subcommand)]
enum Generate {
    /// Images of given classes
    Class(Box<generate::Class>),
    /// Images of texts
    Text(Box<generate::Text>),
    /// Portraits of a person, in the light and pose of another picture
    Portrait(Box<generate::Portrait>),
}

#[derive(Subcommand)]
enum Train {
    /// A class-conditional model
    Class(train::Class),
    /// A model of texts, on images with captions
    Text(train::Text),
    /// A LoRA of a model, on a few images
    Lora(train::Lora),
    /// Branches that steer a model by a picture, or to portraits of people
    Control(train::Control),
    /// Average the weights of a finished run with another width
    Average(train::AverageArgs),
}

/// Exit codes are 0 for success, 1 for a failed request, 2 for a wrong usage, 128 and its number after a signal.
fn main() -> ExitCode {
    // `pyrograph inspect | head` ends without an error.
    sigpipe::reset();
    memory::keep();
    let cli = match parse() {
        Ok(cli) => cli,
        // Help is an error, too, which succeeds if it can be printed.
        Err(error) => {
            let code = u8::try_from(error.exit_code()).unwrap_or(2);
            return ExitCode::from(if error.print().is_ok() { code } else { code.max(1) });
        }
    };
    interrupt::catch();
    let result = run(&cli);
    if let Err(error) = &result {
        match error.downcast_ref::<Error>() {
            Some(Error::Cancelled) => eprintln!("error: interrupted"),
            own => match own.and_then(|error| hint::hint(error, &cli.command)) {
                Some(hint) => eprintln!("error: {error:#}: {hint}"),
                None => eprintln!("error: {error:#}"),
            },
        }
    }
    let printed = print::finish();
    if let Err(error) = &printed {
        eprintln!("error: standard output: {error}");
    }
    exit_code(&result, printed.is_ok())
}

/// A signal counts more than what became of the work that it stopped, but for an error of another kind.
fn exit_code(result: &anyhow::Result<()>, printed: bool) -> ExitCode {
    let stopped = match result {
        Ok(()) => printed,
        Err(error) => matches!(error.downcast_ref(), Some(Error::Cancelled)),
    };
    match (stopped, interrupt::code(), result) {
        (true, Some(code), _) => ExitCode::from(code),
        (true, None, Ok(())) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// What was typed. A number below zero is a value, which the option then refuses with its range, and no option.
fn parse() -> Result<Cli, clap::Error> {
    let matches = with_negative_numbers(help::command()).try_get_matches()?;
    Cli::from_arg_matches(&matches)
}

fn with_negative_numbers(command: clap::Command) -> clap::Command {
    let takes = |arg: clap::Arg| match arg.get_action().takes_values() && !arg.is_positional() {
        true => arg.allow_negative_numbers(true),
        false => arg,
    };
    command.mut_args(takes).mut_subcommands(with_negative_numbers)
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    threads::start(cli.common.threads())?;
    threads::run(|| {
        let result = dispatch(cli);
        common::settle();
        result
    })
}

fn dispatch(cli: &Cli) -> anyhow::Result<()> {
    match &cli.command {
        Command::Generate(Generate::Class(class)) => generate::run(class.as_ref(), &cli.common),
        Command::Generate(Generate::Text(text)) => generate::run(text.as_ref(), &cli.common),
        Command::Generate(Generate::Portrait(args)) => generate::portrait(args, &cli.common),
        Command::Train(Train::Class(class)) => train::class(class, &cli.common),
        Command::Train(Train::Text(text)) => train::text(text, &cli.common),
        Command::Train(Train::Lora(lora)) => train::lora(lora, &cli.common),
        Command::Train(Train::Control(control)) => train::control(control, &cli.common),
        Command::Train(Train::Average(average)) => train::average(average, &cli.common),
        Command::Portrait(portraits) => portrait::run(portraits, &cli.common),
        Command::Distill(distill) => distill::run(distill, &cli.common),
        Command::Inspect(inspect) => inspect::run(inspect, &cli.common),
        Command::Convert(convert) => convert::run(convert, &cli.common),
        Command::Eval(eval) => eval::run(eval, &cli.common),
        Command::Sweep(sweep) => sweep::run(sweep, &cli.common),
        Command::Flexify(flexify) => flexify::run(flexify, &cli.common),
        Command::Merge(merge) => merge::run(merge, &cli.common),
        Command::Bench(bench) => bench::run(bench, &cli.common),
        Command::Metadata { image } => metadata(image, &cli.common),
        Command::Devices { check: true, no_fusion, no_kernels } => {
            let trust = Trust { fusion: !no_fusion, kernels: !no_kernels };
            devices::check(&cli.common, trust)
        }
        Command::Devices { .. } => devices::run(&cli.common),
        Command::Completions { shell } => help::completions(*shell),
        Command::Man { folder } => help::manual(folder),
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
