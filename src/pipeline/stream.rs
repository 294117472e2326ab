//! The activations of all calibration windows on their way through the blocks.

use std::ops::Range;

use attar_checkpoint::Error as FileError;
use attar_model::{Block, HiddenStates, Keeping, Role, Router, Share, Tap};
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};

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
    carried: Carried,
    carry: Carry,
}

/// The input of o or down, kept until that matrix is quantized and its output can be added.
///
/// Its memory is as much as the widest of a block's, and is used again from block to block.
#[derive(Default)]
struct Carried {
    values: Vec<f32>,
    held: Option<[usize; 2]>, // tokens and features, where there is one
}

impl Carried {
    fn hold(&mut self, tokens: usize, features: usize) {
        if self.values.len() < tokens * features {
            self.values = Vec::new(); // first, so that both never stand together
            self.values = vec![0.0; tokens * features];
        }
        self.held = Some([tokens, features]);
    }

    /// Some tokens of what is held, `[rows.len(), features]`.
    fn rows(&self, rows: &Range<usize>) -> Option<ArrayView2<'_, f32>> {
        let [_, features] = self.held?;
        let values = &self.values[rows.start * features..rows.end * features];
        ArrayView2::from_shape((rows.len(), features), values).ok()
    }

    fn rows_mut(&mut self, rows: &Range<usize>) -> Option<ArrayViewMut2<'_, f32>> {
        let [_, features] = self.held?;
        let values = &mut self.values[rows.start * features..rows.end * features];
        ArrayViewMut2::from_shape((rows.len(), features), values).ok()
    }
}

/// Where a stream is while it is on its way to a tap.
struct Visit {
    tap: Tap,
    keep: bool,
    carried: Carried,
    room: Array2<f32>, // [tokens of a chunk, features], where nothing is kept
}

/// The same tokens in two streams, see [`Stream::advance_beside`].
pub struct Beside<'a> {
    /// Activations in the other stream, `[rows.len(), features]`.
    pub was: ArrayView2<'a, f32>,
    /// Activations in this one.
    pub now: ArrayView2<'a, f32>,
    hidden: [&'a HiddenStates; 2],
    rows: Range<usize>,
}

impl Beside<'_> {
    /// What this stream's hidden states have lost of the other's, `[rows.len(), hidden_size]`: the other's less its own.
    ///
    /// # Errors
    /// Hidden states on a disk that fails.
    pub fn lost(&self) -> Result<Array2<f32>, FileError> {
        let [was, now] = self.hidden;
        Ok(&was.read(self.rows.clone())? - &now.read(self.rows.clone())?)
    }
}

impl Stream {
    /// Starts with the embedded tokens, `[tokens, hidden_size]`, in whole windows of `ctx` tokens, kept as `keeping` says.
    ///
    /// # Panics
    /// If the tokens are not whole windows.
    pub fn new(hidden: HiddenStates, ctx: usize, keeping: Keeping, carry: Carry) -> Self {
        assert!(hidden.tokens().is_multiple_of(ctx), "hidden states come in whole windows");
        Self { ctx, keeping, hidden, experts_in: None, carried: Carried::default(), carry }
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
        let mut visit = self.enter(block, tap)?;
        for rows in self.chunks() {
            observe(self.visit(&mut visit, block, &rows)?);
        }
        self.leave(block, visit);
        Ok(())
    }

