//! `pyrograph generate`.

mod args;
mod ask;
mod earlier;
mod judge;
mod kinds;
mod mega;
mod output;
mod portrait;

use std::time::Instant;

use anyhow::anyhow;
use pyrograph::image::{is_output_pattern, write_image};
use pyrograph::metadata::{AdapterRecord, Record};
use pyrograph::model::Limits;
use pyrograph::pipeline::Pipeline;
use pyrograph::task::PromptTask;
use pyrograph::{Error, OpenOptions, Progress, Request};

use args::Images;
use earlier::Earlier;
pub(crate) use kinds::{Class, DEFAULT_MODEL, Kind, Text};
use output::{Output, square};
pub(crate) use portrait::{Portrait, portrait};

use crate::common::{Common, interrupted};
use crate::interrupt;

pub(crate) fn run(kind: &impl Kind, common: &Common) -> anyhow::Result<()> {
    let args = kind.images();
    let read = |picture| Earlier::read(picture, args.model.as_deref());
    let earlier = args.from_metadata.as_deref().map(read).transpose()?;
    let earlier = earlier.as_ref();
    output::check(args)?;
    let pipeline = open(kind, earlier, common)?;
    let request = ask::request(kind, earlier, &pipeline, common)?;
    let mut record = Record::of(&pipeline, &request)?;
    record.grid = columns(kind, earlier, record.len());
    let steps = pipeline.taken(&request)?;
    kind.warn(&request, &pipeline, common)?;
    let mut output = Output::new(args, &pipeline, record, steps, common)?;
    let made = generate(args, &pipeline, &request, &mut output, common);
    let written = output.finish();
    made.and(written)
}

/// Columns of a picture of all images, if there is to be one: asked for, by an earlier picture, or by what is asked.
fn columns(kind: &impl Kind, earlier: Option<&Earlier>, images: usize) -> Option<usize> {
    let args = kind.images();
    let square = square(images);
    let before = match earlier.map(|earlier| &earlier.record) {
        // Earlier versions did not say so.
        Some(record) => record.grid.or((record.len() > 1).then_some(square)),
        None => kind.is_sheet().then_some(square),
    };
    match args.grid {
        Some(columns) => Some(columns.unwrap_or(square)),
        None => before.filter(|_| !is_output_pattern(&args.output)),
    }
}

/// Opens the model asked for, or that of an earlier picture.
fn open<K: Kind>(
    kind: &K,
    earlier: Option<&Earlier>,
    common: &Common,
) -> anyhow::Result<Pipeline<K::Task>> {
    let args = kind.images();
    // Before the device is opened, which can take its time.
    let (mut vae, mut guide) = (args.vae.clone(), args.guide_model.clone());
    if let Some(Earlier { record, search, .. }) = earlier {
        vae = vae.map_or_else(|| search.vae(record), |vae| Ok(Some(vae)))?;
        guide = guide.map_or_else(|| search.guide(record), |guide| Ok(Some(guide)))?;
    }
    let model = match (&args.model, earlier) {
        (Some(model), _) => common.find(model)?,
        (None, Some(Earlier { record, search, .. })) => search.model(record)?,
        (None, None) => common.find(kind.model()?)?,
    };
    let opened = common.open()?;
    let started = Instant::now();
    let notify = |notice| common.tell(&notice);
    let dtype = args.dtype.or(earlier.map(|earlier| earlier.record.dtype));
    let earlier_size = earlier.and_then(|earlier| earlier.record.settings.size);
    let size = args.height.zip(args.width).map(<[usize; 2]>::from).or(earlier_size);
    let memory = args.max_memory.map(|size| size.as_u64());
    let limits = Limits { memory, size, ..Limits::default() };
    let mut options = OpenOptions { dtype, limits, vae, guide, ..OpenOptions::default() };
    options.hooks.notify = Some(&notify);
    kind.parts(earlier, &mut options)?;
    let mut pipeline = Pipeline::open_on(&model, &opened, &options)?;
    crate::memory::give_back(pipeline.origin().dtype);
    put_on(args, earlier, &mut pipeline, common)?;
    let origin = pipeline.origin();
    if let Some(earlier) = earlier {
        earlier.compare(origin, common);
    }
    if common.verbose {
        common.say(&format!("opened {} in {:.2} s", origin.kind, started.elapsed().as_secs_f64()));
    }
    Ok(pipeline)
}

/// Puts on the adapters asked for, or those of an earlier picture.
fn put_on<T: PromptTask>(
    args: &Images,
    earlier: Option<&Earlier>,
    pipeline: &mut Pipeline<T>,
    common: &Common,
) -> anyhow::Result<()> {
    let mut asked = Vec::new();
    asked.extend(args.lora.iter().map(|lora| (lora.file.clone(), lora.weight, None)));
    if let Some(Earlier { record, search, .. }) = earlier.filter(|_| args.lora.is_empty()) {
        for adapter in &record.adapters {
            let file = search.adapter(adapter).map_err(|error| match error {
                Error::NotFoundAgain { .. } => named_again(&error, &record.adapters),
                other => other.into(),
            })?;
            asked.push((file, adapter.weight, Some(adapter)));
        }
    }
    for (file, weight, record) in asked {
        let alpha = record.and_then(|record| record.alpha);
        let adapter = pipeline.adapter(&file, alpha, &mut |notice| common.tell(&notice))?;
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

/// A missing adapter, and how to name all of a picture, each with its weight.
fn named_again(error: &Error, adapters: &[AdapterRecord]) -> anyhow::Error {
    let named =
        adapters.iter().map(|adapter| format!("--lora {}:{}", adapter.file, adapter.weight));
    anyhow!("{error}: name all, wherever they are now: {}", named.collect::<Vec<_>>().join(" "))
}

/// Makes the images with a progress bar over all steps, each written as soon as it is there.
fn generate<T: PromptTask>(
    args: &Images,
    pipeline: &Pipeline<T>,
    request: &Request<T::Prompt>,
    output: &mut Output<'_, T>,
    common: &Common,
) -> anyhow::Result<()> {
    let steps = output.all_steps() as u64;
    let bar = common.progress_bar(steps, "{bar:30} {pos}/{len} steps, {per_sec}, {eta} left");
    let output = std::sync::Mutex::new(output);
    let locked = || output.lock().expect("no step panicked");
    let mut failed = Ok(());
    let on_step = &mut |progress: Progress<'_>| {
        bar.inc(1);
        if args.save_latents.is_some() {
            locked().trajectory.push(progress.x.clone());
        }
        if let Err(error) = preview(args, &progress) {
            common.say(&format!("warning: no preview: {error:#}"));
        }
        interrupted()
    };
    let made = pipeline.each(request, on_step, &mut |made| {
        failed = bar.suspend(|| locked().take(made));
        match failed {
            Ok(()) => interrupted(),
            Err(_) => std::ops::ControlFlow::Break(()),
        }
    });
    bar.finish_and_clear();
    failed?;
    Ok(made?)
}

fn preview(args: &Images, progress: &Progress<'_>) -> anyhow::Result<()> {
    if let (Some(path), Some(images)) = (&args.preview, progress.preview()) {
        let images = images?;
        let _saved = interrupt::hold();
        write_image(path, &output::sheet(&images, None), &[])?;
    }
    Ok(())
}
