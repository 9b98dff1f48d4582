//! Integration tests: parity with the reference implementations, robustness, the command line.
//!
//! `PYROGRAPH_GOLDENS` names another folder of golden cases, `PYROGRAPH_TEST_DEVICE` a device such as
//! `gpu` or `gpu:0`; the CPU is the default.

#![allow(clippy::print_stdout, reason = "tests report what they measured")]

mod autoencoders;
mod cli;
mod command;
mod controls;
mod damage;
mod distill;
mod faults;
mod flexible;
mod flows;
mod flux2;
mod folders;
mod generate;
mod hostile;
mod install;
mod interrupt;
mod judge;
mod layouts;
mod lora;
mod lumina2;
mod memory;
mod metrics;
mod minit2i;
mod model_folders;
mod operations;
mod parity;
mod people;
mod picture;
mod pixart;
mod portraits;
mod pytorch;
mod readme;
mod recipes;
mod refusals;
mod replay;
mod request;
mod resume;
mod robustness;
mod samplers;
mod schedulers;
mod sd3;
mod signal;
mod stopping;
mod student;
mod text;
mod text_encoders;
mod text_pictures;
mod tokenizers;
mod train_text;
mod training;
mod trajectories;
mod util;
mod z_image;
