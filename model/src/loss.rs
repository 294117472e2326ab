//! What training minimises, as a function of logits.

use crate::{Head, Windows};
use attar_tensor::op::{cross_entropy_backward, forward_kl_backward};
use ndarray::{Array1, ArrayView2, ArrayViewMut2, Axis, Slice};
use std::ops::Range;

/// A loss that is a sum over tokens. It is asked for a few tokens at a time, so that logits never stand whole.
pub trait Loss: Sync {
    /// The share of the tokens of some rows; their logits `[rows.len(), vocab_size]` become its gradient.
    fn backward(&self, rows: Range<usize>, logits: ArrayViewMut2<'_, f32>) -> f64;
}

impl<F: Fn(Range<usize>, ArrayViewMut2<'_, f32>) -> f64 + Sync> Loss for F {
    fn backward(&self, rows: Range<usize>, logits: ArrayViewMut2<'_, f32>) -> f64 {
        self(rows, logits)
    }
}

/// Cross-entropy with the token that came next.
#[derive(Debug, Clone, PartialEq)]
pub struct NextToken {
    targets: Vec<u32>,
    weights: Array1<f32>,
}

impl NextToken {
    /// The mean over all tokens of some windows but the last of each, after which nothing came.
    pub fn mean(windows: &Windows) -> Self {
        Self::weighted(windows, next_token_weights(windows))
    }

    /// The sum over the tokens of some windows of weight times loss, weights `[windows * ctx]`. A token of weight 0 is masked.
    ///
    /// # Panics
    /// If there are not as many weights as tokens, or the last token of a window has a weight.
    pub fn weighted(windows: &Windows, weights: Array1<f32>) -> Self {
        let (ctx, tokens) = (windows.ctx(), windows.tokens());
        assert_eq!(tokens.len(), weights.len(), "a weight for each token");
        assert!(weights.iter().skip(ctx - 1).step_by(ctx).all(|&x| x == 0.0), "nothing comes after a window");
        Self { targets: tokens.iter().skip(1).copied().chain([0]).take(tokens.len()).collect(), weights }
    }
}

/// One for each token of some windows that another follows, divided by their number; zero for the others.
pub fn next_token_weights(windows: &Windows) -> Array1<f32> {
    let ctx = windows.ctx();
    let share = 1.0 / (windows.count() * (ctx - 1)).max(1) as f32;
    Array1::from_shape_fn(windows.tokens().len(), |token| if (token + 1) % ctx == 0 { 0.0 } else { share })
}

impl Loss for NextToken {
    fn backward(&self, rows: Range<usize>, logits: ArrayViewMut2<'_, f32>) -> f64 {
        let weights = self.weights.slice_axis(Axis(0), Slice::from(rows.clone()));
        cross_entropy_backward(logits, &self.targets[rows], weights)
    }
}

/// `T² KL(teacher || student)`: the divergence of a student's predictions from a teacher's at a temperature T.
#[derive(Debug, Clone)]
pub struct ForwardKl<'a> {
    /// What makes logits of the teacher's hidden states.
    pub teacher: &'a Head,
    /// The teacher's hidden states after its last block and before the final norm, `[tokens, hidden_size]`, of its own size.
    pub hidden: ArrayView2<'a, f32>,
    /// What each token counts, `[tokens]`; a token of weight 0 is masked.
    pub weights: Array1<f32>,
    /// What logits of both are divided by.
    pub temperature: f32,
}

impl Loss for ForwardKl<'_> {
    fn backward(&self, rows: Range<usize>, logits: ArrayViewMut2<'_, f32>) -> f64 {
        let rows = Slice::from(rows);
        let teacher = self.teacher.logits(self.teacher.norm(self.hidden.slice_axis(Axis(0), rows)).view());
        let weights = self.weights.slice_axis(Axis(0), rows);
        forward_kl_backward(logits, teacher.view(), weights, self.temperature)
    }
}
