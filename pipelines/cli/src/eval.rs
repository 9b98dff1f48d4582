//! `pyrograph eval`.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail};
use burn::tensor::Device;
use clap::Args;
use image::RgbImage;
use pyrograph::data::{Background, Dataset};
use pyrograph::device::Opened;
use pyrograph::engine::diffusion::parse_sampler;
use pyrograph::eval::{FeatureNet, Nearest, compare, pictures};
use pyrograph::image::{contact_sheet, write_image};
use pyrograph::pipeline::Compute;
use pyrograph::{ClassPipeline, Error, OpenOptions, Request, WeightType, model};
use serde_json::json;

use crate::common::{Common, interrupted};

/// Weights of the shipped feature network.
const FEATURES: &str = "efficientnet-lite0/efficientnet_lite0.safetensors";
/// Pairs of the picture of nearest neighbours.
const PAIRS: usize = 32;

#[derive(Args)]
pub(crate) struct Eval {
    #[command(flatten)]
    judging: Judging,
    /// Folder of images to judge
    #[arg(long, conflicts_with = "model", required_unless_present = "model")]
    images: Option<PathBuf>,
    /// Model that makes the images to judge
    #[arg(long, short)]
    model: Option<PathBuf>,
    /// Number of images to make [default: as many as the reference has]
    #[arg(long, short = 'n')]
    count: Option<usize>,
    #[command(flatten)]
    making: Making,
    /// Width and height of the reference [default: the model's, or those of the first image]
    #[arg(long)]
    size: Option<usize>,
    /// Write a picture of the images nearest to one of the reference, and that one
    #[arg(long, value_name = "PNG")]
    pairs: Option<PathBuf>,
}

/// What images are compared with, and how.
#[derive(Args)]
pub(crate) struct Judging {
    /// Folder of real images, with or without sub-folders of classes
    #[arg(long, short)]
    pub(crate) reference: PathBuf,
    /// Random parts of the images behind the intervals
    #[arg(long, default_value_t = 20)]
    pub(crate) resamples: usize,
    /// Weights of EfficientNet-Lite0, or `pt_inception-2015-12-05-6726825d.pth` for the inception distance
    #[arg(long, default_value = FEATURES)]
    features: PathBuf,
    /// Folder in which the features of reference images are kept
    #[arg(long)]
    cache: Option<PathBuf>,
}

impl Judging {
    pub(crate) fn open(&self, device: &Device) -> anyhow::Result<FeatureNet> {
        Ok(FeatureNet::open(&model::find(&self.features)?, device)?)
    }

    /// The reference images of `size` and their features.
    pub(crate) fn reference(
        &self,
        net: &FeatureNet,
        size: [usize; 2],
        common: &Common,
    ) -> anyhow::Result<(Dataset, Vec<Vec<f32>>)> {
        let images = Dataset::open(&self.reference, size, Background::default())?;
        let bar = common.progress_bar(images.len() as u64, "{bar:30} {pos}/{len} reference images");
        let on_image = &mut |done| bar.set_position(done as u64);
        let rows = net.dataset(&images, self.cache.as_deref(), on_image)?;
        bar.finish_and_clear();
        Ok((images, rows))
    }
}

/// How a model is held while it makes images to judge.
#[derive(Args)]
pub(crate) struct Judged {
    /// Type of the weights: f32, f16, bf16 or, on the CPU, int8
    #[arg(long, default_value = "f32")]
    dtype: WeightType,
    /// Images per network call
    #[arg(long, default_value_t = 32)]
    batch_size: usize,
}

impl Judged {
    pub(crate) fn open(&self, model: &Path, on: &Opened) -> anyhow::Result<ClassPipeline> {
        let options = OpenOptions { dtype: self.dtype, ..OpenOptions::default() };
        let pipeline = ClassPipeline::open_on(model, on, &options)?;
        crate::memory::give_back(self.dtype);
        Ok(pipeline)
    }

    pub(crate) fn batch(&self) -> usize {
        self.batch_size.max(1)
    }

    pub(crate) fn dtype(&self) -> WeightType {
        self.dtype
    }
}

/// How images to judge are made.
#[derive(Args)]
struct Making {
    /// Sampling steps [default: the model's]
    #[arg(long)]
    steps: Option<usize>,
    /// Guidance scale [default: the model's]
    #[arg(long)]
    cfg_scale: Option<f64>,
    /// Solver [default: the model's]
    #[arg(long)]
    sampler: Option<String>,
    /// Seed of the first image
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    judged: Judged,
    #[command(flatten)]
    patches: crate::patches::Patches,
}

