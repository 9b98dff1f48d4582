//! What can be wrong with the description of a network.

/// A description that no network can have.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A number out of range.
    #[error("{name} is {found}, expected {expected}")]
    Value {
        /// Field.
        name: &'static str,
        /// Its value.
        found: String,
        /// What would be right.
        expected: String,
    },
    /// Patch sizes that are not all different, or further ones without any.
    #[error("patch sizes are {found:?}, expected two or more different ones")]
    PatchSizes {
        /// All of them, ascending.
        found: Vec<usize>,
    },
    /// A patch size that leaves a part of the image over.
    #[error("patch size {patch} does not divide the size {}x{}", size[0], size[1])]
    Division {
        /// Side of the patches.
        patch: usize,
        /// `[height, width]` of the image or latent.
        size: [usize; 2],
    },
    /// A network that has further patch sizes and should get some.
    #[error("the network has patch sizes {patches:?} already")]
    AlreadyFlexible {
        /// Those that it has.
        patches: Vec<usize>,
    },
    /// A further patch size below the native one.
    #[error("patch size {patch} is below the native one, {native}")]
    SmallPatch {
        /// The size asked for.
        patch: usize,
        /// The native size.
        native: usize,
    },
    /// A student of too many steps, or of none.
    #[error("a student of {steps} steps, expected 1 to {limit}")]
    Steps {
        /// Steps asked for.
        steps: usize,
        /// The most that a student can have.
        limit: usize,
    },
    /// A number of patch sizes that is not that of the steps.
    #[error("{sizes} patch sizes for the {steps} steps of a student")]
    StepPatches {
        /// Patch sizes given.
        sizes: usize,
        /// Steps.
        steps: usize,
    },
    /// A step with a patch size that the network does not have.
    #[error("patch size {patch} of a student, the network has {known:?}")]
    UnknownPatch {
        /// Of the step.
        patch: usize,
        /// Of the network.
        known: Vec<usize>,
    },
    /// History in more blocks than there are.
    #[error("history in {layers} blocks, the network has {depth}")]
    History {
        /// Blocks that see the history.
        layers: usize,
        /// Blocks.
        depth: usize,
    },
}

impl ConfigError {
    /// A [`ConfigError::Value`].
    pub(super) fn value(
        name: &'static str,
        found: impl ToString,
        expected: impl Into<String>,
    ) -> Self {
        Self::Value { name, found: found.to_string(), expected: expected.into() }
    }
}
