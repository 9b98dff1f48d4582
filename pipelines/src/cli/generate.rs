//! `pyrograph generate class`.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail};
use burn::tensor::{Tensor, TensorData};
use clap::Args;
use image::RgbImage;
use pyrograph::data::read_picture;
use pyrograph::image::{
    check_output_path, contact_sheet, is_output_pattern, output_path, write_image,
};
use pyrograph::metadata::Parameters;
use pyrograph::pipeline::{ClassPipeline, Progress};
use pyrograph::settings::Settings;
use pyrograph_engine::diffusion::{Churn, GuidedChannels, Sampler, Spacing, parse_sampler};
use pyrograph_weights::{Checkpoint, FloatDtype, write_safetensors};

use super::request::{Picture, Request};
use super::weight_type::WeightType;
use super::{Common, find_model, interrupted};

/// Name of the shipped model.
pub(super) const DEFAULT_MODEL: &str = "emoji-class";
/// Its few-step student.
const FAST_MODEL: &str = "emoji-4step";
/// Images of the default grid.
const DEFAULT_COUNT: usize = 16;

#[derive(Args)]
pub(super) struct Class {
    /// Bundle, diffusers folder, checkpoint file, or the name of a shipped model
    #[arg(long, short)]
    model: Option<PathBuf>,
    /// The four-step student of the shipped model, instead of the model itself
    #[arg(long, conflicts_with_all = ["model", "from_metadata"])]
    fast: bool,
    /// Autoencoder for a checkpoint that comes without one: a diffusers `vae` folder, or a model with one
    #[arg(long)]
    vae: Option<PathBuf>,
    /// Class ids or names, separated by commas, or `random` [default: every class in turn]
    #[arg(long, short)]
    class: Option<String>,
    /// Number of images [default: one per class given]
    #[arg(long, short = 'n')]
    count: Option<usize>,
    /// Sampling steps [default: the model's]
    #[arg(long)]
    steps: Option<usize>,
    /// Guidance scale, 1 is none [default: the model's]
    #[arg(long, visible_aliases = ["guidance-scale", "guidance"])]
    cfg_scale: Option<f64>,
    /// Noise levels LO,HI (as σ) between which guidance acts
    #[arg(long, value_parser = parse_interval)]
    cfg_interval: Option<[f64; 2]>,
    /// Share of guidance rescaling, 0 to 1
    #[arg(long)]
    cfg_rescale: Option<f64>,
    /// Guide only the first N channels; 0 is all
    #[arg(long)]
    cfg_channels: Option<usize>,
    /// Weaker model to guide away from, instead of the null class
    #[arg(long)]
    guide_model: Option<PathBuf>,
    /// Solver, such as ddim, euler, heun, dpmpp_2m; A1111 and diffusers names work too
    #[arg(long, visible_alias = "sampling-method")]
    sampler: Option<String>,
    /// Placement of the steps: leading, trailing, linspace, karras, exponential
    #[arg(long)]
    scheduler: Option<String>,
    /// Randomness of ddim, 0 to 1
    #[arg(long, value_name = "ETA")]
    eta: Option<f64>,
    /// Noise that heun adds over the whole run (S_churn of Karras et al. 2022)
    #[arg(long, value_name = "AMOUNT")]
    churn: Option<f64>,
    /// Explicit noise levels, highest first, separated by commas
    #[arg(long, value_delimiter = ',', conflicts_with_all = ["scheduler", "steps"])]
    sigmas: Option<Vec<f64>>,
    /// Seed of the first image; image i has seed + i; -1 is random
    #[arg(long, short, default_value = "-1", allow_hyphen_values = true)]
    seed: i128,
    /// Picture to start from, in place of noise alone
    #[arg(long, short = 'i', visible_alias = "init-img")]
    init_image: Option<PathBuf>,
    /// Share of the steps taken from there, above 0 and up to 1 [default: 0.75]
    #[arg(long, requires = "init_image")]
    strength: Option<f64>,
    /// Width in pixels [default: the model's]
    #[arg(long, short = 'W')]
    width: Option<usize>,
    /// Height in pixels [default: the model's]
    #[arg(long, short = 'H')]
    height: Option<usize>,
    /// Output file; with `%03d`, `{seed}` or `{class}`, which are filled in, one for each image
    #[arg(long, short, default_value = "output.png")]
    output: PathBuf,
    /// One picture with all images, with this many columns [default: square]
    #[arg(long, num_args = 0..=1, default_missing_value = "0", value_name = "COLUMNS")]
    grid: Option<usize>,
    /// Write the estimate of the final images here every few steps
    #[arg(long)]
    preview: Option<PathBuf>,
    /// Steps between previews
    #[arg(long, default_value_t = 5)]
    preview_interval: usize,
    #[command(flatten)]
    patches: super::patches::Patches,
    /// Show the result in the terminal
    #[arg(long)]
    show: bool,
    /// Type of the weights: f32, f16, bf16 or, on the CPU, int8 [default: f32]
    #[arg(long)]
    dtype: Option<WeightType>,
    /// Images per network call
    #[arg(long)]
    batch_size: Option<usize>,
    /// Latent cells per tile when decoding
    #[arg(long)]
    vae_tile: Option<usize>,
    /// Safetensors file whose tensor `noise`, [images, channels, height, width], replaces the seed's
    #[arg(long)]
    noise: Option<PathBuf>,
    /// Write `latents` and `trajectory` to this safetensors file
    #[arg(long)]
    save_latents: Option<PathBuf>,
    /// Repeat the settings stored in a PNG
    #[arg(long, conflicts_with_all = ["class", "count"])]
    from_metadata: Option<PathBuf>,
    /// Store no settings in the image
    #[arg(long)]
    no_metadata: bool,
}

