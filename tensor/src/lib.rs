//! Arrays and maths on a device: products, Gram matrices, factorisations and a decoder's few operations.
//!
//! [`ndarray`] is the array type at every boundary. Orientation never varies: weights are
//! `[out_features, in_features]`, activations `[tokens, features]`, both row-major f32 unless said otherwise.
//!
//! **Every result is the same, bit for bit, for any number of rayon threads**, and a row of a product does not
//! depend on which other rows are computed beside it. Both hold because the order of every sum is a function
//! of the summed length alone: work is split over outputs, never over a sum.

#![expect(
    clippy::inline_always,
    reason = "a vector loop must be compiled for the instructions of its caller"
)]
#![expect(clippy::needless_pass_by_value, reason = "a view is a reference already")]

pub mod cuda;
pub mod op;

mod bf16;
mod cholesky;
mod exp;
mod gram;
mod lanes;
mod precision;
mod product;
#[cfg(test)]
mod testing;

pub use bf16::{
    Bf16Columns, Bf16Matrix, Bf16Rows, bf16_attention, bf16_attention_backward, bf16_gram_add, bf16_linear,
    bf16_linear_add, bf16_squares_add, bf16_weight_backward,
};
pub use cholesky::{NotPositiveDefinite, UpperTriangle, cholesky_of_inverse, cholesky_of_inverse_by_rows};
pub use gram::{gram_add, squares_add};
pub use precision::Precision;
pub use product::{general_mat_mul, linear, matmul};
