//! The three products of a matrix that learns: activations through it, gradients back through it, and the gradient of itself.
//!
//! Legend: x is `[tokens, in_features]`, w `[out_features, in_features]`, out and its gradient `[tokens, out_features]`. Activations
//! are laid out twice: terms that are features side by side for `out = x @ w.T` and `d_x = d_out @ w`, terms that are tokens side by
//! side for `d_w = d_out.T @ x`. Each layout is packed once, however many products read it.

use super::Bf16Matrix;
use super::gram::add_products;
use super::kernel::Kernel;
use super::pack::{Panels, Strips};
use super::product::{Held, strips_with};
use ndarray::{ArrayView2, ArrayViewMut2};

/// Activations `[tokens, features]` rounded to bf16, to be multiplied by weights.
#[derive(Debug, Clone)]
pub struct Bf16Rows {
    strips: Strips,
    dim: (usize, usize),
}

impl Bf16Rows {
    /// Rounds and packs x `[tokens, features]`.
    pub fn from_f32(x: ArrayView2<'_, f32>) -> Self {
        Self { strips: Strips::of(x), dim: x.dim() }
    }

    /// `(tokens, features)`.
    pub fn dim(&self) -> (usize, usize) {
        self.dim
    }

    /// `x @ w.T`, `[tokens, out_features]`, into `out`, which is not read. The bits are those of
    /// [`bf16_linear`](super::bf16_linear).
    ///
    /// # Panics
    /// If the shapes do not fit, or out's rows are not contiguous.
    pub fn linear_into(&self, w: &Bf16Matrix, out: ArrayViewMut2<'_, f32>) {
        strips_with(Kernel::best(), &self.strips, self.dim, w, out, Held::Replaced);
    }

    /// `out += x @ w.T`, `[tokens, out_features]`.
    ///
    /// # Panics
    /// As [`linear_into`](Self::linear_into).
    pub fn linear_add(&self, w: &Bf16Matrix, out: ArrayViewMut2<'_, f32>) {
        strips_with(Kernel::best(), &self.strips, self.dim, w, out, Held::AddedTo);
    }
}

/// Activations `[tokens, features]` rounded to bf16, of which sums over tokens are wanted.
#[derive(Debug, Clone)]
pub struct Bf16Columns {
    panels: Panels, // k is tokens, columns are features
}

impl Bf16Columns {
    /// Rounds and packs x `[tokens, features]`.
    pub fn from_f32(x: ArrayView2<'_, f32>) -> Self {
        Self { panels: Panels::of_columns(x) }
    }

    /// `(tokens, features)`.
    pub fn dim(&self) -> (usize, usize) {
        (self.panels.depth(), self.panels.columns())
    }
}

impl Bf16Matrix {
    /// Rounds and packs the transpose of w `[out_features, in_features]`: the weight `[in_features, out_features]` that gradients
    /// of outputs are multiplied by, for `d_out @ w` is `d_out @ w.T.T`.
    pub fn of_transposed(w: ArrayView2<'_, f32>) -> Self {
        Self { panels: Panels::of_columns(w) }
    }
}

/// `d_w += d_out.T @ x` for the gradient of an output `[tokens, out_features]` and what the matrix read `[tokens, in_features]`, both
/// rounded to bf16; sums are f32, tokens are added in chunks of 1024.
///
/// # Panics
/// If the shapes do not fit, or the rows of `d_w` are not contiguous.
pub fn bf16_weight_backward(d_out: &Bf16Columns, x: &Bf16Columns, d_w: ArrayViewMut2<'_, f32>) {
    weight_backward_with(Kernel::best(), d_out, x, d_w);
}

/// It by a kernel of choice.
pub(super) fn weight_backward_with(
    kernel: Kernel,
    d_out: &Bf16Columns,
    x: &Bf16Columns,
    d_w: ArrayViewMut2<'_, f32>,
) {
    let ((tokens, out_features), (x_tokens, in_features)) = (d_out.dim(), x.dim());
    assert_eq!(tokens, x_tokens, "tokens of a gradient and of what the matrix read");
    assert_eq!(d_w.dim(), (out_features, in_features), "a gradient has its weight's shape");
    add_products(kernel, [&d_out.panels, &x.panels], d_w, |_| 0);
}
