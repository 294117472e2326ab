//! The operations of a decoder between its matrix products; activations are `[tokens, features]`.
//!
//! Each runs in parallel over rows (attention: over windows and heads), and a row's result depends on nothing
//! but what the operation's definition names.

pub(crate) mod attention;
mod log_sum_exp;
mod rms_norm;
mod rope;
mod silu_mul;
pub(crate) mod soft_cap;

pub use attention::{Attention, attention};
pub use log_sum_exp::log_sum_exp;
pub use rms_norm::{rms_norm, rms_norm_heads};
pub use rope::{Rope, rope_frequencies};
pub use silu_mul::{gelu_mul, silu_mul};
pub use soft_cap::soft_cap;

/// The least elements of a row-wise operation that are worth another thread's attention.
const TASK_ELEMENTS: usize = 1 << 15;

/// Rows of `features` elements that make one task.
fn task_rows(features: usize) -> usize {
    TASK_ELEMENTS.div_ceil(features.max(1))
}
