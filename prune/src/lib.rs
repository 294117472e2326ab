//! Structured pruning: what can go, what goes with it, and how what remains is repaired.
//!
//! Reads as the pipeline uses it. A [`Criterion`] scores layers, heads, channels or experts and leaves
//! [`KeepList`]s; [`Cuts`] are one such list for each group of features that are one thing in several tensors, and
//! [`coupling`](coupling::coupling) says which tensors those are. [`Pruned`] is the smaller model: weights that are cut as they
//! are loaded, so that it can be run, or written, without ever having stood anywhere. [`repair`](repair::repair) lets the
//! columns that stay take over the work of those that go.
//!
//! Weights are `[out_features, in_features]`, activations `[tokens, features]`. No number of threads changes a bit.

#![expect(clippy::needless_pass_by_value, reason = "a view is a reference already")]

pub mod across;
pub mod coupling;
pub mod criterion;
pub mod hidden;
pub mod repair;

mod cuts;
mod error;
mod keep;
mod pruned;
mod statistics;

pub use criterion::{CRITERIA, Criterion};
pub use cuts::{BlockCuts, Cuts};
pub use error::Error;
pub use keep::{KeepList, Pools};
pub use pruned::Pruned;
pub use statistics::Statistics;
