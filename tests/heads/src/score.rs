//! Portraits in a folder of pairs, and how good they are.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use image::RgbImage;
use pyrograph_heads::{Error, Head, Judge, MOST_PIXELS, Measured, Pair, Scores};
use rayon::prelude::*;
use serde::Serialize;

use crate::pairs::LIST;

/// What `heads score` is told.
#[derive(Args)]
pub(crate) struct Score {
    /// A folder of `heads pairs`, and portraits in it.
    out: PathBuf,
    /// The file to score of each pair, in the place of that which the list names (portrait.png).
    #[arg(long, value_name = "NAME")]
    output: Option<String>,
    /// Another file of each pair: how much more than it the scored ones have is told, too.
    #[arg(long, value_name = "NAME")]
    against: Option<String>,
    /// How often people are drawn again for the 95 % intervals.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    resamples: u32,
    /// A JSON object in the place of the table.
    #[arg(long)]
    json: bool,
}

/// The JSON object.
#[derive(Serialize)]
struct Told<'a, T> {
    #[serde(flatten)]
    found: &'a T,
    left_out: &'a [String],
}

impl Score {
    /// The report, and whether all pictures are in it.
    pub(crate) fn make(&self, head: &Head) -> anyhow::Result<(String, Result<(), Error>)> {
        let pairs = listed(&self.out.join(LIST))?;
        let judge =
            Judge::new(head, &pairs).context("the head shows too little to tell people apart")?;
        let mut reasons = Vec::new();
        let measured = self.measured(&judge, &pairs, self.output.as_deref(), &mut reasons);
        let against = self
            .against
            .as_deref()
            .map(|name| self.measured(&judge, &pairs, Some(name), &mut reasons));
        let scores = Scores::new(&pairs, &measured, against.as_deref(), self.resamples as usize);
        let all = pairs.len() * (1 + usize::from(against.is_some()));
        told(&scores, self.json, reasons, all)
    }

    /// Of each pair; none, and a reason, where there is no picture as it should be.
    fn measured(
        &self,
        judge: &Judge<'_>,
        pairs: &[Pair],
        name: Option<&str>,
        reasons: &mut Vec<String>,
    ) -> Vec<Option<Measured>> {
        let one = |pair: &Pair| {
            let output = Path::new(&pair.output);
            let output = name.map_or(output.into(), |name| output.with_file_name(name));
            Ok(judge.measured(pair, &picture(&self.out.join(output), pair.size)?))
        };
        let found: Vec<Result<Measured, Error>> = pairs.par_iter().map(one).collect();
        found.into_iter().map(|found| kept(found, reasons)).collect()
    }
}

/// What was found; none, and a reason, if it was not.
pub(crate) fn kept<T>(found: Result<T, Error>, reasons: &mut Vec<String>) -> Option<T> {
    found.map_err(|error| reasons.push(format!("{:#}", anyhow::Error::from(error)))).ok()
}

/// The report, and whether all that there should be is in it.
pub(crate) fn told<T: Serialize + fmt::Display>(
    found: &T,
    json: bool,
    reasons: Vec<String>,
    all: usize,
) -> anyhow::Result<(String, Result<(), Error>)> {
    let report = if json {
        serde_json::to_string(&Told { found, left_out: &reasons })? + "\n"
    } else {
        found.to_string()
    };
    let whole = if reasons.is_empty() { Ok(()) } else { Err(Error::LeftOut { reasons, all }) };
    Ok((report, whole))
}

/// The pairs of a list, at least one.
pub(crate) fn listed(path: &Path) -> Result<Vec<Pair>, Error> {
    let broken = |reason: String| Error::List { path: path.into(), reason };
    let text =
        fs::read_to_string(path).map_err(|source| Error::File { path: path.into(), source })?;
    let one = |(number, line): (usize, &str)| {
        let pair: Pair = serde_json::from_str(line)
            .map_err(|error| broken(format!("line {}: {error}", number + 1)))?;
        if !(1..=MOST_PIXELS as u32).contains(&pair.size) {
            let Pair { size, .. } = pair;
            return Err(broken(format!("line {}: pictures of {size} pixels", number + 1)));
        }
        Ok(pair)
    };
    let pairs: Vec<Pair> = text.lines().enumerate().map(one).collect::<Result<_, _>>()?;
    if pairs.is_empty() { Err(broken("no pairs".into())) } else { Ok(pairs) }
}

fn picture(path: &Path, size: u32) -> Result<RgbImage, Error> {
    let picture = image::open(path)
        .map_err(|source| Error::Picture { path: path.into(), source })?
        .into_rgb8();
    let found = picture.dimensions();
    if found == (size, size) {
        Ok(picture)
    } else {
        Err(Error::Size { path: path.into(), found, expected: size })
    }
}
