//! `pyrograph generate portrait --adapter`.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use clap::Args;
use pyrograph::faces::{Compared, Faces, Photograph};
use pyrograph::image::write_image;
use pyrograph::megaportrait::{
    Branches, MegaPortrait, Paste, Reference, Shading, StageOptions, Stages,
};
use pyrograph::pipeline::Pipeline;
use pyrograph::task::{ClassTask, PromptTask, TextTask};
use pyrograph::{OpenOptions, Picture, model};

use super::portrait::{Portrait, tell};
use crate::common::{Common, counted, interrupted};
use crate::interrupt;
use crate::portrait::person_prompt;

/// Options of portraits of a person that a model has learnt.
#[derive(Args)]
pub(crate) struct Mega {
    /// What `portrait fit` learnt of the person, in place of --profile and --model; a profile is then for --report alone
    #[arg(long, value_name = "FILE", conflicts_with_all = ["model", "cfg_light", "profile_face"])]
    pub(super) adapter: Option<PathBuf>,
    /// Branch of the base that sees outlines
    #[arg(long, value_name = "BRANCH", requires = "adapter")]
    edges: Option<PathBuf>,
    /// Branch of the base that sees where it is light
    #[arg(long, value_name = "BRANCH", requires = "adapter")]
    luminance: Option<PathBuf>,
    /// Branch of the base that sees colours in coarse cells
    #[arg(long, value_name = "BRANCH", requires = "adapter")]
    tile: Option<PathBuf>,
    /// Branch of the base that sees five points of a face, as --photos finds them
    #[arg(long, value_name = "BRANCH", requires = "adapter", requires = "photos")]
    keypoints: Option<PathBuf>,
    /// Picture that is white where the face of the reference is, which --photos finds itself
    #[arg(long, value_name = "PICTURE", requires = "adapter", conflicts_with = "photos")]
    face_mask: Option<PathBuf>,
    /// Class of people, for a base of several classes
    #[arg(long, requires = "adapter")]
    class: Option<String>,
    /// What a base of texts is told of any person, as in `portrait fit`
    #[arg(long, requires = "adapter")]
    prompt: Option<String>,
    /// Take the light of the reference: off, tones (its colours on the whole), analytic, or by the model (net) [default: net]
    #[arg(long, requires = "adapter", value_parser = ["off", "tones", "analytic", "net"])]
    shading: Option<String>,
    /// Put the face into the reference: off, hard, feather [default: feather]
    #[arg(long, requires = "adapter", value_parser = ["off", "hard", "feather"])]
    paste: Option<String>,
    /// Share of the steps in which the model blends the face in, 0 to leave that out [default: 0.3]
    #[arg(long, value_name = "STRENGTH", requires = "adapter")]
    harmonization: Option<f64>,
    /// Weights of the adapter while the model makes the person, the light, and the seam [default: 1,0.8,0.6]
    #[arg(long, value_name = "A,B,C", requires = "adapter", value_delimiter = ',', num_args = 1)]
    adapter_scale: Vec<f64>,
    /// How much is left of the outlines inside the reference's face, 0 to 1 [default: 0]
    #[arg(long, value_name = "SHARE", requires = "adapter")]
    inner_edges: Option<f64>,
    /// Folder for the picture of every stage
    #[arg(long, value_name = "FOLDER", requires = "adapter")]
    stages: Option<PathBuf>,
}

/// Names of the pictures of the stages.
const STAGES: [&str; 4] = ["1-identity.png", "2-shaded.png", "3-composite.png", "4-portrait.png"];

impl Portrait {
    fn stage_options(&self, seed: u64) -> anyhow::Result<StageOptions> {
        let plain = StageOptions::default();
        let mega = &self.mega;
        let adapter = match mega.adapter_scale.as_slice() {
            [] => plain.adapter,
            [a, b, c] => [*a, *b, *c],
            scales => bail!("--adapter-scale: {} weights, expected 3", scales.len()),
        };
        let harmonization = match mega.harmonization {
            None => plain.harmonization,
            Some(0.0) => None,
            Some(strength) => Some(strength),
        };
        Ok(StageOptions {
            steps: self.steps,
            cfg_scale: self.cfg_scale,
            inner_edges: mega.inner_edges.unwrap_or(plain.inner_edges),
            shading: match mega.shading.as_deref() {
                Some("off") => Shading::Off,
                Some("tones") => Shading::Tones,
                Some("analytic") => Shading::Analytic,
                _ => Shading::Net,
            },
            paste: match mega.paste.as_deref() {
                Some("off") => Paste::Off,
                Some("hard") => Paste::Hard,
                _ => Paste::Feather,
            },
            harmonization,
            adapter,
            seed,
            ..plain
        })
    }
}

/// Makes the portraits.
pub(super) fn run(args: &Portrait, adapter: &Path, common: &Common) -> anyhow::Result<()> {
    for (option, given) in
        [("--sampler", args.sampler.is_some()), ("--batch-size", args.batch_size.is_some())]
    {
        ensure!(!given, "{option} has no effect with --adapter");
    }
    ensure!(
        args.profile.is_none() || args.report,
        "--profile has no effect with --adapter, but for --report"
    );
    let base = common.find(&args.base)?;
    match model::recognise(&base)?.config.net.dit.classes {
        0 => make::<TextTask>(args, adapter, &base, common),
        _ => make::<ClassTask>(args, adapter, &base, common),
    }
}

