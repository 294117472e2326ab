//! One pass over the columns, each passing on its rounding error.

use attar_tensor::general_mat_mul;
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};

use super::panel::{ByGroup, Panel, ROWS};
use super::runs::Runs;
use crate::factor::Feedback;
use crate::lanes::{Kernel, widest};
use crate::{Codebook, Grid};

/// What a pass gives.
pub(super) struct Pass {
    /// `[out_features, in_features]`, columns as in the weight.
    pub codes: Array2<u8>,
    /// `sum (w - q)^2 / U_jj^2` with the weights as they were when rounded: `tr(E H E^T)` in the Hessian of the factor.
    #[cfg_attr(not(test), expect(dead_code, reason = "the law that ties it to the codes is a test"))]
    pub loss: f64,
}

/// Rounds `w`, `[out_features, in_features]`, to `grid` in the order of the factor; the columns not yet rounded absorb
/// each column's error.
///
/// Rows are independent and every sum has one order, so the result does not depend on the number of threads.
///
/// # Source
/// Frantar et al., "GPTQ", arXiv:2210.17323, Algorithm 1, on the transposed weight.
///
/// Where there is a `codebook`, whole runs of its length must come together in that order.
pub(super) fn round_with_feedback(
    w: ArrayView2<'_, f32>,
    feedback: &Feedback,
    grid: &Grid,
    codebook: Option<&'static dyn Codebook>,
) -> Pass {
    let (out_features, in_features) = w.dim();
    let Feedback { order, upper, .. } = feedback;
    let grid = ByGroup::new(grid);
    // Row `j` of each array below is the column that comes j-th.
    let mut rest = gather_columns(w, order); // [in_features, out_features]
    let mut codes = Array2::<u8>::zeros((in_features, out_features));
    let mut loss = 0.0;
    // The columns of a panel are rounded, then their errors are passed on to all later ones in one product.
    for (start, panel) in upper.panels() {
        let end = start + panel.nrows();
        let (triangle, right) = panel.split_at(Axis(1), end - start);
        let runs = codebook.map(|codebook| Runs::before_later(codebook, triangle));
        let (mut block, mut later) = rest.slice_mut(s![start.., ..]).split_at(Axis(0), end - start);
        let mut codes = codes.slice_mut(s![start..end, ..]);
        let losses: Vec<f64> = block
            .axis_chunks_iter_mut(Axis(1), ROWS)
            .into_par_iter()
            .zip(codes.axis_chunks_iter_mut(Axis(1), ROWS))
            .enumerate()
            .map(|(i, (block, codes))| {
                widest(RoundBlock {
                    block,
                    codes,
                    triangle,
                    columns: &order[start..end],
                    grid: &grid,
                    runs: runs.as_ref(),
                    first_row: i * ROWS,
                })
            })
            .collect();
        loss += losses.iter().sum::<f64>();
        // The block now holds its errors.
        general_mat_mul(-1.0, right.t(), block.view(), 1.0, later.view_mut());
    }
    Pass { codes: scatter_columns(&codes, order), loss }
}

/// `[columns, rows]` with the columns of `w` in `order`.
pub(super) fn gather_columns(w: ArrayView2<'_, f32>, order: &[usize]) -> Array2<f32> {
    let mut gathered = Array2::zeros((order.len(), w.nrows()));
    gathered
        .axis_iter_mut(Axis(0))
        .into_par_iter()
        .zip(order)
        .for_each(|(mut to, &col)| to.assign(&w.column(col)));
    gathered
}

/// The reverse of [`gather_columns`].
fn scatter_columns(codes: &Array2<u8>, order: &[usize]) -> Array2<u8> {
    let mut place = vec![0; order.len()];
    order.iter().enumerate().for_each(|(j, &col)| place[col] = j);
    let mut scattered = Array2::zeros((codes.ncols(), codes.nrows()));
    scattered.axis_iter_mut(Axis(0)).into_par_iter().enumerate().for_each(|(row, mut to)| {
        to.iter_mut().zip(&place).for_each(|(to, &j)| *to = codes[[j, row]]);
    });
    scattered
}

/// The columns of one block for some rows: rounds them, leaves the errors in `block`, gives the loss.
struct RoundBlock<'a> {
    block: ArrayViewMut2<'a, f32>, // [columns, rows]
    codes: ArrayViewMut2<'a, u8>,  // [columns, rows]
    triangle: ArrayView2<'a, f32>, // [columns, columns]
    columns: &'a [usize],
    grid: &'a ByGroup,
    runs: Option<&'a Runs>,
    first_row: usize,
}

impl Kernel for RoundBlock<'_> {
    type Output = f64;

    #[inline(always)]
    fn run(mut self) -> f64 {
        let mut panel = Panel::load(self.block.view());
        let mut losses = [0.0f32; ROWS];
        let mut loss = 0.0;
        let mut chosen = Vec::new(); // of the run, the last column first
        for (j, &col) in self.columns.iter().enumerate() {
            let group = self.grid.rows(col, self.first_row);
            let pivot = self.triangle[[j, j]];
            let x = panel.0[j];
            if let Some(runs) = self.runs.filter(|runs| j % runs.run() == 0) {
                chosen = runs.choose(j / runs.run(), &group, &panel.0[j..j + runs.run()]);
                chosen.reverse();
            }
            let codes = chosen.pop().unwrap_or_else(|| group.encode(&x));
            let values = group.decode(&codes);
            let mut error = [0.0f32; ROWS];
            for r in 0..ROWS {
                error[r] = (x[r] - values[r]) / pivot;
                losses[r] += error[r] * error[r];
            }
            panel.pass_on(j, error, self.triangle);
            self.codes.row_mut(j).iter_mut().zip(codes).for_each(|(to, code)| *to = code);
        }
        panel.store(self.block.view_mut());
        for r in 0..self.block.ncols() {
            loss += f64::from(losses[r]);
        }
        loss
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Factor, GridEncoding, IntEncoding, Settings, Statistics, weighted_energy};

    /// The losses of the columns, each when it was rounded, add up to the error of the whole.
    #[test]
    fn the_losses_along_the_way_sum_to_the_error_in_the_hessian() {
        for features in [64, 128, 320] {
            let wave = |a: usize, b: usize| ((a * 7919 + b * 104_729) % 1009) as f32 / 504.0 - 1.0;
            let x =
                Array2::from_shape_fn((900, features), |(t, c)| wave(t, c / 5) + 0.3 * wave(t + 77, c * 3));
            let w = Array2::from_shape_fn((70, features), |(r, c)| wave(r + 13, c + 5 * r));
            let mut statistics = Statistics::new(features);
            statistics.observe(x.view());
            let factor = Factor::new(&statistics, Settings::default());
            let feedback = factor.feedback().expect("positive definite");
            let grid = IntEncoding::symmetric(3, 32).search(w.view(), None).grid;
            let pass = round_with_feedback(w.view(), feedback, &grid, None);

            let error = &w - &grid.decode_all(pass.codes.view());
            let metric = factor.metric(feedback);
            let hessian = metric.gram * metric.scale + Array2::from_diag(&metric.diagonal);
            let want = weighted_energy(error.view(), hessian.view());
            assert!((pass.loss / want - 1.0).abs() < 1e-4, "{features} columns: {} for {want}", pass.loss);
        }
    }
}
