use std::convert::Infallible;
use std::sync::OnceLock;

use attar_tensor::{NotPositiveDefinite, UpperTriangle, cholesky_of_inverse_by_rows};
use ndarray::parallel::prelude::*;
use ndarray::{Array1, Array2, ArrayView1, Axis};

use crate::Statistics;

/// How statistics become a metric that error feedback can trust.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// How far the Hessian is drawn toward its own diagonal, 0 to 1; `None` chooses by [`shrinkage_for`].
    pub shrinkage: Option<f64>,
    /// Added to the diagonal, in units of its mean. Ten times more on each retry.
    pub damping: f64,
    /// Consecutive columns that come together in the order; 1 where each comes on its own.
    pub together: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { shrinkage: None, damping: 0.01, together: 1 }
    }
}

/// Tries after the first, each with ten times the damping, before feedback is given up.
const RETRIES: u32 = 2;

/// The share of the Hessian that is replaced by its own diagonal: `2 / (2 + T)` for `T` tokens per column, at most 1/2.
///
/// The off-diagonals of a Gram matrix of `t` tokens carry sampling noise whose share falls as `n / t`, so what is
/// drawn back should fall likewise: a half below two tokens per column, where feedback on the raw matrix does harm; a
/// fifth at 8, a tenth at 18, which is about where measurements on small models put the optimum; and 0.4 % at 500.
/// There is no lower bound: with ample tokens any shrinkage left over only costs (0.5 costs 15 to 50 % of
/// the divergence), and keeping the factorisation sound is the damping's work.
#[must_use]
pub fn shrinkage_for(tokens_per_column: f64) -> f64 {
    (2.0 / (2.0 + tokens_per_column)).min(0.5)
}

/// What is prepared once from the [`Statistics`] of an input and serves all weights that read it.
///
/// Factoring costs `2/3 n^3` and happens when the first solver asks, then never again.
#[derive(Debug)]
pub struct Factor<'a> {
    statistics: &'a Statistics,
    settings: Settings,
    importance: Vec<f32>,
    dead_columns: usize,
    feedback: OnceLock<Result<Feedback, Refusal>>,
    feedback_in_runs: OnceLock<Result<Feedback, Refusal>>,
}

/// Columns that come together where codes are chosen in runs: the longest run of any codebook.
const RUN: usize = 8;

/// What error feedback needs: the order of columns and the triangle that spreads errors, here or on a device.
#[derive(Debug)]
pub struct Feedback<U = UpperTriangle> {
    /// Columns, or groups of them, by falling diagonal of the Hessian; equal ones as they stand.
    pub order: Vec<usize>,
    /// U, upper triangular, with `U^T U` the inverse of the Hessian in that order, `[in_features, in_features]`.
    pub upper: U,
    /// The damping that made it positive definite.
    pub damping: f64,
    /// The shrinkage applied.
    pub shrinkage: f64,
    /// Tries before that.
    pub retries: u32,
}

/// Why there is no feedback.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    /// In words, for the report.
    pub reason: String,
    /// Tries made.
    pub retries: u32,
}

impl<'a> Factor<'a> {
    /// Prepares the statistics of one input.
    #[must_use]
    pub fn new(statistics: &'a Statistics, settings: Settings) -> Self {
        let importance = statistics.importance();
        let dead_columns = importance.iter().filter(|&&mean| mean == 0.0).count();
        Self {
            statistics,
            settings,
            importance,
            dead_columns,
            feedback: OnceLock::new(),
            feedback_in_runs: OnceLock::new(),
        }
    }

    /// The statistics it was made from.
    #[must_use]
    pub fn statistics(&self) -> &Statistics {
        self.statistics
    }

    /// The mean square of each input; `None` where no token was seen or a sum is not finite.
    #[must_use]
    pub fn importance(&self) -> Option<&[f32]> {
        (self.statistics.tokens > 0 && self.importance.iter().all(|mean| mean.is_finite()))
            .then_some(self.importance.as_slice())
    }

    /// The importance with a floor at a ten-thousandth of its mean, so that a group no input reaches still gets a
    /// scale; `None` where that changes nothing.
    pub(crate) fn floored_importance(&self) -> Option<Vec<f32>> {
        let importance = self.importance()?;
        let mean = importance.iter().map(|&mean| f64::from(mean)).sum::<f64>() / importance.len() as f64;
        let floor = (1e-4 * mean) as f32;
        importance
            .iter()
            .any(|&mean| mean < floor)
            .then(|| importance.iter().map(|mean| mean.max(floor)).collect())
    }

    /// Columns that come together in the order.
    pub(crate) fn together(&self) -> usize {
        self.settings.together
    }

