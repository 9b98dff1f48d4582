//! Portraits, and how good they are: a person in the pose and light of another's picture, where the right answer can be drawn.

pub(crate) mod cells;
pub(crate) mod face;
pub(crate) mod judge;
pub(crate) mod matching;
pub(crate) mod pair;
mod paste;
pub(crate) mod scores;
