//! `pyrograph generate portrait`.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use clap::Args;
use image::RgbImage;
use pyrograph::device::Opened;
use pyrograph::faces::{Compared, Faces, Photograph};
use pyrograph::image::{
    check_format, check_output_path, output_path, picture_size, read_picture, write_image,
};
use pyrograph::pipeline::PortraitPipeline;
use pyrograph::request::MAX_IMAGES;
use pyrograph::task::Portrait as Asked;
use pyrograph::{Guidance, Made, OpenOptions, Picture, Progress, Request};

use super::ask;
use super::judge;
use super::mega::{self, Mega};
use super::output::{NAMED, check_folder_of_first, place};
use crate::common::{Common, counted, interrupted, parse_steps, whole};
use crate::interrupt;

/// What was typed after `pyrograph generate portrait`.
#[derive(Args)]
pub(crate) struct Portrait {
    /// Picture of the person
    #[arg(long, value_name = "PICTURE", required_unless_present = "adapter")]
    pub(super) profile: Option<PathBuf>,
    /// Picture whose light and pose the portrait has
    #[arg(long, value_name = "PICTURE")]
    pub(super) reference: PathBuf,
    /// Both are photographs: the faces in them are cut out, and the portrait's is put into the reference
    #[arg(long)]
    pub(super) photos: bool,
    /// Number of the face in the photograph of the person, the largest being 1 [default: 1]
    #[arg(long, value_name = "N", requires = "photos", value_parser = whole(1, usize::MAX))]
    profile_face: Option<usize>,
    /// Number of the face in the reference, the largest being 1 [default: 1]
    #[arg(long, value_name = "N", requires = "photos", value_parser = whole(1, usize::MAX))]
    pub(super) face: Option<usize>,
    /// Branches that `train control` made: their folder, or that of the run
    #[arg(long, short, value_name = "FOLDER", required_unless_present = "adapter")]
    model: Option<PathBuf>,
    #[command(flatten)]
    pub(super) mega: Mega,
    /// The model that they steer: bundle, diffusers folder, checkpoint file, or the name of a shipped model
    #[arg(long, value_name = "MODEL")]
    pub(super) base: PathBuf,
    /// Number of portraits
    #[arg(long, short = 'n', default_value = "1", value_parser = whole(1, MAX_IMAGES))]
    pub(super) count: usize,
    /// Seed of the first portrait, and of what is hidden of the reference; portrait i has seed + i; -1 is random
    #[arg(long, short, default_value = "-1", allow_hyphen_values = true)]
    pub(super) seed: i128,
    /// Sampling steps [default: the model's]
    #[arg(long, value_parser = parse_steps)]
    pub(super) steps: Option<usize>,
    /// Guidance scale towards the person, 1 is none [default: the model's]
    #[arg(long, visible_aliases = ["scale-profile", "guidance-scale", "guidance"])]
    pub(super) cfg_scale: Option<f64>,
    /// Guidance scale towards light and pose, 1 is none [default: that towards the person]
    #[arg(long, visible_alias = "scale-light")]
    cfg_light: Option<f64>,
    /// Share of the reference that is hidden, 0 to 1: the less, the more of who it shows comes along [default: as in training]
    #[arg(long, value_name = "SHARE", conflicts_with = "adapter")]
    rho: Option<f64>,
    /// The profile stays in its place, in place of going to what it matches in the reference: shows what matching is worth
    #[arg(long, conflicts_with = "adapter")]
    no_warp: bool,
    /// Tell of each portrait how far it is from the person and from who the reference shows, below 0.6 being usually the same,
    /// and how far its light is from the reference's
    #[arg(long)]
    pub(super) report: bool,
    /// Solver, such as ddim, euler, heun, dpmpp_2m; A1111 and diffusers names work too
    #[arg(long, visible_alias = "sampling-method")]
    pub(super) sampler: Option<String>,
    /// Portraits per network call
    #[arg(long, value_parser = whole(1, MAX_IMAGES))]
    pub(super) batch_size: Option<usize>,
    /// Output file; with `%03d` or `{seed}`, which are filled in, one for each portrait. No settings are stored in it
    #[arg(long, short, default_value = "portrait.png")]
    output: PathBuf,
}