pub(super) fn run(args: &Class, common: &Common) -> anyhow::Result<()> {
    let earlier: Option<Request> = args.from_metadata.as_deref().map(Request::read).transpose()?;
    let every_class = args.class.is_none() && earlier.is_none();
    let as_grid = args.grid.is_some() || (every_class && !is_output_pattern(&args.output));
    for path in [Some(&args.output), args.preview.as_ref()].into_iter().flatten() {
        check_output_path(path)?;
    }
    let from_earlier = |field: fn(&Request) -> Option<PathBuf>| earlier.as_ref().and_then(field);
    let named = || from_earlier(|request| Some(PathBuf::from(&request.model)));
    let shipped = if args.fast { FAST_MODEL } else { DEFAULT_MODEL };
    let model = args.model.clone().or_else(named).unwrap_or_else(|| shipped.into());
    let model = find_model(&model)?;
    let vae = args.vae.clone().or_else(|| from_earlier(|request| request.vae.clone()));
    let guide = args.guide_model.clone().or_else(|| from_earlier(|request| request.guide.clone()));
    let earlier_dtype = earlier.as_ref().map(|request| request.dtype);
    let dtype = args.dtype.or(earlier_dtype).unwrap_or(WeightType::Float(FloatDtype::F32));

    let opened = common.open()?;
    let started = Instant::now();
    let mut recognised = pyrograph::model::recognise(&model)?;
    if let Some(vae) = &vae {
        recognised = recognised.with_vae(vae)?;
    }
    let (kind, weights) = (recognised.kind.clone(), recognised.net.checkpoint.fingerprint());
    let mut warn = |text: String| common.say(&format!("warning: {text}"));
    if let Some(Request { weights: before, .. }) = &earlier
        && *before != weights
    {
        let model = model.display();
        warn(format!("the picture was made by weights {before}, those of {model} are {weights}"));
    }
    let model_state = dtype.load(recognised, &opened.device, &mut warn)?;
    let mut pipeline = ClassPipeline::new(model_state, &opened.device);
    if let Some(guide) = &guide {
        let guide = pyrograph::model::recognise(&find_model(guide)?)?;
        let guide = dtype.load(guide, &opened.device, &mut warn)?;
        pipeline = pipeline.with_guide(guide)?;
    }
    if common.verbose {
        common.say(&format!("opened {kind} in {:.2} s", started.elapsed().as_secs_f64()));
    }

    let picture = match &args.init_image {
        Some(file) => Some(Picture { file: file.clone(), strength: args.strength }),
        None => earlier.as_ref().and_then(|request| request.picture.clone()),
    };
    let (settings, classes) = resolve(args, earlier, &pipeline)?;
    if let Some(Picture { file, strength }) = &picture {
        let [_, _, height, width] = pipeline.latent_shape(1, settings.size)?;
        let size = [height, width].map(|side| side * pipeline.factor());
        let picture = read_picture(file, size, &opened.device)?;
        pipeline = pipeline.with_picture(picture, *strength)?;
    }
    let noise = args.noise.as_deref().map(|path| read_noise(path, &opened.device)).transpose()?;
    let classes = match &noise {
        Some(noise) => classes.iter().copied().cycle().take(noise.dims()[0]).collect(),
        None => classes,
    };
    let request = Request {
        version: env!("CARGO_PKG_VERSION").into(),
        model: base_name(&model),
        weights,
        classes,
        device: opened.to_string(),
        dtype,
        vae,
        guide,
        picture,
        compute: Some(pipeline.compute(&settings)?),
        settings,
    };

    let started = Instant::now();
    let mut trajectory = Vec::new();
    let result = {
        let length = (request.classes.len().div_ceil(request.settings.batch)
            * pipeline.taken(request.settings.steps)) as u64;
        let bar = common.progress_bar(length, "{bar:30} {pos}/{len} steps, {per_sec}, {eta} left");
        let mut on_step = |progress: Progress<'_>| {
            bar.inc(1);
            if args.save_latents.is_some() {
                trajectory.push(progress.x.clone());
            }
            if let Some(path) = &args.preview
                && progress.step.is_multiple_of(args.preview_interval.max(1))
                && let Err(error) = preview(&pipeline, path, &progress, &request.settings)
            {
                common.say(&format!("warning: no preview: {error:#}"));
            }
            interrupted()
        };
        let result = pipeline.generate(
            &request.classes,
            &request.settings,
            noise.as_ref(),
            &mut on_step as &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
        );
        bar.finish_and_clear();
        result?
    };
    let seconds = started.elapsed().as_secs_f64();
    if common.verbose
        && let Some(compute) = &request.compute
    {
        common.say(&compute.to_string());
    }

    if let Some(path) = &args.save_latents {
        save_latents(path, result.latents, trajectory, request.settings.batch)?;
    }
    let written = write(args, &request, &pipeline, &result.images, as_grid)?;
    report(common, &request, &written, pipeline.taken(request.settings.steps), seconds);
    if args.show {
        show(&result.images)?;
    }
    Ok(())
}

