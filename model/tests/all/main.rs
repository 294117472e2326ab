//! The model crate from outside, in one binary.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod checkpoint;
mod config;
mod device;
mod device_training;
mod experts;
mod gguf;
mod golden;
#[path = "../../../tensor/tests/cuda_parity/machines.rs"]
mod machines;
mod stages;
mod training;
mod unequal;
