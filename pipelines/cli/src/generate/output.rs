//! What `pyrograph generate` writes and says.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use burn::tensor::Tensor;
use image::RgbImage;
use pyrograph::image::{
    check_folder_of, check_format, check_output_path, contact_sheet, output_path, sheet_size,
    write_image,
};
use pyrograph::metadata::Record;
use pyrograph::pipeline::Pipeline;
use pyrograph::task::PromptTask;
use pyrograph::weights::{folder_of, write_safetensors};
use pyrograph::{Made, memory};
use pyrograph_engine::read;

use super::args::Images;
use crate::common::{Common, counted};
use crate::interrupt;

/// Pixels between pictures side by side.
const GAP: u32 = 2;
/// A picture of all images is written anew after a batch, if it was not for so long.
const REST: Duration = Duration::from_secs(2);
/// Bad images that are named.
pub(super) const NAMED: usize = 10;

/// Checks, before any work, that the outputs can be written and take the place of no input, nor of each other.
pub(super) fn check(args: &Images) -> anyhow::Result<()> {
    check_output_path(&args.output)?;
    if let Some(preview) = &args.preview {
        check_output_path(preview)?;
    }
    if let Some(latents) = &args.save_latents {
        check_folder_of(latents)?;
    }
    Ok(())
}

/// Pictures side by side; without columns, in a square.
pub(super) fn sheet(images: &[RgbImage], columns: Option<usize>) -> RgbImage {
    contact_sheet(images, columns.unwrap_or_else(|| square(images.len())), GAP, [255; 3])
}

/// Columns of so many pictures in a square.
pub(super) fn square(images: usize) -> usize {
    (images as f64).sqrt().ceil() as usize
}

/// What becomes of the images of a run.
pub(super) struct Output<'a, T> {
    args: &'a Images,
    common: &'a Common,
    pipeline: &'a Pipeline<T>,
    /// Of all images.
    record: Record,
    /// Of each batch.
    steps: usize,
    /// Images that were made, kept for one picture of all or for the terminal; bad ones are blank.
    images: Vec<RgbImage>,
    /// Number of images that were made.
    made: usize,
    /// What is wrong with some of them.
    bad: Vec<String>,
    /// Final latents, if they are saved.
    latents: Vec<Tensor<4>>,
    /// States after all steps of each batch, if they are saved.
    pub(super) trajectory: Vec<Tensor<4>>,
    started: Instant,
    /// When the picture of all images was written last.
    written: Instant,
}

impl<'a, T: PromptTask> Output<'a, T> {
    /// Checks, before any work, all that will be written.
    pub(super) fn new(
        args: &'a Images,
        pipeline: &'a Pipeline<T>,
        record: Record,
        steps: usize,
        common: &'a Common,
    ) -> anyhow::Result<Self> {
        let (bad, images, latents, trajectory) = Default::default();
        let now = Instant::now();
        let output = Self {
            args,
            common,
            pipeline,
            record,
            steps,
            images,
            made: 0,
            bad,
            latents,
            trajectory,
            started: now,
            written: now,
        };
        output.check_memory()?;
        output.check_files()?;
        Ok(output)
    }

    /// Steps of all batches.
    pub(super) fn all_steps(&self) -> usize {
        self.count().div_ceil(self.record.settings.batch) * self.steps
    }

    fn count(&self) -> usize {
        self.record.len()
    }

    /// `[height, width]` of an image.
    fn size(&self) -> [usize; 2] {
        self.pipeline.image_size(&self.record.settings)
    }

    /// Refuses to hold more than there is room for.
    fn check_memory(&self) -> anyhow::Result<()> {
        let count = self.count() as u64;
        let [height, width] = self.size().map(|side| side as u64);
        if self.record.grid.is_some() || self.args.show {
            // The images, the picture of all, and its file.
            memory::check("one picture of all images takes", 9 * count * height * width)?;
        }
        if self.args.save_latents.is_some() {
            let [_, channels, height, width] =
                self.pipeline.shape(1, &self.record.settings)?.map(|n| n as u64);
            let values = (count * channels * height * width).saturating_mul(self.steps as u64 + 1);
            memory::check("the states after all steps take", values.saturating_mul(8))?;
        }
        Ok(())
    }

