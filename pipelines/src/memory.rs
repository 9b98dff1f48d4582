//! How much memory there is.

use std::path::Path;

use pyrograph_engine::nets::{DitConfig, VaeConfig};

use crate::error::{Error, Result};

/// Bytes of a value.
pub(crate) const VALUE: u64 = 4;

/// Memory that is left, in bytes, and whose it is: that of the machine, of the process's own limit or of its control
/// group, whichever is least; `None` where the system does not tell.
pub fn available() -> Option<(u64, &'static str)> {
    let all = [
        (machine(), "this machine"),
        (process(), "the limit of this process"),
        (control_group(), "the control group of this process"),
    ];
    all.into_iter().filter_map(|(bytes, whose)| Some((bytes?, whose))).min()
}

/// Refuses what needs more memory than there is, before it is taken; `what` is the start of a sentence, "one picture of
/// 9x9 takes".
///
/// # Errors
/// [`Error::TooMuch`].
pub fn check(what: impl Into<String>, need: u64) -> Result<()> {
    match available() {
        Some((available, limit)) if need > available => {
            Err(Error::TooMuch { what: what.into(), need, limit, available })
        }
        _ => Ok(()),
    }
}

/// Values per token and hidden channel that a block holds at once: the stream, three projections, the wider layer twice.
const BLOCK: u64 = 12;
/// Values per pixel and channel of the autoencoder's widest level that it holds at once.
const LEVEL: u64 = 3;

/// So many images of `[height, width]`, for [`check`].
pub fn of_images(images: usize, [height, width]: [usize; 2]) -> String {
    match images {
        1 => format!("an image of {width}x{height} takes"),
        images => format!("{images} images of {width}x{height} at once take"),
    }
}

/// Bytes that a call of a network takes on the CPU, beside its weights, for so many images or latents of `[height,
/// width]`: about what was measured.
pub fn network(net: &DitConfig, images: usize, [height, width]: [usize; 2]) -> u64 {
    let tokens = product(&[images, height / net.patch, width / net.patch]);
    tokens.saturating_mul(BLOCK * VALUE * net.hidden as u64)
}

/// Bytes that an autoencoder takes on the CPU, beside its weights, for so many images of `[height, width]` in pixels.
pub fn autoencoder(vae: &VaeConfig, images: usize, [height, width]: [usize; 2]) -> u64 {
    product(&[images, height, width]).saturating_mul(LEVEL * VALUE * vae.widths[0] as u64)
}

/// What images are made with.
#[derive(Debug)]
pub(crate) struct Work<'a> {
    pub(crate) net: &'a DitConfig,
    pub(crate) vae: Option<&'a VaeConfig>,
    /// Images at a time, and how many times their number a call of the network takes.
    pub(crate) images: usize,
    pub(crate) calls: usize,
    /// `[height, width]` in pixels.
    pub(crate) size: [usize; 2],
    /// Latent cells per side of a tile when decoding.
    pub(crate) tile: usize,
    /// Whether there is a picture to start from.
    pub(crate) picture: bool,
}

impl Work<'_> {
    /// Bytes that it takes on the CPU, beside the weights: about what was measured.
    pub(crate) fn bytes(&self) -> u64 {
        /// Values per channel of a pixel from the end of the network to the file.
        const PIXEL: u64 = 4;
        let &Self { net, vae, images, calls, size: [high, wide], tile, picture } = self;
        let factor = vae.map_or(1, VaeConfig::factor);
        let cells = [high / factor, wide / factor];
        let network = network(net, calls.saturating_mul(images), cells);
        let latents = product(&[images, net.channels, cells[0], cells[1], size_of::<f32>()]);
        let latents = latents.saturating_mul(PIXEL);
        let Some(vae) = vae else { return network.saturating_add(latents) };
        let tile = [high, wide].map(|side| side.min(tile.saturating_mul(factor)));
        let decoding = autoencoder(vae, 1, tile);
        let encoding = if picture { autoencoder(vae, 1, [high, wide]) } else { 0 };
        let picture = product(&[3, high, wide]).saturating_mul(PIXEL * VALUE);
        // One after the other.
        let most = encoding.max(network).max(decoding.saturating_add(picture));
        most.saturating_add(latents)
    }
}

/// A number of values.
pub(crate) fn product(factors: &[usize]) -> u64 {
    factors.iter().fold(1, |product, &factor| product.saturating_mul(factor as u64))
}

/// What can be had without throwing others out, swap included.
fn machine() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    Some(1024 * (field(&text, "MemAvailable:")? + field(&text, "SwapFree:").unwrap_or(0)))
}

/// What the limit of addresses leaves (`ulimit -v`).
fn process() -> Option<u64> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let limit = field(&limits, "Max address space")?;
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    Some(limit.saturating_sub(1024 * field(&status, "VmSize:")?))
}

/// What the control group leaves, and those that it is in; files in memory can be dropped.
fn control_group() -> Option<u64> {
    let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?.to_owned();
    let number = |folder: &Path, file: &str| -> Option<u64> {
        std::fs::read_to_string(folder.join(file)).ok()?.trim().parse().ok()
    };
    let left = |group: &Path| {
        let folder = Path::new("/sys/fs/cgroup").join(group);
        let limit = number(&folder, "memory.max")?;
        let stat = std::fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
        let files = field(&stat, "inactive_file").unwrap_or(0);
        Some(limit.saturating_sub(number(&folder, "memory.current")?.saturating_sub(files)))
    };
    Path::new(&own).ancestors().filter_map(left).min()
}

/// The number after a name at the start of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_there_is_is_refused() {
        assert!(check("nothing takes", 0).is_ok());
        let Some((available, _)) = available() else { return };
        assert!(available > 0);
        let error = check("everything takes", u64::MAX).expect_err("too much").to_string();
        assert!(error.starts_with("everything takes 18446744073.7 GB of memory, "), "{error}");
        assert_eq!(field("MemFree: 3 kB\nSwapFree:   12 kB\n", "SwapFree:"), Some(12));
        assert_eq!(field("Max address space  unlimited  unlimited", "Max address space"), None);
    }
}
