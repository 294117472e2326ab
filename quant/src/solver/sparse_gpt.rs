use attar_tensor::general_mat_mul;
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};

use super::feedback::gather_columns;
use super::panel::{ByGroup, Panel, ROWS};
use super::wanda::{Wanda, zero_the_least};
use super::{Facts, FloatSolution, Judge, Solution, Solver, check_codes, check_floats, with_feedback};
use crate::factor::Feedback;
use crate::lanes::{Kernel, widest};
use crate::{Error, Factor, Fit, Grid, GridEncoding, Settings, Sparsity};

/// Zeros by error feedback: column by column, what setting an input's weights to 0 loses, or rounding them, is made up for by the inputs
/// that come later.
///
/// A weight goes where that costs least by the inverse Hessian, `w² / U_jj²` as it stands when its column comes: of a pattern's group
/// when the first of it comes, of a share of all when its 128 columns do, over all rows at once. Columns come by falling diagonal, those
/// of a pattern's group together. Where the Hessian cannot be factored the zeros are [`Wanda`]'s.
///
/// # Source
/// Frantar and Alistarh, "`SparseGPT`", arXiv:2301.00774, Algorithm 1, with the columns in order.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SparseGpt {
    /// How many.
    pub sparsity: Sparsity,
}

impl Solver for SparseGpt {
    fn name(&self) -> &'static str {
        "sparsegpt"
    }

    fn needs_statistics(&self) -> bool {
        true
    }

    fn sparsity(&self) -> Option<Sparsity> {
        Some(self.sparsity)
    }

    fn settings(&self) -> Settings {
        Settings { together: self.sparsity.together(), ..Settings::default() }
    }

    fn solve(
        &self,
        w: ArrayView2<'_, f32>,
        factor: Option<&Factor<'_>>,
        encoding: &dyn GridEncoding,
    ) -> Result<Solution, Error> {
        let Some(factor) = factor else {
            return Err(Error::NoStatistics { solver: self.name() });
        };
        check_codes(w, Some(factor), self.sparsity, encoding)?;
        let judge = Judge::new(w, Some(factor));
        let plain = Wanda { sparsity: self.sparsity }.plainly(w, Some(factor), encoding, &judge);
        Ok(with_feedback(&judge, factor, encoding, plain, |feedback, grid| {
            let codes = grid.round(zero_with_feedback(w, feedback, self.sparsity, Some(&grid)).view());
            Fit { grid, codes }
        }))
    }

    fn solve_floats(
        &self,
        w: ArrayView2<'_, f32>,
        factor: Option<&Factor<'_>>,
    ) -> Result<Option<FloatSolution>, Error> {
        let Some(factor) = factor else {
            return Err(Error::NoStatistics { solver: self.name() });
        };
        check_floats(w, Some(factor), self.sparsity)?;
        let judge = Judge::new(w, Some(factor));
        let plain = zero_the_least(w, factor.importance(), self.sparsity);
        let facts = judge.facts(Some(factor), judge.relative_error(&plain));
        Ok(Some(match factor.feedback() {
            Err(refusal) => FloatSolution { weights: plain, facts: facts.without(refusal) },
            Ok(feedback) => {
                let weights = zero_with_feedback(w, feedback, self.sparsity, None);
                let relative_error = judge.relative_error(&weights);
                FloatSolution { weights, facts: Facts { relative_error, ..facts.after(feedback) } }
            }
        }))
    }
}

