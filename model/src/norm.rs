//! The norms of a model, each with the weight it multiplies by.

use crate::weights::vector;
use crate::{Error, ModelConfig, TensorSpec, Weights};
use attar_tensor::op::{rms_norm, rms_norm_backward, rms_norm_heads, rms_norm_heads_backward};
use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut1, ArrayViewMut2};

/// A root-mean-square norm: `weight * x / sqrt(mean(x²) + eps)`.
#[derive(Debug, Clone)]
pub struct Norm {
    stored: Array1<f32>, // [features]
    added: f32,          // to what is stored: one where the family says so
    eps: f32,
}

impl Norm {
    /// Loads a norm's weight.
    ///
    /// # Errors
    /// A tensor that cannot be loaded or has another shape than the configuration says.
    pub fn load(config: &ModelConfig, spec: &TensorSpec, weights: &dyn Weights) -> Result<Self, Error> {
        let added = if config.family.norms_add_one { 1.0 } else { 0.0 };
        Ok(Self { stored: vector(weights, spec)?, added, eps: config.rms_norm_eps })
    }

    /// What x is multiplied by when it is normed, `[features]`.
    pub fn weight(&self) -> Array1<f32> {
        if self.added > 0.0 { &self.stored + self.added } else { self.stored.clone() }
    }

    /// What a checkpoint stores and training changes: [`weight`](Self::weight), less the one that the family may add.
    pub(crate) fn stored(&self) -> &Array1<f32> {
        &self.stored
    }

    pub(crate) fn stored_mut(&mut self) -> &mut Array1<f32> {
        &mut self.stored
    }

    /// The norm of each row of `[tokens, features]`.
    pub fn apply(&self, x: ArrayView2<'_, f32>) -> Array2<f32> {
        rms_norm(x, self.weight().view(), self.eps)
    }

    /// The norm of every head of `[tokens, heads * features]`, in place.
    pub fn apply_to_heads(&self, x: ArrayViewMut2<'_, f32>) {
        rms_norm_heads(x, self.weight().view(), self.eps);
    }

    /// Backward of [`apply`](Self::apply): adds the gradient of x to `d_x`, and that of the weight where it is asked for.
    pub(crate) fn backward(
        &self,
        x: ArrayView2<'_, f32>,
        d_out: ArrayView2<'_, f32>,
        d_x: ArrayViewMut2<'_, f32>,
        d_weight: Option<ArrayViewMut1<'_, f32>>,
    ) {
        rms_norm_backward(x, self.weight().view(), self.eps, d_out, d_x, d_weight);
    }

    /// Backward of [`apply_to_heads`](Self::apply_to_heads): the gradient of what came out, `d`, becomes that of what went in, x.
    pub(crate) fn backward_to_heads(
        &self,
        x: ArrayView2<'_, f32>,
        d: ArrayViewMut2<'_, f32>,
        d_weight: Option<ArrayViewMut1<'_, f32>>,
    ) {
        rms_norm_heads_backward(x, self.weight().view(), self.eps, d, d_weight);
    }
}
