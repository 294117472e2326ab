use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView2, Axis};

use super::{FloatSolution, Judge, Solution, Solver, check_codes, check_floats};
use crate::{Detail, Error, Factor, GridEncoding, Sparsity};

/// The weights that count for least become 0, row by row, by their size times the root mean square of their input; the others stay
/// as they are, or go to the nearest value.
///
/// # Source
/// Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", arXiv:2306.11695, Algorithm 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Wanda {
    /// How many.
    pub sparsity: Sparsity,
}

impl Solver for Wanda {
    fn name(&self) -> &'static str {
        "wanda"
    }

    fn needs_statistics(&self) -> bool {
        true
    }

    fn reads(&self) -> Detail {
        Detail::Squares
    }

    fn sparsity(&self) -> Option<Sparsity> {
        Some(self.sparsity)
    }

    fn solve(
        &self,
        w: ArrayView2<'_, f32>,
        factor: Option<&Factor<'_>>,
        encoding: &dyn GridEncoding,
    ) -> Result<Solution, Error> {
        check_codes(w, factor, self.sparsity, encoding)?;
        Ok(self.plainly(w, factor, encoding, &Judge::new(w, factor)))
    }

    fn solve_floats(
        &self,
        w: ArrayView2<'_, f32>,
        factor: Option<&Factor<'_>>,
    ) -> Result<Option<FloatSolution>, Error> {
        check_floats(w, factor, self.sparsity)?;
        let weights = zero_the_least(w, factor.and_then(Factor::importance), self.sparsity);
        let judge = Judge::new(w, factor);
        let facts = judge.facts(factor, judge.relative_error(&weights));
        Ok(Some(FloatSolution { weights, facts }))
    }
}

impl Wanda {
    /// The nearest codes of what stays: the whole of it, and where `sparsegpt` starts.
    pub(super) fn plainly(
        self,
        w: ArrayView2<'_, f32>,
        factor: Option<&Factor<'_>>,
        encoding: &dyn GridEncoding,
        judge: &Judge<'_>,
    ) -> Solution {
        let importance = factor.and_then(Factor::importance);
        let grid = encoding.search(w, importance).grid;
        let codes = grid.round(zero_the_least(w, importance, self.sparsity).view());
        let decoded = grid.decode_all(codes.view());
        let facts = judge.facts(factor, judge.relative_error(&decoded));
        Solution { grid, codes, decoded, facts }
    }
}

/// w `[rows, cols]` with its least weights 0: of every group those of the smallest `|w| sqrt(importance)`, a group being a row or what a
/// pattern says. Of equals the first goes.
pub(super) fn zero_the_least(
    w: ArrayView2<'_, f32>,
    importance: Option<&[f32]>,
    sparsity: Sparsity,
) -> Array2<f32> {
    let (group, zeros) = match sparsity {
        Sparsity::Pattern { kept, of } => (of, of - kept),
        Sparsity::Share(share) => (w.ncols(), (share * w.ncols() as f64).round() as usize),
    };
    let mut sparse = w.to_owned();
    sparse.axis_iter_mut(Axis(0)).into_par_iter().for_each(|mut row| {
        let weighed =
            |(col, w): (usize, &f32)| (w.abs() * importance.map_or(1.0, |means| means[col].sqrt()), col);
        let mut columns: Vec<(f32, usize)> = row.iter().enumerate().map(weighed).collect();
        for columns in columns.chunks_mut(group.max(1)) {
            columns.sort_by(|a, b| a.0.total_cmp(&b.0));
            columns.iter().take(zeros).for_each(|&(_, col)| row[col] = 0.0);
        }
    });
    sparse
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn the_least_of_each_group_become_zero_counted_by_what_their_inputs_are() {
        let w = array![[1.0, -4.0, 3.0, 2.0, 5.0, 0.1, 0.2, -0.3]];
        let pattern = |kept, of| zero_the_least(w.view(), None, Sparsity::Pattern { kept, of });
        assert_eq!(pattern(2, 4), array![[0.0, -4.0, 3.0, 0.0, 5.0, 0.0, 0.0, -0.3]]);
        assert_eq!(pattern(1, 8), array![[0.0, 0.0, 0.0, 0.0, 5.0, 0.0, 0.0, 0.0]]);
        let heavy = [9.0, 0.01, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
        let sparse = zero_the_least(w.view(), Some(&heavy), Sparsity::Share(0.5));
        assert_eq!(sparse, array![[1.0, 0.0, 3.0, 2.0, 5.0, 0.0, 0.0, 0.0]]);
    }
}
