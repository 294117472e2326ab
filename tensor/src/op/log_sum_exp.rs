//! The logarithm of a softmax's denominator.

use crate::exp::exp;
use crate::lanes::{dispatch, fold, max};
use ndarray::ArrayView1;

/// `ln(sum(e^x))` of one row of logits, as `(largest logit, ln of the sum of e^(x - largest))`: the log-probability of
/// token t is `(x[t] - largest) - rest`.
///
/// Differences and exponentials are f32, their sum is f64, as llama-perplexity computes them.
pub fn log_sum_exp(logits: ArrayView1<'_, f32>) -> (f32, f64) {
    let logits = logits.as_standard_layout();
    logits.as_slice().map_or((f32::NEG_INFINITY, f64::NEG_INFINITY), |logits| {
        dispatch(
            #[inline(always)]
            || {
                let largest = max(logits);
                (largest, sum_of_exp(logits, largest).ln())
            },
        )
    })
}

#[inline(always)]
fn sum_of_exp(logits: &[f32], largest: f32) -> f64 {
    let mut lanes = [0.0f64; 16];
    let (chunks, rest) = logits.as_chunks::<16>();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(exp(x - largest));
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane += f64::from(exp(x - largest));
    }
    fold(lanes, |a, b| a + b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::random;

    #[test]
    fn a_log_sum_exp_equals_its_definition() {
        for len in [1usize, 15, 100, 4099] {
            let logits = random((1, len), len as u64) * 30.0;
            let (largest, rest) = log_sum_exp(logits.row(0));
            let truth: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
            assert!(
                (f64::from(largest) + rest - truth).abs() < 1e-6,
                "{largest} + {rest} instead of {truth}"
            );
        }
    }

    #[test]
    fn probabilities_add_up_to_one_however_large_the_logits() {
        let logits = random((1, 500), 1) * 50.0 + 3e4;
        let (largest, rest) = log_sum_exp(logits.row(0));
        let total: f64 = logits.iter().map(|&x| (f64::from(x - largest) - rest).exp()).sum();
        assert!((total - 1.0).abs() < 1e-6, "{total}");
    }
}
