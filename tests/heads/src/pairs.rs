//! Folders of pairs of which portraits are asked.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, value_parser};
use image::DynamicImage;
use pyrograph_heads::{
    Error, Head, MOST_PEOPLE, MOST_PIXELS, PHOTOS, Pair, Pairing, YAW, face_mask, render,
};
use rayon::prelude::*;

use crate::folder::{SIDE, claimed, saved};

/// The list in a folder.
pub(crate) const LIST: &str = "pairs.jsonl";
/// The files of [`Pair::pasted`], next to the others of a pair.
const PASTED: [&str; 3] = ["naive.png", "tone.png", "light.png"];
/// Most that `--yaw` can be.
const MOST_YAW: f32 = 60.0;
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
    /// Photos of each in OUT/photos, with yaw to 35 degrees to both sides and light from anywhere.
    #[arg(long, default_value_t = 0, value_parser = value_parser!(u64).range(..=1000))]
    photos: u64,
    /// Width and height of a picture.
    #[arg(long, default_value_t = SIDE as u32, value_parser = value_parser!(u32).range(8..=MOST_PIXELS as i64))]
    size: u32,
    /// The same seed makes the same folder.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Largest yaw of a reference to both sides, 0 to 60; photos stay as they are.
    #[arg(long, value_name = "DEGREES", default_value_t = YAW, value_parser = degrees)]
    yaw: f32,
    /// References with pitch to 15 degrees and roll to 8.
    #[arg(long)]
    tilted: bool,
    /// References with expressions.
    #[arg(long)]
    expressions: bool,
    /// Rivals of the portraits, too: faces that are put into the references as they are (naive.png), with the tone of the reference's face
    /// (tone.png) or with its light (light.png).
    #[arg(long)]
    pasted: bool,
}

impl Pairs {
    /// Makes the folder, and says what is in it.
    pub(crate) fn make(&self, head: &Head) -> Result<String, Error> {
        claimed(&self.out)?;
        let &Self { people, references, photos, size, yaw, tilted, expressions, seed, .. } = self;
        let pairing = Pairing { people, references, photos, size, yaw, tilted, expressions, seed };
        let pairs = pairing.pairs();
        self.filled(head, &pairs).inspect_err(|_| self.emptied(&pairs))?;
        let also = if photos > 0 { format!(", {photos} photos of each") } else { String::new() };
        Ok(format!("{} pairs of {people} people{also}\n", pairs.len()))
    }

    fn filled(&self, head: &Head, pairs: &[Pair]) -> Result<(), Error> {
        pairs.par_iter().try_for_each(|pair| self.drawn(head, pair))?;
        let people = pairs.par_chunks(self.references as usize);
        people.try_for_each(|own| self.photographed(head, &own[0]))?;
        let path = self.out.join(LIST);
        let refused = |source| Error::File { path: path.clone(), source };
        let mut list = Vec::new();
        for pair in pairs {
            serde_json::to_writer(&mut list, pair).map_err(|error| refused(error.into()))?;
            list.push(b'\n');
        }
        fs::write(&path, list).map_err(refused)
    }

    /// The pictures of a pair.
    fn drawn(&self, head: &Head, pair: &Pair) -> Result<(), Error> {
        let folder = self.folder(pair);
        made(&folder)?;
        let [profile, reference, truth] = pair.pictures(head);
        let mask = face_mask(head, &reference);
        if self.pasted {
            for (name, rival) in PASTED.iter().zip(pair.pasted(head, &reference.rgb, &mask)) {
                saved(&rival, &folder.join(name), LEVEL)?;
            }
        }
        let mask = DynamicImage::from(mask).into_rgb8();
        let files = [&pair.profile, &pair.reference, &pair.truth, &pair.face];
        for (file, picture) in files.iter().zip([profile.rgb, reference.rgb, truth.rgb, mask]) {
            saved(&picture, &self.out.join(file), LEVEL)?;
        }
        Ok(())
    }

    /// The photos of the person of a pair, if they are asked for.
    fn photographed(&self, head: &Head, pair: &Pair) -> Result<(), Error> {
        let Some(folder) = &pair.photos else { return Ok(()) };
        let folder = self.out.join(folder);
        made(&folder)?;
        let [person, _] = pair.people(head);
        (0..self.photos).try_for_each(|number| {
            let photo = render(head, &person, &pair.photo_view(number), self.size as usize).rgb;
            saved(&photo, &folder.join(format!("{number}.png")), LEVEL)
        })
    }

    /// The folder of a pair's files.
    fn folder(&self, pair: &Pair) -> PathBuf {
        self.out.join(&pair.profile).with_file_name("")
    }

    /// Removes what was made after an error, which is the one to tell whatever happens here.
    fn emptied(&self, pairs: &[Pair]) {
        let _ = fs::remove_file(self.out.join(LIST));
        for folder in pairs.iter().map(|pair| self.folder(pair)).chain([self.out.join(PHOTOS)]) {
            let _ = fs::remove_dir_all(folder);
        }
    }
}

fn degrees(text: &str) -> Result<f32, String> {
    let found = text.parse().ok().filter(|yaw| (0.0..=MOST_YAW).contains(yaw));
    found.ok_or_else(|| format!("expected degrees from 0 to {MOST_YAW}"))
}

fn made(folder: &Path) -> Result<(), Error> {
    fs::create_dir_all(folder).map_err(|source| Error::File { path: folder.into(), source })
}
