//! Weights made to do with the inputs they get what they did with those they were trained on.

use attar_tensor::{UpperTriangle, cholesky_of_inverse_by_rows, general_mat_mul, matmul};
use ndarray::{Array2, ArrayView2, s};

use crate::factor::Refusal;
use crate::{Statistics, Sums};

/// How far the inputs of a weight are from those of the model as it was, summed over tokens: y are the inputs now, x were they.
#[derive(Debug, Clone, PartialEq)]
pub struct Drift {
    inputs: Array2<f32>,          // sum (x - y) y^T, [in_features, in_features]
    outputs: Option<Array2<f32>>, // sum r y^T, [out_features, in_features]
}

impl Drift {
    /// Of no tokens yet. `out_features` are those of a weight whose output makes up for more than its own inputs.
    #[must_use]
    pub fn new(in_features: usize, out_features: Option<usize>) -> Self {
        Self {
            inputs: Array2::zeros((in_features, in_features)),
            outputs: out_features.map(|out_features| Array2::zeros((out_features, in_features))),
        }
    }

    /// Adds tokens: inputs as they were and as they are now, `[tokens, in_features]`, and what the output is to have besides, `[tokens, out_features]`, where
    /// that is wanted.
    ///
    /// # Panics
    /// Where shapes do not go together.
    pub fn observe(
        &mut self,
        was: ArrayView2<'_, f32>,
        now: ArrayView2<'_, f32>,
        lost: Option<ArrayView2<'_, f32>>,
    ) {
        let off = &was - &now;
        general_mat_mul(1.0, off.t(), now, 1.0, self.inputs.view_mut());
        if let Some(sums) = &mut self.outputs {
            let lost = lost.expect("an output that makes up for more is shown what that is");
            general_mat_mul(1.0, lost.t(), now, 1.0, sums.view_mut());
        }
    }
}

/// What is added to weights: the ridge regression of the outputs they had on the inputs they get.
///
/// # Source
/// The least-squares target of Qronos (arXiv:2505.11695) for all columns at once, drawn toward the weight by a ridge of its
/// inputs' squares: `W* = W + (W K + R) (H + lambda diag H)^-1` with `H = sum y y^T`, `K = sum (x - y) y^T`, `R = sum r y^T`.
#[derive(Debug)]
pub struct Correction {
    by_weight: Array2<f32>,        // K (H + lambda diag H)^-1, [in_features, in_features]
    constant: Option<Array2<f32>>, // R (H + lambda diag H)^-1, [out_features, in_features]
}

/// The ridge, in units of the diagonal, for `T` tokens per column.
///
/// What is regressed on few tokens fits their noise, so that the ridge must grow as they fall: 0.01 with ample text, a tenth
/// at 16 tokens per column.
#[must_use]
pub fn ridge_for(tokens_per_column: f64) -> f64 {
    0.01 + 1.5 / tokens_per_column.max(1.0)
}

impl Correction {
    /// From the statistics of the inputs now and their drift.
    ///
    /// # Errors
    /// With the reason where nothing can be regressed on the inputs.
    pub fn new(statistics: &Statistics, drift: &Drift, ridge: f64) -> Result<Self, Refusal> {
        let refuse = |reason: &str| Err(Refusal { reason: reason.to_owned(), retries: 0 });
        let Sums::Gram(gram) = &statistics.sums else {
            return refuse("only the squares of the inputs were summed");
        };
        let mean = gram.diag().iter().map(|&h| f64::from(h)).sum::<f64>() / gram.nrows().max(1) as f64;
        if !(mean > 0.0 && mean.is_finite()) {
            return refuse("no input, or one that is not finite");
        }
        // Columns that no input reaches get a diagonal that keeps the rest regular.
        let floor = (1e-6 * mean) as f32;
        let factor = cholesky_of_inverse_by_rows(gram.nrows(), |i, row| {
            row.iter_mut().zip(gram.slice(s![i, i..])).for_each(|(to, &h)| *to = h);
            row[0] = row[0] * (1.0 + ridge as f32) + floor;
        });
        let Some(upper) = factor.ok().filter(UpperTriangle::is_finite).map(|upper| upper.to_array()) else {
            return refuse("the inputs are too much alike to be regressed on");
        };
        let times_inverse = |sums: &Array2<f32>| matmul(matmul(sums.view(), upper.t()).view(), upper.view());
        Ok(Self {
            by_weight: times_inverse(&drift.inputs),
            constant: drift.outputs.as_ref().map(times_inverse),
        })
    }

    /// Rows of a weight, the first of them row `first`, as they should be: `[rows, in_features]`.
    ///
    /// # Panics
    /// Where the weight is of another shape.
    #[must_use]
    pub fn corrected(&self, w: ArrayView2<'_, f32>, first: usize) -> Array2<f32> {
        let mut corrected = w.to_owned();
        general_mat_mul(1.0, w, self.by_weight.view(), 1.0, corrected.view_mut());
        if let Some(constant) = &self.constant {
            corrected += &constant.slice(s![first..first + w.nrows(), ..]);
        }
        corrected
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(shape: (usize, usize), seed: u32) -> Array2<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
        Array2::from_shape_simple_fn(shape, || {
            (0..4)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 8) as f32 / 16_777_216.0 - 0.5
                })
                .sum()
        })
    }

    fn corrected(
        w: &Array2<f32>,
        was: &Array2<f32>,
        now: &Array2<f32>,
        lost: Option<&Array2<f32>>,
        ridge: f64,
    ) -> Array2<f32> {
        let mut statistics = Statistics::new(w.ncols());
        statistics.observe(now.view());
        let mut drift = Drift::new(w.ncols(), lost.map(|_| w.nrows()));
        drift.observe(was.view(), now.view(), lost.map(|lost| lost.view()));
        Correction::new(&statistics, &drift, ridge).expect("positive definite").corrected(w.view(), 0)
    }

    fn squared(x: &Array2<f32>) -> f64 {
        x.iter().map(|&x| f64::from(x).powi(2)).sum()
    }

    #[test]
    fn inputs_that_stay_leave_the_weight_as_it_is() {
        let (w, x) = (normal((5, 24), 1), normal((200, 24), 2));
        assert_eq!(corrected(&w, &x, &x, None, 0.01), w);
    }

    #[test]
    fn inputs_mixed_by_a_matrix_are_unmixed() {
        let (w, x) = (normal((5, 12), 3), normal((400, 12), 4));
        let mixing = Array2::eye(12) + 0.2 * normal((12, 12), 5);
        let now = x.dot(&mixing);
        let made = now.dot(&corrected(&w, &x, &now, None, 0.0).t());
        let want = x.dot(&w.t());
        assert!(squared(&(&made - &want)) < 1e-6 * squared(&want));
    }

    #[test]
    fn outputs_come_nearer_to_what_they_were_with_what_is_lost_besides() {
        let (w, x) = (normal((6, 16), 6), normal((500, 16), 7));
        let now = &x + 0.1 * normal((500, 16), 8);
        let lost = now.dot(&normal((16, 6), 9)) * 0.05;
        let want = x.dot(&w.t()) + &lost;
        let off = |w: &Array2<f32>| squared(&(now.dot(&w.t()) - &want));
        assert!(off(&corrected(&w, &x, &now, Some(&lost), 0.01)) < 0.8 * off(&w));
    }
}
