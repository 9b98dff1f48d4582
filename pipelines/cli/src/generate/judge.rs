//! What is told of portraits with `--report`.

use std::path::PathBuf;

use image::RgbImage;
use pyrograph::faces::{Faces, Likeness};
use pyrograph::image::read_picture;

use super::portrait::Portrait;

/// Compares portraits with what they were made from.
pub(super) struct Judge {
    faces: Faces,
    person: Option<RgbImage>,
    reference: RgbImage,
}

impl Judge {
    /// With the networks of the run, if a report was asked for.
    pub(super) fn new(args: &Portrait, faces: Option<Faces>) -> anyhow::Result<Option<Self>> {
        let Some(faces) = faces.filter(|_| args.report) else { return Ok(None) };
        let read = |path: &PathBuf| read_picture(path);
        let person = args.profile.as_ref().map(read).transpose()?;
        Ok(Some(Self { faces, person, reference: read(&args.reference)? }))
    }

    /// Of a portrait.
    pub(super) fn likeness(&self, portrait: &RgbImage) -> anyhow::Result<Likeness> {
        Ok(self.faces.likeness(self.person.as_ref(), &self.reference, portrait)?)
    }
}

/// For people.
pub(super) fn told(likeness: &Likeness) -> String {
    let number = |value: Option<f64>| match value {
        Some(value) => format!("{value:.2}"),
        None => "unknown (no face was found)".to_owned(),
    };
    let Likeness { identity, leakage, light } = likeness;
    let [identity, leakage] = [identity, leakage].map(|value| number(value.map(f64::from)));
    format!(
        "distance from the person {identity}, from who the reference shows {leakage}, of the light {}",
        number(*light)
    )
}
