//! Which forms of the operations run.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};

/// What the operations may use, on the CPU each with all that stand before it.
///
/// The environment variable `PYROGRAPH_KERNELS` names the last one that is allowed, for tests and comparisons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kernels {
    /// `off`: burn's own operations in place of the fused ones, on a GPU, too.
    Off,
    /// `portable`: fused operations, on the CPU with the products of the `gemm` crate.
    Portable,
    /// `avx512`: products with AVX-512 for weights that are laid out for them.
    Avx512,
    /// `avx512-bf16`: dot products of bf16, where they gain something.
    Avx512Bf16,
    /// `amx`: products of bf16 in tile units.
    Amx,
}

impl Kernels {
    const NAMES: [(&str, Self); 5] = [
        ("off", Self::Off),
        ("portable", Self::Portable),
        ("avx512", Self::Avx512),
        ("avx512-bf16", Self::Avx512Bf16),
        ("amx", Self::Amx),
    ];

    /// What the environment allows.
    ///
    /// # Errors
    /// [`Error::UnknownKernels`].
    pub fn allowed() -> Result<Self> {
        let Some(value) = std::env::var_os("PYROGRAPH_KERNELS") else { return Ok(Self::Amx) };
        let known = Self::NAMES.iter().find(|(name, _)| value == *name);
        known.map(|(_, kernels)| *kernels).ok_or_else(|| Error::UnknownKernels {
            found: value.to_string_lossy().into_owned(),
            known: Self::NAMES.map(|(name, _)| name).join(", "),
        })
    }

    /// Whether these are allowed in this process.
    ///
    /// # Panics
    /// If the environment names none; opening the CPU refuses that before.
    pub(crate) fn on(self) -> bool {
        static ALLOWED: LazyLock<Kernels> =
            LazyLock::new(|| Kernels::allowed().unwrap_or_else(|error| panic!("{error}")));
        self <= *ALLOWED
    }
}

/// Whether a GPU was found to compute wrong numbers by our kernels.
static LEFT: AtomicBool = AtomicBool::new(false);

/// Whether our own kernels run on GPUs.
pub(crate) fn on_gpus() -> bool {
    Kernels::Portable.on() && !LEFT.load(Ordering::Relaxed)
}

/// Leaves the work of our own kernels on GPUs to burn's operations, in this process and from now on.
pub fn leave_kernels() {
    LEFT.store(true, Ordering::Relaxed);
}