/// Fills in what the user left open from an earlier picture or the model's defaults.
fn resolve(
    args: &Class,
    earlier: Option<Request>,
    pipeline: &ClassPipeline,
) -> anyhow::Result<(Settings, Vec<usize>)> {
    let random = || -> u64 {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(0, |now| u64::from(now.subsec_nanos()) ^ (now.as_secs() << 8)) % 4_294_967_294
    };
    let mut settings = match &earlier {
        Some(request) => request.settings.clone(),
        None => pipeline.config().defaults.settings(0),
    };
    match args.seed {
        -1 if earlier.is_some() => (),
        -1 => settings.seed = random(),
        seed => {
            let found = u64::try_from(seed).ok();
            settings.seed =
                found.with_context(|| format!("seed {seed}, expected -1, or 0 to {}", u64::MAX))?;
        }
    }
    if let Some(name) = &args.sampler {
        let (sampler, spacing) = parse_sampler(name)?;
        settings.sampler = sampler;
        settings.spacing = spacing;
    }
    match (args.eta, &mut settings.sampler) {
        (None, _) => (),
        (Some(new), Sampler::Ddim { eta }) if (0.0..=1.0).contains(&new) => *eta = new,
        (Some(new), Sampler::Ddim { .. }) => bail!("eta {new}, expected 0 to 1"),
        (Some(_), other) => bail!("--eta belongs to ddim, the sampler is {other}"),
    }
    match (args.churn, &mut settings.sampler) {
        (None, _) => (),
        (Some(amount), Sampler::Heun { churn }) if amount >= 0.0 => {
            *churn = Some(Churn { amount, ..Churn::default() });
        }
        (Some(amount), Sampler::Heun { .. }) => bail!("churn {amount}, expected 0 or more"),
        (Some(_), other) => bail!("--churn belongs to heun, the sampler is {other}"),
    }
    if let Some(name) = &args.scheduler {
        settings.spacing = Some(name.parse()?);
    }
    if let Some(sigmas) = &args.sigmas {
        settings.steps = sigmas.iter().filter(|sigma| **sigma != 0.0).count();
        settings.spacing = Some(Spacing::Sigmas(sigmas.clone()));
    }
    settings.steps = args.steps.unwrap_or(settings.steps);
    settings.batch = args.batch_size.unwrap_or(settings.batch).max(1);
    settings.vae_tile = args.vae_tile.unwrap_or(settings.vae_tile);
    let guidance = &mut settings.guidance;
    guidance.scale = args.cfg_scale.unwrap_or(guidance.scale);
    guidance.interval = args.cfg_interval.or(guidance.interval);
    guidance.rescale = args.cfg_rescale.unwrap_or(guidance.rescale);
    match args.cfg_channels {
        Some(0) => guidance.channels = GuidedChannels::All,
        Some(n) => guidance.channels = GuidedChannels::First(n),
        None => (),
    }
    if !(guidance.scale.is_finite() && (0.0..=1.0).contains(&guidance.rescale)) {
        bail!("cfg scale {} or rescale {} is out of range", guidance.scale, guidance.rescale);
    }
    let native = pipeline.config().net.dit.size.map(|side| side * pipeline.factor());
    if args.width.is_some() || args.height.is_some() {
        settings.size = Some([args.height.unwrap_or(native[0]), args.width.unwrap_or(native[1])]);
    }
    let [_, _, height, width] = pipeline.latent_shape(1, settings.size)?;
    let plan = args.patches.plan(&pipeline.config().net.dit, [height, width], settings.steps)?;
    settings.patches = plan.or(settings.patches);

    if let Some(request) = earlier {
        return Ok((settings, request.classes));
    }
    let count = pipeline.classes();
    let named: Vec<usize> = match args.class.as_deref() {
        None => (0..count.min(DEFAULT_COUNT)).collect(),
        Some("random") => {
            let n = args.count.unwrap_or(1) as u64;
            (0..n).map(|i| random_class(settings.seed.wrapping_add(i), count)).collect()
        }
        Some(names) => names
            .split(',')
            .map(|name| pipeline.labels().find(name, count))
            .collect::<Result<_, _>>()?,
    };
    let images =
        args.count.unwrap_or(if args.class.is_some() { named.len() } else { DEFAULT_COUNT });
    if images == 0 {
        bail!("0 images asked for");
    }
    Ok((settings, named.into_iter().cycle().take(images).collect()))
}

