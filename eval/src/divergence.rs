//! How far a compressed model's predictions moved from the reference's.

use ndarray::{ArrayView2, Zip};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::perplexity::mean_and_stderr;
use crate::softmax::{Pair, Partition};

/// KL(reference || compressed) over the scored tokens: full vocabulary, nats, no clamp.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Divergence {
    /// Mean over tokens.
    pub mean: f64,
    /// Standard error of the mean.
    pub stderr: f64,
    /// Half the tokens lie below.
    pub median: f64,
    /// 90 % of the tokens lie below.
    pub p90: f64,
    /// 99 % of the tokens lie below.
    pub p99: f64,
    /// 99.9 % of the tokens lie below.
    pub p99_9: f64,
    /// The token that moved most.
    pub max: f64,
}

impl Divergence {
    /// Of the tokens' divergences, in any order.
    ///
    /// # Panics
    /// Where there is no token.
    pub fn of(per_token: &[f64]) -> Self {
        let (mean, stderr) = mean_and_stderr(per_token);
        let mut sorted = per_token.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        Self {
            mean,
            stderr,
            median: quantile(&sorted, 0.5),
            p90: quantile(&sorted, 0.9),
            p99: quantile(&sorted, 0.99),
            p99_9: quantile(&sorted, 0.999),
            max: quantile(&sorted, 1.0),
        }
    }
}

/// KL(reference || candidate) of each token, in nats, from logits, `[tokens, vocab_size]` both.
///
/// # Panics
/// Where the shapes differ, or logits are not row major.
pub fn kl_divergences(reference: ArrayView2<'_, f32>, candidate: ArrayView2<'_, f32>) -> Vec<f64> {
    assert_eq!(reference.dim(), candidate.dim(), "both logits must be of the same tokens");
    let row_major = "logits are row major";
    let each = |p: ndarray::ArrayView1<'_, f32>, q: ndarray::ArrayView1<'_, f32>| {
        Pair::of(p.to_slice().expect(row_major), q.to_slice().expect(row_major)).kl_divergence()
    };
    Zip::from(reference.rows()).and(candidate.rows()).par_map_collect(each).to_vec()
}

/// The value below which `fraction` of `sorted` lies, between neighbours by straight line at
/// `fraction * (n - 1)`.
///
/// # Panics
/// Where `sorted` is empty.
pub fn quantile(sorted: &[f64], fraction: f64) -> f64 {
    let place = fraction * (sorted.len() - 1) as f64;
    let below = place.floor();
    let low = sorted[below as usize];
    let high = sorted[place.ceil() as usize];
    low + (high - low) * (place - below)
}

/// KL(reference || candidate) of two rows of logits, in nats.
///
/// # Panics
/// Where the rows differ in length, or are empty.
pub fn kl_divergence(reference: &[f32], candidate: &[f32]) -> f64 {
    Pair::of(reference, candidate).kl_divergence()
}

/// What a reference says of its likeliest tokens and of all others together; natural logarithms.
pub(crate) struct Buckets<'a> {
    /// The likeliest tokens.
    pub(crate) ids: &'a [u32],
    /// Their log-probabilities.
    pub(crate) log_probs: &'a [f32],
    /// The logarithm of what is left.
    pub(crate) rest: f32,
}