fn make<T: PromptTask>(
    args: &Portrait,
    adapter: &Path,
    base: &Path,
    common: &Common,
) -> anyhow::Result<()> {
    let opened = common.open()?;
    let notify = |notice| common.tell(&notice);
    let mut options = OpenOptions::default();
    options.hooks.notify = Some(&notify);
    let mut pipeline = Pipeline::<T>::open_on(base, &opened, &options)?;
    let mega = &args.mega;
    let prompt =
        person_prompt::<T>(pipeline.config(), mega.class.as_deref(), mega.prompt.as_deref())?;
    let open =
        |path: &Option<PathBuf>| path.as_ref().map(|path| pipeline.control(path)).transpose();
    let branches = Branches {
        edges: open(&mega.edges)?,
        luminance: open(&mega.luminance)?,
        tile: open(&mega.tile)?,
        keypoints: open(&mega.keypoints)?,
    };
    let adapter = pipeline.adapter(adapter, None, &mut |notice| common.tell(&notice))?;
    let person = pipeline.put_on(adapter, 1.0)?;
    let mega = MegaPortrait::new(pipeline, person, prompt, branches);
    let seed = super::ask::seed(args.seed)?;
    let options = args.stage_options(seed)?;
    mega.check(&options)?;
    let faces = args.faces(&opened)?;
    let placed = placed(args, mega.size(), faces.as_ref())?;
    args.check_output(seed, mega.size(), placed.photo.as_ref())?;
    if let Some(folder) = &args.mega.stages {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    for index in 0..args.count {
        one(args, &mega, &options, (index, &placed), common)?;
    }
    Ok(())
}

/// One portrait, with a progress bar over the steps of all stages.
fn one<T: PromptTask>(
    args: &Portrait,
    mega: &MegaPortrait<T>,
    options: &StageOptions,
    (index, placed): (usize, &Placed<'_>),
    common: &Common,
) -> anyhow::Result<()> {
    let started = Instant::now();
    let options = StageOptions { seed: options.seed.wrapping_add(index as u64), ..options.clone() };
    let bar =
        common.progress_bar(mega.steps(&options)? as u64, "{bar:30} {pos}/{len} steps, {eta} left");
    let on_step = &mut |step: usize, _: usize| -> ControlFlow<()> {
        bar.set_position(step as u64);
        interrupted()
    };
    let stages = mega.make(&placed.reference, &options, on_step);
    bar.finish_and_clear();
    let stages = stages?;
    let _saved = interrupt::hold();
    let whole = match &placed.photo {
        Some(photo) => photo.with_face(&stages.portrait)?,
        None => stages.portrait.clone(),
    };
    let path = args.path(index, options.seed.wrapping_sub(index as u64));
    write_image(&path, &whole, &[])?;
    if let Some(folder) = &args.mega.stages {
        save(folder, index, args.count, &stages)?;
    }
    let said = serde_json::json!({
        "index": index, "seconds": stages.seconds, "steps": stages.steps,
    });
    let said = tell(&path, &whole, placed.judge.as_ref(), said, common)?;
    if common.json {
        println!("{said}");
    }
    let steps = counted(stages.steps, "step", "steps");
    common.say(&format!(
        "seed {}, {steps}, {:.1} s",
        options.seed,
        started.elapsed().as_secs_f64()
    ));
    Ok(())
}

/// Writes the picture of every stage.
fn save(folder: &Path, index: usize, count: usize, stages: &Stages) -> anyhow::Result<()> {
    let Stages { identity, shaded, composite, portrait, .. } = stages;
    for (name, picture) in STAGES.iter().zip([identity, shaded, composite, portrait]) {
        let name = if count == 1 { (*name).to_owned() } else { format!("{index}-{name}") };
        write_image(&folder.join(name), picture, &[])?;
    }
    Ok(())
}

/// A reference, the photograph that it comes from, and what compares portraits with it.
struct Placed<'a> {
    reference: Reference,
    photo: Option<Photograph>,
    judge: Option<Compared<'a>>,
}

fn placed<'a>(
    args: &Portrait,
    size: [usize; 2],
    faces: Option<&'a Faces>,
) -> anyhow::Result<Placed<'a>> {
    let path = &args.reference;
    let photo = args.photograph(path, args.face, size, faces)?;
    let reference = match &photo {
        Some(photo) => Reference::of(photo)?,
        None => {
            let mask = args.mega.face_mask.as_ref();
            let mask = mask.context(
                "where is the face? Name a mask with --face-mask, or find it with --photos",
            )?;
            let [picture, face] = [path, mask].map(|path| Picture::File(path.clone()));
            Reference { picture, face, points: None }
        }
    };
    let judge = args.judge(faces, size, photo.as_ref())?;
    Ok(Placed { reference, photo, judge })
}