/// A class that depends on the seed only (SplitMix64's finaliser).
fn random_class(seed: u64, classes: usize) -> usize {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) % classes as u64) as usize
}

fn read_noise(path: &Path, device: &burn::tensor::Device) -> anyhow::Result<Tensor<4>> {
    let checkpoint = Checkpoint::open(path)?;
    let (values, shape) = checkpoint.read_f32("noise")?;
    let shape: [usize; 4] = shape.as_slice().try_into().ok().with_context(|| {
        format!("`noise` has shape {shape:?}, expected [images, channels, height, width]")
    })?;
    Ok(Tensor::from_data(TensorData::new(values, shape), device))
}

fn preview(
    pipeline: &ClassPipeline,
    path: &Path,
    progress: &Progress<'_>,
    settings: &Settings,
) -> anyhow::Result<()> {
    let images = pipeline.decode(progress.denoised.clone(), settings.vae_tile)?;
    write_image(path, &sheet(&images, 0), &[])?;
    Ok(())
}

fn save_latents(
    path: &Path,
    latents: Tensor<4>,
    steps: Vec<Tensor<4>>,
    batch: usize,
) -> anyhow::Result<()> {
    let [images, ..] = latents.dims();
    // The steps of each batch follow one another; put the images of one step side by side.
    let batches = images.div_ceil(batch);
    let per_batch = steps.len() / batches;
    let at = |step: usize| (0..batches).map(|b| steps[b * per_batch + step].clone()).collect();
    let rows = (0..per_batch).map(|step| Tensor::cat(at(step), 0)).collect();
    let trajectory: Tensor<5> = Tensor::stack(rows, 0);
    let tensors = [
        ("latents".to_owned(), latents.into_data()),
        ("trajectory".to_owned(), trajectory.into_data()),
    ];
    write_safetensors(path, &tensors, &BTreeMap::new())?;
    Ok(())
}

