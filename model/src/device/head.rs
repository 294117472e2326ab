//! The matrix that makes logits, whole on the device, and what is read off its logits there.

use crate::forward::LogitShape;
use crate::{Error, HeadSource};
use attar_tensor::Precision;
use attar_tensor::cuda::{Cuda, CudaError, Element, Keep, Matrix, Rows, TokenFigures, bf16};
use ndarray::ArrayView2;

/// Weights that go to the device at once.
const CHUNK_WEIGHTS: usize = 1 << 24;

/// The matrix that makes logits, `[vocab_size, hidden_size]`, and what becomes of its products.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeadMatrix<'a, T> {
    pub(super) weight: Rows<'a, T>,
    pub(super) shape: LogitShape,
}

impl<T: Element> HeadMatrix<'_, T> {
    /// Logits of normed hidden states, `[tokens, vocab_size]`.
    #[expect(clippy::float_cmp, reason = "it is one or it is not")]
    pub(super) fn logits(&self, cuda: &Cuda, normed: Rows<'_, T>) -> Result<Matrix<f32>, CudaError> {
        let mut logits = cuda.room((normed.dim().0, self.weight.dim().0))?;
        cuda.linear(logits.view_mut(), normed, self.weight, Keep::Nothing)?;
        if self.shape.scaling != 1.0 {
            cuda.scale(logits.view_mut(), 1.0 / self.shape.scaling)?;
        }
        if let Some(cap) = self.shape.cap {
            cuda.soft_cap(logits.view_mut(), cap)?;
        }
        Ok(logits)
    }
}

/// A head on the device, `[vocab_size, hidden_size]`.
#[derive(Debug)]
pub struct DeviceHead {
    cuda: Cuda,
    weight: Weight,
    shape: LogitShape,
}

#[derive(Debug)]
enum Weight {
    F32(Matrix<f32>),
    Bf16(Matrix<bf16>),
}

/// Logits of some tokens, `[tokens, vocab_size]`.
#[derive(Debug)]
pub struct DeviceLogits(Matrix<f32>);

impl DeviceHead {
    /// Puts a head on the device, in the precision it is multiplied in.
    ///
    /// # Errors
    /// Rows that cannot be loaded; if the device's memory is short.
    pub fn load(cuda: &Cuda, head: &HeadSource<'_>) -> Result<Self, Error> {
        let weight = match head.precision() {
            Precision::F32 => Weight::F32(matrix(cuda, head)?),
            Precision::Bf16 => Weight::Bf16(matrix(cuda, head)?),
        };
        Ok(Self { cuda: cuda.clone(), weight, shape: head.shape() })
    }

    /// Logits of normed hidden states `[tokens, hidden_size]`.
    ///
    /// # Errors
    /// If memory is short, a launch fails or a library refuses.
    pub fn logits(&self, normed: ArrayView2<'_, f32>) -> Result<DeviceLogits, Error> {
        match &self.weight {
            Weight::F32(weight) => self.logits_of(weight, normed),
            Weight::Bf16(weight) => self.logits_of(weight, normed),
        }
    }

    fn logits_of<T: Element>(
        &self,
        w: &Matrix<T>,
        normed: ArrayView2<'_, f32>,
    ) -> Result<DeviceLogits, Error> {
        let x = self.cuda.upload::<T>(normed)?;
        let head = HeadMatrix { weight: w.view(), shape: self.shape };
        Ok(DeviceLogits(head.logits(&self.cuda, x.view())?))
    }

    /// `-ln softmax(logits)[target]` of each token.
    ///
    /// # Errors
    /// If memory is short or the launch fails.
    ///
    /// # Panics
    /// If there is not one target for each token, or one is outside the vocabulary.
    pub fn losses(&self, logits: &DeviceLogits, targets: &[u32]) -> Result<TokenFigures, Error> {
        Ok(self.cuda.token_losses(logits.0.view(), targets)?)
    }

    /// `KL(reference || logits)` of each token, and whether both have their largest logit in the same place.
    ///
    /// # Errors
    /// If memory is short or the launch fails.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn divergences(
        &self,
        reference: &DeviceLogits,
        logits: &DeviceLogits,
    ) -> Result<TokenFigures, Error> {
        Ok(self.cuda.token_divergences(reference.0.view(), logits.0.view())?)
    }
}

pub(super) fn matrix<T: Element>(cuda: &Cuda, head: &HeadSource<'_>) -> Result<Matrix<T>, Error> {
    let (rows, cols) = (head.vocab_size(), head.hidden_size());
    let mut all = cuda.room((rows, cols))?;
    let step = (CHUNK_WEIGHTS / cols.max(1)).max(1);
    for from in (0..rows).step_by(step) {
        let to = rows.min(from + step);
        cuda.write(all.view_mut().rows(from, to), head.values(from..to)?.view())?;
    }
    Ok(all)
}