    /// [`advance`](Self::advance) to what a block's experts read, which `see` is shown: the tokens that `router` sends to each.
    ///
    /// # Errors
    /// Hidden states on a disk that fails.
    pub fn route(
        &mut self,
        block: &Block,
        router: &Router,
        mut see: impl FnMut(ArrayView2<'_, f32>),
    ) -> Result<Vec<Share>, FileError> {
        let (mut shares, mut first) = (Vec::new(), 0);
        self.advance(block, Tap::MlpIn, |x| {
            see(x);
            Share::append_all(&mut shares, first, &router.route(x).shares());
            first += x.nrows();
        })?;
        Ok(shares)
    }

    /// [`advance`](Self::advance) beside another stream of the same windows through another block of the same shape: `observe` is shown
    /// the activations here, those there, and which tokens they are of.
    ///
    /// # Errors
    /// Hidden states on a disk that fails, and what `observe` says.
    pub fn advance_beside(
        &mut self,
        block: &Block,
        tap: Tap,
        (other, other_block): (&mut Self, &Block),
        mut observe: impl FnMut(Beside<'_>) -> Result<(), FileError>,
    ) -> Result<(), FileError> {
        let mut visit = self.enter(block, tap)?;
        let mut other_visit = other.enter(other_block, tap)?;
        for rows in self.chunks() {
            let was = other.visit(&mut other_visit, other_block, &rows)?;
            let now = self.visit(&mut visit, block, &rows)?;
            observe(Beside { was, now, hidden: [&other.hidden, &self.hidden], rows })?;
        }
        self.leave(block, visit);
        other.leave(other_block, other_visit);
        Ok(())
    }

    fn enter(&mut self, block: &Block, tap: Tap) -> Result<Visit, FileError> {
        let keep = match tap {
            Tap::AttnOut => self.carry.attn_out,
            Tap::MlpMid => self.carry.mlp_mid,
            _ => false,
        };
        if tap == Tap::MlpIn && block.experts().is_some() {
            let shape = [self.hidden.tokens(), self.hidden.features()];
            self.experts_in = Some(HiddenStates::zeros(shape, &self.keeping)?);
        }
        let (tokens, features) = (self.tokens(), self.features_at(block, tap));
        let mut carried = std::mem::take(&mut self.carried);
        if keep {
            carried.hold(tokens, features);
        }
        let room = if keep { 0 } else { self.chunks().map(|rows| rows.len()).max().unwrap_or(0) };
        Ok(Visit { tap, keep, carried, room: Array2::zeros((room, features)) })
    }

    fn visit<'a>(
        &mut self,
        visit: &'a mut Visit,
        block: &Block,
        rows: &Range<usize>,
    ) -> Result<ArrayView2<'a, f32>, FileError> {
        let Visit { tap, keep, carried, room } = visit;
        if *tap == Tap::MlpIn {
            let attn_out = carried.rows(rows);
            let into = room.slice_mut(s![..rows.len(), ..]);
            self.hidden.update(rows.clone(), |hidden| to_mlp_in(block, self.ctx, attn_out, hidden, into))?;
        } else {
            let hidden = self.hidden.read(rows.clone())?;
            let into = if *keep { carried.rows_mut(rows) } else { None };
            let into = into.unwrap_or_else(|| room.slice_mut(s![..rows.len(), ..]));
            to_tap(block, *tap, self.ctx, &hidden.view(), into);
        }
        let seen = if *keep { carried.rows(rows) } else { None };
        let seen = seen.unwrap_or_else(|| room.slice(s![..rows.len(), ..]));
        if let Some(experts_in) = &mut self.experts_in {
            experts_in.write(rows.start, seen)?;
        }
        Ok(seen)
    }

    fn leave(&mut self, block: &Block, Visit { tap, mut carried, .. }: Visit) {
        if tap == Tap::MlpIn {
            carried.held = None;
            if !self.carry.mlp_mid || block.experts().is_some() {
                carried = Carried::default(); // no later stage of the block needs the memory
            }
        }
        self.carried = carried;
    }

    /// Features of the activations at a tap of a block.
    fn features_at(&self, block: &Block, tap: Tap) -> usize {
        match tap {
            Tap::AttnOut => block.linear(Role::O).weight.dim().1,
            Tap::MlpMid => block.linear(Role::Down).weight.dim().1,
            _ => self.hidden.features(),
        }
    }

    /// The same windows once more, at the input of a block.
    ///
    /// # Errors
    /// Hidden states on a disk that fails.
    pub fn copy(&self) -> Result<Self, FileError> {
        let shape = [self.hidden.tokens(), self.hidden.features()];
        let mut hidden = HiddenStates::zeros(shape, &self.keeping)?;
        for rows in self.chunks() {
            hidden.write(rows.start, self.hidden.read(rows)?.view())?;
        }
        Ok(Self::new(hidden, self.ctx, self.keeping.clone(), self.carry))
    }

