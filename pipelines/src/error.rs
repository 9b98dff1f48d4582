//! Errors of this crate.

use std::path::PathBuf;

use pyrograph_engine::selfcheck::TOLERANCE;

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
    /// An output of an unknown kind.
    #[error("{}: unknown kind of picture, expected .png, .jpg or .webp", path.display())]
    OutputKind {
        /// The path asked for.
        path: PathBuf,
    },
    /// A picture without content.
    #[error("image {index} is {reason}: the model or its settings are broken, nothing was written")]
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
    /// A loss curve that could not be drawn.
    #[error("plot: {reason}")]
    Plot {
        /// Why.
        reason: String,
    },
    /// Neither a path nor the name of a shipped model.
    #[error("no model at {}, nor among the shipped ones", name.display())]
    UnknownModel {
        /// The name or path.
        name: PathBuf,
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
    #[error("the model has {found}; for the task `{task}`, expected {expected}")]
    Task {
        /// What was to be done with it.
        task: &'static str,
        /// What it is told.
        found: String,
        /// What it should be.
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
    #[error("unknown class `{found}`; similar: {}", known.join(", "))]
    UnknownClass {
        /// The name.
        found: String,
        /// Similar names.
        known: Vec<String>,
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
    /// A type of weights that is not known.
    #[error("unknown type `{found}`, expected f32, f16, bf16 or int8")]
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
    #[error("{}: `noise` has shape {found:?}, expected [images, channels, height, width]", path.display())]
    NoiseFile {
        /// The file.
        path: PathBuf,
        /// Found.
        found: Vec<usize>,
    },
    /// A request without prompts.
    #[error("0 images asked for")]
    NoPrompts,
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
    /// Training that went wrong.
    #[error(
        "the loss is {loss} at step {step}: lower the learning rate, or resume from an earlier checkpoint"
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
    Weights(#[from] pyrograph_weights::Error),
    /// From the placement of sampling steps.
    #[error(transparent)]
    Grid(#[from] pyrograph_engine::diffusion::GridError),
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What is wrong with a GPU.
fn fault(difference: Option<f64>) -> String {
    match difference {
        Some(found) => format!("differs from the CPU by {found:.1e}, allowed {TOLERANCE:.0e}"),
        None => "crashes".into(),
    }
}

/// What is wrong with recorded trajectories, or with what is asked of them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrajectoryError {
    /// A file that was not recorded yet.
    #[error("shard {shard} of {shards} is missing: record again, what is there is kept")]
    MissingShard {
        /// Its number.
        shard: usize,
        /// Number of files.
        shards: usize,
    },
    /// A shard that lacks one of its trajectories.
    #[error("trajectory {index} is missing")]
    MissingTrajectory {
        /// Its number.
        index: usize,
    },
    /// A trajectory with other points than the description says.
    #[error("trajectory {index} has shape {found:?}, expected {expected:?}")]
    Shape {
        /// Its number.
        index: usize,
        /// Found.
        found: Vec<usize>,
        /// `[points, channels, height, width]` expected.
        expected: [usize; 4],
    },
    /// A shard of other trajectories.
    #[error("its classes are others than those of its trajectories")]
    Classes,
    /// A shard that cannot be read.
    #[error(transparent)]
    Unreadable(#[from] pyrograph_weights::Error),
    /// Points after steps that are not possible.
    #[error("points after {after:?} steps, expected rising numbers from 1 to {steps}")]
    Points {
        /// Numbers of steps.
        after: Vec<usize>,
        /// Steps of the teacher.
        steps: usize,
    },
    /// Sizes of a set that are 0 or too large.
    #[error("{count} trajectories in shards of {shard}, {classes} classes, points of {shape:?}")]
    Sizes {
        /// Number of trajectories.
        count: usize,
        /// Trajectories per file.
        shard: usize,
        /// Number of classes.
        classes: usize,
        /// `[channels, height, width]` of a point.
        shape: [usize; 3],
    },
    /// A solver that cannot be recorded.
    #[error("sampler {sampler} draws noise, expected a deterministic one")]
    RandomSampler {
        /// Its name.
        sampler: String,
    },
    /// A folder with trajectories that were recorded otherwise.
    #[error("it holds trajectories of {found}, asked for {asked}")]
    OtherSet {
        /// Description of what is there.
        found: String,
        /// Description of what was asked for.
        asked: String,
    },
    /// A teacher that left the numbers.
    #[error("a trajectory from number {index} on is not finite")]
    NotFinite {
        /// Number of the first of the batch.
        index: usize,
    },
    /// A student of a number of steps that does not divide that of the points.
    #[error("a student of {steps} steps on trajectories of {points} points, expected a divisor")]
    StudentSteps {
        /// Steps of the student.
        steps: usize,
        /// Recorded points.
        points: usize,
    },
    /// A student whose second step would start from the estimate of pure noise.
    #[error(
        "the first step of the student would end after 1 of {steps} of the teacher's, where its estimate \
         is that of pure noise: expected 2 or more"
    )]
    FirstStep {
        /// Steps of the teacher.
        steps: usize,
    },
    /// A network to be compared that is no student.
    #[error("they are compared with a student, the model is none")]
    NoStudent,
    /// A student of another kind of trajectories.
    #[error(
        "the student is one of (shape, classes, points) {found}, the trajectories are of {expected}"
    )]
    OtherStudent {
        /// Of the student.
        found: String,
        /// Of the trajectories.
        expected: String,
    },
}