    /// The Hessian that `feedback` was made from, columns as in the weight.
    pub(crate) fn metric(&self, feedback: &Feedback) -> Metric<'_> {
        let Some(gram) = self.statistics.gram() else { unreachable!("feedback is made from a Gram matrix") };
        let (scale, diagonal) = self.scale_and_diagonal(feedback);
        Metric { gram, scale, diagonal }
    }

    /// Columns whose input was always 0.
    #[must_use]
    pub fn dead_columns(&self) -> usize {
        self.dead_columns
    }

    /// Order and triangle, made on the first call.
    ///
    /// # Errors
    /// With the reason where the Gram matrix is not finite, empty, or not positive definite after all retries.
    pub fn feedback(&self) -> Result<&Feedback, &Refusal> {
        self.feedback.get_or_init(|| self.factorise(self.settings.together)).as_ref()
    }

    /// The same with whole runs of `run` columns together, where codes are chosen so.
    pub(crate) fn feedback_in_runs(&self, run: usize) -> Result<&Feedback, &Refusal> {
        if self.settings.together.is_multiple_of(run) {
            return self.feedback();
        }
        self.feedback_in_runs.get_or_init(|| self.factorise(self.settings.together.max(RUN))).as_ref()
    }

    fn factorise(&self, together: usize) -> Result<Feedback, Refusal> {
        let refuse = |reason: &str| Err(Refusal { reason: reason.to_owned(), retries: 0 });
        let Some(gram) = self.statistics.gram() else {
            return refuse(if self.statistics.tokens == 0 {
                NO_TOKEN
            } else {
                "only the squares of the inputs were summed"
            });
        };
        let is_finite =
            || gram.axis_iter(Axis(0)).into_par_iter().all(|row| row.iter().all(|x| x.is_finite()));
        let found = self.factorise_by(
            together,
            || Ok::<_, Infallible>(is_finite()),
            |order, Damped { mean, shrinkage, damping }| {
                // A factor of inputs that hardly vary can overflow without a bad pivot.
                let upper = factor_of(gram, order, mean, shrinkage, damping).ok();
                Ok(upper.filter(UpperTriangle::is_finite))
            },
        );
        found.unwrap_or_else(|never| match never {})
    }

    /// Order and triangle by way of `factor`, which gives none where the damped matrix is not positive definite; it and
    /// `is_finite`, of the Gram matrix, may fail for reasons of their own.
    pub(crate) fn factorise_by<U, E>(
        &self,
        together: usize,
        is_finite: impl FnOnce() -> Result<bool, E>,
        mut factor: impl FnMut(&[usize], Damped) -> Result<Option<U>, E>,
    ) -> Result<Result<Feedback<U>, Refusal>, E> {
        let refuse = |reason: &str| Ok(Err(Refusal { reason: reason.to_owned(), retries: 0 }));
        if self.statistics.tokens == 0 {
            return refuse(NO_TOKEN);
        }
        if !is_finite()? {
            return refuse("the Gram matrix is not finite");
        }
        let squares = self.statistics.sums.squares();
        let mean = mean_of(squares);
        if mean <= 0.0 {
            return refuse("every input was 0");
        }
        let order = falling(squares, together);
        let shrinkage =
            self.settings.shrinkage.unwrap_or_else(|| shrinkage_for(self.statistics.tokens_per_column()));
        let mut damping = self.settings.damping;
        for retries in 0..=RETRIES {
            match factor(&order, Damped { mean, shrinkage, damping })? {
                Some(upper) => return Ok(Ok(Feedback { order, upper, damping, shrinkage, retries })),
                None => damping *= 10.0,
            }
        }
        let reason = format!("the Hessian is not positive definite even with damping {}", damping / 10.0);
        Ok(Err(Refusal { reason, retries: RETRIES }))
    }

    /// What the Hessian of a feedback adds to the Gram matrix, and the factor of that: `(scale, diagonal)`.
    pub(crate) fn scale_and_diagonal<U>(&self, feedback: &Feedback<U>) -> (f32, Array1<f32>) {
        let squares = self.statistics.sums.squares();
        let mean = mean_of(squares);
        let diagonal = squares.mapv(|h| (feedback.shrinkage * f64::from(h) / mean + feedback.damping) as f32);
        (((1.0 - feedback.shrinkage) / mean) as f32, diagonal)
    }
}

/// Why there is no feedback without text.
const NO_TOKEN: &str = "no token reached this input";

/// How a Gram matrix becomes the Hessian that is factored.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Damped {
    /// The mean of the diagonal, the unit of all else.
    pub mean: f64,
    pub shrinkage: f64,
    pub damping: f64,
}

