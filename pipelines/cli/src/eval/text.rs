//! `pyrograph eval text`.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use burn::tensor::Device;
use clap::Args;
use pyrograph::adherence::{Probes, seam_ratio};
use pyrograph::data::{Annotation, Dataset, Order, Reading};
use pyrograph::engine::metrics::Estimate;
use pyrograph::eval::{FeatureNet, compare, pictures};
use pyrograph::{Error, Request, TextPipeline};
use serde_json::{Map, Value, json};

use super::{FEATURES, MOST_IMAGES, Making, check_folder, create_folder, features_of, make_all};
use crate::common::{Common, interrupted, whole};

/// Side of images where no model says what size they have.
const SIDE: usize = 64;
/// Images whose features are computed between two looks at signals.
const AT_ONCE: usize = 64;
/// Random parts of the images behind the intervals of the distances.
const RESAMPLES: usize = 20;

#[derive(Args)]
pub(crate) struct Text {
    /// Folder of real images with a metadata.jsonl or metadata.csv: captions, and columns of what the images show
    #[arg(long, short)]
    reference: PathBuf,
    /// Columns that probes learn to read off images, separated by commas, such as style,background
    #[arg(long, value_delimiter = ',', required = true)]
    columns: Vec<String>,
    /// Column with the prompt of each image, which should name all that the columns say [default: its first caption]
    #[arg(long, value_name = "COLUMN")]
    prompts: Option<String>,
    /// Such a folder with images and prompts that the model was not trained on
    #[arg(long, value_name = "FOLDER")]
    held_out: Option<PathBuf>,
    /// Model that makes the images to judge; without, only real ones are judged
    #[arg(long, short)]
    model: Option<PathBuf>,
    /// Images to make of each folder's prompts, and real ones to judge
    #[arg(long, short = 'n', default_value_t = 500, value_parser = whole(2, MOST_IMAGES))]
    count: usize,
    /// Real images that the probes learn from, at most
    #[arg(long, default_value_t = 8000, value_parser = whole(2, MOST_IMAGES))]
    learn: usize,
    #[command(flatten)]
    making: Making,
    /// Weights of the features
    #[arg(long, default_value = FEATURES)]
    features: PathBuf,
    /// Folder in which the features of all images of both folders are kept
    #[arg(long)]
    cache: Option<PathBuf>,
    /// Leave out images that cannot be read
    #[arg(long)]
    skip_damaged: bool,
}

/// What images are judged with.
struct Judge<'a> {
    args: &'a Text,
    net: FeatureNet,
    pipeline: Option<TextPipeline>,
    common: &'a Common,
}

pub(crate) fn run(args: &Text, common: &Common) -> anyhow::Result<()> {
    check_folder(&args.reference)?;
    args.held_out.as_deref().map_or(Ok(()), check_folder)?;
    args.cache.as_deref().map_or(Ok(()), create_folder)?;
    let opened = common.open()?;
    let net = FeatureNet::open(&common.find(&args.features)?, &opened.device)?;
    let model = args.model.as_deref().map(|model| common.find(model)).transpose()?;
    let open = |model: PathBuf| args.making.judged.open(&model, &opened);
    let pipeline = model.map(open).transpose()?;
    let judge = Judge { args, net, pipeline, common };
    let reference = judge.read(&args.reference)?;
    let held_out = args.held_out.as_deref().map(|folder| judge.read(folder)).transpose()?;

    // What the probes do not learn from is judged.
    let order = Order::new(reference.len(), args.making.seed).indices(0, reference.len());
    let learned = args.learn.min(order.len() - (order.len() / 5).max(1));
    let (learn, judged) = order.split_at(learned);
    let judged = &judged[..args.count.min(judged.len())];
    let others: Vec<usize> =
        (0..held_out.as_ref().map_or(0, Dataset::len)).take(args.count).collect();
    judge.check(&reference, judged)?;
    held_out.as_ref().map_or(Ok(()), |data| judge.check(data, &others))?;
    let rows = judge.rows(&reference, learn, "images to learn from")?;
    let probes = Probes::fit(&reference, &args.columns, learn, &rows)?;
    let mut line = Map::from_iter([("learned_from".to_owned(), json!(learn.len()))]);
    line.insert("trained".into(), judge.judged(&probes, &reference, judged)?);
    if let Some(held_out) = &held_out {
        line.insert("held_out".into(), judge.judged(&probes, held_out, &others)?);
    }
    if let Some((pipeline, request)) = judge.asked()? {
        line.insert("settings".into(), json!(request.settings(&pipeline.config().defaults)));
    }
    println!("{}", Value::Object(line));
    Ok(())
}