impl Portrait {
    fn request(&self, [profile, reference]: [Picture; 2]) -> anyhow::Result<Request<Asked>> {
        let seed = ask::seed(self.seed)?;
        let asked = Asked {
            profile: profile.into(),
            reference: reference.into(),
            seed,
            hidden: self.rho,
            still: self.no_warp,
        };
        let sampler = self.sampler.as_deref().map(str::parse).transpose()?;
        let guidance =
            Guidance { scale: self.cfg_scale, light: self.cfg_light, ..Guidance::default() };
        let (steps, batch) = (self.steps, self.batch_size);
        let prompts = vec![asked; self.count];
        Ok(Request { seed, steps, sampler, guidance, batch, ..Request::new(prompts) })
    }

    /// The networks that find faces and tell them apart, where there is something to find or to tell.
    pub(super) fn faces(&self, opened: &Opened) -> anyhow::Result<Option<Faces>> {
        let asked = self.photos || self.report;
        Ok(asked.then(|| Faces::open(&opened.device)).transpose()?)
    }

    /// The photograph at a path with the face of this number, for a model that makes images of this size; without --photos,
    /// none.
    pub(super) fn photograph(
        &self,
        path: &Path,
        number: Option<usize>,
        [height, width]: [usize; 2],
        faces: Option<&Faces>,
    ) -> anyhow::Result<Option<Photograph>> {
        let Some(faces) = faces.filter(|_| self.photos) else { return Ok(None) };
        ensure!(
            height == width,
            "--photos: the model makes images of {width}x{height}, not squares"
        );
        let photo = Photograph::new(read_picture(path)?, faces, number, height);
        Ok(Some(photo.with_context(|| path.display().to_string())?))
    }

    fn profile(&self) -> anyhow::Result<&Path> {
        self.profile.as_deref().context("no picture of the person: name one with --profile")
    }

    pub(super) fn path(&self, index: usize, seed: u64) -> PathBuf {
        let seed = seed.wrapping_add(index as u64);
        output_path(&self.output, index, self.count, seed, "portrait")
    }

    /// Checks, before any work, that pictures of the model's size, `[height, width]`, or that of the photograph that they are
    /// put into, can be written, and take the place of no input.
    pub(super) fn check_output(
        &self,
        seed: u64,
        size: [usize; 2],
        photo: Option<&Photograph>,
    ) -> anyhow::Result<()> {
        let [height, width] = size.map(|side| side as u64);
        let photo = photo.map(|photo| photo.picture().dimensions());
        let size = photo.map_or([width, height], |(width, height)| [width, height].map(u64::from));
        for index in 0..self.count {
            let path = self.path(index, seed);
            check_format(&path, size, &[])?;
            check_folder_of_first(index, &path)?;
            let inputs =
                [("--profile", self.profile.as_ref()), ("--reference", Some(&self.reference))];
            for (option, input) in
                inputs.into_iter().filter_map(|(option, input)| Some((option, input?)))
            {
                ensure!(
                    place(&path) != place(input),
                    "{}: --output would take the place of {option}",
                    path.display()
                );
            }
        }
        Ok(())
    }
}

/// What becomes of the portraits of a run.
struct Written<'a> {
    args: &'a Portrait,
    common: &'a Common,
    seed: u64,
    /// What they are put into.
    reference: Option<&'a Photograph>,
    /// What says how good they are.
    judge: Option<Compared<'a>>,
    /// What is wrong with some of them.
    bad: Vec<String>,
}

impl Written<'_> {
    /// Writes a portrait, and says so.
    fn take(&mut self, Made { index, image, .. }: Made) -> anyhow::Result<()> {
        let _saved = interrupt::hold();
        let path = self.args.path(index, self.seed);
        let whole = |image| match self.reference {
            Some(photo) => photo.with_face(&image),
            None => Ok(image),
        };
        let said = match image.and_then(whole) {
            Ok(image) => {
                write_image(&path, &image, &[])?;
                tell(
                    &path,
                    &image,
                    self.judge.as_ref(),
                    serde_json::json!({ "index": index }),
                    self.common,
                )?
            }
            Err(error) => {
                self.bad.push(error.to_string());
                serde_json::json!({ "index": index, "error": error.to_string() })
            }
        };
        if self.common.json {
            println!("{said}");
        }
        Ok(())
    }

    fn finish(self) -> anyhow::Result<()> {
        match self.bad.len() {
            0 => Ok(()),
            count => {
                let named = self.bad[..count.min(NAMED)].join("; ");
                bail!("{count} of {} portraits are missing: {named}", self.args.count)
            }
        }
    }
}