fn sheet(images: &[RgbImage], columns: usize) -> RgbImage {
    let columns = match columns {
        0 => (images.len() as f64).sqrt().ceil() as usize,
        columns => columns,
    };
    contact_sheet(images, columns, 2, [255; 3])
}

fn write(
    args: &Class,
    request: &Request,
    pipeline: &ClassPipeline,
    images: &[RgbImage],
    as_grid: bool,
) -> anyhow::Result<Vec<PathBuf>> {
    let text = |first: usize, classes: &[usize], image: &RgbImage| -> anyhow::Result<Vec<_>> {
        if args.no_metadata {
            return Ok(Vec::new());
        }
        let mut own = Request { classes: classes.to_vec(), ..request.clone() };
        own.settings.seed = own.settings.seed.wrapping_add(first as u64);
        let names: Vec<String> = classes.iter().map(|&c| pipeline.labels().name(c)).collect();
        let parameters = Parameters {
            prompt: names.join(", "),
            steps: own.settings.steps,
            sampler: own.settings.sampler.to_string(),
            cfg_scale: own.settings.guidance.scale,
            seed: own.settings.seed,
            size: [image.width(), image.height()],
            model: own.model.clone(),
            model_hash: own.weights.chars().take(10).collect(),
        };
        Ok(vec![("parameters".to_owned(), parameters.to_string()), own.text()?])
    };
    if as_grid {
        let grid = sheet(images, args.grid.unwrap_or(0));
        let path = output_path(&args.output, 0, 1, request.settings.seed, "grid");
        write_image(&path, &grid, &text(0, &request.classes, &images[0])?)?;
        return Ok(vec![path]);
    }
    let mut written = Vec::new();
    for (i, (image, &class)) in images.iter().zip(&request.classes).enumerate() {
        let seed = request.settings.seed.wrapping_add(i as u64);
        let name = pipeline.labels().name(class);
        let path = output_path(&args.output, i, images.len(), seed, &name);
        write_image(&path, image, &text(i, &[class], image)?)?;
        written.push(path);
    }
    Ok(written)
}

fn report(common: &Common, request: &Request, written: &[PathBuf], steps: usize, seconds: f64) {
    let settings = &request.settings;
    for path in written {
        if common.json {
            let line = serde_json::json!({
                "file": path, "classes": request.classes, "seed": settings.seed,
                "seconds": seconds, "settings": settings,
            });
            println!("{line}");
        } else if !common.quiet {
            println!("{}", path.display());
        }
    }
    common.say(&format!(
        "{} images, seed {}, {steps} steps of {}, cfg {}, {seconds:.1} s",
        request.classes.len(),
        settings.seed,
        settings.sampler,
        settings.guidance.scale,
    ));
}

fn show(images: &[RgbImage]) -> anyhow::Result<()> {
    let picture = image::DynamicImage::ImageRgb8(sheet(images, 0));
    let config = viuer::Config { absolute_offset: false, ..Default::default() };
    viuer::print(&picture, &config).context("the terminal cannot show images")?;
    Ok(())
}

fn base_name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

fn parse_interval(text: &str) -> Result<[f64; 2], String> {
    let numbers: Option<Vec<f64>> = text.split(',').map(|part| part.trim().parse().ok()).collect();
    let pair = numbers.and_then(|numbers| <[f64; 2]>::try_from(numbers).ok());
    pair.filter(|[low, high]| low <= high)
        .ok_or_else(|| format!("`{text}`, expected LO,HI with LO up to HI"))
}
