//! What the options of `pyrograph generate class` mean.

use anyhow::{Context, bail};
use pyrograph::engine::diffusion::{Churn, GuidedChannels, Sampler, Spacing, parse_sampler};
use pyrograph::engine::random::SplitMix64;
use pyrograph::metadata::Record;
use pyrograph::settings::Defaults;
use pyrograph::{ClassPipeline, Noise, Picture, Request, StartPicture};

use super::args::Class;

/// Images of the default grid.
const DEFAULT_COUNT: usize = 16;
/// Random seeds stay below this, as in other programs.
const SEED_LIMIT: u64 = 4_294_967_294;

/// The request of these options, on top of that of an earlier picture.
pub(super) fn request(
    args: &Class,
    earlier: Option<&Record>,
    pipeline: &ClassPipeline,
) -> anyhow::Result<Request<usize>> {
    let mut request = earlier.map_or_else(Request::default, Record::request);
    if earlier.is_none() || args.seed != -1 {
        request.seed = seed(args.seed)?;
    }
    let defaults = &pipeline.config().defaults;
    sampling(args, &mut request, defaults)?;
    guidance(args, &mut request);
    pictures(args, &mut request);

    let native = pipeline.config().net.dit.size.map(|side| side * pipeline.factor());
    if args.width.is_some() || args.height.is_some() {
        request.size = Some([args.height.unwrap_or(native[0]), args.width.unwrap_or(native[1])]);
    }
    let [_, _, height, width] = pipeline.latent_shape(1, request.size)?;
    let steps = request.settings(defaults).steps;
    let plan = args.patches.plan(&pipeline.config().net.dit, [height, width], steps)?;
    request.patches = plan.or(request.patches);
    request.batch = args.batch_size.or(request.batch);
    request.vae_tile = args.vae_tile.or(request.vae_tile);
    request.previews = args.preview.is_some().then_some(args.preview_interval);

    if earlier.is_none() {
        request.prompts = classes(args, request.seed, pipeline)?;
    }
    if let Some(path) = &args.noise {
        let noise = Noise::File(path.clone()).read(pipeline.device())?;
        let classes = request.prompts.iter().copied().cycle();
        request.prompts = classes.take(noise.dims()[0]).collect();
        request.noise = Some(Noise::Values(noise));
    }
    Ok(request)
}

/// The seed asked for; -1 is random.
fn seed(asked: i128) -> anyhow::Result<u64> {
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
fn sampling(args: &Class, request: &mut Request<usize>, defaults: &Defaults) -> anyhow::Result<()> {
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
        request.steps = Some(sigmas.iter().filter(|sigma| **sigma != 0.0).count());
        request.spacing = Some(Spacing::Sigmas(sigmas.clone()));
    }
    request.steps = args.steps.or(request.steps);
    Ok(())
}

/// Noise that a sampler adds.
fn randomness(args: &Class, sampler: &mut Sampler) -> anyhow::Result<()> {
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

fn guidance(args: &Class, request: &mut Request<usize>) {
    let guidance = &mut request.guidance;
    guidance.scale = args.cfg_scale.or(guidance.scale);
    guidance.interval = args.cfg_interval.or(guidance.interval);
    guidance.rescale = args.cfg_rescale.or(guidance.rescale);
    let channels = args.cfg_channels.map(|count| match count {
        0 => GuidedChannels::All,
        count => GuidedChannels::First(count),
    });
    guidance.channels = channels.or(guidance.channels);
}

/// A picture to start from takes the place of an earlier one, with its mask.
fn pictures(args: &Class, request: &mut Request<usize>) {
    if let Some(file) = &args.init_image {
        let picture = Picture::File(file.clone());
        request.picture = Some(StartPicture { picture, strength: args.strength });
        request.mask = args.mask.clone().map(Picture::File);
    }
}

/// The class of each image.
fn classes(args: &Class, seed: u64, pipeline: &ClassPipeline) -> anyhow::Result<Vec<usize>> {
    let count = pipeline.classes();
    let named: Vec<usize> = match args.class.as_deref() {
        None => (0..count).collect(),
        Some("random") => {
            // A class depends on the seed of its image only.
            let random =
                |i| (SplitMix64::new(seed.wrapping_add(i)).next_u64() % count as u64) as usize;
            (0..args.count.unwrap_or(1) as u64).map(random).collect()
        }
        Some(names) => {
            names.split(',').map(|name| pipeline.class(name)).collect::<Result<_, _>>()?
        }
    };
    let images =
        args.count.unwrap_or(if args.class.is_some() { named.len() } else { DEFAULT_COUNT });
    Ok(named.into_iter().cycle().take(images).collect())
}
