//! `pyrograph portrait matches`.

use std::path::PathBuf;

use anyhow::ensure;
use image::{GenericImage, GenericImageView, RgbImage};
use pyrograph::Picture;
use pyrograph::image::{
    check_output_path, contact_sheet, fitted, picture_size, read_picture, write_image,
};
use pyrograph::pipeline;
use pyrograph::task::{Matches, Portrait};

use crate::common::{Common, whole};
use crate::interrupt;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Picture of the person
    #[arg(long, value_name = "PICTURE")]
    profile: PathBuf,
    /// Picture whose parts are looked for in it
    #[arg(long, value_name = "PICTURE")]
    reference: PathBuf,
    /// Branches that `train control` made: their folder, or that of the run
    #[arg(long, short, value_name = "FOLDER")]
    model: PathBuf,
    /// The model that they steer: bundle, diffusers folder, checkpoint file, or the name of a shipped model
    #[arg(long, value_name = "MODEL")]
    base: PathBuf,
    /// Share of the reference that is hidden, 0 to 1 [default: as in training]
    #[arg(long, value_name = "SHARE")]
    rho: Option<f64>,
    /// Seed of what is hidden of the reference
    #[arg(long, short, default_value = "0", value_parser = whole(0, i64::MAX as usize))]
    seed: usize,
    /// Picture to write: profile, reference, and the profile moved, by the features after each block of the branch
    #[arg(long, short)]
    output: Option<PathBuf>,
}

/// Around the pictures, in pixels.
const GAP: u32 = 2;
/// Largest side of a cell in the picture, in pixels.
const LARGEST: u32 = 64;

pub(super) fn run(args: &Args, common: &Common) -> anyhow::Result<()> {
    for input in [&args.profile, &args.reference] {
        picture_size(input)?;
    }
    match &args.output {
        Some(output) => check_output_path(output)?,
        None => ensure!(
            common.json,
            "nothing to write: name a picture with --output, or ask for --json"
        ),
    }
    let picture = |path: &PathBuf| Picture::File(path.clone()).into();
    let asked = Portrait {
        profile: picture(&args.profile),
        reference: picture(&args.reference),
        seed: args.seed as u64,
        hidden: args.rho,
        still: false,
    };
    let base = common.find(&args.base)?;
    let found = pipeline::matches(&args.model, &base, &common.open()?, &asked)?;
    if let Some(output) = &args.output {
        let _saved = interrupt::hold();
        write_image(output, &shown(args, &found)?, &[])?;
        if !common.json && !common.quiet {
            println!("{}", output.display());
        }
    }
    if common.json {
        println!("{}", serde_json::to_string(&found)?);
    }
    Ok(())
}

/// Profile, reference, and the profile moved at each level.
fn shown(args: &Args, found: &Matches) -> anyhow::Result<RgbImage> {
    let [rows, columns] = found.grid.map(|count| count as u32);
    let (profile, reference) = (read_picture(&args.profile)?, read_picture(&args.reference)?);
    // Cells of whole pixels, none smaller than in the profile.
    let side = (profile.width() / columns).min(profile.height() / rows).clamp(1, LARGEST);
    let size = found.grid.map(|count| count * side as usize);
    let (profile, reference) = (fitted(&profile, size), fitted(&reference, size));
    let moved = found.levels.iter().map(|level| {
        let mut made = RgbImage::new(columns * side, rows * side);
        for (to, &from) in level.iter().enumerate() {
            let [to, from] =
                [to, from].map(|cell| [cell as u32 % columns * side, cell as u32 / columns * side]);
            let part = profile.view(from[0], from[1], side, side).to_image();
            made.copy_from(&part, to[0], to[1]).expect("a cell of the grid");
        }
        made
    });
    let moved: Vec<RgbImage> = moved.collect();
    let all: Vec<RgbImage> = [profile.clone(), reference].into_iter().chain(moved).collect();
    Ok(contact_sheet(&all, all.len(), GAP, [255; 3]))
}
