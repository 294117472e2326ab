//! The activations of all calibration windows on their way through the blocks.

use std::ops::Range;

use attar_model::{Block, Tap};
use ndarray::{Array2, ArrayView2, s};

/// Tokens that pass through a block together: enough to keep the products busy, few enough to stay small.
pub const CHUNK_TOKENS: usize = 2048;

/// Hidden states of every calibration token, and what the stage under way carries to the next one.
pub struct Stream {
    ctx: usize,
    hidden: Array2<f32>, // [tokens, hidden_size]
    /// The input of o or down, chunk by chunk, kept until that matrix is quantized and its output can be added.
    carried: Vec<Array2<f32>>,
    keep_mlp_mid: bool,
}

impl Stream {
    /// Starts with the embedded tokens, `[tokens, hidden_size]`, in whole windows of `ctx` tokens.
    ///
    /// `keep_mlp_mid` keeps the input of down instead of computing it again after down is quantized: a third less
    /// work for `tokens * intermediate_size` floats of memory, and the same bits.
    ///
    /// # Panics
    /// If the tokens are not whole windows.
    pub fn new(hidden: Array2<f32>, ctx: usize, keep_mlp_mid: bool) -> Self {
        assert!(hidden.nrows().is_multiple_of(ctx), "hidden states come in whole windows");
        Self { ctx, hidden, carried: Vec::new(), keep_mlp_mid }
    }

    /// Runs the part of `block` that leads to `tap` and shows `observe` the activations there, chunk by chunk.
    ///
    /// The taps of a block must be visited in order, each once; weights set between two visits take effect.
    pub fn advance(&mut self, block: &Block, tap: Tap, mut observe: impl FnMut(ArrayView2<'_, f32>)) {
        let carried = std::mem::take(&mut self.carried);
        for (i, rows) in self.chunks().enumerate() {
            let mut hidden = self.hidden.slice_mut(s![rows, ..]);
            let activations = match tap {
                Tap::AttnIn => block.attn_in(hidden.view()),
                Tap::AttnOut => block.attn_out(block.attn_in(hidden.view()).view(), self.ctx),
                Tap::MlpIn => {
                    block.add_attn(hidden.view_mut(), carried[i].view());
                    block.mlp_in(hidden.view())
                }
                Tap::MlpMid => block.mlp_mid(block.mlp_in(hidden.view()).view()),
                Tap::HeadIn => unreachable!("the head belongs to no block"),
            };
            observe(activations.view());
            if tap == Tap::AttnOut || (tap == Tap::MlpMid && self.keep_mlp_mid) {
                self.carried.push(activations);
            }
        }
    }

    /// Adds the block's last output; the stream is then at the next block's input.
    pub fn finish(&mut self, block: &Block) {
        let carried = std::mem::take(&mut self.carried);
        for (i, rows) in self.chunks().enumerate() {
            let mut hidden = self.hidden.slice_mut(s![rows, ..]);
            if let Some(mid) = carried.get(i) {
                block.add_mlp(hidden.view_mut(), mid.view());
            } else {
                let mid = block.mlp_mid(block.mlp_in(hidden.view()).view());
                block.add_mlp(hidden.view_mut(), mid.view());
            }
        }
    }

    /// Shows `observe` the hidden states, chunk by chunk.
    pub fn each_chunk(&self, mut observe: impl FnMut(ArrayView2<'_, f32>)) {
        for rows in self.chunks() {
            observe(self.hidden.slice(s![rows, ..]));
        }
    }

    /// Row ranges of whole windows, about [`CHUNK_TOKENS`] long.
    fn chunks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (tokens, step) = (self.hidden.nrows(), (CHUNK_TOKENS / self.ctx).max(1) * self.ctx);
        (0..tokens).step_by(step).map(move |start| start..(start + step).min(tokens))
    }
}
