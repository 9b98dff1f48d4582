//! Errors of this crate.

/// What can go wrong through a request, a file or the machine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// None of the known spellings of a device.
    #[error("unknown device `{found}`, expected auto, cpu, gpu or gpu:N")]
    UnknownDevice {
        /// What was asked for.
        found: String,
    },
    /// None of the names of the operations on the CPU.
    #[error("PYROGRAPH_KERNELS is `{found}`, expected one of {known}")]
    UnknownKernels {
        /// The value of the environment variable.
        found: String,
        /// Those that there are.
        known: String,
    },
    /// A GPU asked of a build without the feature `gpu`.
    #[error("this build has no GPU support (feature `gpu`)")]
    BuiltWithoutGpu,
    /// No adapter, no driver, or no loader.
    #[error("no GPU adapter found: no Vulkan, Metal or DirectX 12 driver answers on this machine")]
    NoAdapter,
    /// An adapter index past the end.
    #[error("no adapter {index}: this machine has {count}")]
    NoSuchAdapter {
        /// The index asked for.
        index: usize,
        /// Adapters found.
        count: usize,
    },
    /// `gpu` on a machine that only has a software adapter.
    #[error(
        "the only adapter is software ({name}), far slower than the CPU path; name it as gpu:{index} to use it all the same"
    )]
    OnlySoftware {
        /// Name of the adapter.
        name: String,
        /// Its index.
        index: usize,
    },
    /// The SPIR-V compiler on a software adapter, whose driver it crashes.
    #[error(
        "adapter {name} is software, and its driver ({driver}) crashes on the shaders of this build (feature `vulkan`); use the CPU, Mesa 26 or later, or a build without that feature"
    )]
    SoftwareWithSpirv {
        /// Name of the adapter.
        name: String,
        /// Driver and its version.
        driver: String,
    },
    /// The driver refused.
    #[error("adapter {name} could not be opened: {reason}")]
    Adapter {
        /// Name of the adapter.
        name: String,
        /// What the driver said.
        reason: String,
    },
    /// A device that failed while it computed.
    #[error("the GPU failed: {reason}{}", advice(reason))]
    Device {
        /// What its driver or burn said.
        reason: String,
    },
    /// A layer that an adapter names and the network does not have.
    #[error("no linear layer `{name}` in the network")]
    NoLayer {
        /// Name of the layer.
        name: String,
    },
    /// A layer to whose weight nothing can be added.
    #[error(
        "`{name}` normalises its weight when it is used: an adapter can be put on it, not merged into it"
    )]
    NotMerged {
        /// Name of the layer.
        name: String,
    },
    /// A low-rank term of an adapter that does not go with its layer.
    #[error(
        "`{name}` has {} inputs and {} outputs, the adapter's matrices are {down:?} and {up:?}, from output {start}",
        widths[0],
        widths[1]
    )]
    LowRank {
        /// Name of the layer.
        name: String,
        /// Inputs and outputs of the layer.
        widths: [usize; 2],
        /// Shape of the first matrix, `[in, rank]`.
        down: [usize; 2],
        /// Shape of the second matrix, `[rank, width]`.
        up: [usize; 2],
        /// The first output that it changes.
        start: usize,
    },
    /// A measure of features whose matrix has no singular values that could be found.
    #[error("the singular values of the features do not converge")]
    SingularValues,
    /// A device that was opened with other settings before.
    #[error("floating-point type could not be set: {reason}")]
    Precision {
        /// What burn said.
        reason: String,
    },
}

/// What helps against a lack of memory.
fn advice(reason: &str) -> &'static str {
    let reason = reason.to_lowercase();
    match reason.contains("memory") || reason.contains("allocate") {
        true => {
            "; fewer images at a time, a smaller size, smaller tiles of the decoder, or weights in f16 or as they are stored take less"
        }
        false => "",
    }
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
