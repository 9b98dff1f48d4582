//! What `pyrograph generate class` writes and says.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use burn::tensor::Tensor;
use image::RgbImage;
use pyrograph::ClassPipeline;
use pyrograph::image::{contact_sheet, output_path, write_image};
use pyrograph::metadata::Record;
use pyrograph::weights::write_safetensors;

use super::args::Class;
use crate::common::Common;

/// Pictures side by side; 0 columns make a square.
pub(super) fn sheet(images: &[RgbImage], columns: usize) -> RgbImage {
    let columns = match columns {
        0 => (images.len() as f64).sqrt().ceil() as usize,
        columns => columns,
    };
    contact_sheet(images, columns, 2, [255; 3])
}

/// The final latents, and the states after all steps of each batch.
pub(super) fn save_latents(
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

/// Writes the images, or one picture of all; returns the files.
pub(super) fn write(
    args: &Class,
    record: &Record,
    pipeline: &ClassPipeline,
    images: &[RgbImage],
    as_grid: bool,
) -> anyhow::Result<Vec<PathBuf>> {
    let seed = record.settings.seed;
    let save = |path: PathBuf, picture: &RgbImage, record: &Record, size: [u32; 2]| {
        let texts = match args.no_metadata {
            true => Vec::new(),
            false => record.texts(pipeline.labels(), size)?,
        };
        write_image(&path, picture, &texts)?;
        Ok(path)
    };
    let size = |image: &RgbImage| [image.width(), image.height()];
    if as_grid {
        let grid = sheet(images, args.grid.unwrap_or(0));
        let path = output_path(&args.output, 0, 1, seed, "grid");
        return Ok(vec![save(path, &grid, record, size(&images[0]))?]);
    }
    let each = images.iter().enumerate().map(|(i, image)| {
        let name = pipeline.labels().name(record.classes[i]);
        let seed = seed.wrapping_add(i as u64);
        let path = output_path(&args.output, i, images.len(), seed, &name);
        save(path, image, &record.image(i), size(image))
    });
    each.collect()
}

/// Says what was made.
pub(super) fn report(
    common: &Common,
    record: &Record,
    written: &[PathBuf],
    steps: usize,
    seconds: f64,
) {
    let settings = &record.settings;
    for path in written {
        if common.json {
            let line = serde_json::json!({
                "file": path, "classes": record.classes, "seed": settings.seed,
                "seconds": seconds, "settings": settings,
            });
            println!("{line}");
        } else if !common.quiet {
            println!("{}", path.display());
        }
    }
    common.say(&format!(
        "{} images, seed {}, {steps} steps of {}, cfg {}, {seconds:.1} s",
        record.classes.len(),
        settings.seed,
        settings.sampler,
        settings.guidance.scale,
    ));
}

/// Shows the images in the terminal.
pub(super) fn show(images: &[RgbImage]) -> anyhow::Result<()> {
    let picture = image::DynamicImage::ImageRgb8(sheet(images, 0));
    let config = viuer::Config { absolute_offset: false, ..Default::default() };
    viuer::print(&picture, &config).context("the terminal cannot show images")?;
    Ok(())
}
