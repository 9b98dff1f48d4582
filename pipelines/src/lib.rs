//! pyrograph
