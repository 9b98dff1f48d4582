//! Folders of pictures with a list of what they show.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use clap::{Args, value_parser};
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder, RgbImage};
use pyrograph_heads::{
    Error, Head, Identity, MOST_PEOPLE, MOST_PIXELS, Random, Scene, Traits, View, caption, prompt,
    render,
};
use rayon::prelude::*;
use serde::Serialize;

pub(crate) const SIDE: usize = 64;
const HELD_OUT: u64 = 200;
const HELD_OUT_VIEWS: u64 = 2;
const CAPTIONS: usize = 4;
/// People that are drawn before their lines are written.
const AT_ONCE: u64 = 256;

/// What `heads captions` is told.
#[derive(Args)]
pub(crate) struct Captions {
    /// The folder to make, which may be there if it is empty.
    out: PathBuf,
    /// People in OUT/train.
    #[arg(long, default_value_t = 4000, value_parser = value_parser!(u64).range(1..=MOST_PEOPLE))]
    identities: u64,
    /// Pictures of each.
    #[arg(long, default_value_t = 2, value_parser = value_parser!(u64).range(1..=1000))]
    views: u64,
    /// The same seed makes the same folder.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Compression of the PNG files.
    #[arg(long, default_value_t = 6, value_parser = value_parser!(u8).range(0..=9))]
    level: u8,
}

/// A line of the list of captioned pictures.
#[derive(Serialize)]
struct Captioned {
    file_name: String,
    text: BTreeSet<String>,
    prompt: String,
    identity: u64,
    #[serde(flatten)]
    traits: Traits,
    #[serde(flatten)]
    scene: Scene,
}

impl Captions {
    /// Makes the folder, and says what is in it.
    pub(crate) fn make(&self, head: &Head) -> Result<String, Error> {
        claimed(&self.out)?;
        let mut report = String::new();
        let parts =
            [("train", self.identities, self.views), ("held_out", HELD_OUT, HELD_OUT_VIEWS)];
        for (number, (part, people, views)) in parts.into_iter().enumerate() {
            let folder = self.out.join(part);
            let count = filled(&folder, people, |identity| {
                let mut random = Random::new(&[self.seed, number as u64, identity]);
                let person = Identity::random(head, &mut random);
                (0..views)
                    .map(|view| self.one(head, &person, &mut random, (&folder, identity, view)))
                    .collect()
            })?;
            report += &format!("{part}: {count} pictures of {people} people\n");
        }
        Ok(report)
    }

    fn one(
        &self,
        head: &Head,
        person: &Identity,
        random: &mut Random,
        (folder, identity, number): (&Path, u64, u64),
    ) -> Result<Captioned, Error> {
        let (scene, view) = Scene::random(random);
        let file_name = format!("{identity:05}-{number}.png");
        saved(&render(head, person, &view, SIDE).rgb, &folder.join(&file_name), self.level)?;
        let traits = person.traits;
        let mut text = BTreeSet::new();
        while text.len() < CAPTIONS {
            let made = caption(random, &traits, &scene);
            if made.split(' ').count() > 3 {
                text.insert(made);
            }
        }
        let prompt = prompt(&traits, &scene);
        Ok(Captioned { file_name, text, prompt, identity, traits, scene })
    }
}

/// What `heads views` is told.
#[derive(Args)]
pub(crate) struct Views {
    /// The folder to make, which may be there if it is empty.
    out: PathBuf,
    /// People.
    #[arg(long, default_value_t = 100, value_parser = value_parser!(u64).range(1..=MOST_PEOPLE))]
    identities: u64,
    /// Pictures of each.
    #[arg(long, default_value_t = 8, value_parser = value_parser!(u64).range(1..=1000))]
    views: u64,
    /// Width and height of a picture.
    #[arg(long, default_value_t = SIDE as u64, value_parser = value_parser!(u64).range(8..=MOST_PIXELS as u64))]
    size: u64,
    /// The same seed makes the same folder.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Compression of the PNG files.
    #[arg(long, default_value_t = 6, value_parser = value_parser!(u8).range(0..=9))]
    level: u8,
}

