//! `pyrograph portrait`.

mod fit;
mod matches;

use clap::Subcommand;

pub(crate) use fit::person_prompt;

use crate::common::Common;

#[derive(Subcommand)]
pub(crate) enum Portraits {
    /// Learn a person from a few photos: a small file that `generate portrait --adapter` takes
    Fit(fit::Fit),
    /// Show what branches that find matches have learnt: the profile in the places that it matches in the reference
    Matches(matches::Args),
}

pub(crate) fn run(portraits: &Portraits, common: &Common) -> anyhow::Result<()> {
    match portraits {
        Portraits::Fit(args) => fit::run(args, common),
        Portraits::Matches(args) => matches::run(args, common),
    }
}