    /// Refuses files that cannot be written, that take the place of an input, or that are the same.
    fn check_files(&self) -> anyhow::Result<()> {
        let [height, width] = self.size().map(|side| side as u64);
        let sheet =
            |images: usize, columns: usize| sheet_size(images, columns, [width, height], GAP);
        let mut outputs = HashSet::new();
        match self.record.grid {
            Some(columns) => {
                let path = self.sheet_path();
                let texts = self.texts(&self.record)?;
                check_format(&path, sheet(self.count(), columns), &texts)?;
                outputs.insert(place(&path));
            }
            None => {
                let texts = self.texts(&self.record.image(0))?;
                for index in 0..self.count() {
                    let path = self.path(index);
                    check_format(&path, [width, height], &texts)?;
                    check_folder_of_first(index, &path)?;
                    outputs.insert(place(&path));
                }
            }
        }
        if let Some(preview) = &self.args.preview {
            let images = self.record.settings.batch.min(self.count());
            check_format(preview, sheet(images, square(images)), &[])?;
        }
        let Images { preview, save_latents, init_image, mask, noise, .. } = self.args;
        let others = [
            ("--preview", preview),
            ("--save-latents", save_latents),
            ("--init-image", init_image),
            ("--mask", mask),
            ("--noise", noise),
        ];
        for (option, path) in others {
            let Some(path) = path else { continue };
            ensure!(
                !outputs.contains(&place(path)),
                "{}: --output would take the place of {option}",
                path.display()
            );
            if matches!(option, "--preview" | "--save-latents") {
                outputs.insert(place(path));
            }
        }
        Ok(())
    }

    fn sheet_path(&self) -> PathBuf {
        output_path(&self.args.output, 0, 1, self.record.settings.seed, "grid")
    }

    fn path(&self, index: usize) -> PathBuf {
        let seed = self.record.settings.seed.wrapping_add(index as u64);
        let name = self.record.name(index, &self.pipeline.config().labels);
        output_path(&self.args.output, index, self.count(), seed, &name)
    }

    fn texts(&self, record: &Record) -> anyhow::Result<Vec<(String, String)>> {
        if self.args.no_metadata {
            return Ok(Vec::new());
        }
        let [height, width] = self.size().map(|side| side as u32);
        Ok(record.texts(&self.pipeline.config().labels, [width, height])?)
    }

    /// Takes an image of the run: writes it, or keeps it for a picture of all.
    pub(super) fn take(&mut self, Made { index, image, latent }: Made) -> anyhow::Result<()> {
        let _saved = interrupt::hold();
        self.made += 1;
        if self.args.save_latents.is_some() {
            self.latents.push(latent);
        }
        match (&image, self.record.grid) {
            (Ok(image), None) => self.write(index, image)?,
            (Ok(_), Some(_)) => (),
            (Err(error), _) => self.keep_error(index, &error.to_string()),
        }
        if self.record.grid.is_some() || self.args.show {
            let [height, width] = self.size().map(|side| side as u32);
            let blank = || RgbImage::from_pixel(width, height, image::Rgb([255; 3]));
            self.images.push(image.unwrap_or_else(|_| blank()));
        }
        let ends_batch = self.made.is_multiple_of(self.record.settings.batch);
        if ends_batch && self.made < self.count() && self.written.elapsed() > REST {
            self.write_sheet()?;
        }
        Ok(())
    }

    fn keep_error(&mut self, index: usize, error: &str) {
        if self.common.json {
            let record = self.record.image(index);
            println!(
                "{}",
                self.line(&record, serde_json::json!({ "index": index, "error": error }))
            );
        }
        self.bad.push(error.to_owned());
    }

    fn write(&self, index: usize, image: &RgbImage) -> anyhow::Result<()> {
        let (path, record) = (self.path(index), self.record.image(index));
        write_image(&path, image, &self.texts(&record)?)?;
        self.tell(&path, &record, serde_json::json!({ "index": index }));
        Ok(())
    }

