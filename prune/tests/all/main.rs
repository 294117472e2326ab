//! The laws of pruning, on tiny random models of every family.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod checkpoint;
mod cuts;
mod depth;
mod experts;
mod width;
