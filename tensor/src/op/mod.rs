//! The operations of a decoder between its matrix products; activations are `[tokens, features]`.
//!
//! Each runs in parallel over rows (attention: over windows and heads), and a row's result depends on nothing
//! but what the operation's definition names.
//!
//! Backward stands beside forward: what is called `d_x` is the gradient of x, shaped as x. A gradient that is a sum over tokens
//! is summed in an order that depends on the number of tokens alone.

mod adamw;
pub(crate) mod attention;
mod cross_entropy;
mod divergence;
mod embedding;
mod linear;
mod log_sum_exp;
mod relative_error;
mod rms_norm;
mod rope;
mod silu_mul;
pub(crate) mod soft_cap;

pub use adamw::{AdamW, Moments, global_norm};
pub use attention::{Attention, attention, attention_backward};
pub use cross_entropy::cross_entropy_backward;
pub use divergence::{Divergence, LikeliestTokens, bucketed_divergence_backward, divergence_backward};
pub use embedding::embedding_backward;
pub use linear::{bias_backward, input_backward, weight_backward};
pub use log_sum_exp::log_sum_exp;
pub use relative_error::relative_error_backward;
pub use rms_norm::{rms_norm, rms_norm_backward, rms_norm_heads, rms_norm_heads_backward};
pub use rope::{Rope, rope_frequencies};
pub use silu_mul::{GateBackward, gelu_mul, gelu_mul_backward, silu_mul, silu_mul_backward};
pub use soft_cap::{soft_cap, soft_cap_backward};

use ndarray::ArrayViewMut1;

/// The least elements of a row-wise operation that are worth another thread's attention.
const TASK_ELEMENTS: usize = 1 << 15;

/// Rows of `features` elements that make one task.
fn task_rows(features: usize) -> usize {
    TASK_ELEMENTS.div_ceil(features.max(1))
}

/// Rows whose share of a sum over tokens is added up by itself; such shares are added in order.
const SUM_ROWS: usize = 64;

/// Adds partial sums to a total, the first one first.
pub(crate) fn add_in_order(total: Option<ArrayViewMut1<'_, f32>>, partial: &[Vec<f32>]) {
    if let Some(mut total) = total {
        for partial in partial {
            total.iter_mut().zip(partial).for_each(|(total, partial)| *total += partial);
        }
    }
}
