//! What is told of portraits with `--report`.

use std::path::PathBuf;

use pyrograph::faces::{Compared, Faces, Likeness, Photograph};
use pyrograph::image::read_picture;

use super::portrait::Portrait;

impl Portrait {
    /// What portraits of a model of this size, `[height, width]`, or in the photograph that they are put into, are compared
    /// with by the networks of the run, if a report was asked for.
    pub(super) fn judge<'a>(
        &self,
        faces: Option<&'a Faces>,
        [height, width]: [usize; 2],
        photo: Option<&Photograph>,
    ) -> anyhow::Result<Option<Compared<'a>>> {
        let Some(faces) = faces.filter(|_| self.report) else { return Ok(None) };
        let read = |path: &PathBuf| read_picture(path);
        let (person, reference) =
            (self.profile.as_ref().map(read).transpose()?, read(&self.reference)?);
        let own = (width as u32, height as u32);
        let size = photo.map_or(own, |photo| photo.picture().dimensions());
        Ok(Some(faces.compared(person.as_ref(), &reference, size)?))
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
