//! `pyrograph eval`.

mod text;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail};
use burn::tensor::Device;
use clap::{Args, Subcommand};
use image::RgbImage;
use pyrograph::data::{Dataset, Reading, first_size};
use pyrograph::device::Opened;
use pyrograph::engine::diffusion::parse_sampler;
use pyrograph::eval::{FeatureNet, Nearest, compare, pictures};
use pyrograph::image::{check_output_path, contact_sheet, write_image};
use pyrograph::pipeline::{Compute, Pipeline};
use pyrograph::task::PromptTask;
use pyrograph::{ClassPipeline, Error, OpenOptions, Request, WeightType};
use serde_json::json;

use crate::common::{Common, interrupted, parse_steps, whole};

/// Weights of the shipped feature network.
const FEATURES: &str = "efficientnet-lite0/efficientnet_lite0.safetensors";
/// Pairs of the picture of nearest neighbours.
const PAIRS: usize = 32;
/// Largest side to which images are brought before they are judged, in pixels.
const LARGEST: usize = 4096;
/// Most images that a model is asked to make: their features have 50 GB.
pub(crate) const MOST_IMAGES: usize = 10_000_000;
/// Most random parts behind an interval.
const MOST_RESAMPLES: usize = 10_000;

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Eval {
    #[command(subcommand)]
    part: Option<Part>,
    #[command(flatten)]
    judging: Judging,
    /// Folder of images to judge
    #[arg(long, required_unless_present = "model")]
    #[arg(conflicts_with_all = ["model", "count", "steps", "cfg_scale", "sampler", "seed"])]
    #[arg(conflicts_with_all = ["Judged", "Patches"])]
    images: Option<PathBuf>,
    /// Model that makes the images to judge
    #[arg(long, short)]
    model: Option<PathBuf>,
    /// Number of images to make [default: as many as the reference has]
    #[arg(long, short = 'n', value_parser = whole(2, MOST_IMAGES))]
    count: Option<usize>,
    #[command(flatten)]
    making: Making,
    /// Width and height of the reference [default: the model's, or those of the first image]
    #[arg(long, value_parser = whole(1, LARGEST))]
    size: Option<usize>,
    /// Write a picture of the images nearest to one of the reference, and that one
    #[arg(long, value_name = "PNG")]
    pairs: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Part {
    /// Measure how well images show what texts ask for
    Text(Box<text::Text>),
}

/// What images are compared with, and how.
#[derive(Args)]
pub(crate) struct Judging {
    /// Folder of real images, with or without sub-folders of classes
    #[arg(long, short, required = true)]
    reference: Option<PathBuf>,
    /// Random parts of the images behind the intervals, 2 or more; 0 for no intervals
    #[arg(long, default_value_t = 20, value_parser = parse_resamples)]
    pub(crate) resamples: usize,
    /// Weights of EfficientNet-Lite0, or `pt_inception-2015-12-05-6726825d.pth` for the inception distance
    #[arg(long, default_value = FEATURES)]
    features: PathBuf,
    /// Folder in which the features of reference images are kept
    #[arg(long)]
    cache: Option<PathBuf>,
    /// Leave out images that cannot be read
    #[arg(long)]
    skip_damaged: bool,
}

impl Judging {
    /// What can be known before any work.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        check_folder(self.folder()?)?;
        self.cache.as_deref().map_or(Ok(()), create_folder)
    }

    fn folder(&self) -> anyhow::Result<&Path> {
        self.reference.as_deref().context("no folder of real images: name one with --reference")
    }

    pub(crate) fn open(&self, device: &Device, common: &Common) -> anyhow::Result<FeatureNet> {
        Ok(FeatureNet::open(&common.find(&self.features)?, device)?)
    }

    /// The images of a folder.
    fn read(&self, folder: &Path, size: [usize; 2], common: &Common) -> anyhow::Result<Dataset> {
        let skip_damaged = self.skip_damaged;
        crate::train::read(folder, Reading { size, skip_damaged, ..Reading::default() }, common)
    }

    /// The reference images of `size` and their features.
    pub(crate) fn reference(
        &self,
        net: &FeatureNet,
        size: [usize; 2],
        common: &Common,
    ) -> anyhow::Result<(Dataset, Vec<Vec<f32>>)> {
        let images = self.read(self.folder()?, size, common)?;
        let bar = common.progress_bar(images.len() as u64, "{bar:30} {pos}/{len} reference images");
        let rows = features_of(net, &images, self.cache.as_deref(), &bar)?;
        Ok((images, rows))
    }
}

