//! How codes are chosen on a grid.
//!
//! To add a solver, write one file beside the others and add one line to [`SOLVERS`].

mod descent;
mod device;
mod feedback;
mod gptq;
mod panel;
mod refit;
mod rtn;
mod runs;
mod sparse_gpt;
mod wanda;

use std::fmt;

use ndarray::{Array2, ArrayView2};

pub use self::device::{DeviceFactor, DeviceGptq, DeviceSolution, DeviceStatistics, Step};
pub use self::gptq::Gptq;
pub use self::rtn::Rtn;
pub use self::sparse_gpt::SparseGpt;
pub use self::wanda::Wanda;
use crate::factor::{Feedback, Refusal};
use crate::loss::energy;
use crate::{Codebook, Detail, Error, Factor, Fit, Grid, GridEncoding, Settings, Sparsity, Sums};

/// A way to choose the codes of a weight matrix.
pub trait Solver: Send + Sync + fmt::Debug {
    /// The name of the method: `rtn`, `gptq`.
    fn name(&self) -> &'static str;

    /// Whether it can do nothing without statistics of the inputs.
    fn needs_statistics(&self) -> bool;

    /// How much it reads of the statistics it is given.
    fn reads(&self) -> Detail {
        Detail::Gram
    }

    /// How the statistics become its metric.
    fn settings(&self) -> Settings {
        Settings::default()
    }

    /// How many weights it sets to 0.
    fn sparsity(&self) -> Option<Sparsity> {
        None
    }

    /// The same on a device, where there is such a thing.
    fn on_device(&self) -> Option<DeviceGptq> {
        None
    }

    /// Codes for `w`, `[out_features, in_features]`, on the grid `encoding` offers it.
    ///
    /// # Errors
    /// Where rows are not whole blocks, weights are not finite, statistics are missing or of another width.
    fn solve(
        &self,
        w: ArrayView2<'_, f32>,
        factor: Option<&Factor<'_>>,
        encoding: &dyn GridEncoding,
    ) -> Result<Solution, Error>;

    /// What becomes of `w`, `[out_features, in_features]`, where it stays floats; `None` where nothing does.
    ///
    /// # Errors
    /// As [`solve`](Self::solve).
    fn solve_floats(
        &self,
        w: ArrayView2<'_, f32>,
        factor: Option<&Factor<'_>>,
    ) -> Result<Option<FloatSolution>, Error> {
        let _ = (w, factor);
        Ok(None)
    }
}

/// Every solver, with its default parameters.
pub const SOLVERS: &[&dyn Solver] = &[&Rtn, &Gptq::DEFAULT];

/// The solver called `name`.
#[must_use]
pub fn solver(name: &str) -> Option<&'static dyn Solver> {
    SOLVERS.iter().copied().find(|solver| solver.name() == name)
}

/// A weight matrix solved: grid, codes, what they decode to, and what it cost.
#[derive(Debug, Clone)]
pub struct Solution {
    /// The values that could be chosen.
    pub grid: Grid,
    /// The choice, `[out_features, in_features]`.
    pub codes: Array2<u8>,
    /// What the reader of the file will get, `[out_features, in_features]`.
    pub decoded: Array2<f32>,
    /// What it cost.
    pub facts: Facts,
}

/// A weight matrix that stays floats, and what its new weights cost.
#[derive(Debug, Clone)]
pub struct FloatSolution {
    /// `[out_features, in_features]`.
    pub weights: Array2<f32>,
    /// What it cost.
    pub facts: Facts,
}

/// What the report says of one matrix.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    /// `tr(E H E^T) / tr(W H W^T)` with the Gram matrix as summed for H, or its diagonal where no more was asked for; the
    /// identity where there is neither.
    pub relative_error: f64,
    /// The same for the codes of `rtn` with the same importance; where weights are set to 0, for the zeros of `wanda`.
    pub rtn_relative_error: f64,
    /// `tr(W H W^T)` itself: what the errors of several parts of one matrix are weighed by.
    pub energy: f64,
    /// Tokens per column behind the statistics; `None` without.
    pub tokens_per_column: Option<f64>,
    /// Added to the Hessian's diagonal, in units of its mean; `None` where no feedback was used.
    pub damping: Option<f64>,
    /// Share of the Hessian replaced by its diagonal; `None` where no feedback was used.
    pub shrinkage: Option<f64>,
    /// Columns whose input was always 0: rounded to nearest, and outside all feedback.
    pub dead_columns: usize,
    /// Factorisations that failed, each followed by one with ten times the damping.
    pub retries: u32,
    /// Why the solver did less than its name says.
    pub fallback: Option<String>,
}

/// What all solvers refuse.
fn check(
    w: ArrayView2<'_, f32>,
    factor: Option<&Factor<'_>>,
    encoding: &dyn GridEncoding,
) -> Result<(), Error> {
    let in_features = w.ncols();
    encoding.check(in_features)?;
    check_numbers(w, factor)
}

/// What a solver that sets weights to 0 refuses of a matrix that stays floats.
fn check_floats(
    w: ArrayView2<'_, f32>,
    factor: Option<&Factor<'_>>,
    sparsity: Sparsity,
) -> Result<(), Error> {
    let in_features = w.ncols();
    if !in_features.is_multiple_of(sparsity.together()) {
        return Err(Error::PatternDoesNotDivide { in_features, sparsity });
    }
    check_numbers(w, factor)
}

