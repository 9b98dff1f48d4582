//! `pyrograph generate class`.

mod args;
mod ask;
mod output;

use std::path::PathBuf;
use std::time::Instant;

use burn::tensor::Tensor;
use pyrograph::image::{check_output_path, is_output_pattern, write_image};
use pyrograph::metadata::Record;
use pyrograph::{ClassPipeline, Generated, OpenOptions, Progress, Request, model};

pub(crate) use args::Class;

use crate::common::{Common, interrupted};

/// Name of the shipped model.
pub(crate) const DEFAULT_MODEL: &str = "emoji-class";
/// Its few-step student.
const FAST_MODEL: &str = "emoji-4step";

pub(crate) fn run(args: &Class, common: &Common) -> anyhow::Result<()> {
    let earlier = args.from_metadata.as_deref().map(Record::read).transpose()?;
    let every_class = args.class.is_none() && earlier.is_none();
    let as_grid = args.grid.is_some() || (every_class && !is_output_pattern(&args.output));
    for path in [Some(&args.output), args.preview.as_ref()].into_iter().flatten() {
        check_output_path(path)?;
    }
    let pipeline = open(args, earlier.as_ref(), common)?;
    let request = ask::request(args, earlier.as_ref(), &pipeline)?;
    let record = Record::of(&pipeline, &request)?;
    let steps = pipeline.taken(&request)?;

    let started = Instant::now();
    let batches = request.prompts.len().div_ceil(record.settings.batch);
    let (generated, trajectory) = generate(args, &pipeline, &request, batches * steps, common)?;
    let seconds = started.elapsed().as_secs_f64();
    if common.verbose
        && let Some(compute) = &record.compute
    {
        common.say(&compute.to_string());
    }
    let Generated { images, latents } = generated;
    if let Some(path) = &args.save_latents {
        output::save_latents(path, latents, trajectory, record.settings.batch)?;
    }
    let written = output::write(args, &record, &pipeline, &images, as_grid)?;
    output::report(common, &record, &written, steps, seconds);
    if args.show {
        output::show(&images)?;
    }
    Ok(())
}

/// Opens the model asked for, or that of an earlier picture.
fn open(args: &Class, earlier: Option<&Record>, common: &Common) -> anyhow::Result<ClassPipeline> {
    let shipped = if args.fast { FAST_MODEL } else { DEFAULT_MODEL };
    let named = earlier.map(|record| PathBuf::from(&record.model));
    let model = args.model.clone().or(named).unwrap_or_else(|| shipped.into());
    // Before the device is opened, which can take its time.
    let model = model::find(&model)?;
    let opened = common.open()?;
    let started = Instant::now();
    let notify = |notice| common.tell(&notice);
    let mut options = OpenOptions {
        dtype: args.dtype.or(earlier.map(|record| record.dtype)).unwrap_or_default(),
        vae: args.vae.clone().or_else(|| earlier?.vae.clone()),
        guide: args.guide_model.clone().or_else(|| earlier?.guide.clone()),
        ..OpenOptions::default()
    };
    options.hooks.notify = Some(&notify);
    let mut pipeline = ClassPipeline::open_on(&model, &opened, &options)?;
    crate::memory::give_back(options.dtype);
    put_on(args, earlier, &mut pipeline, common)?;
    let origin = pipeline.origin();
    if let Some(Record { weights: before, .. }) = earlier
        && *before != origin.weights
    {
        common.say(&format!(
            "warning: the picture was made by weights {before}, those of {} are {}",
            model.display(),
            origin.weights
        ));
    }
    if common.verbose {
        common.say(&format!("opened {} in {:.2} s", origin.kind, started.elapsed().as_secs_f64()));
    }
    Ok(pipeline)
}

/// Puts on the adapters asked for, or those of an earlier picture.
fn put_on(
    args: &Class,
    earlier: Option<&Record>,
    pipeline: &mut ClassPipeline,
    common: &Common,
) -> anyhow::Result<()> {
    let before = earlier.filter(|_| args.lora.is_empty()).map_or(&[][..], |r| &r.adapters);
    let asked = args.lora.iter().map(|lora| (&lora.file, lora.weight, None));
    let again = before.iter().map(|record| (&record.file, record.weight, Some(record)));
    for (file, weight, record) in asked.chain(again) {
        let alpha = record.and_then(|record| record.alpha);
        let adapter = pipeline.adapter(file, alpha, &mut |notice| common.tell(&notice))?;
        if let Some(record) = record
            && record.fingerprint != adapter.fingerprint()
        {
            let (file, was, is) = (file.display(), &record.fingerprint, adapter.fingerprint());
            common.say(&format!("warning: {file} was {was} for the picture, now it is {is}"));
        }
        pipeline.put_on(adapter, weight)?;
    }
    Ok(())
}

/// Makes the images with a progress bar over `steps`, those of all batches; also returns the states after all steps, if
/// they are going to be saved.
fn generate(
    args: &Class,
    pipeline: &ClassPipeline,
    request: &Request<usize>,
    steps: usize,
    common: &Common,
) -> anyhow::Result<(Generated, Vec<Tensor<4>>)> {
    let bar =
        common.progress_bar(steps as u64, "{bar:30} {pos}/{len} steps, {per_sec}, {eta} left");
    let mut trajectory = Vec::new();
    let result = pipeline.generate(request, &mut |progress| {
        bar.inc(1);
        if args.save_latents.is_some() {
            trajectory.push(progress.x.clone());
        }
        if let Err(error) = preview(args, &progress) {
            common.say(&format!("warning: no preview: {error:#}"));
        }
        interrupted()
    });
    bar.finish_and_clear();
    Ok((result?, trajectory))
}

fn preview(args: &Class, progress: &Progress<'_>) -> anyhow::Result<()> {
    if let (Some(path), Some(images)) = (&args.preview, progress.preview()) {
        write_image(path, &output::sheet(&images?, 0), &[])?;
    }
    Ok(())
}
