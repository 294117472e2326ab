//! Gram matrices of activations rounded to bf16.

use super::DEPTH;
use super::kernel::{Kernel, NO_SUMS, block_end};
use super::pack::{PANEL, Panels, chunks};
use super::product::{Held, contiguous, put};
use super::round::{even, to_bf16};
use crate::gram::{mirror, squares_of};
use ndarray::parallel::prelude::*;
use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut2, Axis};

/// Rows and columns of a task: both its factors' chunks of terms stay in the second cache.
const TASK: usize = 8 * PANEL;

/// `gram += x.T @ x` for activations x `[tokens, features]` rounded to bf16; sums are f32. gram is `[features, features]`,
/// symmetric before and after; tokens are added in chunks of 1024.
///
/// Costs about half of the full product, as [`gram_add`](crate::gram_add) does.
///
/// # Panics
/// If gram is not square in features.
pub fn bf16_gram_add(x: ArrayView2<'_, f32>, gram: &mut Array2<f32>) {
    with(Kernel::best(), x, gram);
}

/// `sums += ` the sum over tokens of the squares of x `[tokens, features]` rounded to bf16; sums is `[features]`: the diagonal of
/// what [`bf16_gram_add`] adds, summed in the order of the plain kernel, whatever the machine.
///
/// # Panics
/// If the numbers of features differ.
pub fn bf16_squares_add(x: ArrayView2<'_, f32>, sums: &mut Array1<f32>) {
    squares_of(x, 2 * DEPTH, sums, |mut rows, sums| {
        let mut add = |row: &[f32]| {
            for (sum, &x) in sums.iter_mut().zip(row) {
                let x = even(to_bf16(x));
                *sum += x * x;
            }
        };
        while let Some(first) = rows.next() {
            // Of each pair of tokens the second comes first.
            rows.next().into_iter().for_each(&mut add);
            add(first);
        }
    });
}

/// It by a kernel of choice.
pub(super) fn with(kernel: Kernel, x: ArrayView2<'_, f32>, gram: &mut Array2<f32>) {
    let features = x.ncols();
    assert_eq!(gram.dim(), (features, features), "a Gram matrix is square in features");
    let panels = Panels::of_columns(x);
    add_products(kernel, [&panels; 2], gram.view_mut(), |row| row / PANEL * PANEL);
    mirror(gram.view_mut());
}

/// `out += a.T @ b`; of each row no columns before `first_column`, a multiple of a panel, are needed.
pub(super) fn add_products(
    kernel: Kernel,
    factors: [&Panels; 2],
    mut out: ArrayViewMut2<'_, f32>,
    first_column: impl Fn(usize) -> usize + Sync,
) {
    let mut tasks = Vec::new();
    for (i, band) in out.axis_chunks_iter_mut(Axis(0), TASK).enumerate() {
        let mut left = first_column(i * TASK);
        let (_, mut rest) = band.split_at(Axis(1), left);
        while rest.ncols() > 0 {
            let width = TASK.min(rest.ncols());
            let (part, further) = rest.split_at(Axis(1), width);
            tasks.push(([i * TASK, left], part));
            (rest, left) = (further, left + width);
        }
    }
    tasks.into_par_iter().with_max_len(1).for_each(|(corner, part)| {
        task(kernel, factors, corner, part, &first_column);
    });
}

/// The blocks of one part of the result, which starts with a panel of a and one of b, `[top, left]`, and what is left of them
/// within a panel.
fn task(
    kernel: Kernel,
    [a, b]: [&Panels; 2],
    [top, left]: [usize; 2],
    mut part: ArrayViewMut2<'_, f32>,
    first_column: impl Fn(usize) -> usize,
) {
    let (bottom, end) = (top + part.nrows(), left + part.ncols());
    let mut rows: Vec<&mut [f32]> = contiguous(&mut part);
    let (mut sums, mut room) = (NO_SUMS, Vec::new());
    for (from, to) in chunks(b.depth()) {
        let mut row = top;
        while row < bottom {
            let past = bottom.min(block_end(row));
            let rows = &mut rows[row - top..past - top];
            let factor = kernel.arranged(a.as_left(row, from..to), rows.len(), to - from, &mut room);
            for column in (left.max(first_column(row))..end).step_by(PANEL) {
                let (right, vectors) = b.panel(column / PANEL, from..to);
                kernel.block(factor, rows.len(), right, vectors, &mut sums);
                let columns = column - left..end.min(column + PANEL) - left;
                put(&sums, rows, columns, Held::AddedTo);
            }
            row = past;
        }
    }
}
