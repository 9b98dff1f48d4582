//! Matches in a folder of pairs, and how good they are.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;
use pyrograph_heads::{Error, Head, MOST_CELLS, Matched, Matching, Pair, divides, matched};
use rayon::prelude::*;
use serde::Deserialize;

use crate::pairs::LIST;
use crate::score::{kept, listed, told};

/// Most bytes of a file of matches.
const MOST_BYTES: u64 = 16 << 20;

/// What `heads matches` is told.
#[derive(Args)]
pub(crate) struct Matches {
    /// A folder of `heads pairs`, and matches in it.
    out: PathBuf,
    /// The file of each pair, beside its pictures.
    #[arg(long, value_name = "NAME", default_value = "matches.json")]
    output: String,
    /// How often people are drawn again for the 95 % intervals.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    resamples: u32,
    /// A JSON object in the place of the table.
    #[arg(long)]
    json: bool,
}

/// What a file holds: for each cell of the right portrait, row by row, the number of a cell of the profile, by one or more levels.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Held {
    /// Rows and columns.
    grid: [usize; 2],
    levels: Vec<Vec<usize>>,
}

/// What all files have to have as the first one has it.
struct First {
    path: PathBuf,
    grid: [usize; 2],
    levels: usize,
}

impl Matches {
    /// The report, and whether all pairs are in it.
    pub(crate) fn make(&self, head: &Head) -> anyhow::Result<(String, Result<(), Error>)> {
        let pairs = listed(&self.out.join(LIST))?;
        let (mut reasons, mut first) = (Vec::new(), None);
        let held: Vec<Option<Held>> =
            pairs.iter().map(|pair| kept(self.held(pair, &mut first), &mut reasons)).collect();
        let one = |(pair, held): (&Pair, &Option<Held>)| {
            let Held { grid, levels } = held.as_ref()?;
            let [profile, _, truth] = pair.pictures(head);
            Some(matched(head, [&profile, &truth], *grid, levels))
        };
        let found: Vec<Option<Matched>> = pairs.par_iter().zip(&held).map(one).collect();
        let matching = Matching::new(&pairs, &found, self.resamples as usize);
        told(&matching, self.json, reasons, pairs.len())
    }

    /// The matches of a pair, if they are as they should be; `first` is set to the first that are.
    fn held(&self, pair: &Pair, first: &mut Option<First>) -> Result<Held, Error> {
        let path = self.out.join(&pair.output).with_file_name(&self.output);
        let bytes = read(&path)?;
        let wrong = |reason: String| Error::Matches { path: path.clone(), reason };
        let held: Held =
            serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
        held.checked(pair.size).map_err(wrong)?;
        let Held { grid, levels } = &held;
        let First { path: other, grid: expected, levels: count } = first
            .get_or_insert_with(|| First { path: path.clone(), grid: *grid, levels: levels.len() });
        let other = other.display();
        if grid != expected {
            let [found, expected] = [grid, expected].map(named);
            return Err(wrong(format!("a grid of {found}, expected {expected} as in {other}")));
        }
        if levels.len() != *count {
            let found = levels.len();
            return Err(wrong(format!("{found} levels, expected {count} as in {other}")));
        }
        Ok(held)
    }
}

impl Held {
    /// Or what is wrong.
    fn checked(&self, size: u32) -> Result<(), String> {
        let Self { grid, levels } = self;
        let named = named(grid);
        if !divides(*grid, size as usize) {
            return Err(format!("a grid of {named}, expected one that divides {size}x{size}"));
        }
        let cells = grid[0] * grid[1];
        if cells > MOST_CELLS {
            return Err(format!("a grid of {named}, expected {MOST_CELLS} cells at most"));
        }
        if levels.is_empty() {
            return Err("0 levels, expected 1 at least".into());
        }
        for (number, level) in levels.iter().enumerate() {
            if level.len() != cells {
                let found = level.len();
                return Err(format!("level {number}: {found} cells, expected {cells} of {named}"));
            }
            if let Some(at) = level.iter().position(|cell| *cell >= cells) {
                let found = level[at];
                return Err(format!(
                    "level {number}: cell {found} for cell {at}, expected less than {cells}"
                ));
            }
        }
        Ok(())
    }
}

fn named([rows, columns]: &[usize; 2]) -> String {
    format!("{rows}x{columns}")
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let refused = |source| Error::File { path: path.into(), source };
    let file = File::open(path).map_err(refused)?;
    let found = file.metadata().map_err(refused)?.len();
    if found > MOST_BYTES {
        let reason = format!("{found} bytes, expected {MOST_BYTES} at most");
        return Err(Error::Matches { path: path.into(), reason });
    }
    let mut bytes = Vec::new();
    file.take(MOST_BYTES).read_to_end(&mut bytes).map_err(refused)?;
    Ok(bytes)
}