/// Features of all images of a dataset, [kept](FeatureNet::dataset) in `cache` if there is one.
fn features_of(
    net: &FeatureNet,
    data: &Dataset,
    cache: Option<&Path>,
    bar: &indicatif::ProgressBar,
) -> anyhow::Result<Vec<Vec<f32>>> {
    let on_image = &mut |done| {
        bar.set_position(done as u64);
        interrupted()
    };
    let rows = net.dataset(data, cache, on_image)?;
    bar.finish_and_clear();
    Ok(rows)
}

/// How a model is held while it makes images to judge.
#[derive(Args)]
pub(crate) struct Judged {
    /// Type of the weights: f32, f16, bf16, stored or, on the CPU, int8
    #[arg(long, default_value = "f32")]
    dtype: WeightType,
    /// Images per network call
    #[arg(long, default_value_t = 32, value_parser = whole(1, MOST_IMAGES))]
    batch_size: usize,
}

impl Judged {
    pub(crate) fn open<T: PromptTask>(
        &self,
        model: &Path,
        on: &Opened,
    ) -> anyhow::Result<Pipeline<T>> {
        let options = OpenOptions { dtype: Some(self.dtype), ..OpenOptions::default() };
        let pipeline = Pipeline::open_on(model, on, &options)?;
        crate::memory::give_back(self.dtype);
        Ok(pipeline)
    }

    pub(crate) fn batch(&self) -> usize {
        self.batch_size
    }

    pub(crate) fn dtype(&self) -> WeightType {
        self.dtype
    }
}

/// How images to judge are made.
#[derive(Args)]
struct Making {
    /// Sampling steps [default: the model's]
    #[arg(long, value_parser = parse_steps)]
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
    if let Some(Part::Text(args)) = &args.part {
        return text::run(args, common);
    }
    args.judging.check()?;
    args.images.as_deref().map_or(Ok(()), check_folder)?;
    args.pairs.as_deref().map_or(Ok(()), check_output_path)?;
    let opened = common.open()?;
    let net = args.judging.open(&opened.device, common)?;
    let judged = args.judged(&opened)?;
    let size = args.size(&judged)?;
    let (reference, real) = args.judging.reference(&net, size, common)?;

