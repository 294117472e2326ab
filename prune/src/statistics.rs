//! What is known of an activation that columns are pruned by.

use attar_model::gram_add;
use ndarray::{Array1, Array2, ArrayView2, Axis};
use rayon::prelude::*;

/// What the calibration text says of an activation whose features are dropped in units: a channel is one feature, a head several.
///
/// Windows are observed in order; a window's sums do not depend on those beside it.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    /// `sum x x^T` over tokens, `[features, features]`, symmetric.
    pub gram: Array2<f32>,
    /// The sum over tokens, `[features]`.
    pub sum: Array1<f64>,
    /// For each unit the sum over windows of the squared mean of its length over a window's tokens, `[units]`.
    pub levels: Array1<f64>,
    /// Tokens summed.
    pub tokens: u64,
    unit: usize,
}

impl Statistics {
    /// Of no tokens yet; `units` units of `unit` features each.
    pub fn new(units: usize, unit: usize) -> Self {
        let features = units * unit;
        Self {
            gram: Array2::zeros((features, features)),
            sum: Array1::zeros(features),
            levels: Array1::zeros(units),
            tokens: 0,
            unit,
        }
    }

    /// Adds the tokens of `x`, `[tokens, features]`, in whole windows of `ctx` tokens.
    ///
    /// # Panics
    /// If `x` has another number of features, or is not whole windows.
    pub fn observe(&mut self, x: ArrayView2<'_, f32>, ctx: usize) {
        assert_eq!(x.ncols(), self.features(), "activations and statistics must have the same features");
        assert!(x.nrows().is_multiple_of(ctx), "{} tokens are not windows of {ctx}", x.nrows());
        gram_add(x, &mut self.gram);
        let windows: Vec<_> = x.axis_chunks_iter(Axis(0), ctx).collect();
        for (sum, means) in windows.into_par_iter().map(|x| of_window(x, self.unit)).collect::<Vec<_>>() {
            self.sum += &sum;
            self.levels += &means.mapv(|mean| mean * mean);
        }
        self.tokens += x.nrows() as u64;
    }

    /// Features of the activation.
    pub fn features(&self) -> usize {
        self.gram.nrows()
    }

    /// Features of a unit.
    pub fn unit(&self) -> usize {
        self.unit
    }

    /// Units of the activation.
    pub fn units(&self) -> usize {
        self.levels.len()
    }

    /// The variance of each feature over tokens, `[features]`.
    pub fn variance(&self) -> Array1<f64> {
        let tokens = self.tokens.max(1) as f64;
        let mut variance = self.gram.diag().mapv(f64::from) / tokens;
        variance.zip_mut_with(&self.sum, |square, sum| *square = (*square - (sum / tokens).powi(2)).max(0.0));
        variance
    }

    /// Whether every sum is a finite number.
    pub fn is_finite(&self) -> bool {
        self.sum.iter().all(|x| x.is_finite())
            && self.gram.axis_iter(Axis(0)).into_par_iter().all(|row| row.iter().all(|x| x.is_finite()))
    }
}

/// Sums over a window's tokens of each feature, and means of each unit's length.
fn of_window(x: ArrayView2<'_, f32>, unit: usize) -> (Array1<f64>, Array1<f64>) {
    let mut sum = Array1::zeros(x.ncols());
    let mut lengths = Array1::zeros(x.ncols() / unit);
    for row in x.outer_iter() {
        sum.zip_mut_with(&row, |sum: &mut f64, &x| *sum += f64::from(x));
        for (length, part) in lengths.iter_mut().zip(row.axis_chunks_iter(Axis(0), unit)) {
            *length += part.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
        }
    }
    (sum, lengths / x.nrows().max(1) as f64)
}
