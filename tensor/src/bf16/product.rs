//! Activations through a packed weight.

use super::Bf16Matrix;
use super::kernel::{BLOCK, Kernel, NO_SUMS, Sums};
use super::pack::{PANEL, Strips, chunks};
use crate::lanes::dispatch;
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis};
use std::ops::Range;

/// What becomes of the numbers an output holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Held {
    /// They are not read.
    Replaced,
    /// The result is added to them.
    AddedTo,
}

/// Columns of a task: eight panels, whose chunks of terms stay in the second cache.
const TASK_COLS: usize = 8 * PANEL;

/// Rows of a task, at most: enough to use what was read of the weight many times.
const TASK_ROWS: usize = 16 * BLOCK;

/// `x @ w.T`: activations `[tokens, in_features]` through a weight `[out_features, in_features]` to
/// `[tokens, out_features]`; both are rounded to bf16, sums are f32.
///
/// # Panics
/// If the numbers of `in_features` differ.
pub fn bf16_linear(x: ArrayView2<'_, f32>, w: &Bf16Matrix) -> Array2<f32> {
    let mut out = Array2::zeros((x.nrows(), w.dim().0));
    with(Kernel::best(), x, w, out.view_mut(), Held::Replaced);
    out
}

/// `out += x @ w.T`, shapes as of [`bf16_linear`].
///
/// # Panics
/// If the shapes do not fit, or out's rows are not contiguous.
pub fn bf16_linear_add(x: ArrayView2<'_, f32>, w: &Bf16Matrix, out: ArrayViewMut2<'_, f32>) {
    with(Kernel::best(), x, w, out, Held::AddedTo);
}

/// Either of them by a kernel of choice.
pub(super) fn with(
    kernel: Kernel,
    x: ArrayView2<'_, f32>,
    w: &Bf16Matrix,
    out: ArrayViewMut2<'_, f32>,
    held: Held,
) {
    strips_with(kernel, &Strips::of(x), x.dim(), w, out, held);
}

/// [`with`] for activations of `dim` that are packed already.
pub(super) fn strips_with(
    kernel: Kernel,
    strips: &Strips,
    dim: (usize, usize),
    w: &Bf16Matrix,
    mut out: ArrayViewMut2<'_, f32>,
    held: Held,
) {
    let (out_features, in_features) = w.dim();
    let (tokens, features) = dim;
    assert_eq!(
        features, in_features,
        "in_features of {tokens} tokens and of a weight of {out_features} rows"
    );
    assert_eq!(out.dim(), (tokens, out_features), "the output of {tokens} tokens");
    let rows = task_rows(tokens, out_features);
    out.axis_chunks_iter_mut(Axis(0), rows).into_par_iter().enumerate().for_each(|(i, mut band)| {
        band.axis_chunks_iter_mut(Axis(1), TASK_COLS).into_par_iter().enumerate().for_each(|(j, out)| {
            task(kernel, strips, i * rows / BLOCK, w, j * TASK_COLS / PANEL, out, held);
        });
    });
}

/// Rows of a task: as many as leave a few tasks to every thread.
fn task_rows(tokens: usize, out_features: usize) -> usize {
    let bands = (3 * rayon::current_num_threads()).div_ceil(out_features.div_ceil(TASK_COLS).max(1));
    tokens.div_ceil(bands).next_multiple_of(BLOCK).clamp(BLOCK, TASK_ROWS)
}

/// The blocks of one task, on the calling thread.
fn task(
    kernel: Kernel,
    strips: &Strips,
    first_strip: usize,
    w: &Bf16Matrix,
    first_panel: usize,
    mut out: ArrayViewMut2<'_, f32>,
    held: Held,
) {
    let width = out.ncols();
    let panels = width.div_ceil(PANEL);
    let mut rows: Vec<&mut [f32]> = contiguous(&mut out);
    let mut held = held;
    let mut sums = NO_SUMS;
    if w.dim().1 == 0 && held == Held::Replaced {
        for row in &mut rows {
            row.fill(0.0);
        }
    }
    for (from, to) in chunks(w.dim().1) {
        for (strip, rows) in rows.chunks_mut(BLOCK).enumerate() {
            let left = strips.chunk(first_strip + strip, from, to);
            for panel in 0..panels {
                let (right, vectors) = w.panels.panel(first_panel + panel, from..to);
                kernel.block(left, rows.len(), right, vectors, &mut sums);
                let columns = panel * PANEL..width.min((panel + 1) * PANEL);
                put(&sums, rows, columns, held);
            }
        }
        held = Held::AddedTo;
    }
}

/// The rows of an output.
///
/// # Panics
/// If they are not contiguous.
pub(super) fn contiguous<'a>(out: &'a mut ArrayViewMut2<'_, f32>) -> Vec<&'a mut [f32]> {
    let row = |row: ndarray::ArrayViewMut1<'a, f32>| row.into_slice();
    let rows: Option<Vec<_>> = out.outer_iter_mut().map(row).collect();
    rows.unwrap_or_else(|| panic!("the rows of an output are contiguous"))
}

/// A block's sums to some columns of its rows.
pub(super) fn put(sums: &Sums, rows: &mut [&mut [f32]], columns: Range<usize>, held: Held) {
    dispatch(
        #[inline(always)]
        || {
            for (row, sums) in rows.iter_mut().zip(sums) {
                let out = row[columns.clone()].iter_mut().zip(sums.as_flattened());
                match held {
                    Held::Replaced => out.for_each(|(out, sum)| *out = *sum),
                    Held::AddedTo => out.for_each(|(out, sum)| *out += sum),
                }
            }
        },
    );
}
