//! Losses over chunks of logits `[tokens, vocab_size]` in f32, one figure for each token, and their gradients.

use super::launch::{Layout, arguments, int};
use super::memory::{Rows, RowsMut};
use super::{Cuda, CudaError};

/// Stands for no target: such a token counts nothing.
pub const NO_TARGET: u32 = u32::MAX;

/// One figure for each token.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenFigures {
    /// Negative log-likelihood of the target, or the divergence of two predictions; natural logarithms.
    pub values: Vec<f64>,
    /// Whether the largest logit is the target's, or in the same place in both.
    pub top1: Vec<bool>,
}

impl Cuda {
    /// `-ln softmax(logits)[target]` of each token; 0 where the target is [`NO_TARGET`].
    ///
    /// # Errors
    /// If memory is short or the launch fails.
    ///
    /// # Panics
    /// If there is not one target for each row, or one is outside the vocabulary.
    pub fn token_losses(&self, logits: Rows<'_, f32>, targets: &[u32]) -> Result<TokenFigures, CudaError> {
        let (tokens, vocab_size) = checked(logits, targets);
        let ids = self.upload_items(targets, (1, tokens))?;
        self.figures(tokens, |values, hits| {
            let arguments = arguments![values, hits, logits, &ids, int(vocab_size)];
            self.run(("log_loss", None), "token_losses", Layout::rows(tokens, vocab_size, 512), arguments)
        })
    }

    /// `KL(reference || other)` of each token, over the whole vocabulary.
    ///
    /// # Errors
    /// If memory is short or the launch fails.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn token_divergences(
        &self,
        reference: Rows<'_, f32>,
        other: Rows<'_, f32>,
    ) -> Result<TokenFigures, CudaError> {
        assert_eq!(reference.dim(), other.dim(), "both predict the same tokens");
        let (tokens, vocab_size) = reference.dim();
        self.figures(tokens, |values, agree| {
            let arguments = arguments![values, agree, reference, other, int(vocab_size)];
            self.run(
                ("log_loss", None),
                "token_divergences",
                Layout::rows(tokens, vocab_size, 512),
                arguments,
            )
        })
    }

    fn figures(
        &self,
        tokens: usize,
        run: impl FnOnce(&super::Matrix<f64>, &super::Matrix<u8>) -> Result<(), CudaError>,
    ) -> Result<TokenFigures, CudaError> {
        let (values, top1) = (self.room((1, tokens))?, self.room((1, tokens))?);
        run(&values, &top1)?;
        let top1 = self.download_items(top1.view())?;
        Ok(TokenFigures {
            values: self.download_items(values.view())?,
            top1: top1.into_iter().map(|hit| hit != 0).collect(),
        })
    }

    /// The sum over tokens of `weight * -ln softmax(logits)[target]`; the logits become its gradient.
    ///
    /// # Errors
    /// If memory is short or the launch fails.
    ///
    /// # Panics
    /// If there are not as many targets and weights as rows, or a target is outside the vocabulary.
    pub fn cross_entropy_backward(
        &self,
        logits: RowsMut<'_, f32>,
        targets: &[u32],
        weights: &[f32],
    ) -> Result<f64, CudaError> {
        let (tokens, vocab_size) = checked(logits.view(), targets);
        assert_eq!(weights.len(), tokens, "a weight for each token");
        let (losses, ids) = (self.room((1, tokens))?, self.upload_items(targets, (1, tokens))?);
        let weights = self.vector(weights)?;
        let arguments = arguments![&losses, &logits, &ids, &weights, int(vocab_size)];
        let layout = Layout::rows(tokens, vocab_size, 512);
        self.run(("log_loss", None), "cross_entropy_backward", layout, arguments)?;
        self.total(&losses)
    }

    /// The sum over tokens of `weight * T² KL(teacher || student)` of `softmax(logits / T)`; the student's logits become its
    /// gradient.
    ///
    /// # Errors
    /// If memory is short or the launch fails.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn forward_kl_backward(
        &self,
        student: RowsMut<'_, f32>,
        teacher: Rows<'_, f32>,
        weights: &[f32],
        temperature: f32,
    ) -> Result<f64, CudaError> {
        assert_eq!(student.dim(), teacher.dim(), "both predict the same tokens");
        let (tokens, vocab_size) = teacher.dim();
        assert_eq!(weights.len(), tokens, "a weight for each token");
        let losses = self.room((1, tokens))?;
        let weights = self.vector(weights)?;
        let arguments = arguments![&losses, &student, teacher, &weights, temperature, int(vocab_size)];
        let layout = Layout::rows(tokens, vocab_size, 512);
        self.run(("log_loss", None), "forward_kl_backward", layout, arguments)?;
        self.total(&losses)
    }
}

fn checked(logits: Rows<'_, f32>, targets: &[u32]) -> (usize, usize) {
    let (tokens, vocab_size) = logits.dim();
    assert_eq!(targets.len(), tokens, "a target for each token");
    let outside = |&&target: &&u32| target != NO_TARGET && target as usize >= vocab_size;
    assert_eq!(targets.iter().find(outside), None, "a target outside a vocabulary of {vocab_size}");
    (tokens, vocab_size)
}
