//! The activations of all calibration windows on their way through the blocks.

use std::ops::Range;

use attar_checkpoint::Error as FileError;
use attar_model::{Block, HiddenStates, Keeping, Tap};
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
    keeping: Keeping,
    hidden: HiddenStates, // [tokens, hidden_size]
    /// What a block's experts read, `[tokens, hidden_size]`, kept as the hidden states are until the last of them has been added.
    experts_in: Option<HiddenStates>,
    /// The input of o or down, chunk by chunk, kept until that matrix is quantized and its output can be added.
    carried: Vec<Array2<f32>>,
    carry: Carry,
}

impl Stream {
    /// Starts with the embedded tokens, `[tokens, hidden_size]`, in whole windows of `ctx` tokens, kept as `keeping` says.
    ///
    /// # Panics
    /// If the tokens are not whole windows.
    pub fn new(hidden: HiddenStates, ctx: usize, keeping: Keeping, carry: Carry) -> Self {
        assert!(hidden.tokens().is_multiple_of(ctx), "hidden states come in whole windows");
        Self { ctx, keeping, hidden, experts_in: None, carried: Vec::new(), carry }
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
        if tap == Tap::MlpIn && block.experts().is_some() {
            let shape = [self.hidden.tokens(), self.hidden.features()];
            self.experts_in = Some(HiddenStates::zeros(shape, &self.keeping)?);
        }
        let mut carried = std::mem::take(&mut self.carried).into_iter();
        for rows in self.chunks() {
            let first = rows.start;
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
            if let Some(experts_in) = &mut self.experts_in {
                experts_in.write(first, activations.view())?;
            }
            if keep {
                self.carried.push(activations);
            }
        }
        Ok(())
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.hidden.tokens()
    }

    /// Some rows of what the experts of a block read, `[rows.len(), hidden_size]`, between [`advance`](Self::advance) to there
    /// and [`leave_experts`](Self::leave_experts).
    ///
    /// # Errors
    /// Activations on a disk that fails.
    ///
    /// # Panics
    /// If there is no such row, or the stream is elsewhere.
    pub fn experts_in(&self, rows: &[usize]) -> Result<Array2<f32>, FileError> {
        let experts_in = self.experts_in.as_ref().unwrap_or_else(|| panic!("the stream is not at experts"));
        let mut all = Array2::zeros((rows.len(), experts_in.features()));
        for (&row, mut to) in rows.iter().zip(all.outer_iter_mut()) {
            to.assign(&experts_in.read(row..row + 1)?.row(0));
        }
        Ok(all)
    }

    /// Adds an expert's outputs, `[rows.len(), hidden_size]`, to the hidden states of some rows, times what it counts for in each.
    ///
    /// # Errors
    /// Hidden states on a disk that fails.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn add_expert(
        &mut self,
        rows: &[usize],
        weights: &[f32],
        out: &Array2<f32>,
    ) -> Result<(), FileError> {
        for ((&row, &weight), out) in rows.iter().zip(weights).zip(out.outer_iter()) {
            self.hidden.update(row..row + 1, |mut hidden| hidden.row_mut(0).scaled_add(weight, &out))?;
        }
        Ok(())
    }

    /// Ends a block whose experts have all been added; the stream is then at the next block's input.
    pub fn leave_experts(&mut self) {
        self.experts_in = None;
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
