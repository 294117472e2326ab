//! The model crate from outside, in one binary.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod checkpoint;
mod config;
mod experts;
mod gguf;
mod golden;
mod stages;
mod training;