/// w `[out_features, in_features]` with zeros where they cost least, the other weights moved, and rounded to `grid` where there is one.
///
/// As in [`super::feedback`], the result does not depend on the number of threads.
fn zero_with_feedback(
    w: ArrayView2<'_, f32>,
    feedback: &Feedback,
    sparsity: Sparsity,
    grid: Option<&Grid>,
) -> Array2<f32> {
    let Feedback { order, upper, .. } = feedback;
    let grid = grid.map(ByGroup::new);
    // Row `j` of each array below is the column that comes j-th.
    let mut rest = gather_columns(w, order); // [in_features, out_features]
    let mut made = Array2::<f32>::zeros(rest.dim());
    for (start, panel) in upper.panels() {
        let end = start + panel.nrows();
        let (triangle, right) = panel.split_at(Axis(1), end - start);
        let (mut block, mut later) = rest.slice_mut(s![start.., ..]).split_at(Axis(0), end - start);
        let cut = Cut::of(sparsity, block.view(), triangle);
        block
            .axis_chunks_iter_mut(Axis(1), ROWS)
            .into_par_iter()
            .zip(made.slice_mut(s![start..end, ..]).axis_chunks_iter_mut(Axis(1), ROWS))
            .enumerate()
            .for_each(|(i, (block, made))| {
                let (columns, grid, first_row) = (&order[start..end], grid.as_ref(), i * ROWS);
                widest(ZeroBlock { block, made, triangle, columns, grid, cut, first_row });
            });
        // The block now holds its errors.
        general_mat_mul(-1.0, right.t(), block.view(), 1.0, later.view_mut());
    }
    let mut place = Array2::zeros(w.dim());
    order.iter().zip(made.outer_iter()).for_each(|(&col, made)| place.column_mut(col).assign(&made));
    place
}

/// Which weights of a block go.
#[derive(Clone, Copy)]
enum Cut {
    /// Of every so many columns so many.
    OfEvery { of: usize, zeros: usize },
    /// Those whose loss is at most this.
    AtMost(f32),
}

impl Cut {
    /// `block` `[columns, rows]` before any of its columns has come.
    fn of(sparsity: Sparsity, block: ArrayView2<'_, f32>, triangle: ArrayView2<'_, f32>) -> Self {
        let share = match sparsity {
            Sparsity::Pattern { kept, of } => return Self::OfEvery { of, zeros: of - kept },
            Sparsity::Share(share) => share,
        };
        let mut losses: Vec<f32> = Vec::with_capacity(block.len());
        for (j, weights) in block.outer_iter().enumerate() {
            losses.extend(weights.iter().map(|&w| loss(w, triangle[[j, j]])));
        }
        let zeros = (share * losses.len() as f64).round() as usize;
        match zeros.checked_sub(1) {
            Some(last) => Self::AtMost(*losses.select_nth_unstable_by(last, f32::total_cmp).1),
            None => Self::AtMost(-1.0),
        }
    }
}

/// What it costs to set a weight to 0.
#[inline(always)]
fn loss(weight: f32, pivot: f32) -> f32 {
    let error = weight / pivot;
    error * error
}

/// The columns of one block for some rows: decides what goes and leaves the errors in `block`.
struct ZeroBlock<'a> {
    block: ArrayViewMut2<'a, f32>, // [columns, rows]
    made: ArrayViewMut2<'a, f32>,  // [columns, rows]
    triangle: ArrayView2<'a, f32>, // [columns, columns]
    columns: &'a [usize],
    grid: Option<&'a ByGroup>,
    cut: Cut,
    first_row: usize,
}

impl Kernel for ZeroBlock<'_> {
    type Output = ();

    #[inline(always)]
    fn run(mut self) {
        let mut panel = Panel::load(self.block.view());
        let mut kept = vec![[true; ROWS]; self.columns.len()];
        if let Cut::AtMost(most) = self.cut {
            for (j, kept) in kept.iter_mut().enumerate() {
                for r in 0..ROWS {
                    kept[r] = loss(panel.0[j][r], self.triangle[[j, j]]) > most;
                }
            }
        }
        for (j, &col) in self.columns.iter().enumerate() {
            let pivot = self.triangle[[j, j]];
            if let Cut::OfEvery { of, zeros } = self.cut
                && j % of == 0
            {
                self.decide(&panel, &mut kept, j..j + of, zeros);
            }
            let x = panel.0[j];
            let mut values = x;
            if let Some(grid) = self.grid {
                let group = grid.rows(col, self.first_row);
                values = group.decode(&group.encode(&x));
            }
            let mut error = [0.0f32; ROWS];
            for r in 0..ROWS {
                values[r] = if kept[j][r] { values[r] } else { 0.0 };
                error[r] = (x[r] - values[r]) / pivot;
            }
            panel.pass_on(j, error, self.triangle);
            self.made.row_mut(j).iter_mut().zip(values).for_each(|(to, value)| *to = value);
        }
        panel.store(self.block.view_mut());
    }
}