/// What it refuses of one that becomes codes.
fn check_codes(
    w: ArrayView2<'_, f32>,
    factor: Option<&Factor<'_>>,
    sparsity: Sparsity,
    encoding: &dyn GridEncoding,
) -> Result<(), Error> {
    if !encoding.has_zero() {
        return Err(Error::NoZero { encoding: encoding.name() });
    }
    encoding.check(w.ncols())?;
    check_floats(w, factor, sparsity)
}

/// Weights and statistics that no solver takes.
fn check_numbers(w: ArrayView2<'_, f32>, factor: Option<&Factor<'_>>) -> Result<(), Error> {
    let in_features = w.ncols();
    let statistics = factor.map_or(in_features, |factor| factor.statistics().in_features());
    if statistics != in_features {
        return Err(Error::Features { statistics, in_features });
    }
    let mut bad = w.indexed_iter().filter(|(_, x)| !x.is_finite());
    if let Some(((row, col), _)) = bad.next() {
        return Err(Error::NotFinite { count: bad.count() + 1, total: w.len(), row, col });
    }
    Ok(())
}

/// Measures codes against the weights in the metric of the inputs, the identity where there are no statistics.
struct Judge<'a> {
    w: ArrayView2<'a, f32>,
    sums: Option<&'a Sums>,
    energy: f64, // tr(W H W^T)
}

impl<'a> Judge<'a> {
    fn new(w: ArrayView2<'a, f32>, factor: Option<&'a Factor<'_>>) -> Self {
        let sums =
            factor.filter(|factor| factor.importance().is_some()).map(|factor| &factor.statistics().sums);
        Self { w, sums, energy: energy(w, sums) }
    }

    /// [`Facts::relative_error`] of codes that decode to `decoded`.
    fn relative_error(&self, decoded: &Array2<f32>) -> f64 {
        share(energy((&self.w - decoded).view(), self.sums), self.energy)
    }

    /// The facts of what no feedback has touched.
    fn facts(&self, factor: Option<&Factor<'_>>, relative_error: f64) -> Facts {
        Facts::plain(factor, self.energy, relative_error)
    }
}

impl Facts {
    /// Of what no feedback has touched.
    fn plain(factor: Option<&Factor<'_>>, energy: f64, relative_error: f64) -> Self {
        Self {
            relative_error,
            rtn_relative_error: relative_error,
            energy,
            tokens_per_column: factor.map(|factor| factor.statistics().tokens_per_column()),
            damping: None,
            shrinkage: None,
            dead_columns: factor.map_or(0, Factor::dead_columns),
            retries: 0,
            fallback: None,
        }
    }

    /// With what the factor of a feedback took.
    fn after<U>(self, feedback: &Feedback<U>) -> Self {
        let Feedback { damping, shrinkage, retries, .. } = *feedback;
        Self { damping: Some(damping), shrinkage: Some(shrinkage), retries, ..self }
    }

    /// With why there was no feedback.
    fn without(self, refusal: &Refusal) -> Self {
        Self { retries: refusal.retries, fallback: Some(refusal.reason.clone()), ..self }
    }

    /// With why what feedback chose was not taken.
    fn in_vain(self, relative_error: f64) -> Self {
        Self { fallback: Some(format!("feedback left a relative error of {relative_error:e}")), ..self }
    }
}

/// The share of the weights' energy that an error has; weights that no input reaches lose nothing.
fn share(error: f64, energy: f64) -> f64 {
    if error == 0.0 { 0.0 } else { error / energy }
}

/// What `choose` makes of a matrix with error feedback, on a grid of its own where some input is next to nothing; `plain`, which knows
/// of none, where there is no feedback or it leaves more error.
fn with_feedback(
    judge: &Judge<'_>,
    factor: &Factor<'_>,
    encoding: &dyn GridEncoding,
    plain: Solution,
    choose: impl FnOnce(&Feedback, Grid) -> Fit,
) -> Solution {
    let facts = plain.facts.clone();
    let run = encoding.codebook().map_or(1, Codebook::run);
    let feedback = match factor.feedback_in_runs(run) {
        Ok(feedback) => feedback,
        Err(refusal) => return Solution { facts: facts.without(refusal), ..plain },
    };
    let grid = match factor.floored_importance() {
        Some(importance) => encoding.search(judge.w, Some(&importance)).grid,
        None => plain.grid.clone(),
    };
    let Fit { grid, codes } = choose(feedback, grid);
    let decoded = grid.decode_all(codes.view());
    let relative_error = judge.relative_error(&decoded);
    let facts = facts.after(feedback);
    if relative_error > facts.rtn_relative_error {
        return Solution { facts: facts.in_vain(relative_error), ..plain };
    }
    Solution { grid, codes, decoded, facts: Facts { relative_error, ..facts } }
}

/// The reference's own codes, what they decode to, and the facts: the whole of `rtn` and where `gptq` starts.
fn round_to_nearest(
    w: ArrayView2<'_, f32>,
    factor: Option<&Factor<'_>>,
    encoding: &dyn GridEncoding,
    judge: &Judge<'_>,
) -> Solution {
    let Fit { grid, codes } = encoding.search(w, factor.and_then(Factor::importance));
    let decoded = grid.decode_all(codes.view());
    let relative_error = judge.relative_error(&decoded);
    let facts = judge.facts(factor, relative_error);
    Solution { grid, codes, decoded, facts }
}
