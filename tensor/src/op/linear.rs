//! What a matrix that multiplies activations hands back: the gradients of `out = x @ w.T + bias`.
//!
//! Legend: x is `[tokens, in_features]`, w `[out_features, in_features]`, bias `[out_features]`, out and its gradient
//! `[tokens, out_features]`.

use crate::general_mat_mul;
use crate::lanes::dispatch;
use crate::op::{SUM_ROWS, add_in_order};
use ndarray::{ArrayView2, ArrayViewMut1, ArrayViewMut2};
use rayon::prelude::*;

/// `d_x += d_out @ w`.
///
/// # Panics
/// If the shapes do not fit.
pub fn input_backward(d_out: ArrayView2<'_, f32>, w: ArrayView2<'_, f32>, d_x: ArrayViewMut2<'_, f32>) {
    general_mat_mul(1.0, d_out, w, 1.0, d_x);
}

/// `d_w += d_out.T @ x`.
///
/// # Panics
/// If the shapes do not fit.
pub fn weight_backward(d_out: ArrayView2<'_, f32>, x: ArrayView2<'_, f32>, d_w: ArrayViewMut2<'_, f32>) {
    general_mat_mul(1.0, d_out.reversed_axes(), x, 1.0, d_w);
}

/// `d_bias += ` the sum of `d_out` over tokens.
///
/// # Panics
/// If the numbers of features differ.
pub fn bias_backward(d_out: ArrayView2<'_, f32>, d_bias: ArrayViewMut1<'_, f32>) {
    let features = d_out.ncols();
    assert_eq!(features, d_bias.len(), "a bias has one value per feature");
    let d_out = d_out.as_standard_layout();
    let rows = d_out.as_slice().unwrap_or_default();
    let sums: Vec<Vec<f32>> =
        rows.par_chunks(SUM_ROWS * features.max(1)).map(|rows| column_sums(rows, features)).collect();
    add_in_order(Some(d_bias), &sums);
}

fn column_sums(rows: &[f32], features: usize) -> Vec<f32> {
    let mut sums = vec![0.0; features];
    dispatch(
        #[inline(always)]
        || {
            for row in rows.chunks_exact(features) {
                sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
            }
        },
    );
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_gradients, bits, in_pools, random};
    use ndarray::{Array2, s};

    #[test]
    fn the_gradients_of_a_linear_layer_equal_finite_differences() {
        for (tokens, out_features, in_features) in [(7, 5, 9), (1, 3, 1), (150, 2, 3)] {
            let (x, w) = (random((tokens, in_features), 1), random((out_features, in_features), 2));
            let (bias, d_out) = (random((1, out_features), 3), random((tokens, out_features), 4));
            let (mut d_x, mut d_w) = (Array2::zeros(x.dim()), Array2::zeros(w.dim()));
            let mut d_bias = Array2::zeros(bias.dim());
            input_backward(d_out.view(), w.view(), d_x.view_mut());
            weight_backward(d_out.view(), x.view(), d_w.view_mut());
            bias_backward(d_out.view(), d_bias.row_mut(0));
            let found = [&d_x, &d_w, &d_bias];
            assert_gradients(&[&x, &w, &bias], &found, &d_out, |x| x[0].dot(&x[1].t()) + &x[2]);
        }
    }

    #[test]
    fn gradients_of_two_windows_add_up() {
        let (x, d_out) = (random((40, 6), 5), random((40, 3), 6));
        let sum_over = |cuts: &[usize]| {
            let (mut d_w, mut d_bias) = (Array2::<f32>::zeros((3, 6)), Array2::<f32>::zeros((1, 3)));
            for window in cuts.windows(2) {
                let rows = s![window[0]..window[1], ..];
                weight_backward(d_out.slice(rows), x.slice(rows), d_w.view_mut());
                bias_backward(d_out.slice(rows), d_bias.row_mut(0));
            }
            (d_w, d_bias)
        };
        let (whole, parts) = (sum_over(&[0, 40]), sum_over(&[0, 25, 40]));
        assert!((whole.0 - parts.0).iter().all(|x| x.abs() < 1e-5));
        assert!((whole.1 - parts.1).iter().all(|x| x.abs() < 1e-5));
    }

    #[test]
    fn threads_never_change_a_bit_of_a_linear_layers_gradients() {
        let (x, d_out) = (random((1100, 60), 7), random((1100, 90), 8));
        in_pools(|| {
            let (mut d_w, mut d_bias) = (Array2::zeros((90, 60)), Array2::zeros((1, 90)));
            weight_backward(d_out.view(), x.view(), d_w.view_mut());
            bias_backward(d_out.view(), d_bias.row_mut(0));
            [bits(&d_w), bits(&d_bias)]
        });
    }
}
