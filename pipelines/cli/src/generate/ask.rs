//! What the options of `pyrograph generate` mean.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use pyrograph::control::ControlBranch;
use pyrograph::engine::diffusion::{Churn, GuidedChannels, Sampler, Spacing, parse_sampler};
use pyrograph::metadata::Used;
use pyrograph::pipeline::Pipeline;
use pyrograph::settings::Defaults;
use pyrograph::task::{PromptTask, Task};
use pyrograph::{Controlled, Noise, Picture, Request, StartPicture};

use super::args::Images;
use super::earlier::Earlier;
use super::kinds::Kind;
use crate::common::{Common, counted};

/// Steps between previews.
const PREVIEW_INTERVAL: usize = 5;
/// Random seeds stay below this, as in other programs.
const SEED_LIMIT: u64 = 4_294_967_294;

/// The request of these options, on top of that of an earlier picture.
pub(super) fn request<K: Kind>(
    kind: &K,
    earlier: Option<&Earlier>,
    pipeline: &Pipeline<K::Task>,
    common: &Common,
) -> anyhow::Result<Request<<K::Task as Task>::Prompt>> {
    let args = kind.images();
    let mut request = match earlier {
        Some(earlier) => earlier.record.request::<K::Task>(&earlier.picture)?,
        None => Request::default(),
    };
    kind.ask(&mut request)?;
    if earlier.is_none() || args.seed != -1 {
        request.seed = seed(args.seed)?;
    }
    let defaults = &pipeline.config().defaults;
    sampling(args, &mut request, defaults)?;
    guidance(args, &mut request);
    let native = pipeline.size();
    if args.width.is_some() || args.height.is_some() {
        request.size = Some([args.height.unwrap_or(native[0]), args.width.unwrap_or(native[1])]);
    }
    let settings = request.settings(defaults);
    let ([_, _, height, width], steps) = (pipeline.shape(1, &settings)?, settings.steps);
    let plan = args.patches.plan(&pipeline.config().net.dit, [height, width], steps)?;
    request.patches = plan.or(request.patches);
    request.batch = args.batch_size.or(request.batch);
    request.vae_tile = args.vae_tile.or(request.vae_tile);
    request.previews =
        args.preview.is_some().then_some(args.preview_interval.unwrap_or(PREVIEW_INTERVAL));
    effective(args, &request, pipeline)?;

    pictures(args, earlier, &mut request, common)?;
    request.controls = controls(args, earlier)?;
    let images = noise(args, earlier, &mut request, common)?;
    if earlier.is_none() {
        request.prompts = kind.prompts(args.count.or(images), request.seed, pipeline)?;
    }
    Ok(request)
}

/// Refuses options that would change nothing.
fn effective<T: PromptTask>(
    args: &Images,
    request: &Request<T::Prompt>,
    pipeline: &Pipeline<T>,
) -> anyhow::Result<()> {
    let settings = request.settings(&pipeline.config().defaults);
    let of_guidance = [
        ("--cfg-interval", args.cfg_interval.is_some()),
        ("--cfg-rescale", args.cfg_rescale.is_some()),
        ("--cfg-normalize", args.cfg_normalize.is_some()),
        ("--cfg-channels", args.cfg_channels.is_some()),
        ("--guide-model", args.guide_model.is_some()),
        ("--negative-prompt", request.negative.is_some()),
    ];
    for (option, given) in of_guidance {
        let unguided = settings.guidance.scale == 1.0;
        ensure!(!(given && unguided), "{option} has no effect at a guidance scale of 1");
    }
    ensure!(
        request.negative.is_none() || pipeline.origin().guide.is_none(),
        "--negative-prompt has no effect with --guide-model"
    );
    let has_vae = pipeline.config().vae.is_some();
    ensure!(
        args.vae_tile.is_none() || has_vae,
        "--vae-tile has no effect, the model has no autoencoder"
    );
    Ok(())
}

/// The seed asked for; -1 is random.
pub(super) fn seed(asked: i128) -> anyhow::Result<u64> {
    if asked == -1 {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let random =
            |now: std::time::Duration| u64::from(now.subsec_nanos()) ^ (now.as_secs() << 8);
        return Ok(now.map_or(0, random) % SEED_LIMIT);
    }
    let found = u64::try_from(asked).ok();
    found.with_context(|| format!("seed {asked}, expected -1, or 0 to {}", u64::MAX))
}

/// Sampler, steps and their placement.
fn sampling<P>(args: &Images, request: &mut Request<P>, defaults: &Defaults) -> anyhow::Result<()> {
    if let Some(name) = &args.sampler {
        let (sampler, spacing) = parse_sampler(name)?;
        (request.sampler, request.spacing) = (Some(sampler), spacing);
    }
    if args.eta.is_some() || args.churn.is_some() {
        let settings = request.settings(defaults);
        let mut sampler = settings.sampler;
        randomness(args, &mut sampler)?;
        (request.sampler, request.spacing) = (Some(sampler), settings.spacing);
    }
    if let Some(name) = &args.scheduler {
        request.spacing = Some(name.parse()?);
    }
    if let Some(sigmas) = &args.sigmas {
        request.steps = Some(sigmas.len() - usize::from(sigmas.last() == Some(&0.0)));
        request.spacing = Some(Spacing::Sigmas(sigmas.clone()));
    }
    request.steps = args.steps.or(request.steps);
    Ok(())
}