impl Judge<'_> {
    fn read(&self, folder: &Path) -> anyhow::Result<Dataset> {
        let Text { columns, prompts, skip_damaged, .. } = self.args;
        let reading = Reading {
            size: self.pipeline.as_ref().map_or([SIDE; 2], |pipeline| pipeline.size()),
            annotation: Annotation::Captions,
            columns: columns.iter().chain(prompts).cloned().collect(),
            skip_damaged: *skip_damaged,
            ..Reading::default()
        };
        let data = crate::train::read(folder, reading, self.common)?;
        ensure!(data.len() > 2, "{}: {} images, expected 3 or more", folder.display(), data.len());
        Ok(data)
    }

    /// Features of some images.
    fn rows(&self, data: &Dataset, images: &[usize], what: &str) -> anyhow::Result<Vec<Vec<f32>>> {
        let template = format!("{{bar:30}} {{pos}}/{{len}} {what}, {{eta}} left");
        let bar = |count: usize| self.common.progress_bar(count as u64, &template);
        if let cache @ Some(_) = self.args.cache.as_deref() {
            let all = features_of(&self.net, data, cache, &bar(data.len()))?;
            return Ok(images.iter().map(|&image| all[image].clone()).collect());
        }
        let bar = bar(images.len());
        let mut rows = Vec::with_capacity(images.len());
        for part in images.chunks(AT_ONCE) {
            rows.extend(self.net.rows(&pictures(data, part, &Device::flex())?)?);
            bar.set_position(rows.len() as u64);
            if interrupted().is_break() {
                return Err(Error::Cancelled.into());
            }
        }
        bar.finish_and_clear();
        Ok(rows)
    }

    /// The model, and how it is asked.
    fn asked(&self) -> anyhow::Result<Option<(&TextPipeline, Request<String>)>> {
        let Some(pipeline) = &self.pipeline else { return Ok(None) };
        Ok(Some((pipeline, self.args.making.request(pipeline)?)))
    }

    /// What is asked for in place of a real image.
    fn prompt(&self, data: &Dataset, image: usize) -> anyhow::Result<String> {
        match &self.args.prompts {
            None => Ok(data.captions()[data.label(image)].clone()),
            Some(name) => {
                let prompt = data.column(image, self.args.columns.len());
                let missing = || format!("image {} of the list has no `{name}`", image + 1);
                Ok(prompt.with_context(missing)?.to_owned())
            }
        }
    }

    /// What is asked for in place of some images.
    fn prompts(&self, data: &Dataset, images: &[usize]) -> anyhow::Result<Vec<String>> {
        images.iter().map(|&image| self.prompt(data, image)).collect()
    }

    /// Checks, before any work, that the model can be asked for some images.
    fn check(&self, data: &Dataset, images: &[usize]) -> anyhow::Result<()> {
        let Some((pipeline, request)) = self.asked()? else { return Ok(()) };
        pipeline.resolve(&Request { prompts: self.prompts(data, images)?, ..request })?;
        Ok(())
    }

    /// What probes read off some images, and off those that the model makes of their prompts.
    fn judged(&self, probes: &Probes, data: &Dataset, images: &[usize]) -> anyhow::Result<Value> {
        let real = self.rows(data, images, "real images")?;
        let mut found =
            Map::from_iter([("real".to_owned(), json!(probes.judge(data, images, &real)))]);
        let Some((pipeline, request)) = self.asked()? else { return Ok(Value::Object(found)) };
        let prompts = self.prompts(data, images)?;
        let (made, seconds) =
            make_all(pipeline, &request, &prompts, self.common, |images| Ok(images.to_vec()))?;
        let rows = self.net.rows(&made)?;
        found.insert("made".into(), json!(probes.judge(data, images, &rows)));
        let (scores, _) = compare(&real, &rows, RESAMPLES)?;
        let distances: [&Estimate; 2] = [&scores.frechet, &scores.kernel];
        for (name, distance) in self.net.distances().into_iter().zip(distances) {
            found.insert(name.into(), json!(distance));
        }
        let side = pipeline.config().net.dit.patch * pipeline.factor();
        let shown = pictures(data, images, &Device::flex())?;
        let seams = [&shown, &made].map(|images| seam_ratio(images, side));
        found.insert("seam_ratio".into(), json!({ "real": seams[0], "made": seams[1] }));
        found.insert("seconds_per_image".into(), json!(seconds));
        Ok(Value::Object(found))
    }
}
