//! Coordinate descent: each code in turn to the best value given all others.

use attar_tensor::{general_mat_mul, matmul};
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};

use super::panel::{ByGroup, GroupRows, Panel, ROWS};
use super::runs::Runs;
use crate::factor::Metric;
use crate::lanes::{Kernel, widest};
use crate::{Codebook, Grid};

/// Columns visited before the change they make is passed on to all others in one product.
const BLOCK: usize = 128;

/// Sweeps over the columns at most `sweeps` times, and stops where no code changes any more. `w` and `codes` are
/// `[out_features, in_features]`; no sweep raises `tr(E H E^T)`.
///
/// As in [`super::feedback`], the result does not depend on the number of threads.
pub(super) fn descend(
    w: ArrayView2<'_, f32>,
    codes: Array2<u8>,
    h: &Metric<'_>,
    grid: &Grid,
    codebook: Option<&'static dyn Codebook>,
    sweeps: u32,
) -> Array2<u8> {
    let in_features = w.ncols();
    let error = &w - &grid.decode_all(codes.view());
    let mut codes = codes.t().as_standard_layout().into_owned(); // [in_features, out_features]
    let mut pull = h.times(error.t()); // H E^T, [in_features, out_features]
    let grid = ByGroup::new(grid);
    for _ in 0..sweeps {
        let mut changed = false;
        for start in (0..in_features).step_by(BLOCK) {
            let columns = start..(start + BLOCK).min(in_features);
            let here = h.block(columns.clone());
            let runs = codebook.map(|codebook| Runs::given_others(codebook, here.view()));
            let mut change = pull.slice(s![columns.clone(), ..]).to_owned(); // pull in, change of E^T out
            let mut codes = codes.slice_mut(s![columns.clone(), ..]);
            changed |= change
                .axis_chunks_iter_mut(Axis(1), ROWS)
                .into_par_iter()
                .zip(codes.axis_chunks_iter_mut(Axis(1), ROWS))
                .enumerate()
                .map(|(i, (change, codes))| {
                    widest(DescendBlock {
                        change,
                        codes,
                        h: here.view(),
                        start,
                        grid: &grid,
                        runs: runs.as_ref(),
                        first_row: i * ROWS,
                    })
                })
                .reduce(|| false, |a, b| a | b);
            h.add_times(columns, change.view(), &mut pull);
        }
        if !changed {
            break;
        }
    }
    codes.t().as_standard_layout().into_owned()
}

impl Metric<'_> {
    /// `H x`, `[in_features, n]`.
    pub(super) fn times(&self, x: ArrayView2<'_, f32>) -> Array2<f32> {
        let mut product = matmul(self.gram.view(), x);
        product.axis_iter_mut(Axis(0)).into_par_iter().enumerate().for_each(|(j, mut row)| {
            row.zip_mut_with(&x.row(j), |y, &x| *y = *y * self.scale + x * self.diagonal[j]);
        });
        product
    }

    /// `H[.., columns] x`, `[in_features, n]`.
    pub(super) fn columns_times(
        &self,
        columns: std::ops::Range<usize>,
        x: ArrayView2<'_, f32>,
    ) -> Array2<f32> {
        let mut product = Array2::zeros((self.gram.nrows(), x.ncols()));
        self.add_times(columns, x, &mut product);
        product
    }

    /// `H[.., columns] x` added to `to`, `[in_features, n]`.
    fn add_times(&self, columns: std::ops::Range<usize>, x: ArrayView2<'_, f32>, to: &mut Array2<f32>) {
        general_mat_mul(self.scale, self.gram.slice(s![.., columns.clone()]), x, 1.0, to.view_mut());
        for (j, x) in columns.zip(x.rows()) {
            to.row_mut(j).scaled_add(self.diagonal[j], &x);
        }
    }

    /// The block of H on the diagonal.
    fn block(&self, columns: std::ops::Range<usize>) -> Array2<f32> {
        let mut block = self.gram.slice(s![columns.clone(), columns.clone()]).mapv(|h| h * self.scale);
        for (j, col) in columns.enumerate() {
            block[[j, j]] += self.diagonal[col];
        }
        block
    }
}

/// The columns of one block for some rows: whether any code changed.
struct DescendBlock<'a> {
    change: ArrayViewMut2<'a, f32>, // [columns, rows]: H E^T comes in, the change of E^T goes out
    codes: ArrayViewMut2<'a, u8>,   // [columns, rows]
    h: ArrayView2<'a, f32>,         // [columns, columns]
    start: usize,
    grid: &'a ByGroup,
    runs: Option<&'a Runs>,
    first_row: usize,
}

impl Kernel for DescendBlock<'_> {
    type Output = bool;

    #[inline(always)]
    fn run(mut self) -> bool {
        let mut panel = Panel::load(self.change.view());
        let mut changed = false;
        let mut chosen = Vec::new(); // of the run, the last column first
        let run = self.runs.map_or(1, Runs::run);
        for j in 0..self.codes.nrows() {
            let group = self.grid.rows(self.start + j, self.first_row);
            let before = group.decode(&self.held(j));
            if let Some(runs) = self.runs.filter(|_| j % run == 0) {
                chosen = self.best_run(runs, j, &group, &panel.0[j..j + run]);
            }
            let codes = chosen.pop().unwrap_or_else(|| {
                let curvature = self.h[[j, j]];
                let mut best = before;
                for r in 0..ROWS {
                    best[r] += panel.0[j][r] / curvature;
                }
                group.encode(&best)
            });
            let after = group.decode(&codes);
            let mut change = [0.0f32; ROWS];
            for r in 0..ROWS {
                change[r] = before[r] - after[r];
            }
            // Those of the same run are chosen already.
            let later = (j / run + 1) * run;
            for (k, later) in panel.0.iter_mut().enumerate().skip(later) {
                let coupling = self.h[[j, k]];
                for r in 0..ROWS {
                    later[r] += change[r] * coupling;
                }
            }
            panel.0[j] = change;
            let mut held = self.codes.row_mut(j);
            changed |= change[..held.len()].iter().any(|&change| change != 0.0);
            held.iter_mut().zip(codes).for_each(|(to, code)| *to = code);
        }
        panel.store(self.change.view_mut());
        changed
    }
}

impl DescendBlock<'_> {
    /// The codes of column `j`, 0 where there is no row.
    #[inline(always)]
    fn held(&self, j: usize) -> [u8; ROWS] {
        let mut held = [0; ROWS];
        held.iter_mut().zip(self.codes.row(j)).for_each(|(to, &code)| *to = code);
        held
    }

    /// The codes of the run that begins at column `j`, the last column first; `pull` is H E^T there.
    fn best_run(&self, runs: &Runs, j: usize, group: &GroupRows, pull: &[[f32; ROWS]]) -> Vec<[u8; ROWS]> {
        let at = j / runs.run();
        let mut best = runs.step(at, pull);
        for (i, best) in best.iter_mut().enumerate() {
            let before = group.decode(&self.held(j + i));
            best.iter_mut().zip(before).for_each(|(best, before)| *best += before);
        }
        let mut chosen = runs.choose(at, group, &best);
        chosen.reverse();
        chosen
    }
}
