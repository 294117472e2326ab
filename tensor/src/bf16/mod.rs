//! Products of numbers rounded to bf16, summed in f32: half the memory of f32 weights, and on machines that have an
//! instruction for it twice the speed (`vdpbf16ps`) or several times (`tdpbf16ps`).
//!
//! What is computed, the plain kernel being the truth: both factors are rounded to bf16, to the nearest and of two equally
//! near ones to the even; NaN stays NaN. A product of two such numbers is exact in f32. An element of a result is a sum over
//! k in chunks of [`DEPTH`] pairs: a chunk starts at 0 and adds pair after pair, of each pair the odd term first, every
//! addition rounded to f32; the chunks are added in order. The twin for AVX2 gives the same bits. `vdpbf16ps` takes
//! denormal numbers for zero and may round a pair's two additions otherwise, and so does `tdpbf16ps`, which adds 16 pairs
//! before it adds them to the sum; both agree to a few units in the last place of the sum of absolute terms. On one machine
//! neither the number of threads nor the rows beside a row change a bit.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
mod attention;
mod attention_backward;
mod gram;
mod kernel;
mod pack;
mod product;
mod round;
#[cfg(test)]
mod tests;
mod training;

pub use attention::bf16_attention;
pub use attention_backward::bf16_attention_backward;
pub use gram::{bf16_gram_add, bf16_squares_add};
pub use product::{bf16_linear, bf16_linear_add};
pub use training::{Bf16Columns, Bf16Rows, bf16_weight_backward};

use ndarray::{Array2, ArrayView2};
use pack::Panels;

/// Pairs of terms that are summed before the sum is written to memory: a chunk of some rows and one of forty-eight columns
/// fit into the first two caches.
const DEPTH: usize = 512;

/// A weight `[out_features, in_features]` rounded to bf16 and laid out for the kernel: two bytes a number, and up to a
/// fortieth more where the sizes are no multiples of 16.
#[derive(Debug, Clone)]
pub struct Bf16Matrix {
    panels: Panels, // k is in_features, columns are out_features
}

impl Bf16Matrix {
    /// Rounds and packs w `[out_features, in_features]`.
    pub fn from_f32(w: ArrayView2<'_, f32>) -> Self {
        Self { panels: Panels::of_rows(w) }
    }

    /// `(out_features, in_features)`.
    pub fn dim(&self) -> (usize, usize) {
        (self.panels.columns(), self.panels.depth())
    }

    /// The numbers that are left, `[out_features, in_features]`.
    pub fn to_f32(&self) -> Array2<f32> {
        Array2::from_shape_fn(self.dim(), |(row, col)| self.panels.at(col, row))
    }

    /// What it takes in memory.
    pub fn bytes(&self) -> usize {
        self.panels.bytes()
    }
}