/// Says where a portrait is, and how good it is if that was asked; what is told of it as JSON comes back.
pub(super) fn tell(
    path: &Path,
    portrait: &RgbImage,
    judge: Option<&Compared<'_>>,
    mut said: serde_json::Value,
    common: &Common,
) -> anyhow::Result<serde_json::Value> {
    said["file"] = path.to_string_lossy().into();
    let likeness = judge.map(|judge| judge.likeness(portrait)).transpose()?;
    if let Some(likeness) = &likeness {
        said["report"] = serde_json::to_value(likeness)?;
    }
    if !common.json && !common.quiet {
        println!("{}", path.display());
    }
    if let Some(likeness) = likeness.filter(|_| !common.json) {
        common.say(&judge::told(&likeness));
    }
    Ok(said)
}

pub(crate) fn portrait(args: &Portrait, common: &Common) -> anyhow::Result<()> {
    check_output_path(&args.output)?;
    for input in args.profile.iter().chain([&args.reference]) {
        picture_size(input)?;
    }
    if let Some(adapter) = &args.mega.adapter {
        return mega::run(args, adapter, common);
    }
    let branches = args.model.as_ref().context("no branches: name them with --model")?;
    let base = common.find(&args.base)?;
    let opened = common.open()?;
    let notify = |notice| common.tell(&notice);
    let mut options = OpenOptions::default();
    options.hooks.notify = Some(&notify);
    let pipeline = PortraitPipeline::with_branches(branches, &base, &opened, &options)?;
    let (faces, size) = (args.faces(&opened)?, pipeline.size());
    let photo = |path, number| args.photograph(path, number, size, faces.as_ref());
    let profile = photo(args.profile()?, args.profile_face)?;
    let reference = photo(&args.reference, args.face)?;
    let picture = |photo: &Option<Photograph>, path: &Path| match photo {
        Some(photo) => Picture::Pixels(photo.crop()),
        None => Picture::File(path.to_owned()),
    };
    let pictures = [picture(&profile, args.profile()?), picture(&reference, &args.reference)];
    let request = args.request(pictures)?;
    let reference = reference.as_ref();
    args.check_output(request.seed, size, reference)?;
    let judge = args.judge(faces.as_ref(), size, reference)?;
    let (seed, bad) = (request.seed, Vec::new());
    let written = Written { args, common, seed, reference, judge, bad };
    make(&pipeline, &request, written)
}

/// Makes the portraits with a progress bar over all steps, each written as soon as it is there.
fn make(
    pipeline: &PortraitPipeline,
    request: &Request<Asked>,
    mut written: Written<'_>,
) -> anyhow::Result<()> {
    let (settings, steps) = (pipeline.resolve(request)?, pipeline.taken(request)?);
    let (common, count) = (written.common, written.args.count);
    let all = (count.div_ceil(settings.batch) * steps) as u64;
    let bar = common.progress_bar(all, "{bar:30} {pos}/{len} steps, {per_sec}, {eta} left");
    let (started, mut failed) = (Instant::now(), Ok(()));
    let on_step = &mut |_: Progress<'_>| {
        bar.inc(1);
        interrupted()
    };
    let made = pipeline.each(request, on_step, &mut |made| {
        failed = bar.suspend(|| written.take(made));
        match failed {
            Ok(()) => interrupted(),
            Err(_) => ControlFlow::Break(()),
        }
    });
    bar.finish_and_clear();
    failed?;
    made?;
    common.say(&format!(
        "{}, seed {}, {} of {}, cfg {}, {:.1} s",
        counted(count - written.bad.len(), "portrait", "portraits"),
        settings.seed,
        counted(steps, "step", "steps"),
        settings.sampler,
        settings.guidance.scale,
        started.elapsed().as_secs_f64(),
    ));
    written.finish()
}