    /// One picture of all images that there are by now.
    fn write_sheet(&mut self) -> anyhow::Result<Option<(PathBuf, Record)>> {
        let Some(columns) = self.record.grid else { return Ok(None) };
        if self.images.len() == self.bad.len() {
            return Ok(None);
        }
        let record = self.record.first(self.images.len());
        let path = self.sheet_path();
        write_image(&path, &sheet(&self.images, Some(columns)), &self.texts(&record)?)?;
        self.written = Instant::now();
        Ok(Some((path, record)))
    }

    /// Says that a file was written.
    fn tell(&self, path: &Path, record: &Record, mut about: serde_json::Value) {
        if self.common.json {
            about["file"] = path.to_string_lossy().into();
            println!("{}", self.line(record, about));
        } else if !self.common.quiet {
            println!("{}", path.display());
        }
    }

    /// A line of JSON on some of the images.
    fn line(&self, record: &Record, mut about: serde_json::Value) -> serde_json::Value {
        match record.texts.is_empty() {
            true => {
                about["classes"] = record.classes.clone().into();
                about["names"] = record.names(&self.pipeline.config().labels).into();
            }
            false => about["prompts"] = record.texts.clone().into(),
        }
        about["seed"] = record.settings.seed.into();
        about["steps"] = self.steps.into();
        about["seconds"] = self.started.elapsed().as_secs_f64().into();
        about["settings"] = serde_json::json!(record.settings);
        about
    }

    /// Writes what comes last, also of a run that was stopped, and says what was made.
    pub(super) fn finish(mut self) -> anyhow::Result<()> {
        if self.made == 0 {
            return Ok(());
        }
        let _saved = interrupt::hold();
        if let Some((path, record)) = self.write_sheet()? {
            self.tell(&path, &record, serde_json::json!({}));
        }
        self.save_latents()?;
        if self.args.show {
            show(&sheet(&self.images, self.record.grid))?;
        }
        let (common, settings) = (self.common, &self.record.settings);
        let images = self.made - self.bad.len();
        if common.verbose
            && let Some(compute) = &self.record.compute
        {
            common.say(&compute.to_string());
        }
        common.say(&format!(
            "{}, seed {}, {} of {}, cfg {}, {:.1} s",
            counted(images, "image", "images"),
            settings.seed,
            counted(self.steps, "step", "steps"),
            settings.sampler,
            settings.guidance.scale,
            self.started.elapsed().as_secs_f64(),
        ));
        match self.bad.len() {
            0 => Ok(()),
            bad => {
                let named = self.bad[..bad.min(NAMED)].join("; ");
                bail!("{bad} of {} images are missing: {named}", self.made)
            }
        }
    }

    /// The final latents, and the states after all steps of each batch, of the images that were made.
    fn save_latents(&self) -> anyhow::Result<()> {
        let (Some(path), images @ 1..) = (&self.args.save_latents, self.latents.len()) else {
            return Ok(());
        };
        // The steps of each batch follow one another; put the images of one step side by side.
        let batches = images.div_ceil(self.record.settings.batch);
        let at = |step: usize| {
            let of_batch = |batch: usize| self.trajectory[batch * self.steps + step].clone();
            Tensor::cat((0..batches).map(of_batch).collect(), 0).narrow(0, 0, images)
        };
        let trajectory: Tensor<5> = Tensor::stack((0..self.steps).map(at).collect(), 0);
        let latents = Tensor::cat(self.latents.clone(), 0);
        let tensors = [
            ("latents".to_owned(), read::data(latents)?),
            ("trajectory".to_owned(), read::data(trajectory)?),
        ];
        Ok(write_safetensors(path, &tensors, &BTreeMap::new())?)
    }
}

/// Where a path leads, whatever way it is written.
pub(super) fn place(path: &Path) -> PathBuf {
    let folder = folder_of(path).canonicalize().unwrap_or_else(|_| folder_of(path).to_owned());
    path.file_name().map_or(folder.clone(), |name| folder.join(name))
}

/// A folder in the place of a file; whether files can be written there is seen with the first.
pub(super) fn check_folder_of_first(index: usize, path: &Path) -> anyhow::Result<()> {
    match index == 0 || path.is_dir() {
        true => Ok(check_folder_of(path)?),
        false => Ok(()),
    }
}

/// Shows a picture in the terminal.
fn show(picture: &RgbImage) -> anyhow::Result<()> {
    crate::terminal::show(picture).context("the terminal cannot show images")
}
