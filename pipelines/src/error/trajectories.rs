//! Errors of trajectories.

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
    #[error("its classes or prompts are others than those of its trajectories")]
    Classes,
    /// A teacher that is told classes, for trajectories of texts, or the reverse.
    #[error("they are of {expected}, the teacher is told something else")]
    OtherTask {
        /// Classes or texts.
        expected: &'static str,
    },
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
    #[error(
        "{count} trajectories in shards of {shard}, {classes} classes, {prompts} prompts, points of {shape:?}: \
         expected classes or prompts"
    )]
    Sizes {
        /// Number of trajectories.
        count: usize,
        /// Trajectories per file.
        shard: usize,
        /// Number of classes.
        classes: usize,
        /// Number of prompts.
        prompts: usize,
        /// `[channels, height, width]` of a point.
        shape: [usize; 3],
    },
    /// A solver that cannot be recorded.
    #[error("sampler {sampler} draws noise, expected a deterministic one")]
    RandomSampler {
        /// Its name.
        sampler: String,
    },
    /// A set in more files than one can have.
    #[error("{files} files, expected at most {limit}: more trajectories in each")]
    Files {
        /// Number of files.
        files: usize,
        /// The most.
        limit: usize,
    },
    /// A folder with trajectories that were recorded otherwise.
    #[error("it holds other trajectories: {differences}")]
    OtherSet {
        /// What differs, with both values.
        differences: String,
    },
    /// A folder with more trajectories than asked for.
    #[error("it holds {found} trajectories, asked for {asked}: a set can grow only")]
    Shrinks {
        /// Of the set.
        found: usize,
        /// Asked for.
        asked: usize,
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
    #[error("the student is one of {found}, the trajectories are of {expected}")]
    OtherStudent {
        /// Of the student.
        found: String,
        /// Of the trajectories.
        expected: String,
    },
}
