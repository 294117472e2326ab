//! The program as its users meet it: the real binary on real files.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod bad_input;
mod device;
mod device_distill;
mod docs;
mod end_to_end;
mod forge;
mod house;
#[path = "../../tensor/tests/cuda_parity/machines.rs"]
mod machines;
mod place;
mod real_models;
mod snapshots;