impl Buckets<'_> {
    /// KL(reference || candidate) over the likeliest tokens and the rest as one more, in nats: never more than over the
    /// whole vocabulary, by the data-processing inequality.
    ///
    /// The candidate's logarithms are rounded to f32 as the reference's are, so that nothing diverges from itself.
    pub(crate) fn kl_divergence(&self, candidate: &[f32], partition: &Partition) -> f64 {
        let term = |ln_p: f32, ln_q: f64| {
            let (ln_p, ln_q) = (f64::from(ln_p), f64::from(ln_q as f32));
            ln_p.exp() * (ln_p - ln_q)
        };
        let likeliest = self.ids.iter().zip(self.log_probs);
        let likeliest = likeliest.map(|(&id, &ln_p)| term(ln_p, partition.log_prob(candidate[id as usize])));
        let rest = term(self.rest, partition.rest(candidate, self.ids));
        (likeliest.sum::<f64>() + rest).max(0.0)
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "these figures are exact")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn logits(vocab_size: usize) -> impl Strategy<Value = Vec<f32>> {
        prop::collection::vec(-30.0_f32..30.0, vocab_size)
    }

    /// The definition read aloud, for comparison: probabilities first, then the sum.
    fn by_definition(reference: &[f32], candidate: &[f32]) -> f64 {
        let softmax = |row: &[f32]| {
            let e: Vec<f64> = row.iter().map(|&l| f64::from(l).exp()).collect();
            let sum: f64 = e.iter().sum();
            e.into_iter().map(|e| e / sum).collect::<Vec<f64>>()
        };
        let (p, q) = (softmax(reference), softmax(candidate));
        p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum()
    }

    /// Over the first `k` tokens by likelihood and the rest.
    fn bucketed(reference: &[f32], candidate: &[f32], k: usize) -> f64 {
        let (p, q) = (Partition::of(reference), Partition::of(candidate));
        let mut ids: Vec<u32> = (0..reference.len() as u32).collect();
        ids.sort_by(|&a, &b| reference[b as usize].total_cmp(&reference[a as usize]));
        ids.truncate(k);
        let log_probs: Vec<f32> = ids.iter().map(|&id| p.log_prob(reference[id as usize]) as f32).collect();
        let rest = p.rest(reference, &ids) as f32;
        Buckets { ids: &ids, log_probs: &log_probs, rest }.kl_divergence(candidate, &q)
    }

    proptest! {
        #[test]
        fn a_distribution_does_not_diverge_from_itself(p in logits(100)) {
            prop_assert_eq!(kl_divergence(&p, &p), 0.0);
        }

        #[test]
        fn divergence_is_never_negative(p in logits(50), q in logits(50)) {
            prop_assert!(kl_divergence(&p, &q) >= 0.0);
        }

        #[test]
        fn divergence_equals_its_definition(p in logits(50), q in logits(50)) {
            let (fast, slow) = (kl_divergence(&p, &q), by_definition(&p, &q));
            prop_assert!((fast - slow).abs() <= 1e-12 * slow.max(1.0), "{} against {}", fast, slow);
        }

        #[test]
        fn fewer_buckets_never_show_more_divergence(p in logits(60), q in logits(60)) {
            let exact = kl_divergence(&p, &q);
            let mut last = 0.0;
            for k in [1, 4, 20, 59] {
                let found = bucketed(&p, &q, k);
                prop_assert!(found <= exact + 1e-5 * exact.max(1.0), "{} of {} in {} buckets", found, exact, k + 1);
                prop_assert!(found >= last - 1e-5 * exact.max(1.0), "{} after {} at {}", found, last, k + 1);
                last = found;
            }
            prop_assert!((last - exact).abs() <= 1e-5 * exact.max(1.0), "{} is not {}", last, exact);
            prop_assert_eq!(bucketed(&p, &p, 7), 0.0);
        }

        #[test]
        fn a_constant_added_to_all_logits_changes_nothing(p in logits(50), q in logits(50)) {
            // Multiples of 1/1024 below 64 stay exact in f32 when 16 is added.
            let grid = |row: &[f32]| row.iter().map(|l| (l * 1024.0).round() / 1024.0).collect::<Vec<f32>>();
            let (p, q) = (grid(&p), grid(&q));
            let shifted: Vec<f32> = q.iter().map(|l| l + 16.0).collect();
            prop_assert_eq!(kl_divergence(&p, &q), kl_divergence(&p, &shifted));
        }

        #[test]
        fn quantiles_never_fall_and_end_at_the_extremes(
            mut values in prop::collection::vec(0.0_f64..10.0, 1..40),
            a in 0.0_f64..=1.0,
            b in 0.0_f64..=1.0,
        ) {
            values.sort_unstable_by(f64::total_cmp);
            prop_assert!(quantile(&values, a.min(b)) <= quantile(&values, a.max(b)) + 1e-12);
            prop_assert_eq!(quantile(&values, 0.0), values[0]);
            prop_assert_eq!(quantile(&values, 1.0), values[values.len() - 1]);
        }
    }

    #[test]
    fn two_classes_diverge_as_computed_by_hand() {
        // p = (3/4, 1/4) against q = (1/2, 1/2): 3/4 ln(3/2) + 1/4 ln(1/2).
        let by_hand = 0.75 * 1.5_f64.ln() + 0.25 * 0.5_f64.ln();
        let kl = kl_divergence(&[3_f32.ln(), 0.0], &[0.0, 0.0]);
        assert!((kl - by_hand).abs() < 1e-8, "{kl} against {by_hand}");
    }

    #[test]
    fn a_wrong_certainty_is_not_clamped() {
        // The reference is undecided between two tokens, the candidate gives one of them e^-1000.
        let kl = kl_divergence(&[0.0, 0.0], &[0.0, -1000.0]);
        assert!((kl - (500.0 - 2_f64.ln())).abs() < 1e-9, "{kl}");
    }

    #[test]
    fn quantiles_lie_on_a_straight_line_between_neighbours() {
        let sorted = [0.0, 10.0, 20.0, 30.0, 100.0];
        assert_eq!(quantile(&sorted, 0.5), 20.0);
        assert_eq!(quantile(&sorted, 0.625), 25.0);
        assert_eq!(quantile(&sorted, 0.875), 65.0);
        assert_eq!(quantile(&[3.0], 0.999), 3.0);
    }

    #[test]
    fn a_summary_does_not_depend_on_the_order_of_the_tokens_but_for_rounding() {
        let ascending: Vec<f64> = (0..=1000).map(f64::from).collect();
        let descending: Vec<f64> = ascending.iter().rev().copied().collect();
        let summary = Divergence::of(&ascending);
        assert_eq!(summary, Divergence::of(&descending));
        assert_eq!(summary.mean, 500.0);
        assert_eq!(summary.median, 500.0);
        assert_eq!((summary.p90, summary.p99, summary.p99_9), (900.0, 990.0, 999.0));
        assert_eq!(summary.max, 1000.0);
        // Variance of 0..=1000 is n(n + 2)/12 with n = 1000.
        assert!((summary.stderr - (1000.0 * 1002.0 / 12.0 / 1000.0_f64).sqrt()).abs() < 1e-9);
    }
}
