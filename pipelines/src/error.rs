//! Errors of this crate.

mod faces;
mod text;
mod trajectories;
pub(crate) mod values;
pub(crate) mod words;

use std::path::PathBuf;

use crate::metadata::Used;
use crate::model::{self, WeightType};

pub use faces::FaceError;
pub use text::TextError;
pub use trajectories::TrajectoryError;
pub(crate) use words::gigabytes;
use words::{fault, ids, listed, origin, similar, unreadable, weights};

/// What can go wrong between a request and a picture.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("{}", path.display())]
    File {
        /// File or folder.
        path: PathBuf,
        /// Its answer.
        #[source]
        source: std::io::Error,
    },
    /// A picture that cannot be decoded or encoded.
    #[error("{}", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: image::ImageError,
    },
    /// A PNG that cannot be read or written.
    #[error("{}: {reason}", path.display())]
    Png {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A picture whose texts cannot be read.
    #[error("{}: {reason}", path.display())]
    Metadata {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// What a picture was made from, and what is needed to make it again.
    #[error("{what} {}", origin(used, other.as_deref()))]
    NotFoundAgain {
        /// What it is.
        what: &'static str,
        /// Its name and content.
        used: Used,
        /// What has its name, but another content.
        other: Option<PathBuf>,
    },
    /// A picture without a record of how it was made.
    #[error("{} holds no pyrograph settings", path.display())]
    NoRecord {
        /// The file.
        path: PathBuf,
    },
    /// A JSON file that cannot be parsed.
    #[error("{}: broken JSON", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// A value in a JSON file that is not what is expected.
    #[error("{}: {reason}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The key, its value, and what is expected.
        reason: String,
    },
    /// An output of an unknown kind.
    #[error("{}: unknown kind of picture, expected .png, .jpg or .webp", path.display())]
    OutputKind {
        /// The path asked for.
        path: PathBuf,
    },
    /// An output that its format or the system cannot hold.
    #[error("{}: {reason}", path.display())]
    Output {
        /// The path asked for.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A picture without content.
    #[error("image {index} is {reason}: the model or its settings are broken")]
    Degenerate {
        /// Which of the run.
        index: usize,
        /// Constant, or not finite.
        reason: &'static str,
    },
    /// A training folder that cannot be used.
    #[error("{}: {reason}", path.display())]
    Dataset {
        /// Folder or file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Images of a folder that cannot be read.
    #[error("{}: {}", path.display(), unreadable(faults))]
    Unreadable {
        /// The folder.
        path: PathBuf,
        /// Each file with what is wrong.
        faults: Vec<(PathBuf, String)>,
        /// They are all that there are.
        all: bool,
    },
    /// More than may be read at once.
    #[error("{}: {what} take {} MiB, allowed {} MiB", path.display(), need.div_ceil(1 << 20), limit >> 20)]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// What of it.
        what: String,
        /// Bytes.
        need: u64,
        /// Most bytes allowed.
        limit: u64,
    },
    /// More memory than the system gives.
    #[error("{what} take {:.1} GiB of memory, more than there is", *need as f64 / f64::from(1 << 30))]
    Memory {
        /// What takes it.
        what: String,
        /// Bytes.
        need: u64,
    },
    /// A loss curve that could not be drawn.
    #[error("plot: {reason}")]
    Plot {
        /// Why.
        reason: String,
    },
    /// Neither a path nor the name of a shipped model.
    #[error(
        "no model `{}`: neither a path nor one of the shipped ones, {}, which were looked for in {}",
        name.display(),
        model::SHIPPED.join(" and "),
        listed(searched)
    )]
    UnknownModel {
        /// The name or path.
        name: PathBuf,
        /// Folders in which shipped models were looked for.
        searched: Vec<PathBuf>,
    },
    /// Nothing at the path of a model.
    #[error("no model at {}", path.display())]
    NoModel {
        /// The path.
        path: PathBuf,
    },
    /// Something else at the path of a model.
    #[error("{}: not a model: {reason}", path.display())]
    NotAModel {
        /// The path.
        path: PathBuf,
        /// What it is.
        reason: String,
    },
    /// A model of another task.
    #[error("the model is told {found}, expected one that is told {expected}")]
    Task {
        /// What its images are asked by.
        found: &'static str,
        /// What they should be asked by.
        expected: &'static str,
    },
    /// A class id past the end.
    #[error("class {class}, expected 0 to {}", classes - 1)]
    ClassRange {
        /// The id.
        class: usize,
        /// Number of classes.
        classes: usize,
    },
    /// A class name that is not known.
    #[error("unknown class `{found}`, of {classes}{}", similar(known))]
    UnknownClass {
        /// The name.
        found: String,
        /// Number of classes.
        classes: usize,
        /// Similar names, the closest first.
        known: Vec<String>,
    },
    /// A name of several classes.
    #[error("`{found}` is the name of several classes: {}", ids(classes))]
    AmbiguousClass {
        /// The name.
        found: String,
        /// Their ids.
        classes: Vec<usize>,
    },
    /// A picture size that the model cannot make.
    #[error("size {}x{}, expected multiples of {step} up to {limit}", size[1], size[0])]
    Size {
        /// `[height, width]`.
        size: [usize; 2],
        /// What both must be multiples of.
        step: usize,
        /// The largest side.
        limit: usize,
    },
    /// A type that the device does not compute in.
    #[error("the device cannot compute in {dtype}")]
    UnsupportedDtype {
        /// The type.
        dtype: String,
    },
    /// A model that can only be used.
    #[error("{}: weights in 8 bits, or as a file stores them, cannot be saved; they can from f32, f16 and bf16", path.display())]
    NotSaved {
        /// Where to.
        path: PathBuf,
    },
    /// A type of weights that is not known.
    #[error("unknown type `{found}`, expected f32, f16, bf16, int8 or stored")]
    UnknownDtype {
        /// What was asked for.
        found: String,
    },
    /// A GPU whose numbers are wrong.
    #[error("{adapter} {}", fault(*difference))]
    Gpu {
        /// The GPU and its graphics API.
        adapter: String,
        /// Largest difference from the CPU, as a share of the largest value; `None` if it crashed.
        difference: Option<f64>,
    },
    /// A number of CPU threads that cannot be.
    #[error("{asked} CPU threads asked for, expected 1 to {most}")]
    ThreadCount {
        /// Asked for.
        asked: usize,
        /// Most.
        most: usize,
    },
    /// Another number of CPU threads than the process has already.
    #[error("{asked} CPU threads asked for, the process runs {running} already")]
    Threads {
        /// Asked for.
        asked: usize,
        /// At work.
        running: usize,
    },
    /// A picture, a mask or noise of another shape.
    #[error("{what} has shape {found:?}, expected {expected:?}")]
    Shape {
        /// What it is.
        what: &'static str,
        /// `[images, channels, height, width]` needed.
        expected: [usize; 4],
        /// Found.
        found: [usize; 4],
    },
    /// A file of noise for anything but images.
    #[error("{}: `noise` has shape {found:?}, expected [images, channels, height, width] with values", path.display())]
    NoiseFile {
        /// The file.
        path: PathBuf,
        /// Found.
        found: Vec<usize>,
    },
    /// A part of noise that is not there.
    #[error("{}: noise of {found} images, expected {images} from number {first} on", path.display())]
    NoisePart {
        /// The file.
        path: PathBuf,
        /// Number of the first image.
        first: usize,
        /// Images.
        images: usize,
        /// Images that there is noise for.
        found: usize,
    },
    /// A request without prompts.
    #[error("0 images asked for")]
    NoPrompts,
    /// A setting outside its range.
    #[error("{what} {found}, expected {expected}")]
    Setting {
        /// The setting.
        what: &'static str,
        /// What was asked for.
        found: String,
        /// What can be.
        expected: String,
    },
    /// A request that takes more memory than there is.
    #[error("{what} {} of memory, {limit} has {}", gigabytes(*need), gigabytes(*available))]
    TooMuch {
        /// What takes it.
        what: String,
        /// Bytes that it takes at least.
        need: u64,
        /// Where it is taken from.
        limit: &'static str,
        /// Bytes that are left there.
        available: u64,
    },
    /// A model that takes more memory than there is, or than it may.
    #[error(
        "with weights {} the model takes {} of memory, {limit} has {}",
        weights(*held),
        gigabytes(*need),
        gigabytes(*available)
    )]
    NoRoom {
        /// How its weights are held.
        held: WeightType,
        /// Bytes that it takes at least, with the work on one image.
        need: u64,
        /// Where they are taken from.
        limit: &'static str,
        /// Bytes that are left there.
        available: u64,
    },
    /// Guidance that cannot be.
    #[error("{reason}")]
    Guidance {
        /// What is out of range.
        reason: String,
    },
    /// Latents that cannot become pictures.
    #[error("the model works on latents of {channels} channels and comes without an autoencoder")]
    NoAutoencoder {
        /// Channels of the latents.
        channels: usize,
    },
    /// No autoencoder where one should be, or another kind.
    #[error("{}: {reason}", path.display())]
    Autoencoder {
        /// File or folder.
        path: PathBuf,
        /// What is there.
        reason: String,
    },
    /// Patch sizes over the steps that are not possible.
    #[error("{reason}")]
    Patches {
        /// Why.
        reason: String,
    },
    /// Other patch sizes asked of a model that has one.
    #[error("the model has one patch size, {patch}")]
    OnePatchSize {
        /// The size.
        patch: usize,
    },
    /// Images that cannot be compared.
    #[error("{reason}")]
    Eval {
        /// Why.
        reason: String,
    },
    /// A text, or what reads it.
    #[error(transparent)]
    Text(#[from] TextError),
    /// A face, or none.
    #[error(transparent)]
    Face(#[from] FaceError),
    /// A picture of another kind of model.
    #[error("{} was made from {found}, expected {expected}", path.display())]
    OtherTask {
        /// The picture.
        path: PathBuf,
        /// What its model was told.
        found: &'static str,
        /// What is told here.
        expected: &'static str,
    },
    /// A guide model that does not go with the model.
    #[error("the guide model has {guide}, the model {model}")]
    GuideMismatch {
        /// Of the model.
        model: String,
        /// Of the guide.
        guide: String,
    },
    /// A folder without recorded trajectories.
    #[error("{}: there is no {file}", path.display())]
    NoTrajectories {
        /// The folder.
        path: PathBuf,
        /// Name of the description that every set has.
        file: &'static str,
    },
    /// Recorded trajectories that cannot be used.
    #[error("{}: {reason}", path.display())]
    Trajectories {
        /// The folder or file.
        path: PathBuf,
        /// Why.
        reason: TrajectoryError,
    },
    /// A setting that a few-step student cannot follow.
    #[error("{reason}")]
    Student {
        /// The setting, what was asked for and what the student has.
        reason: String,
    },
    /// A picture to start from that cannot be.
    #[error("picture to start from: {reason}")]
    Picture {
        /// What is wrong.
        reason: String,
    },
    /// An adapter that is not on.
    #[error("adapter {id} is not on")]
    AdapterOff {
        /// Number of its [`AdapterId`](crate::adapter::AdapterId).
        id: u64,
    },
    /// A weight of an adapter that cannot be.
    #[error("{}: weight {weight}, expected a finite number", path.display())]
    AdapterWeight {
        /// The adapter.
        path: PathBuf,
        /// The weight.
        weight: f64,
    },
    /// Stopped by the caller.
    #[error("cancelled")]
    Cancelled,
    /// A training configuration with a mistake.
    #[error("configuration: {reason}")]
    Config {
        /// The mistake.
        reason: String,
    },
    /// A run folder that is in use.
    #[error("{} exists", path.display())]
    RunExists {
        /// Its newest checkpoint.
        path: PathBuf,
    },
    /// A folder in which another process works.
    #[error("{}: another process trains or records in it", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// Settings of a run that cannot be read.
    #[error("{}: {reason}", path.display())]
    Settings {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A checkpoint that does not fit the run.
    #[error("cannot resume from {}: {reason}", path.display())]
    Resume {
        /// The checkpoint.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// An average of weights that cannot be made.
    #[error("{}: {reason}", path.display())]
    Average {
        /// Run, snapshot or model.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Training that went wrong, which shows in the weights.
    #[error(
        "{tensor} has left the range of numbers at step {step}: the checkpoint before is kept; start a new run with a \
         lower learning rate"
    )]
    NotFinite {
        /// The step.
        step: u64,
        /// The first such tensor of the state.
        tensor: String,
    },
    /// Training that went wrong.
    #[error(
        "the loss is {loss} at step {step}: the checkpoint before is kept; start a new run with a lower learning rate"
    )]
    Diverged {
        /// The step.
        step: u64,
        /// The loss.
        loss: f32,
    },
    /// From the engine.
    #[error(transparent)]
    Engine(#[from] pyrograph_engine::Error),
    /// From reading or writing weights.
    #[error(transparent)]
    Weights(pyrograph_weights::Error),
    /// From the placement of sampling steps.
    #[error(transparent)]
    Grid(#[from] pyrograph_engine::diffusion::GridError),
}

impl From<pyrograph_weights::Error> for Error {
    fn from(error: pyrograph_weights::Error) -> Self {
        match error {
            pyrograph_weights::Error::Device { reason } => {
                Self::Engine(pyrograph_engine::read::failure(&reason))
            }
            error => Self::Weights(error),
        }
    }
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