/// Columns by falling diagonal, so many at a time by the sum of theirs.
fn falling(diagonal: ArrayView1<'_, f32>, together: usize) -> Vec<usize> {
    let columns: Vec<usize> = (0..diagonal.len()).collect();
    let mut groups: Vec<&[usize]> = columns.chunks(together).collect();
    let sum = |group: &[usize]| group.iter().map(|&col| diagonal[col]).sum::<f32>();
    groups.sort_by(|a, b| sum(b).total_cmp(&sum(a)));
    groups.concat()
}

/// The factor of the inverse of a Gram matrix with rows and columns in `order`, in units of its mean diagonal, shrunk and damped.
fn factor_of(
    gram: &Array2<f32>,
    order: &[usize],
    mean: f64,
    shrinkage: f64,
    damping: f64,
) -> Result<UpperTriangle, NotPositiveDefinite> {
    let off_diagonal = ((1.0 - shrinkage) / mean) as f32;
    cholesky_of_inverse_by_rows(order.len(), |i, row| {
        let from = gram.row(order[i]);
        row.iter_mut().zip(&order[i..]).for_each(|(to, &col)| *to = from[col] * off_diagonal);
        row[0] = (f64::from(from[order[i]]) / mean + damping) as f32;
    })
}

/// A Hessian as a Gram matrix and a diagonal: `scale * gram + diagonal`.
pub(crate) struct Metric<'a> {
    pub gram: &'a Array2<f32>, // [in_features, in_features]
    pub scale: f32,
    pub diagonal: Array1<f32>, // [in_features]
}

fn mean_of(squares: ArrayView1<'_, f32>) -> f64 {
    squares.iter().map(|&h| f64::from(h)).sum::<f64>() / squares.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Detail, Sums};
    use ndarray::array;

    fn summed(gram: Array2<f32>, tokens: u64) -> Statistics {
        Statistics { sums: Sums::Gram(gram), tokens }
    }

    #[test]
    fn squares_alone_make_an_importance_and_no_feedback() {
        let mut statistics = Statistics::with(Detail::Squares, 2);
        statistics.observe(array![[1.0, -2.0], [3.0, 0.0]].view());
        let factor = Factor::new(&statistics, Settings::default());
        assert_eq!(factor.importance(), Some([5.0, 2.0].as_slice()));
        let refusal = factor.feedback().err().map(|refusal| refusal.reason.as_str());
        assert_eq!(refusal, Some("only the squares of the inputs were summed"));
    }

    #[test]
    fn shrinkage_falls_with_tokens_and_has_no_floor() {
        for (tokens_per_column, want) in [(0.0, 0.5), (2.0, 0.5), (8.0, 0.2)] {
            assert!((shrinkage_for(tokens_per_column) - want).abs() < 1e-12, "{tokens_per_column}");
        }
        assert!(shrinkage_for(2000.0) < 0.001);
    }

    #[test]
    fn a_gram_matrix_that_is_not_finite_is_refused_in_words() {
        let statistics = summed(array![[1.0, f32::NAN], [f32::NAN, 1.0]], 4);
        let factor = Factor::new(&statistics, Settings::default());
        assert_eq!(factor.feedback().err().map(|r| r.reason.as_str()), Some("the Gram matrix is not finite"));
    }

    #[test]
    fn damping_grows_until_the_hessian_is_positive_definite_and_the_retries_are_recorded() {
        // No Gram matrix: an off-diagonal larger than its diagonals, as rounding can make of two equal inputs.
        let statistics = summed(array![[1.0, 1.05], [1.05, 1.0]], 1 << 20);
        let factor = Factor::new(&statistics, Settings { shrinkage: Some(0.0), ..Settings::default() });
        let feedback = factor.feedback().map_err(Clone::clone);
        assert_eq!(feedback.map(|f| (f.retries, f.damping)), Ok((1, 0.1)));
    }

    #[test]
    fn what_stays_indefinite_is_refused_after_all_retries() {
        let statistics = summed(array![[1.0, 9.0], [9.0, 1.0]], 1 << 20);
        let factor = Factor::new(&statistics, Settings { shrinkage: Some(0.0), ..Settings::default() });
        assert_eq!(factor.feedback().err().map(|r| r.retries), Some(RETRIES));
    }

    #[test]
    fn columns_come_by_falling_diagonal_and_ties_as_they_stand() {
        let statistics = summed(Array2::from_diag(&array![1.0, 5.0, 1.0, 7.0]), 64);
        let factor = Factor::new(&statistics, Settings::default());
        assert_eq!(factor.feedback().map(|f| f.order.as_slice()), Ok([3, 1, 0, 2].as_slice()));
    }
}
