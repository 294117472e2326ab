//! Perplexity, so computed that it agrees with llama-perplexity's in every digit that one prints.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::softmax::Partition;

/// exp of the mean negative log-likelihood per token, with its standard error.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Perplexity {
    /// The perplexity.
    pub value: f64,
    /// Standard error of `value`, carried over from that of the mean loss.
    pub stderr: f64,
}

impl Perplexity {
    /// Of the tokens' negative log-likelihoods, in nats.
    ///
    /// # Panics
    /// Where there is no token.
    ///
    /// # Source
    /// llama.cpp `llama-perplexity`: the variance is that of all tokens as one population, the
    /// error of the mean divides it by `count - 1`.
    pub fn of(nll: &[f64]) -> Self {
        let (mean, stderr) = mean_and_stderr(nll);
        let value = mean.exp();
        Self { value, stderr: value * stderr }
    }
}

/// The mean of `values` and its standard error, 0 where there is one value only.
///
/// # Panics
/// Where there is no value.
pub(crate) fn mean_and_stderr(values: &[f64]) -> (f64, f64) {
    assert!(!values.is_empty(), "the mean of no values is not defined");
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let mean_square = values.iter().map(|value| value * value).sum::<f64>() / count;
    // Rounding can leave a constant sequence with a variance just below zero.
    let variance = (mean_square - mean * mean).max(0.0);
    let stderr = if values.len() > 1 { (variance / (count - 1.0)).sqrt() } else { 0.0 };
    (mean, stderr)
}

/// The negative log-likelihood of token `target` under `logits`, in nats.
///
/// # Panics
/// Where `target` lies outside `logits`.
///
/// # Source
/// llama.cpp `llama-perplexity`, which takes differences and exponentials in f32 where this takes them
/// in f64; over a text that changes the ninth digit.
pub fn negative_log_likelihood(logits: &[f32], target: usize) -> f64 {
    Partition::of(logits).nll(logits[target])
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "these figures are exact")]
mod tests {
    use super::*;

    #[test]
    fn equal_logits_cost_the_logarithm_of_the_vocabulary() {
        for vocab_size in [1_u16, 2, 512, 4096] {
            let logits = vec![-7.25; usize::from(vocab_size)];
            assert_eq!(negative_log_likelihood(&logits, 0), f64::from(vocab_size).ln());
        }
    }

    #[test]
    fn two_classes_cost_what_the_logistic_function_says() {
        for gap in [0.0_f32, 0.5, 1.0, 4.0, 30.0] {
            let cost = negative_log_likelihood(&[gap, 0.0], 0);
            let logistic = (-f64::from(gap)).exp().ln_1p();
            assert!((cost - logistic).abs() < 1e-7, "gap {gap}: {cost} against {logistic}");
        }
    }

    #[test]
    fn logits_beyond_the_range_of_exp_do_not_overflow() {
        assert_eq!(negative_log_likelihood(&[1e5, 0.0], 0), 0.0);
        assert_eq!(negative_log_likelihood(&[1e5, 0.0], 1), 1e5);
    }

    #[test]
    fn a_model_that_is_certain_and_right_has_perplexity_one() {
        assert_eq!(Perplexity::of(&[0.0; 7]), Perplexity { value: 1.0, stderr: 0.0 });
    }

    #[test]
    fn a_guess_among_n_has_perplexity_n_and_no_error() {
        let perplexity = Perplexity::of(&[512_f64.ln(); 100]);
        assert!((perplexity.value - 512.0).abs() < 1e-9);
        assert!(perplexity.stderr < 1e-4, "{}", perplexity.stderr);
    }

    #[test]
    fn the_standard_error_is_that_of_the_mean_loss_times_the_perplexity() {
        // Losses 1 and 3: mean 2, variance 1 over both, error of the mean sqrt(1 / (2 - 1)).
        let perplexity = Perplexity::of(&[1.0, 3.0]);
        assert_eq!(perplexity.value, 2_f64.exp());
        assert_eq!(perplexity.stderr, 2_f64.exp());
    }

    #[test]
    fn one_token_has_no_standard_error() {
        assert_eq!(Perplexity::of(&[1.0]).stderr, 0.0);
    }
}