/// Noise that a sampler adds.
fn randomness(args: &Images, sampler: &mut Sampler) -> anyhow::Result<()> {
    match (args.eta, &mut *sampler) {
        (None, _) => (),
        (Some(new), Sampler::Ddim { eta }) if (0.0..=1.0).contains(&new) => *eta = new,
        (Some(new), Sampler::Ddim { .. }) => bail!("eta {new}, expected 0 to 1"),
        (Some(_), other) => bail!("--eta belongs to ddim, the sampler is {other}"),
    }
    match (args.churn, sampler) {
        (None, _) => (),
        (Some(amount), Sampler::Heun { churn }) if amount >= 0.0 => {
            *churn = Some(Churn { amount, ..Churn::default() });
        }
        (Some(amount), Sampler::Heun { .. }) => bail!("churn {amount}, expected 0 or more"),
        (Some(_), other) => bail!("--churn belongs to heun, the sampler is {other}"),
    }
    Ok(())
}

fn guidance<P>(args: &Images, request: &mut Request<P>) {
    let guidance = &mut request.guidance;
    guidance.scale = args.cfg_scale.or(guidance.scale);
    guidance.interval = args.cfg_interval.or(guidance.interval);
    guidance.rescale = args.cfg_rescale.or(guidance.rescale);
    guidance.normalized = args.cfg_normalize.or(guidance.normalized);
    let channels = args.cfg_channels.map(|count| match count {
        0 => GuidedChannels::All,
        count => GuidedChannels::First(count),
    });
    guidance.channels = channels.or(guidance.channels);
}

/// What was used for an earlier picture, which `file` takes the place of.
fn warn_of_other(file: &Path, before: Option<&Used>, common: &Common) -> anyhow::Result<bool> {
    let Some(before) = before else { return Ok(false) };
    let same = before.fingerprint.is_none() || before.fingerprint == Used::file(file)?.fingerprint;
    if !same {
        let name = before.file.as_deref().unwrap_or("one from memory");
        common.say(&format!("warning: {} is not {name} of the picture", file.display()));
    }
    Ok(same)
}

/// The picture to start from, and its mask.
fn pictures<P>(
    args: &Images,
    earlier: Option<&Earlier>,
    request: &mut Request<P>,
    common: &Common,
) -> anyhow::Result<()> {
    let record = earlier.map(|earlier| &earlier.record);
    let before = record.and_then(|record| record.picture.as_ref());
    request.picture = match (&args.init_image, earlier) {
        (Some(file), _) => {
            warn_of_other(file, before.map(|start| &start.picture), common)?;
            let picture = Picture::File(file.clone());
            Some(StartPicture { picture, strength: before.and_then(|start| start.strength) })
        }
        (None, Some(earlier)) => earlier.search.picture(&earlier.record)?,
        (None, None) => None,
    };
    if let Some(strength) = args.strength {
        let start = request.picture.as_mut();
        start.context("--strength has no effect without --init-image")?.strength = Some(strength);
    }
    request.mask = match (&args.mask, earlier) {
        (Some(file), _) => {
            warn_of_other(file, record.and_then(|record| record.mask.as_ref()), common)?;
            Some(Picture::File(file.clone()))
        }
        (None, Some(earlier)) => earlier.search.mask(&earlier.record)?,
        (None, None) => None,
    };
    Ok(())
}

/// What controls the images: asked for, or that of an earlier picture.
fn controls(args: &Images, earlier: Option<&Earlier>) -> anyhow::Result<Vec<Controlled>> {
    let Images { control, control_image, control_steps, control_ready, .. } = args;
    let given = [control.len(), control_image.len()];
    ensure!(given[0] == given[1], "{} --control and {} --control-image", given[0], given[1]);
    let pairs = control.iter().zip(control_image);
    let asked = pairs.map(|(branch, picture)| Controlled {
        branch: ControlBranch::Folder(branch.file.clone()),
        picture: Picture::File(picture.clone()),
        ready: false,
        scale: branch.weight,
        steps: [0.0, 1.0],
    });
    let mut controls: Vec<Controlled> = asked.collect();
    if let Some(Earlier { record, search, .. }) = earlier.filter(|_| controls.is_empty()) {
        controls = search.controls(record)?;
    }
    let unread =
        [("--control-steps", control_steps.is_some()), ("--control-ready", *control_ready)];
    let option = unread.into_iter().find(|(_, given)| *given && controls.is_empty());
    ensure!(option.is_none(), "{} has no effect without --control", option.unwrap_or_default().0);
    for control in &mut controls {
        control.ready |= control_ready;
        control.steps = control_steps.unwrap_or(control.steps);
    }
    Ok(controls)
}

/// Noise in place of the seed's; returns how many images it is for, where that is left to it.
fn noise<P>(
    args: &Images,
    earlier: Option<&Earlier>,
    request: &mut Request<P>,
    common: &Common,
) -> anyhow::Result<Option<usize>> {
    let Some(file) = &args.noise else {
        if let Some(Earlier { record, search, .. }) = earlier {
            request.noise = search.noise(record)?;
        }
        return Ok(None);
    };
    let [images, ..] = Noise::shape_in(file)?;
    let before = earlier.and_then(|earlier| earlier.record.noise.as_ref());
    let same = warn_of_other(file, before.map(|before| &before.noise), common)?;
    request.noise = Some(match before {
        Some(before) if same => Noise::Part { file: file.clone(), first: before.first },
        _ => Noise::File(file.clone()),
    });
    let asked = args.count.unwrap_or(images);
    let images_asked = counted(asked, "image", "images");
    ensure!(asked == images, "{images_asked} asked for, the noise is for {images}");
    Ok(Some(images))
}
