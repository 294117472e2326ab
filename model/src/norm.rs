//! The norms of a model, each with the weight it multiplies by.

use crate::weights::vector;
use crate::{Error, ModelConfig, TensorSpec, Weights};
use attar_tensor::op::{rms_norm, rms_norm_heads};
use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut2};

/// A root-mean-square norm: `weight * x / sqrt(mean(x²) + eps)`.
#[derive(Debug, Clone)]
pub struct Norm {
    weight: Array1<f32>, // [features], the one added where the family adds it
    eps: f32,
}

impl Norm {
    /// Loads a norm's weight.
    ///
    /// # Errors
    /// A tensor that cannot be loaded or has another shape than the configuration says.
    pub fn load(config: &ModelConfig, spec: &TensorSpec, weights: &dyn Weights) -> Result<Self, Error> {
        let mut weight = vector(weights, spec)?;
        if config.family.norms_add_one {
            weight += 1.0;
        }
        Ok(Self { weight, eps: config.rms_norm_eps })
    }

    /// What x is multiplied by when it is normed, `[features]`.
    pub fn weight(&self) -> &Array1<f32> {
        &self.weight
    }

    /// The norm of each row of `[tokens, features]`.
    pub fn apply(&self, x: ArrayView2<'_, f32>) -> Array2<f32> {
        rms_norm(x, self.weight.view(), self.eps)
    }

    /// The norm of every head of `[tokens, heads * features]`, in place.
    pub fn apply_to_heads(&self, x: ArrayViewMut2<'_, f32>) {
        rms_norm_heads(x, self.weight.view(), self.eps);
    }
}