    /// Tokens of a window.
    pub fn ctx(&self) -> usize {
        self.ctx
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
        for rows in self.chunks() {
            let mlp_mid = self.carried.rows(&rows);
            self.hidden.update(rows, |hidden| to_the_end(block, self.ctx, mlp_mid, hidden))?;
        }
        self.carried.held = None;
        Ok(())
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

    /// [`each_chunk`](Self::each_chunk) beside another stream of the same windows: the hidden states here and those there.
    ///
    /// # Errors
    /// Hidden states on a disk that fails.
    pub fn each_chunk_beside(
        &self,
        other: &Self,
        mut observe: impl FnMut(ArrayView2<'_, f32>, ArrayView2<'_, f32>),
    ) -> Result<(), FileError> {
        self.chunks().try_for_each(|rows| {
            observe(self.hidden.read(rows.clone())?.view(), other.hidden.read(rows)?.view());
            Ok(())
        })
    }

    /// Row ranges of whole windows, about [`CHUNK_TOKENS`] long.
    fn chunks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (tokens, step) = (self.hidden.tokens(), (CHUNK_TOKENS / self.ctx).max(1) * self.ctx);
        (0..tokens).step_by(step).map(move |start| start..(start + step).min(tokens))
    }
}

/// The activations at a tap from the `hidden` states at the block's input, or for those of the MLP from those at its input.
fn to_tap(
    block: &Block,
    tap: Tap,
    ctx: usize,
    hidden: &ArrayView2<'_, f32>,
    mut into: ArrayViewMut2<'_, f32>,
) {
    let share = block.tokens_of_a_thread(ctx, hidden.nrows());
    let pieces = hidden.axis_chunks_iter(Axis(0), share).into_par_iter();
    pieces.zip(into.axis_chunks_iter_mut(Axis(0), share)).with_max_len(1).for_each(|(hidden, mut into)| {
        into.assign(&match tap {
            Tap::AttnIn => block.attn_in(hidden),
            Tap::AttnOut => block.attn_out(block.attn_in(hidden).view(), ctx),
            Tap::MlpMid => block.mlp_mid(block.mlp_in(hidden).view()),
            Tap::MlpIn | Tap::HeadIn => unreachable!("{tap:?} is reached otherwise"),
        });
    });
}

/// Adds the attention's output, computed where it was not carried, and makes what the MLP reads.
fn to_mlp_in(
    block: &Block,
    ctx: usize,
    attn_out: Option<ArrayView2<'_, f32>>,
    mut hidden: ArrayViewMut2<'_, f32>,
    mut into: ArrayViewMut2<'_, f32>,
) {
    let share = block.tokens_of_a_thread(ctx, hidden.nrows());
    let pieces = hidden.axis_chunks_iter_mut(Axis(0), share).into_par_iter();
    let pieces = pieces.zip(into.axis_chunks_iter_mut(Axis(0), share)).with_max_len(1).enumerate();
    pieces.for_each(|(i, (mut hidden, mut into))| {
        if let Some(all) = &attn_out {
            block.add_attn(hidden.view_mut(), piece(all, i, share));
        } else {
            let attn_out = block.attn_out(block.attn_in(hidden.view()).view(), ctx);
            block.add_attn(hidden.view_mut(), attn_out.view());
        }
        into.assign(&block.mlp_in(hidden.view()));
    });
}

/// Adds the MLP's output, from what down reads, computed where it was not carried.
fn to_the_end(
    block: &Block,
    ctx: usize,
    mlp_mid: Option<ArrayView2<'_, f32>>,
    mut hidden: ArrayViewMut2<'_, f32>,
) {
    let share = block.tokens_of_a_thread(ctx, hidden.nrows());
    let pieces = hidden.axis_chunks_iter_mut(Axis(0), share).into_par_iter().with_max_len(1).enumerate();
    pieces.for_each(|(i, hidden)| {
        if let Some(all) = &mlp_mid {
            block.add_mlp(hidden, piece(all, i, share));
        } else {
            let mlp_mid = block.mlp_mid(block.mlp_in(hidden.view()).view());
            block.add_mlp(hidden, mlp_mid.view());
        }
    });
}

/// The `i`-th `share` tokens.
fn piece<'a>(all: &'a ArrayView2<'_, f32>, i: usize, share: usize) -> ArrayView2<'a, f32> {
    all.slice(s![i * share..all.nrows().min((i + 1) * share), ..])
}
