//! What criteria that choose layers share: the stream of a calibration text through the model, with layers left out.

use crate::{Error, KeepList};
use attar_model::{Block, Head, Loss, ModelConfig, NextToken, Weights, Windows, embed};
use ndarray::{Array2, ArrayView2, Axis, Slice};
use rayon::prelude::*;

/// Bytes of hidden states that stand at once, at most: of as many streams as there are layers.
const STREAM_BYTES: usize = 1 << 30;

/// Tokens that say enough about a layer.
const MOST_TOKENS: usize = 16_384;

/// A model and a text to choose layers by.
pub struct Calibrated<'a> {
    config: &'a ModelConfig,
    weights: &'a dyn Weights,
    windows: Windows,
    progress: &'a (dyn Fn() + Sync),
}

/// One step of a choice: a layer that goes, and why.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// The layer.
    pub layer: usize,
    /// What the criterion says of the model without it.
    pub score: f64,
}

/// Which layers stay, and how that came about.
#[derive(Debug, Clone, PartialEq)]
pub struct Removal {
    /// The layers that stay.
    pub keep: KeepList,
    /// The layers that go, in that order.
    pub steps: Vec<Step>,
}

impl Removal {
    /// # Errors
    /// None would be left.
    pub(super) fn of(steps: Vec<Step>, layers: usize) -> Result<Self, Error> {
        let dropped: Vec<_> = steps.iter().map(|step| step.layer).collect();
        Ok(Self { keep: KeepList::without(&dropped, layers)?, steps })
    }
}

impl<'a> Calibrated<'a> {
    /// Of a text as many windows as say enough, and as fit when every layer has a stream of its own; `progress` hears of every
    /// block that any text has passed.
    pub fn new(
        config: &'a ModelConfig,
        weights: &'a dyn Weights,
        windows: &Windows,
        progress: &'a (dyn Fn() + Sync),
    ) -> Self {
        let ctx = windows.ctx();
        let fit = STREAM_BYTES / (4 * config.hidden_size * config.num_hidden_layers);
        let count = windows.count().min((MOST_TOKENS.min(fit) / ctx).max(1));
        let windows = Windows::new(ctx, windows.tokens()[..count * ctx].to_vec());
        Self { config, weights, windows, progress }
    }

    /// Layers of the model.
    pub fn layers(&self) -> usize {
        self.config.num_hidden_layers
    }

    /// The tokens that count, in windows.
    pub fn windows(&self) -> &Windows {
        &self.windows
    }

    /// What the first block reads, `[tokens, hidden_size]`.
    pub(super) fn embedded(&self) -> Result<Array2<f32>, Error> {
        Ok(embed(self.config, self.weights, self.windows.tokens())?)
    }

    pub(super) fn block(&self, layer: usize) -> Result<Block, Error> {
        Ok(Block::load(self.config, layer, self.weights)?)
    }

    pub(super) fn pass(&self, block: &Block, hidden: &mut Array2<f32>) {
        block.forward(hidden, self.windows.ctx());
        (self.progress)();
    }

    pub(super) fn head(&self) -> Result<Head, Error> {
        Ok(Head::load(self.config, self.weights)?)
    }

    /// Mean over all predicted tokens of minus the log of what the model gives them.
    pub(super) fn loss(&self, head: &Head, hidden: ArrayView2<'_, f32>) -> f64 {
        let loss = NextToken::mean(&self.windows);
        let rows_at_once = ((1 << 22) / self.config.vocab_size).clamp(64, 512);
        (0..hidden.nrows())
            .step_by(rows_at_once)
            .map(|start| {
                let rows = start..hidden.nrows().min(start + rows_at_once);
                let slice = hidden.slice_axis(Axis(0), Slice::from(rows.clone()));
                let mut logits = head.logits(head.norm(slice).view());
                loss.backward(rows, logits.view_mut())
            })
            .sum()
    }
}

/// The mean over tokens of `f` of the cosine between two streams, `[tokens, hidden_size]` both.
pub(super) fn mean_of_cosines(
    a: ArrayView2<'_, f32>,
    b: ArrayView2<'_, f32>,
    f: impl Fn(f64) -> f64 + Sync,
) -> f64 {
    let rows: Vec<_> = a.outer_iter().zip(b.outer_iter()).collect();
    let cosines = rows.into_par_iter().map(|(a, b)| {
        let dot = |x: ndarray::ArrayView1<'_, f32>, y: ndarray::ArrayView1<'_, f32>| -> f64 {
            x.iter().zip(y).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
        };
        let lengths = (dot(a, a) * dot(b, b)).sqrt();
        f(if lengths > 0.0 { (dot(a, b) / lengths).clamp(-1.0, 1.0) } else { 0.0 })
    });
    let cosines: Vec<f64> = cosines.collect();
    cosines.iter().sum::<f64>() / cosines.len().max(1) as f64
}