    let mut made = Vec::new();
    let (rows, making) = match &judged {
        Images::Of(pipeline, request) => {
            let count = args.count.unwrap_or(reference.len());
            let (rows, making) = make(pipeline, request, count, &reference, common, |images| {
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
        Images::In(folder) => {
            let images = args.judging.read(folder, size, common)?;
            let rows = net.dataset(&images, None, &mut |_| interrupted())?;
            if args.pairs.is_some() {
                made = pictures(&images, &(0..images.len()).collect::<Vec<_>>(), &Device::flex())?;
            }
            (rows, None)
        }
    };
    let (scores, nearest) = compare(&real, &rows, args.judging.resamples)?;
    if let Some(path) = &args.pairs {
        write_pairs(path, &made, &reference, &nearest)?;
    }
    let duplicated = scores.coverage.duplicated;
    if duplicated > 0 {
        common.say(&format!(
            "warning: {duplicated} images have so many duplicates that precision, recall, density and \
             coverage count nothing as near them"
        ));
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

/// Where the images to judge come from.
enum Images<'a> {
    /// A model, asked so.
    Of(Box<ClassPipeline>, Box<Request<usize>>),
    /// A folder.
    In(&'a Path),
}

impl Eval {
    /// Opens the model, and checks what it is asked for.
    fn judged(&self, opened: &Opened) -> anyhow::Result<Images<'_>> {
        match (&self.model, &self.images) {
            (Some(model), _) => {
                let pipeline = self.making.judged.open(model, opened)?;
                let request = self.making.request(&pipeline)?;
                let batch = self.making.judged.batch();
                let prompts = vec![0; batch.min(self.count.unwrap_or(batch))];
                pipeline.resolve(&Request { prompts, ..request.clone() })?;
                Ok(Images::Of(Box::new(pipeline), Box::new(request)))
            }
            (None, Some(folder)) => Ok(Images::In(folder)),
            (None, None) => bail!("neither --model nor --images"),
        }
    }

    /// `[height, width]` of all images.
    fn size(&self, judged: &Images<'_>) -> anyhow::Result<[usize; 2]> {
        let size = match (self.size, judged) {
            (Some(side), _) => [side, side],
            (None, Images::Of(pipeline, _)) => pipeline.size(),
            (None, Images::In(folder)) => first_size(folder)?,
        };
        let [height, width] = size;
        if height.max(width) > LARGEST {
            bail!(
                "images of {width}x{height}, expected sides up to {LARGEST}: name one with --size"
            );
        }
        Ok(size)
    }
}

fn parse_resamples(text: &str) -> anyhow::Result<usize> {
    let number = text.parse().ok().filter(|&number| number != 1 && number <= MOST_RESAMPLES);
    number.with_context(|| format!("expected 0, or 2 to {MOST_RESAMPLES}"))
}

fn check_folder(path: &Path) -> anyhow::Result<()> {
    anyhow::ensure!(path.is_dir(), "{}: no such folder", path.display());
    Ok(())
}

fn create_folder(path: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(path).with_context(|| path.display().to_string())
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
    /// How, without the prompts.
    fn request<T: PromptTask>(&self, pipeline: &Pipeline<T>) -> anyhow::Result<Request<T::Prompt>> {
        let config = pipeline.config();
        let mut request = Request {
            seed: self.seed,
            steps: self.steps,
            batch: Some(self.judged.batch()),
            ..Request::new([])
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
    each: impl FnMut(&[RgbImage]) -> pyrograph::Result<Vec<T>>,
) -> anyhow::Result<(Vec<T>, Made)> {
    let classes = pipeline.classes();
    // As often as in the reference, if the model has its classes.
    let known = |name: &String| pipeline.labels().named(name).ok().flatten();
    let ids: Option<Vec<usize>> = match pipeline.labels().0.is_empty() {
        true => (reference.classes().len() == classes).then(|| (0..classes).collect()),
        false => reference.classes().iter().map(known).collect(),
    };
    let class = |i: usize| match &ids {
        Some(ids) => ids[reference.label((i * 7919) % reference.len())],
        None => i % classes,
    };
    let prompts: Vec<usize> = (0..count).map(class).collect();
    let (rows, seconds) = make_all(pipeline, request, &prompts, common, each)?;
    let compute = pipeline.compute(&Request { prompts: vec![class(0)], ..request.clone() })?;
    Ok((rows, Made { compute, seconds }))
}

/// Makes images of these prompts, as `request` says, and hands them on, batch by batch; returns what that gave, something
/// for each, and the seconds that one image took.
pub(crate) fn make_all<K: PromptTask, T>(
    pipeline: &Pipeline<K>,
    request: &Request<K::Prompt>,
    prompts: &[K::Prompt],
    common: &Common,
    mut each: impl FnMut(&[RgbImage]) -> pyrograph::Result<Vec<T>>,
) -> anyhow::Result<(Vec<T>, f64)> {
    let bar = common.progress_bar(prompts.len() as u64, "{bar:30} {pos}/{len} images, {eta} left");
    let (mut rows, mut seconds) = (Vec::new(), 0.0);
    let batch = request.settings(&pipeline.config().defaults).batch;
    for (i, prompts) in prompts.chunks(batch).enumerate() {
        let seed = request.seed.wrapping_add((i * batch) as u64);
        let own = Request { prompts: prompts.to_vec(), seed, ..request.clone() };
        let started = Instant::now();
        let images = pipeline.sketch(&own, &mut |_| interrupted())?.images;
        seconds += started.elapsed().as_secs_f64();
        rows.extend(each(&images)?);
        bar.inc(images.len() as u64);
        if let ControlFlow::Break(()) = interrupted() {
            return Err(Error::Cancelled.into());
        }
    }
    bar.finish_and_clear();
    Ok((rows, seconds / prompts.len() as f64))
}
