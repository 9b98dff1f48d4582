//! What portraits of a person are made with from one picture of them: what a reference tells of light and layout, and
//! where its points are in the person's picture (IC-Portrait, Yang et al. 2025).

pub mod conditions;
mod mask;
mod matching;

pub use mask::CellMask;
pub use matching::{best_matches, cost_volume, displacement, relocate, relocate_softly};
