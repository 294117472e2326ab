//! What training minimises, as a function of logits.

use crate::teacher::TopK;
use crate::{HeadRows, Windows};
use attar_tensor::op::{
    Divergence, LikeliestTokens, bucketed_divergence_backward, cross_entropy_backward, divergence_backward,
};
use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut2, Axis, Slice};
use std::ops::Range;

/// A loss that is a sum over tokens. It is asked for a few tokens at a time, so that logits never stand whole.
pub trait Loss: Sync {
    /// The share of the tokens of some rows; their logits `[rows.len(), vocab_size]` become its gradient.
    fn backward(&self, rows: Range<usize>, logits: ArrayViewMut2<'_, f32>) -> f64;

    /// The share of the residual stream after the block `layer`, `[tokens, hidden_size]`, and its gradient; `None` where nothing is
    /// asked of that stream.
    fn stream_backward(&self, _layer: usize, _stream: ArrayView2<'_, f32>) -> Option<(f64, Array2<f32>)> {
        None
    }
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

/// What a student is to do as its teacher does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Likeness {
    /// What is minimised.
    pub divergence: Divergence,
    /// What logits of both are divided by.
    pub temperature: f32,
}

/// `T² D`: how far a student's predictions are from a teacher's at a temperature T.
#[derive(Debug, Clone)]
pub struct TowardsTeacher<'a> {
    /// What makes logits of the teacher's hidden states.
    pub teacher: &'a HeadRows,
    /// What that reads, the teacher's hidden states after the final norm, `[tokens, hidden_size]`, of its own size.
    pub normed: ArrayView2<'a, f32>,
    /// What each token counts, `[tokens]`; a token of weight 0 is masked.
    pub weights: Array1<f32>,
    /// What is minimised.
    pub likeness: Likeness,
}

impl Loss for TowardsTeacher<'_> {
    fn backward(&self, rows: Range<usize>, logits: ArrayViewMut2<'_, f32>) -> f64 {
        let (rows, Likeness { divergence, temperature }) = (Slice::from(rows), self.likeness);
        let mut teacher = Array2::zeros(logits.dim());
        self.teacher.logits_into(self.normed.slice_axis(Axis(0), rows), teacher.view_mut());
        let weights = self.weights.slice_axis(Axis(0), rows);
        divergence_backward(divergence, logits, teacher.view(), weights, temperature)
    }
}

/// How far a student's predictions are from the likeliest tokens that were kept of a teacher.
#[derive(Debug, Clone)]
pub struct TowardsLikeliest<'a> {
    /// The likeliest tokens and what is left for all others, `[tokens, k]`.
    pub teacher: &'a TopK,
    /// What each token counts, `[tokens]`; a token of weight 0 is masked.
    pub weights: Array1<f32>,
    /// What is minimised.
    pub divergence: Divergence,
}

impl Loss for TowardsLikeliest<'_> {
    fn backward(&self, rows: Range<usize>, logits: ArrayViewMut2<'_, f32>) -> f64 {
        let rows = Slice::from(rows);
        let teacher = LikeliestTokens {
            ids: self.teacher.ids.slice_axis(Axis(0), rows),
            log_probs: self.teacher.log_probs.slice_axis(Axis(0), rows),
            rest: self.teacher.rest.slice_axis(Axis(0), rows),
        };
        bucketed_divergence_backward(self.divergence, logits, teacher, self.weights.slice_axis(Axis(0), rows))
    }
}

/// Several losses, each times a factor. A loss of factor 0 is not asked for.
pub struct Mixture<'a>(pub Vec<(f32, &'a dyn Loss)>);

impl Loss for Mixture<'_> {
    fn backward(&self, rows: Range<usize>, mut logits: ArrayViewMut2<'_, f32>) -> f64 {
        let (mut total, mut gradient) = (0.0, Array2::zeros(logits.dim()));
        for (factor, loss) in self.0.iter().filter(|(factor, _)| *factor != 0.0) {
            let mut part = logits.to_owned();
            total += f64::from(*factor) * loss.backward(rows.clone(), part.view_mut());
            gradient.scaled_add(*factor, &part);
        }
        logits.assign(&gradient);
        total
    }

    fn stream_backward(&self, layer: usize, stream: ArrayView2<'_, f32>) -> Option<(f64, Array2<f32>)> {
        let asked = self.0.iter().filter(|(factor, _)| *factor != 0.0);
        let parts = asked.filter_map(|(factor, loss)| {
            let (share, gradient) = loss.stream_backward(layer, stream)?;
            Some((f64::from(*factor) * share, gradient * *factor))
        });
        parts.reduce(|(total, sum), (share, gradient)| (total + share, sum + gradient))
    }
}
