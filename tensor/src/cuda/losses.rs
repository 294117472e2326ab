//! Losses over chunks of logits `[tokens, vocab_size]` in f32, one figure for each token, and their gradients.

use super::launch::{Layout, arguments, int};
use super::memory::{Element, Rows, RowsMut};
use super::{Cuda, CudaError};
use crate::op::Divergence;

/// Stands for no target: such a token counts nothing.
pub const NO_TARGET: u32 = u32::MAX;

/// What a student's logits are held to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lesson {
    /// How far it is from its teacher.
    pub divergence: Divergence,
    /// What logits of both are divided by for that.
    pub temperature: f32,
    /// The share of cross-entropy with the targets, 0 to 1; the rest is the divergence's.
    pub cross_entropy: f32,
    /// What the student's products were multiplied by.
    pub factor: f32,
    /// What they were then softly bounded by.
    pub cap: Option<f32>,
}

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
            self.run_for::<f32>(
                "log_loss",
                "token_losses",
                Layout::rows(tokens, vocab_size / 4, 512),
                arguments,
            )
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
            let layout = Layout::rows(tokens, vocab_size / 4, 512);
            self.run_for::<f32>("log_loss", "token_divergences", layout, arguments)
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

    /// What each token of a chunk loses by `lesson`, into `losses` `[1, tokens]`, and its gradient by the student's products before
    /// they became logits into `d_products` `[tokens, vocab_size]`.
    ///
    /// A token's loss is its weight times `(1 - c) T² D + c CE`: D the divergence of `softmax(student / T)` from
    /// `softmax(teacher / T)`, CE `-ln softmax(student)[target]`, c the share of cross-entropy. The teacher is not read where c is 1, nor
    /// are targets where it is 0.
    ///
    /// # Errors
    /// If the launch fails.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn lesson_backward<T: Element>(
        &self,
        (losses, d_products): (RowsMut<'_, f64>, RowsMut<'_, T>),
        student: Rows<'_, f32>,
        teacher: Option<Rows<'_, f32>>,
        (targets, weights): (Rows<'_, u32>, Rows<'_, f32>),
        lesson: Lesson,
    ) -> Result<(), CudaError> {
        let (tokens, vocab_size) = student.dim();
        assert!(lesson.cross_entropy >= 1.0 || teacher.is_some(), "a divergence needs a teacher");
        let teacher = teacher.unwrap_or(student);
        assert!(teacher.dim() == student.dim() && d_products.dim() == student.dim(), "all are of one shape");
        let each = (losses.dim().1, targets.dim().1, weights.dim().1);
        assert_eq!(each, (tokens, tokens, tokens), "a loss, a target and a weight for each token");
        let (kind, beta) = match lesson.divergence {
            Divergence::ForwardKl => (0, 0.0),
            Divergence::ReverseKl => (1, 0.0),
            Divergence::JensenShannon { beta } => (2, beta),
        };
        let arguments = arguments![
            &losses,
            &d_products,
            student,
            teacher,
            targets,
            weights,
            kind,
            beta,
            lesson.temperature,
            lesson.cross_entropy,
            lesson.cap.unwrap_or(0.0),
            lesson.factor,
            int(vocab_size),
        ];
        self.run_for::<T>("log_loss", "lesson_backward", Layout::rows(tokens, vocab_size / 4, 512), arguments)
    }
}

fn checked(logits: Rows<'_, f32>, targets: &[u32]) -> (usize, usize) {
    let (tokens, vocab_size) = logits.dim();
    assert_eq!(targets.len(), tokens, "a target for each token");
    let outside = |&&target: &&u32| target != NO_TARGET && target as usize >= vocab_size;
    assert_eq!(targets.iter().find(outside), None, "a target outside a vocabulary of {vocab_size}");
    (tokens, vocab_size)
}
