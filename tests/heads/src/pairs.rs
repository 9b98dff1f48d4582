//! Folders of pairs of which portraits are asked.

use std::fs;
use std::path::PathBuf;

use clap::{Args, value_parser};
use pyrograph_heads::{Error, Head, MOST_PEOPLE, MOST_PIXELS, Pair, Pairing};
use rayon::prelude::*;

use crate::folder::{SIDE, claimed, saved};

/// The list in a folder.
pub(crate) const LIST: &str = "pairs.jsonl";
/// Compression of the PNG files.
const LEVEL: u8 = 6;

/// What `heads pairs` is told.
#[derive(Args)]
pub(crate) struct Pairs {
    /// The folder to make, which may be there if it is empty.
    out: PathBuf,
    /// People of whom portraits are asked, who are in no folder of captions or views.
    #[arg(long, default_value_t = 32, value_parser = value_parser!(u64).range(2..=MOST_PEOPLE))]
    people: u64,
    /// References of each, which show others of these people.
    #[arg(long, default_value_t = 4, value_parser = value_parser!(u64).range(1..=1000))]
    references: u64,
    /// Width and height of a picture.
    #[arg(long, default_value_t = SIDE as u32, value_parser = value_parser!(u32).range(8..=MOST_PIXELS as i64))]
    size: u32,
    /// The same seed makes the same folder.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// References with pitch to 15 degrees and roll to 8.
    #[arg(long)]
    tilted: bool,
    /// References with expressions.
    #[arg(long)]
    expressions: bool,
}

impl Pairs {
    /// Makes the folder, and says what is in it.
    pub(crate) fn make(&self, head: &Head) -> Result<String, Error> {
        claimed(&self.out)?;
        let &Self { people, references, size, seed, tilted, expressions, .. } = self;
        let pairs = Pairing { people, references, size, seed, tilted, expressions }.pairs();
        self.filled(head, &pairs).inspect_err(|_| self.emptied(&pairs))?;
        Ok(format!("{} pairs of {people} people\n", pairs.len()))
    }

    fn filled(&self, head: &Head, pairs: &[Pair]) -> Result<(), Error> {
        pairs.par_iter().try_for_each(|pair| {
            for (file, picture) in self.files(pair).iter().zip(pair.pictures(head)) {
                let folder = file.parent().unwrap_or(file);
                let refused = |source| Error::File { path: folder.into(), source };
                fs::create_dir_all(folder).map_err(refused)?;
                saved(&picture.rgb, file, LEVEL)?;
            }
            Ok(())
        })?;
        let path = self.out.join(LIST);
        let refused = |source| Error::File { path: path.clone(), source };
        let mut list = Vec::new();
        for pair in pairs {
            serde_json::to_writer(&mut list, pair).map_err(|error| refused(error.into()))?;
            list.push(b'\n');
        }
        fs::write(&path, list).map_err(refused)
    }

    fn files(&self, pair: &Pair) -> [PathBuf; 3] {
        [&pair.profile, &pair.reference, &pair.truth].map(|file| self.out.join(file))
    }

    /// Removes what was made after an error, which is the one to tell whatever happens here.
    fn emptied(&self, pairs: &[Pair]) {
        let _ = fs::remove_file(self.out.join(LIST));
        for [file, ..] in pairs.iter().map(|pair| self.files(pair)) {
            let _ = file.parent().map(fs::remove_dir_all);
        }
    }
}
