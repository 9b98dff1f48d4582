//! What each net is asked.

use image::RgbImage;

use super::{Branches, StageOptions};
use crate::control::ControlBranch;
use crate::request::{Controlled, Picture, StartPicture};

/// A stage in which the model makes a picture, and what that is made from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Stage<'a> {
    /// Of the person.
    Identity { reference: &'a RgbImage, outlines: &'a RgbImage, points: &'a RgbImage },
    /// In the light of the reference.
    Shading { lit: &'a RgbImage, outlines: &'a RgbImage, reference: &'a RgbImage },
    /// Without a seam.
    Harmonization { composite: &'a RgbImage, seam: &'a RgbImage },
}

impl Stage<'_> {
    /// Its place among those of the model.
    pub(super) fn number(self) -> usize {
        match self {
            Self::Identity { .. } => 0,
            Self::Shading { .. } => 1,
            Self::Harmonization { .. } => 2,
        }
    }

    /// What it starts from, what of that is made anew, and what controls it.
    pub(super) fn parts(
        self,
        options: &StageOptions,
        branches: &Branches,
    ) -> (Option<StartPicture>, Option<Picture>, Vec<Option<Controlled>>) {
        let Branches { edges, luminance, tile, keypoints } = branches;
        match self {
            Self::Identity { reference, outlines, points } => {
                let start = options.identity_strength.map(|strength| start(reference, strength));
                let outlines = ready(edges, outlines, options.edges);
                (start, None, vec![outlines, ready(keypoints, points, options.keypoints)])
            }
            Self::Shading { lit, outlines, reference } => {
                let detail = ready(edges, outlines, options.detail);
                let light = of(luminance, reference, options.luminance);
                (Some(start(lit, options.shading_strength)), None, vec![detail, light])
            }
            Self::Harmonization { composite, seam } => {
                let start = start(composite, options.harmonization.unwrap_or_default());
                let controls = vec![of(edges, composite, 1.0), of(tile, composite, 1.0)];
                (Some(start), Some(pixels(seam)), controls)
            }
        }
    }
}

fn pixels(picture: &RgbImage) -> Picture {
    Picture::Pixels(picture.clone())
}

fn start(picture: &RgbImage, strength: f64) -> StartPicture {
    StartPicture { picture: pixels(picture), strength: Some(strength) }
}

/// By what a branch finds in a picture, if there is the branch.
fn of(branch: &Option<ControlBranch>, picture: &RgbImage, scale: f64) -> Option<Controlled> {
    let (branch, picture) = (branch.clone()?, pixels(picture));
    Some(Controlled { branch, picture, ready: false, scale, steps: [0.0, 1.0] })
}

/// By a picture that is what the branch sees.
fn ready(branch: &Option<ControlBranch>, picture: &RgbImage, scale: f64) -> Option<Controlled> {
    Some(Controlled { ready: true, ..of(branch, picture, scale)? })
}
