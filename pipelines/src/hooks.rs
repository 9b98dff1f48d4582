//! How an application takes part in opening devices and models.

use std::fmt;
use std::path::PathBuf;

use pyrograph_engine::device::{Adapter, Trust};

use crate::error::gigabytes;

/// What an application should pass on to its user.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Notice {
    /// [`DeviceChoice::Auto`](crate::DeviceChoice::Auto) found no GPU.
    NoGpu,
    /// A GPU is going to be checked, which can take a minute.
    FirstUse {
        /// The GPU and its graphics API.
        adapter: String,
    },
    /// A part of what makes a GPU fast is left off.
    LeftOff {
        /// What is still used.
        trust: Trust,
        /// Largest difference from the CPU with all of it, as a share of the largest value; `None` if the check did not end.
        difference: Option<f64>,
    },
    /// [`DeviceChoice::Auto`](crate::DeviceChoice::Auto) found a GPU that is wrong, so that the CPU is used.
    WrongGpu {
        /// What is wrong.
        reason: String,
    },
    /// A model has weights that are NaN or infinite.
    NotFinite {
        /// Number of such tensors.
        tensors: usize,
        /// Name of the first.
        first: String,
    },
    /// What a model takes, where it is much, or limited.
    Memory {
        /// Bytes, with the work on one image.
        need: u64,
        /// Bytes of weights for which there is no room, so that they are read from their file whenever they are needed.
        streamed: u64,
        /// Whether it is the memory of the GPU.
        gpu: bool,
    },
    /// A LoRA says nowhere what its alpha is, so that it is taken for the rank.
    AlphaAssumed {
        /// File or folder.
        file: PathBuf,
    },
    /// An autoencoder without a configuration, so that the scale of its latents is taken for Stable Diffusion's.
    ScaleAssumed {
        /// The file.
        file: PathBuf,
        /// The scale.
        scale: f64,
    },
    /// The file of a whole model holds text encoders, but no tokenizers, without which they are of no use.
    NoTokenizer {
        /// The file.
        file: PathBuf,
        /// How the names of its text encoders begin.
        part: String,
    },
    /// A model names a scheduler that is not here; another one goes along a similar grid.
    OtherSampler {
        /// Name of its class.
        class: String,
        /// The sampler that is used.
        sampler: String,
    },
    /// A key of a scheduler that has no effect, as it has none in diffusers.
    IdleKey {
        /// Name of the scheduler's class.
        class: String,
        /// The key.
        key: String,
        /// Its value, as JSON.
        value: String,
    },
}

impl Notice {
    /// Whether something is wrong.
    pub fn is_warning(&self) -> bool {
        match self {
            Self::NoGpu | Self::FirstUse { .. } | Self::Memory { .. } => false,
            Self::LeftOff { .. }
            | Self::WrongGpu { .. }
            | Self::NotFinite { .. }
            | Self::AlphaAssumed { .. }
            | Self::ScaleAssumed { .. }
            | Self::NoTokenizer { .. }
            | Self::OtherSampler { .. }
            | Self::IdleKey { .. } => true,
        }
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoGpu => write!(f, "no GPU found, running on the CPU"),
            Self::FirstUse { adapter } => {
                write!(f, "first use of {adapter}: checking it against the CPU")
            }
            Self::LeftOff { trust, difference } => {
                let off = [(!trust.fusion, "kernel fusion"), (!trust.kernels, "our own kernels")];
                let off: Vec<&str> =
                    off.iter().filter_map(|(is, what)| is.then_some(*what)).collect();
                write!(f, "{} left off, with which the GPU ", off.join(" and "))?;
                match difference {
                    Some(difference) => write!(f, "differs from the CPU by {difference:.1e}"),
                    None => write!(f, "crashes"),
                }
            }
            Self::WrongGpu { reason } => write!(f, "{reason}; running on the CPU"),
            Self::NotFinite { tensors, first } => {
                write!(f, "{tensors} tensors hold NaN or infinite weights, the first is {first}")
            }
            Self::Memory { need, streamed, gpu } => {
                let of = if *gpu { "the GPU's memory" } else { "memory" };
                write!(f, "the model takes about {} of {of}", gigabytes(*need))?;
                match streamed {
                    0 => Ok(()),
                    _ => write!(
                        f,
                        ", and reads {} of weights from its file at each call",
                        gigabytes(*streamed)
                    ),
                }
            }
            Self::AlphaAssumed { file } => {
                write!(f, "{}: no alpha is stored, it is taken for the rank", file.display())
            }
            Self::ScaleAssumed { file, scale } => {
                let file = file.display();
                write!(
                    f,
                    "{file}: no config.json says the scale of its latents, it is taken for {scale}"
                )
            }
            Self::NoTokenizer { file, part } => {
                let file = file.display();
                write!(f, "{file}: its text encoders, `{part}`, are not used: it has no tokenizers")
            }
            Self::OtherSampler { class, sampler } => {
                write!(f, "the model's {class} is not here, the sampler is {sampler}")
            }
            Self::IdleKey { class, key, value } => {
                write!(f, "{key} = {value} has no effect in this {class}")
            }
        }
    }
}

/// See [`Hooks::probe`].
pub type Probe<'a> = dyn Fn(&Adapter, Trust) -> Option<f64> + Sync + 'a;

/// How an application takes part in opening a device or a model; by default, not at all.
#[derive(Clone, Copy, Default)]
pub struct Hooks<'a> {
    /// Hears of every [`Notice`].
    pub notify: Option<&'a (dyn Fn(Notice) + Sync)>,
    /// Checks a GPU with so much trust, in a process of its own, whose end is not that of the application:
    /// [`device::check`](crate::device::check)'s result there, `None` if it does not answer.
    pub probe: Option<&'a Probe<'a>>,
}

impl Hooks<'_> {
    pub(crate) fn notify(&self, notice: Notice) {
        if let Some(notify) = self.notify {
            notify(notice);
        }
    }
}

impl fmt::Debug for Hooks<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { notify, probe } = self;
        write!(f, "Hooks {{ notify: {}, probe: {} }}", notify.is_some(), probe.is_some())
    }
}