impl ZeroBlock<'_> {
    /// Of the columns of a group the `zeros` of least loss do not stay; of equals the first goes.
    #[inline(always)]
    fn decide(&self, panel: &Panel, kept: &mut [[bool; ROWS]], group: std::ops::Range<usize>, zeros: usize) {
        for a in group.clone() {
            let mut rank = [0; ROWS];
            for b in group.clone() {
                for r in 0..ROWS {
                    let [own, other] = [a, b].map(|j| loss(panel.0[j][r], self.triangle[[j, j]]));
                    rank[r] += usize::from((other < own) | (b < a) & (other <= own));
                }
            }
            for r in 0..ROWS {
                kept[a][r] = rank[r] >= zeros;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::solver::Facts;
    use crate::{Encoding, IntEncoding, Statistics, encoding};

    fn sample(features: usize) -> (Array2<f32>, Statistics) {
        let wave = |a: usize, b: usize| ((a * 7919 + b * 104_729) % 1009) as f32 / 504.0 - 1.0;
        let x = Array2::from_shape_fn((900, features), |(t, c)| wave(t, c / 5) + 0.3 * wave(t + 77, c * 3));
        let w = Array2::from_shape_fn((70, features), |(r, c)| wave(r + 13, c + 5 * r));
        let mut statistics = Statistics::new(features);
        statistics.observe(x.view());
        (w, statistics)
    }

    fn factor(statistics: &Statistics, sparsity: Sparsity) -> Factor<'_> {
        Factor::new(statistics, SparseGpt { sparsity }.settings())
    }

    const TWO_OF_FOUR: Sparsity = Sparsity::Pattern { kept: 2, of: 4 };

    /// The algorithm as the paper has it, one weight after the other in f64.
    fn plainly(w: &Array2<f32>, feedback: &Feedback, sparsity: Sparsity) -> Array2<f64> {
        let (upper, order) = (feedback.upper.to_array().mapv(f64::from), &feedback.order);
        let mut rest = Array2::from_shape_fn(w.dim(), |(r, j)| f64::from(w[[r, order[j]]]));
        let loss = |rest: &Array2<f64>, r: usize, j: usize| (rest[[r, j]] / upper[[j, j]]).powi(2);
        let (rows, cols) = w.dim();
        let mut kept = Array2::from_elem(w.dim(), true);
        for j in 0..cols {
            match sparsity {
                Sparsity::Pattern { kept: stay, of } if j % of == 0 => {
                    for r in 0..rows {
                        let mut group: Vec<usize> = (j..j + of).collect();
                        group.sort_by(|&a, &b| loss(&rest, r, a).total_cmp(&loss(&rest, r, b)));
                        group[..of - stay].iter().for_each(|&j| kept[[r, j]] = false);
                    }
                }
                Sparsity::Share(share) if j % 128 == 0 => {
                    let cells = (j..cols.min(j + 128)).flat_map(|j| (0..rows).map(move |r| (r, j)));
                    let mut cells: Vec<_> = cells.collect();
                    cells.sort_by(|a, b| loss(&rest, a.0, a.1).total_cmp(&loss(&rest, b.0, b.1)));
                    let zeros = (share * cells.len() as f64).round() as usize;
                    cells[..zeros].iter().for_each(|&cell| kept[cell] = false);
                }
                _ => {}
            }
            for r in 0..rows {
                if kept[[r, j]] {
                    continue;
                }
                let error = rest[[r, j]] / upper[[j, j]];
                rest[[r, j]] = 0.0;
                (j + 1..cols).for_each(|k| rest[[r, k]] -= error * upper[[j, k]]);
            }
        }
        let mut placed = Array2::zeros(w.dim());
        order.iter().zip(rest.columns()).for_each(|(&col, made)| placed.column_mut(col).assign(&made));
        placed
    }

    #[test]
    fn zeros_and_what_makes_up_for_them_are_those_of_the_algorithm() {
        for (sparsity, features) in [(TWO_OF_FOUR, 320), (Sparsity::Share(0.5), 192)] {
            let (w, statistics) = sample(features);
            let factor = factor(&statistics, sparsity);
            let feedback = factor.feedback().expect("positive definite");
            let found = zero_with_feedback(w.view(), feedback, sparsity, None);
            let want = plainly(&w, feedback, sparsity);
            let other = found.iter().zip(&want).filter(|(a, b)| (**a == 0.0) != (**b == 0.0)).count();
            assert!(other * 1000 <= found.len(), "{sparsity}: {other} of {} decided otherwise", found.len());
            let off = (&found.mapv(f64::from) - &want).mapv(|x| x * x).sum() / want.mapv(|x| x * x).sum();
            assert!(off < 1e-4, "{sparsity}: {off:e}");
        }
    }

    #[test]
    fn a_pattern_holds_in_every_group_and_a_share_as_a_whole_and_feedback_pays() {
        for (sparsity, zeros) in
            [(TWO_OF_FOUR, 0.5), (Sparsity::Pattern { kept: 3, of: 8 }, 0.625), (Sparsity::Share(0.7), 0.7)]
        {
            let (w, statistics) = sample(256);
            let factor = factor(&statistics, sparsity);
            let made =
                SparseGpt { sparsity }.solve_floats(w.view(), Some(&factor)).expect("fits").expect("zeros");
            let share = made.weights.iter().filter(|w| **w == 0.0).count() as f64 / w.len() as f64;
            assert!((share - zeros).abs() < 0.005, "{sparsity}: {share}");
            if let Sparsity::Pattern { kept, of } = sparsity {
                for group in made.weights.as_slice().expect("standard layout").chunks(of) {
                    assert!(group.iter().filter(|w| **w != 0.0).count() <= kept, "{sparsity}: {group:?}");
                }
            }
            let Facts { relative_error, rtn_relative_error, .. } = made.facts;
            assert!(relative_error < 0.8 * rtn_relative_error, "{relative_error} for {rtn_relative_error}");
        }
    }

    #[test]
    fn zeros_stay_zeros_on_a_grid_and_a_format_without_a_zero_is_refused() {
        let (w, statistics) = sample(256);
        let factor = factor(&statistics, TWO_OF_FOUR);
        let solver = SparseGpt { sparsity: TWO_OF_FOUR };
        for grid in [IntEncoding::symmetric(4, 64), IntEncoding::asymmetric(4, 64)] {
            let made = solver.solve(w.view(), Some(&factor), &grid).expect("fits");
            assert_eq!(made.decoded, made.grid.decode_all(made.codes.view()), "{}", grid.name());
            for group in made.decoded.as_slice().expect("standard layout").chunks(4) {
                assert!(group.iter().filter(|w| **w != 0.0).count() <= 2, "{}: {group:?}", grid.name());
            }
            assert!(made.facts.relative_error < made.facts.rtn_relative_error, "{:?}", made.facts);
        }
        let q4_k = encoding("q4_k").expect("listed");
        let refused = solver.solve(w.view(), Some(&factor), q4_k.grid().expect("codes"));
        assert!(matches!(refused, Err(Error::NoZero { .. })));
    }
}
