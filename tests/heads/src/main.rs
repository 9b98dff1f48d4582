//! The command `heads`: folders of pictures of synthetic heads.

mod folder;
mod matches;
mod pairs;
mod score;

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Parser, Subcommand};
use pyrograph_heads::{HEAD, Head, Protocol, evaluated};

/// Draws human heads from a parametric model: folders of pictures for training and tests.
#[derive(Parser)]
struct Asked {
    /// The file of the model.
    #[arg(long, global = true, default_value = HEAD)]
    head: PathBuf,
    /// What to do.
    #[command(subcommand)]
    work: Work,
}

/// What the command can do.
#[derive(Subcommand)]
enum Work {
    /// Pictures of 64x64 with captions, for `pyrograph train text`; in OUT/held_out are 200 people who are not in OUT/train.
    Captions(folder::Captions),
    /// Several views of each person, with all that they were drawn from.
    Views(folder::Views),
    /// Profiles, references, and the portraits of the person of one in the light and pose of the other.
    Pairs(pairs::Pairs),
    /// How good portraits of such pairs are.
    Score(score::Score),
    /// How well the same was found in the profiles and the right portraits of such pairs.
    Matches(matches::Matches),
    /// How well the measure of likeness tells people apart, and what it feels.
    Metric(Metric),
}

/// What `heads metric` is told.
#[derive(clap::Args)]
struct Metric {
    /// Largest yaw to both sides, in degrees.
    #[arg(long, default_value_t = 28.0)]
    yaw: f32,
    /// With pitch to 15 degrees and roll to 8.
    #[arg(long)]
    tilted: bool,
    /// With expressions.
    #[arg(long)]
    expressions: bool,
    /// Of people and views.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

fn main() -> anyhow::Result<()> {
    let asked = Asked::parse();
    let head = Head::open(&asked.head)?;
    let (report, whole) = match asked.work {
        Work::Captions(asked) => (asked.make(&head)?, Ok(())),
        Work::Views(asked) => (asked.make(&head)?, Ok(())),
        Work::Pairs(asked) => (asked.make(&head)?, Ok(())),
        Work::Score(asked) => asked.make(&head)?,
        Work::Matches(asked) => asked.make(&head)?,
        Work::Metric(Metric { yaw, tilted, expressions, seed }) => {
            let protocol = Protocol { yaw, tilted, expressions, seed, ..Protocol::default() };
            (evaluated(&head, &protocol).context("too few people")?.to_string(), Ok(()))
        }
    };
    std::io::stdout().write_all(report.as_bytes())?;
    Ok(whole?)
}
