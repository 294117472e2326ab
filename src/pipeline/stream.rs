//! The activations of all calibration windows on their way through the blocks.

use std::ops::Range;

use attar_checkpoint::Error as FileError;
use attar_model::{Block, HiddenStates, Tap};
use ndarray::{Array2, ArrayView2};

/// Tokens that pass through a block together: enough to keep the products busy, few enough to stay small.
pub const CHUNK_TOKENS: usize = 2048;

/// Which activations a stage keeps in memory for the next one. What is not kept is computed again, to the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carry {
    /// The input of o: without it q, k, v and the attention run twice.
    pub attn_out: bool,
    /// The input of down: without it gate and up run twice, a third of a block's work.
    pub mlp_mid: bool,
}

/// Hidden states of every calibration token, and what the stage under way carries to the next one.
pub struct Stream {
    ctx: usize,
    hidden: HiddenStates, // [tokens, hidden_size]
    /// The input of o or down, chunk by chunk, kept until that matrix is quantized and its output can be added.
    carried: Vec<Array2<f32>>,
    carry: Carry,
}

impl Stream {
    /// Starts with the embedded tokens, `[tokens, hidden_size]`, in whole windows of `ctx` tokens.
    ///
    /// # Panics
    /// If the tokens are not whole windows.
    pub fn new(hidden: HiddenStates, ctx: usize, carry: Carry) -> Self {
        assert!(hidden.tokens().is_multiple_of(ctx), "hidden states come in whole windows");
        Self { ctx, hidden, carried: Vec::new(), carry }
    }

    /// Runs the part of `block` that leads to `tap` and shows `observe` the activations there, chunk by chunk.
    ///
    /// The taps of a block must be visited in order, each once; weights set between two visits take effect.
    ///
    /// # Errors
    /// Hidden states on a disk that fails.
    pub fn advance(
        &mut self,
        block: &Block,
        tap: Tap,
        mut observe: impl FnMut(ArrayView2<'_, f32>),
    ) -> Result<(), FileError> {
        let ctx = self.ctx;
        let attn_out = |hidden: ArrayView2<'_, f32>| block.attn_out(block.attn_in(hidden).view(), ctx);
        let keep = match tap {
            Tap::AttnOut => self.carry.attn_out,
            Tap::MlpMid => self.carry.mlp_mid,
            _ => false,
        };
        let mut carried = std::mem::take(&mut self.carried).into_iter();
        for rows in self.chunks() {
            let activations = match tap {
                Tap::AttnIn => block.attn_in(self.hidden.read(rows)?.view()),
                Tap::AttnOut => attn_out(self.hidden.read(rows)?.view()),
                Tap::MlpIn => self.hidden.update(rows, |mut hidden| {
                    let from = carried.next().unwrap_or_else(|| attn_out(hidden.view()));
                    block.add_attn(hidden.view_mut(), from.view());
                    block.mlp_in(hidden.view())
                })?,
                Tap::MlpMid => block.mlp_mid(block.mlp_in(self.hidden.read(rows)?.view()).view()),
                Tap::HeadIn => unreachable!("the head belongs to no block"),
            };
            observe(activations.view());
            if keep {
                self.carried.push(activations);
            }
        }
        Ok(())
    }

    /// Adds the block's last output; the stream is then at the next block's input.
    ///
    /// # Errors
    /// Hidden states on a disk that fails.
    pub fn finish(&mut self, block: &Block) -> Result<(), FileError> {
        let mut carried = std::mem::take(&mut self.carried).into_iter();
        self.chunks().try_for_each(|rows| {
            self.hidden.update(rows, |mut hidden| {
                let mid = carried.next().unwrap_or_else(|| block.mlp_mid(block.mlp_in(hidden.view()).view()));
                block.add_mlp(hidden.view_mut(), mid.view());
            })
        })
    }

    /// Shows `observe` the hidden states, chunk by chunk.
    ///
    /// # Errors
    /// Hidden states on a disk that fails.
    pub fn each_chunk(&self, mut observe: impl FnMut(ArrayView2<'_, f32>)) -> Result<(), FileError> {
        self.chunks().try_for_each(|rows| {
            observe(self.hidden.read(rows)?.view());
            Ok(())
        })
    }

    /// Row ranges of whole windows, about [`CHUNK_TOKENS`] long.
    fn chunks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (tokens, step) = (self.hidden.tokens(), (CHUNK_TOKENS / self.ctx).max(1) * self.ctx);
        (0..tokens).step_by(step).map(move |start| start..(start + step).min(tokens))
    }
}
