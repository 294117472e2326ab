//! The columns that stay take over the work of those that go.
//!
//! Legend: w is `[out_features, in_features]`, h the Gram matrix of what it reads; k are the columns kept, s those dropped.

use crate::KeepList;
use attar_model::{cholesky_of_inverse, matmul};
use ndarray::{Array1, Array2, ArrayView2, Axis, s};

/// What is added to the diagonal of h, in units of its mean. Ten times more on each retry.
const DAMPING: f64 = 0.01;

/// Tries after the first.
const RETRIES: u32 = 3;

/// A matrix without some of its columns.
#[derive(Debug, Clone, PartialEq)]
pub struct Repaired {
    /// `[out_features, kept]`.
    pub weight: Array2<f32>,
    /// `tr(E H E') / tr(W H W')` of the error E that dropping the columns makes.
    pub error_dropped: f64,
    /// The same after the repair.
    pub error: f64,
    /// Why nothing was repaired, where columns go and nothing was.
    pub fallback: Option<String>,
}

/// Drops columns of w and lets the others make up for them as well as least squares can: `w_k + w_s h_sk h_kk^-1`, h damped.
///
/// With the damping in it the loss that is minimised is `tr(E H E') + d |change|^2`, which no change at all would not lower: the
/// error is never larger than without repair. Where nothing is dropped nothing changes, to the bit.
///
/// # Panics
/// If the shapes do not fit.
///
/// # Source
/// The closed form of Hassibi and Stork, "Second order derivatives for network pruning: Optimal Brain Surgeon" (1993), for
/// columns that go together.
pub fn repair(w: ArrayView2<'_, f32>, h: &Array2<f32>, keep: &KeepList) -> Repaired {
    assert_eq!(h.dim(), (w.ncols(), w.ncols()), "h must be square in in_features");
    assert_eq!(keep.of(), w.ncols(), "a list of the columns");
    let kept = w.select(Axis(1), keep.kept());
    if keep.is_all() {
        return Repaired { weight: kept, error_dropped: 0.0, error: 0.0, fallback: None };
    }
    let error_dropped = relative_error(w, h, keep, kept.view());
    let (weight, fallback) = match Inverse::of(h, keep) {
        Ok(inverse) => (inverse.repaired(w, h, keep), None),
        Err(reason) => (kept, Some(reason)),
    };
    let error = if fallback.is_some() { error_dropped } else { relative_error(w, h, keep, weight.view()) };
    Repaired { weight, error_dropped, error, fallback }
}

/// Drops columns and leaves the others as they are.
///
/// # Panics
/// As [`repair`].
pub fn drop_columns(w: ArrayView2<'_, f32>, h: &Array2<f32>, keep: &KeepList) -> Repaired {
    let weight = w.select(Axis(1), keep.kept());
    let error = if keep.is_all() { 0.0 } else { relative_error(w, h, keep, weight.view()) };
    Repaired { weight, error_dropped: error, error, fallback: None }
}

/// `tr(E H E') / tr(W H W')` of what is left of w, `[out_features, kept]`.
fn relative_error(
    w: ArrayView2<'_, f32>,
    h: &Array2<f32>,
    keep: &KeepList,
    left: ArrayView2<'_, f32>,
) -> f64 {
    let error = error(w, h, keep, left);
    if error == 0.0 { 0.0 } else { error / squared(w, h) }
}

/// `tr(E H E')` of the error E of what is left of w, `[out_features, kept]`.
pub(crate) fn error(
    w: ArrayView2<'_, f32>,
    h: &Array2<f32>,
    keep: &KeepList,
    left: ArrayView2<'_, f32>,
) -> f64 {
    let mut error = w.to_owned();
    for (&column, left) in keep.kept().iter().zip(left.columns()) {
        let mut to = error.column_mut(column);
        to -= &left;
    }
    squared(error.view(), h)
}

/// `tr(A H A')`.
fn squared(a: ArrayView2<'_, f32>, h: &Array2<f32>) -> f64 {
    let product = matmul(a, h.view());
    product.iter().zip(a.iter()).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum::<f64>().max(0.0)
}

/// The inverse of damped `h_kk` as `u' u`, u upper triangular, `[kept, kept]`.
pub(crate) struct Inverse(Array2<f32>);

impl Inverse {
    /// Of the columns of h that are kept; in words why there is none.
    pub(crate) fn of(h: &Array2<f32>, keep: &KeepList) -> Result<Self, String> {
        let mean = h.diag().iter().map(|&x| f64::from(x)).sum::<f64>() / h.nrows().max(1) as f64;
        if !(mean > 0.0 && mean.is_finite()) {
            return Err(format!("the mean square of its inputs is {mean}"));
        }
        let h_kk = h.select(Axis(0), keep.kept()).select(Axis(1), keep.kept());
        let mut damping = DAMPING;
        for _ in 0..=RETRIES {
            let mut damped = h_kk.clone();
            damped.diag_mut().mapv_inplace(|x| (f64::from(x) + damping * mean) as f32);
            match cholesky_of_inverse(&damped) {
                Ok(u) if u.iter().all(|x| x.is_finite()) => return Ok(Self(u)),
                _ => damping *= 10.0,
            }
        }
        Err(format!("the Gram matrix is not positive definite even with damping {}", damping / 10.0))
    }

    /// `w_k + w_s h_sk h_kk^-1`.
    pub(crate) fn repaired(&self, w: ArrayView2<'_, f32>, h: &Array2<f32>, keep: &KeepList) -> Array2<f32> {
        let dropped = keep.dropped();
        let h_sk = h.select(Axis(0), &dropped).select(Axis(1), keep.kept());
        let seen = matmul(w.select(Axis(1), &dropped).view(), h_sk.view());
        let change = matmul(matmul(seen.view(), self.0.t()).view(), self.0.view());
        w.select(Axis(1), keep.kept()) + change
    }

    /// The diagonal of the inverse, `[kept]`.
    pub(crate) fn diagonal(&self) -> Array1<f64> {
        let mut squares = Array1::zeros(self.0.ncols());
        for row in self.0.outer_iter() {
            squares.zip_mut_with(&row, |sum: &mut f64, &x| *sum += f64::from(x) * f64::from(x));
        }
        squares
    }

    /// A block on the diagonal of the inverse, `[features, features]`, from feature `start` on.
    pub(crate) fn block(&self, start: usize, features: usize) -> Array2<f32> {
        let u = self.0.slice(s![..start + features, start..start + features]);
        matmul(u.t(), u)
    }
}