pub(crate) fn run(args: &Eval, common: &Common) -> anyhow::Result<()> {
    let opened = common.open()?;
    let net = args.judging.open(&opened.device)?;
    let open = |model: &PathBuf| args.making.judged.open(model, &opened);
    let pipeline = args.model.as_ref().map(open).transpose()?;
    let size = match (args.size, &pipeline, &args.images) {
        (Some(side), ..) => [side, side],
        (None, Some(pipeline), _) => pipeline.config().net.dit.size.map(|s| s * pipeline.factor()),
        (None, None, Some(folder)) => first_size(folder)?,
        (None, None, None) => bail!("neither --model nor --images"),
    };
    let (reference, real) = args.judging.reference(&net, size, common)?;

    let mut made = Vec::new();
    let (rows, making) = match (&pipeline, &args.images) {
        (Some(pipeline), _) => {
            let count = args.count.unwrap_or(reference.len());
            let request = args.making.request(pipeline)?;
            let (rows, making) = make(pipeline, &request, count, &reference, common, |images| {
                if args.pairs.is_some() {
                    made.extend_from_slice(images);
                }
                net.rows(images)
            })?;
            let making = json!({
                "gmacs_per_image": making.compute.gmacs,
                "compute": making.compute.share,
                "seconds_per_image": making.seconds,
                "settings": request.settings(&pipeline.config().defaults),
            });
            (rows, Some(making))
        }
        (None, Some(folder)) => {
            let images = Dataset::open(folder, size, Background::default())?;
            let rows = net.dataset(&images, None, &mut |_| ())?;
            if args.pairs.is_some() {
                made = pictures(&images, &(0..images.len()).collect::<Vec<_>>(), &Device::flex())?;
            }
            (rows, None)
        }
        (None, None) => bail!("neither --model nor --images"),
    };
    let (scores, nearest) = compare(&real, &rows, args.judging.resamples)?;
    if let Some(path) = &args.pairs {
        write_pairs(path, &made, &reference, &nearest)?;
    }
    let mut line = serde_json::to_value(&scores)?;
    if let Some(line) = line.as_object_mut() {
        for (name, distance) in net.distances().into_iter().zip([&scores.frechet, &scores.kernel]) {
            line.insert(name.into(), json!(distance));
        }
        line.extend(making.map(|making| ("making".to_owned(), making)));
    }
    println!("{line}");
    Ok(())
}

/// A picture of the images nearest to one of the reference, each beside that one.
fn write_pairs(
    path: &Path,
    made: &[RgbImage],
    reference: &Dataset,
    nearest: &Nearest,
) -> anyhow::Result<()> {
    let mut sheet = Vec::new();
    for (image, real, _) in nearest.iter().take(PAIRS) {
        sheet.push(made[*image].clone());
        sheet.extend(pictures(reference, &[*real], &Device::flex())?);
    }
    Ok(write_image(path, &contact_sheet(&sheet, 8, 2, [255; 3]), &[])?)
}

impl Making {
    /// How, without the classes.
    fn request(&self, pipeline: &ClassPipeline) -> anyhow::Result<Request<usize>> {
        let config = pipeline.config();
        let mut request = Request {
            seed: self.seed,
            steps: self.steps,
            batch: Some(self.judged.batch()),
            ..Request::default()
        };
        request.guidance.scale = self.cfg_scale;
        if let Some(name) = &self.sampler {
            let (sampler, spacing) = parse_sampler(name)?;
            (request.sampler, request.spacing) = (Some(sampler), spacing);
        }
        let (net, steps) = (&config.net.dit, request.settings(&config.defaults).steps);
        request.patches = self.patches.plan(net, net.size, steps)?;
        Ok(request)
    }
}

/// What images took to make.
pub(crate) struct Made {
    /// Operations.
    pub(crate) compute: Compute,
    /// Per image.
    pub(crate) seconds: f64,
}

/// Makes images of the reference's classes in turn, as `request` says, and hands them on, batch by batch;
/// returns what that gave and how they were made.
pub(crate) fn make<T>(
    pipeline: &ClassPipeline,
    request: &Request<usize>,
    count: usize,
    reference: &Dataset,
    common: &Common,
    mut each: impl FnMut(&[RgbImage]) -> Vec<T>,
) -> anyhow::Result<(Vec<T>, Made)> {
    let classes = pipeline.classes();
    // As often as in the reference, if it has the same classes.
    let class = |i: usize| match reference.classes().len() == classes {
        true => reference.label((i * 7919) % reference.len()),
        false => i % classes,
    };
    let bar = common.progress_bar(count as u64, "{bar:30} {pos}/{len} images, {eta} left");
    let mut rows = Vec::with_capacity(count);
    let mut seconds = 0.0;
    let batch = request.settings(&pipeline.config().defaults).batch;
    while rows.len() < count {
        let first = rows.len();
        let prompts: Vec<usize> = (first..count.min(first + batch)).map(class).collect();
        let seed = request.seed.wrapping_add(first as u64);
        let own = Request { prompts, seed, ..request.clone() };
        let started = Instant::now();
        let images = pipeline.sketch(&own, &mut |_| interrupted())?.images;
        seconds += started.elapsed().as_secs_f64();
        rows.extend(each(&images));
        bar.inc(images.len() as u64);
        if let ControlFlow::Break(()) = interrupted() {
            return Err(Error::Cancelled.into());
        }
    }
    bar.finish_and_clear();
    let compute = pipeline.compute(&Request { prompts: vec![class(0)], ..request.clone() })?;
    Ok((rows, Made { compute, seconds: seconds / count as f64 }))
}

fn first_size(folder: &Path) -> anyhow::Result<[usize; 2]> {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let mut entries: Vec<PathBuf> = std::fs::read_dir(&folder)
            .with_context(|| folder.display().to_string())?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .collect();
        entries.sort();
        for path in entries {
            if path.is_dir() {
                folders.push(path);
            } else if let Ok((width, height)) = image::image_dimensions(&path) {
                return Ok([height as usize, width as usize]);
            }
        }
    }
    bail!("no images in {}", folder.display())
}
