//! Integration tests: parity with the reference implementations, robustness, the command line.
//!
//! `PYROGRAPH_GOLDENS` names another folder of golden cases, `PYROGRAPH_TEST_DEVICE` a device such as
//! `gpu` or `gpu:0`; the CPU is the default.

#![allow(clippy::print_stdout, reason = "tests report what they measured")]

mod cli;
mod command;
mod distill;
mod flexible;
mod lora;
mod metrics;
mod parity;
mod picture;
mod readme;
mod request;
mod robustness;
mod samplers;
mod signal;
mod student;
mod training;
mod trajectories;
mod util;