/// A line of the list of views: `Identity::numbered(head, seed, identity)` seen so, at this size, is the picture again.
#[derive(Serialize)]
struct Viewed {
    file_name: String,
    seed: u64,
    identity: u64,
    size: u64,
    #[serde(flatten)]
    traits: Traits,
    expression: &'static str,
    #[serde(flatten)]
    view: View,
}

impl Views {
    /// Makes the folder, and says what is in it.
    pub(crate) fn make(&self, head: &Head) -> Result<String, Error> {
        claimed(&self.out)?;
        let count = filled(&self.out, self.identities, |identity| {
            let person = Identity::numbered(head, self.seed, identity);
            (0..self.views).map(|number| self.one(head, &person, (identity, number))).collect()
        })?;
        Ok(format!("{count} pictures of {} people\n", self.identities))
    }

    fn one(
        &self,
        head: &Head,
        person: &Identity,
        (identity, number): (u64, u64),
    ) -> Result<Viewed, Error> {
        // A stream of its own for each view, so that the number of views changes none.
        let (view, expression) = View::random(&mut Random::new(&[self.seed, identity, number]));
        let file_name = format!("{identity:05}-{number}.png");
        saved(
            &render(head, person, &view, self.size as usize).rgb,
            &self.out.join(&file_name),
            self.level,
        )?;
        let (seed, size, traits) = (self.seed, self.size, person.traits);
        Ok(Viewed { file_name, seed, identity, size, traits, expression, view })
    }
}

/// Makes a folder, or accepts an empty one.
pub(crate) fn claimed(folder: &Path) -> Result<(), Error> {
    let refused = |source| Error::File { path: folder.into(), source };
    match fs::read_dir(folder) {
        Ok(mut held) => match held.next() {
            Some(_) => Err(Error::NotEmpty { path: folder.into() }),
            None => Ok(()),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => {
            fs::create_dir_all(folder).map_err(refused)
        }
        Err(error) => Err(refused(error)),
    }
}

/// Draws people, each with a random stream of its own, into a folder, and lists their pictures in order in `metadata.jsonl`.
fn filled<T: Serialize + Send>(
    folder: &Path,
    people: u64,
    draw: impl Fn(u64) -> Result<Vec<T>, Error> + Sync,
) -> Result<usize, Error> {
    let path = folder.join("metadata.jsonl");
    let refused = |source| Error::File { path: path.clone(), source };
    fs::create_dir_all(folder).map_err(|source| Error::File { path: folder.into(), source })?;
    let mut list = BufWriter::new(File::create(&path).map_err(refused)?);
    let mut count = 0;
    for first in (0..people).step_by(AT_ONCE as usize) {
        let some = first..people.min(first + AT_ONCE);
        let drawn: Vec<Vec<T>> = some.into_par_iter().map(&draw).collect::<Result<_, _>>()?;
        for line in drawn.iter().flatten() {
            serde_json::to_writer(&mut list, line).map_err(|error| refused(error.into()))?;
            list.write_all(b"\n").map_err(refused)?;
            count += 1;
        }
    }
    list.flush().map_err(refused)?;
    Ok(count)
}

pub(crate) fn saved(picture: &RgbImage, path: &Path, level: u8) -> Result<(), Error> {
    let refused = |source| Error::File { path: path.into(), source };
    let mut file = BufWriter::new(File::create(path).map_err(refused)?);
    let encoder = PngEncoder::new_with_quality(
        &mut file,
        CompressionType::Level(level),
        FilterType::Adaptive,
    );
    let (width, height) = picture.dimensions();
    let written = encoder.write_image(picture.as_raw(), width, height, ExtendedColorType::Rgb8);
    written.map_err(|source| Error::Picture { path: path.into(), source })?;
    file.flush().map_err(refused)
}
