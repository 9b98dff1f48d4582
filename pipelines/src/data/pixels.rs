//! The pixels of training images.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::{Device, Tensor};
use pyrograph_weights::sha256_of;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::augment::Place;
use crate::decode::decode;
use crate::error::words::counted;
use crate::error::{Error, Result};
use crate::image::{Drawn, fit, to_images, to_tensor};
use crate::memory;

/// Longest side of an image, in pixels.
const SIDE_LIMIT: usize = 16_384;
/// Digits of a fingerprint.
const DIGITS: usize = 16;

/// Hears that a file was read, on any thread; can stop the reading.
pub type Observe<'a> = dyn Fn() -> ControlFlow<()> + Sync + 'a;

/// What transparent pixels are laid on: one of these colours, chosen per draw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Background(pub Vec<[u8; 3]>);

impl Default for Background {
    fn default() -> Self {
        Self(vec![[255; 3]])
    }
}

/// The first digits of a sha256.
pub(super) fn short(bytes: &[u8]) -> String {
    let mut digits = sha256_of(bytes);
    digits.truncate(DIGITS);
    digits
}

/// So many times `length` zeros, if there is memory for them.
fn zeros(count: usize, length: usize) -> Option<Vec<u8>> {
    let total = count.checked_mul(length)?;
    let mut zeros = Vec::new();
    zeros.try_reserve_exact(total).ok()?;
    zeros.resize(total, 0);
    Some(zeros)
}

/// Images in memory, resized to one size.
#[derive(Debug, Clone)]
pub(super) struct Pixels {
    size: [usize; 2],
    /// Straight RGBA, one after the other.
    rgba: Vec<u8>,
    background: Background,
}

impl Pixels {
    /// Reads files, each cut and resized to `size`, `[height, width]`, and leaves out those that cannot be decoded;
    /// these come back with their numbers in rising order.
    ///
    /// # Errors
    /// [`Error::Size`], [`Error::TooMuch`] and [`Error::Memory`] before any file is read; [`Error::Cancelled`] if `observe`, which
    /// hears of every file, breaks.
    pub(super) fn read(
        files: &[PathBuf],
        size: [usize; 2],
        background: Background,
        observe: &Observe<'_>,
    ) -> Result<(Self, Vec<(usize, Error)>)> {
        if !size.iter().all(|side| (1..=SIDE_LIMIT).contains(side)) {
            return Err(Error::Size { size, step: 1, limit: SIDE_LIMIT });
        }
        let [height, width] = size;
        let length = 4 * height * width;
        let (what, need) = (
            format!("{} of {width}x{height}", counted(files.len(), "image")),
            (files.len() as u64).saturating_mul(length as u64),
        );
        let verb = if files.len() == 1 { "takes" } else { "take" };
        memory::check(format!("{what} {verb}"), need)?;
        let mut rgba = zeros(files.len(), length).ok_or(Error::Memory { what, need })?;
        let stopped = AtomicBool::new(false);
        let read = |(path, into): (&PathBuf, &mut [u8])| {
            if stopped.load(Ordering::Relaxed) {
                return None;
            }
            let fault = match decode(path) {
                Ok(picture) => {
                    into.copy_from_slice(&fit(&picture, size));
                    None
                }
                Err(error) => Some(error),
            };
            if observe().is_break() {
                stopped.store(true, Ordering::Relaxed);
            }
            fault
        };
        let faults: Vec<Option<Error>> =
            files.par_iter().zip(rgba.par_chunks_mut(length)).map(read).collect();
        if stopped.into_inner() {
            return Err(Error::Cancelled);
        }
        let mut kept = 0;
        for (index, fault) in faults.iter().enumerate() {
            if fault.is_none() {
                rgba.copy_within(index * length..(index + 1) * length, kept * length);
                kept += 1;
            }
        }
        rgba.truncate(kept * length);
        let faults = faults.into_iter().enumerate();
        let faults = faults.filter_map(|(index, fault)| Some((index, fault?))).collect();
        Ok((Self { size, rgba, background }, faults))
    }

    /// What `convert`, which keeps their shape, makes of all, each on the first background.
    ///
    /// # Errors
    /// Pixels that are not finite.
    pub(super) fn converted(&self, convert: impl Fn(Tensor<4>) -> Tensor<4>) -> Result<Self> {
        let mut rgba = Vec::with_capacity(self.rgba.len());
        for index in 0..self.len() {
            let picture = convert(self.batch(&[index], &[false], &[0], &Device::flex()));
            let pixels = to_images(picture)?.remove(0);
            rgba.extend(pixels.pixels().flat_map(|pixel| [pixel[0], pixel[1], pixel[2], u8::MAX]));
        }
        Ok(Self { rgba, ..self.clone() })
    }

    /// `[height, width]` of each.
    pub(super) fn size(&self) -> [usize; 2] {
        self.size
    }

    /// Number of images.
    pub(super) fn len(&self) -> usize {
        self.rgba.len() / (4 * self.size[0] * self.size[1])
    }

    /// What changes with the pixels, the size or the background: the start of a sha256 in hexadecimal.
    pub(super) fn fingerprint(&self) -> String {
        let described = serde_json::json!([self.size, self.background, sha256_of(&self.rgba)]);
        short(described.to_string().as_bytes())
    }

    /// Images in [-1, 1], `[batch, 3, height, width]`.
    ///
    /// `flips` mirrors an image, `colours` chooses its background, modulo their number.
    pub(super) fn batch(
        &self,
        indices: &[usize],
        flips: &[bool],
        colours: &[usize],
        device: &Device,
    ) -> Tensor<4> {
        let rgba = indices.iter().map(|&index| self.rgba(index));
        self.drawn(rgba, flips, colours, device)
    }

    /// The same of images that are laid in these places first.
    pub(super) fn placed(
        &self,
        indices: &[usize],
        places: &[Place],
        flips: &[bool],
        colours: &[usize],
        device: &Device,
    ) -> Tensor<4> {
        let put = |(&index, place): (&usize, &Place)| place.put(self.rgba(index), self.size);
        let placed: Vec<Vec<u8>> = indices.par_iter().zip(places).map(put).collect();
        self.drawn(placed.iter().map(Vec::as_slice), flips, colours, device)
    }

    fn rgba(&self, index: usize) -> &[u8] {
        let length = 4 * self.size[0] * self.size[1];
        &self.rgba[index * length..(index + 1) * length]
    }

    fn drawn<'a>(
        &self,
        images: impl ExactSizeIterator<Item = &'a [u8]>,
        flips: &[bool],
        colours: &[usize],
        device: &Device,
    ) -> Tensor<4> {
        let drawn = images.zip(flips).zip(colours).map(|((rgba, &flip), &colour)| Drawn {
            rgba,
            background: self.background.0[colour % self.background.0.len()],
            flip,
        });
        to_tensor(drawn, self.size, device)
    }
}
