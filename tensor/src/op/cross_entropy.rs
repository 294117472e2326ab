//! How surprised a model is by the tokens that came.

use crate::exp::exp;
use crate::lanes::dispatch;
use crate::op::log_sum_exp::log_sum_exp;
use ndarray::parallel::prelude::*;
use ndarray::{ArrayView1, ArrayViewMut2, Axis};

/// The sum over tokens of `weight * -ln softmax(logits)[target]`; logits `[tokens, vocab_size]` become its gradient,
/// `weight * (softmax(logits) - one_hot(target))`.
///
/// A token of weight 0 has no target: what stands there is not read.
///
/// # Panics
/// If there are not as many targets and weights as rows, or a target is outside the vocabulary.
pub fn cross_entropy_backward(
    mut logits: ArrayViewMut2<'_, f32>,
    targets: &[u32],
    weights: ArrayView1<'_, f32>,
) -> f64 {
    assert!(targets.len() == logits.nrows() && weights.len() == logits.nrows(), "a target for each row");
    let rows = logits.axis_iter_mut(Axis(0)).into_par_iter().with_min_len(4);
    let losses: Vec<f64> = rows
        .zip(targets)
        .zip(weights.axis_iter(Axis(0)))
        .map(|((mut row, &target), weight)| {
            let weight = *weight.into_scalar();
            if weight == 0.0 {
                row.fill(0.0);
                return 0.0;
            }
            let (largest, rest) = log_sum_exp(row.view());
            let loss = rest - f64::from(row[target as usize] - largest);
            match row.as_slice_mut() {
                Some(row) => softmax_times(row, largest, rest, weight),
                None => row.mapv_inplace(|x| softmax_of(x, largest, rest, weight)),
            }
            row[target as usize] -= weight;
            f64::from(weight) * loss
        })
        .collect();
    losses.into_iter().sum()
}

/// `factor * e^(x - largest) / e^rest` over a row, in place.
pub(super) fn softmax_times(row: &mut [f32], largest: f32, rest: f64, factor: f32) {
    dispatch(
        #[inline(always)]
        || {
            let factor = factor * (-rest).exp() as f32;
            for x in row.iter_mut() {
                *x = exp(*x - largest) * factor;
            }
        },
    );
}

fn softmax_of(x: f32, largest: f32, rest: f64, factor: f32) -> f32 {
    exp(x - largest) * (factor * (-rest).exp() as f32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_gradients, bits, in_pools, random};
    use ndarray::{Array1, Array2, array};

    #[test]
    fn the_gradient_of_cross_entropy_equals_finite_differences() {
        let logits = random((5, 23), 1) * 6.0;
        let (targets, weights) = ([3, 0, 22, 3, 9], array![0.5f32, 2.0, 0.0, -1.0, 0.25]);
        let mut gradient = logits.clone();
        let loss = cross_entropy_backward(gradient.view_mut(), &targets, weights.view());
        let by_definition = |x: &Array2<f64>| -> f64 {
            let of_row = |row: usize| {
                let total: f64 = x.row(row).iter().map(|x| x.exp()).sum();
                f64::from(weights[row]) * (total.ln() - x[[row, targets[row] as usize]])
            };
            (0..5).map(of_row).sum()
        };
        assert!((loss - by_definition(&logits.mapv(f64::from))).abs() < 1e-5);
        assert_gradients(&[&logits], &[&gradient], &array![[1.0]], |x| array![[by_definition(&x[0])]]);
    }

    #[test]
    fn a_tokens_gradients_add_up_to_zero_however_large_its_logits() {
        let mut logits = random((3, 500), 2) * 50.0 + 3e4;
        cross_entropy_backward(logits.view_mut(), &[0, 7, 499], Array1::ones(3).view());
        assert!(logits.outer_iter().all(|row| row.sum().abs() < 1e-5));
    }

    #[test]
    fn strides_and_threads_never_change_a_bit_of_cross_entropy() {
        let logits = random((100, 300), 3);
        let targets: Vec<u32> = (0..100).collect();
        let weights = random((1, 100), 4);
        let run = |mut gradient: Array2<f32>| {
            let loss = cross_entropy_backward(gradient.view_mut(), &targets, weights.row(0));
            (loss.to_bits(), bits(&gradient))
        };
        let plain = in_pools(|| run(logits.clone()));
        assert!(plain == run(logits.t().as_standard_layout().into_owned().reversed_axes()));
    }
}
