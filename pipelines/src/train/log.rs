//! `log.csv` and the loss curve of a run.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::image::{write_image, write_whole};
use crate::plot::loss_curve;

const HEADER: &str = "step,loss,images_per_second";

pub(super) struct Log {
    path: PathBuf,
    points: Vec<(f64, f64)>,
}

impl Log {
    /// Opens the log of a run, dropping the lines after `step`.
    pub(super) fn open(folder: &Path, step: u64) -> Result<Self> {
        let path = folder.join("log.csv");
        let earlier = match step {
            0 => String::new(),
            _ => std::fs::read_to_string(&path).unwrap_or_default(),
        };
        let at = |line: &str| line.split(',').next()?.parse::<u64>().ok();
        let kept: Vec<&str> =
            earlier.lines().filter(|line| at(line).is_some_and(|at| at <= step)).collect();
        let point = |line: &&str| {
            let mut fields = line.split(',').map(|field| field.parse::<f64>());
            Some((fields.next()?.ok()?, fields.next()?.ok()?))
        };
        let points = kept.iter().filter_map(point).collect();
        let mut text = format!("{HEADER}\n");
        kept.iter().for_each(|line| text.extend([line, "\n"]));
        write_whole(&path, text.as_bytes())?;
        Ok(Self { path, points })
    }

    pub(super) fn add(&mut self, step: u64, loss: f64, rate: f64) -> Result<()> {
        self.points.push((step as f64, loss));
        let write = || -> std::io::Result<()> {
            let mut file = OpenOptions::new().append(true).create(true).open(&self.path)?;
            writeln!(file, "{step},{loss:.6},{rate:.2}")
        };
        write().map_err(|source| Error::File { path: self.path.clone(), source })
    }

    /// Draws the loss curve beside the log.
    pub(super) fn plot(&self) -> Result<()> {
        if self.points.len() < 2 {
            return Ok(());
        }
        write_image(&self.path.with_file_name("loss.png"), &loss_curve(&self.points)?, &[])
    }
}
