//! Softmax denominators over rows of logits, one row or two at a time; all arithmetic is f64.
//!
//! Written as plain loops that become vector code, for the widest vectors the machine has. Nothing is fused
//! and the order of every sum is fixed, so every machine computes the same bits.

use ndarray::ArrayView1;
use pulp::{Arch, NullaryFnOnce};

/// A row's largest logit and the sum of e^(logit - largest).
pub(crate) struct Partition {
    /// Whether every logit is; nothing else holds where one is not.
    pub(crate) finite: bool,
    largest: f64,
    sum: f64,
}

impl Partition {
    /// # Panics
    /// Where `logits` is empty.
    pub(crate) fn of(logits: &[f32]) -> Self {
        let (largest, finite) = largest(logits);
        Self { finite, largest, sum: Arch::new().dispatch(SumOne { logits, largest }) }
    }

    /// The negative log-likelihood of a token with this logit, in nats.
    pub(crate) fn nll(&self, logit: f32) -> f64 {
        self.sum.ln() - (f64::from(logit) - self.largest)
    }

    /// The logarithm of the probability of a token with this logit.
    pub(crate) fn log_prob(&self, logit: f32) -> f64 {
        -self.nll(logit)
    }

    /// The sum of all e^(logit - largest), which a softmax divides by.
    pub(crate) fn sum(&self) -> f64 {
        self.sum
    }

    /// The logarithm of the probability of all tokens of the row but `these`; negative infinity where there are none.
    pub(crate) fn rest(&self, logits: &[f32], these: &[u32]) -> f64 {
        let mut others = logits.to_vec();
        for &token in these {
            others[token as usize] = f32::NEG_INFINITY; // e^it is 0
        }
        let Self { largest, sum, .. } = Self::of(&others);
        if largest == f64::NEG_INFINITY {
            largest
        } else {
            (largest - self.largest) + (sum.ln() - self.sum.ln())
        }
    }

    /// The place of the largest logit in the row it was found in: the first of equals.
    pub(crate) fn top(&self, logits: &[f32]) -> usize {
        Arch::new().dispatch(FirstOf { logits, wanted: self.largest as f32 })
    }
}

/// The place of the largest of finite logits: the first of equals.
pub(crate) fn top_of(logits: ArrayView1<'_, f32>) -> usize {
    let logits = logits.to_slice().expect("logits are row major");
    Arch::new().dispatch(FirstOf { logits, wanted: largest(logits).0 as f32 })
}

/// Two rows over one vocabulary.
pub(crate) struct Pair {
    pub(crate) reference: Partition,
    pub(crate) candidate: Partition,
    weighted: f64, // sum of p (ln p - ln q), neither normalised
}

impl Pair {
    /// # Panics
    /// Where the rows differ in length, or are empty.
    pub(crate) fn of(reference: &[f32], candidate: &[f32]) -> Self {
        assert_eq!(reference.len(), candidate.len(), "both rows must cover one vocabulary");
        let (p_largest, p_finite) = largest(reference);
        let (q_largest, q_finite) = largest(candidate);
        let [p, q, weighted] = Arch::new().dispatch(SumTwo { reference, candidate, p_largest, q_largest });
        Self {
            reference: Partition { finite: p_finite, largest: p_largest, sum: p },
            candidate: Partition { finite: q_finite, largest: q_largest, sum: q },
            weighted,
        }
    }

    /// KL(reference || candidate), in nats.
    pub(crate) fn kl_divergence(&self) -> f64 {
        let (p, q) = (self.reference.sum, self.candidate.sum);
        // Rounding can leave -1e-16 where the true value is nearly 0.
        (self.weighted / p + (q.ln() - p.ln())).max(0.0)
    }
}

/// The largest logit, and whether all of them are finite.
///
/// # Panics
/// Where `logits` is empty.
fn largest(logits: &[f32]) -> (f64, bool) {
    assert!(!logits.is_empty(), "a vocabulary has tokens");
    let (largest, finite) = Arch::new().dispatch(Largest { logits });
    (f64::from(largest), finite)
}

const LANES: usize = 16;
/// Terms that are computed before they are summed: a loop without a sum becomes vector code.
const BLOCK: usize = 256;

// Structs and not closures: the call of a closure is not always inlined into code for wide vectors.
struct Largest<'a> {
    logits: &'a [f32],
}

impl NullaryFnOnce for Largest<'_> {
    type Output = (f32, bool);

    #[inline(always)]
    fn call(self) -> (f32, bool) {
        const EXPONENT: u32 = 0x7f80_0000; // all ones in what is infinite or NaN
        let larger = |a: f32, b: f32| if b > a { b } else { a };
        let odd = |logit: f32| u32::from(logit.to_bits() & EXPONENT == EXPONENT);
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let mut odds = [0; LANES];
        let (chunks, rest) = self.logits.as_chunks::<LANES>();
        for chunk in chunks {
            for ((lane, odds), &logit) in lanes.iter_mut().zip(&mut odds).zip(chunk) {
                *lane = larger(*lane, logit);
                *odds |= odd(logit);
            }
        }
        for &logit in rest {
            lanes[0] = larger(lanes[0], logit);
            odds[0] |= odd(logit);
        }
        (lanes.into_iter().fold(f32::NEG_INFINITY, larger), odds == [0; LANES])
    }
}

struct FirstOf<'a> {
    logits: &'a [f32],
    wanted: f32,
}

impl NullaryFnOnce for FirstOf<'_> {
    type Output = usize;

    #[inline(always)]
    #[expect(clippy::float_cmp, reason = "what is looked for is one of them, to the bit")]
    fn call(self) -> usize {
        // First the block, by a loop that becomes vector code, then the place in it.
        let is = |&logit: &f32| logit == self.wanted;
        let holds = |block: &[f32]| block.iter().fold(false, |found, logit| found | is(logit));
        for (at, block) in self.logits.chunks(BLOCK).enumerate() {
            if holds(block) {
                return at * BLOCK + block.iter().position(is).unwrap_or(0);
            }
        }
        0
    }
}

struct SumOne<'a> {
    logits: &'a [f32],
    largest: f64,
}

impl NullaryFnOnce for SumOne<'_> {
    type Output = f64;

    #[inline(always)]
    fn call(self) -> f64 {
        let mut terms = [0.0; BLOCK];
        let mut lanes = [0.0; LANES];
        for logits in self.logits.chunks(BLOCK) {
            for (term, &logit) in terms.iter_mut().zip(logits) {
                *term = exp(f64::from(logit) - self.largest);
            }
            add(&mut lanes, &terms[..logits.len()]);
        }
        lanes.iter().sum()
    }
}

struct SumTwo<'a> {
    reference: &'a [f32],
    candidate: &'a [f32],
    p_largest: f64,
    q_largest: f64,
}

impl NullaryFnOnce for SumTwo<'_> {
    type Output = [f64; 3]; // p, q, p (ln p - ln q)

    #[inline(always)]
    fn call(self) -> [f64; 3] {
        let [mut p, mut q, mut weighted] = [[0.0; BLOCK]; 3];
        let mut lanes = [[0.0; LANES]; 3];
        for (reference, candidate) in self.reference.chunks(BLOCK).zip(self.candidate.chunks(BLOCK)) {
            let terms = p.iter_mut().zip(&mut q).zip(&mut weighted);
            for (((p, q), weighted), (&ln_p, &ln_q)) in terms.zip(reference.iter().zip(candidate)) {
                let (ln_p, ln_q) = (f64::from(ln_p) - self.p_largest, f64::from(ln_q) - self.q_largest);
                *p = exp(ln_p);
                *q = exp(ln_q);
                *weighted = *p * (ln_p - ln_q);
            }
            let [p_lanes, q_lanes, weighted_lanes] = &mut lanes;
            add(p_lanes, &p[..reference.len()]);
            add(q_lanes, &q[..reference.len()]);
            add(weighted_lanes, &weighted[..reference.len()]);
        }
        lanes.map(|lanes| lanes.iter().sum())
    }
}

/// Term `i` is added in lane `i % LANES`, whatever the width of the machine's vectors.
#[inline(always)]
fn add(lanes: &mut [f64; LANES], terms: &[f64]) {
    let (chunks, rest) = terms.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, term) in lanes.iter_mut().zip(chunk) {
            *lane += term;
        }
    }
    for (lane, term) in lanes.iter_mut().zip(rest) {
        *lane += term;
    }
}

/// Below this nothing but denormal numbers is left.
const LEAST: f64 = -708.0;

/// e^x for x <= 0, to two units in the last place; 0 below -708.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2, and e^r by its series. No step is fused: every machine
/// computes the same bits.
#[inline(always)]
fn exp(x: f64) -> f64 {
    const LN2_HIGH: f64 = 6.931_471_803_691_238e-1; // its last 33 bits are 0: n * LN2_HIGH is exact
    const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    const ROUND: f64 = 6_755_399_441_055_744.0; // 1.5 * 2^52: adding it leaves no bits for a fraction
    const SERIES: [f64; 10] = [
        1.0 / 479_001_600.0,
        1.0 / 39_916_800.0,
        1.0 / 3_628_800.0,
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5_040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
    ];
    let shifted = x * std::f64::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let mut p = 1.0 / 6_227_020_800.0;
    for c in SERIES {
        p = p * r + c;
    }
    let p = ((p * r + 0.5) * r * r + r) + 1.0;
    // The low bits of `shifted` are n; moved to the exponent's place they multiply by 2^n.
    let e = f64::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 52));
    if x < LEAST { 0.0 } else { e }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "these values are exact")]
mod tests {
    use super::*;

    #[test]
    fn the_largest_logit_is_found_at_every_place_and_the_first_of_equals_counts() {
        assert_eq!(Partition::of(&[0.0, 2.0, 2.0, 1.0]).top(&[0.0, 2.0, 2.0, 1.0]), 1);
        for place in 0..600 {
            let mut logits = [-1.0; 600];
            logits[place..].fill(7.5);
            assert_eq!((largest(&logits), Partition::of(&logits).top(&logits)), ((7.5, true), place));
        }
    }

    #[test]
    fn a_logit_that_is_not_finite_is_seen_at_every_place() {
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for place in 0..40 {
                let mut logits = [-1.0; 40];
                logits[place] = odd;
                let (sound, broken) = ([1.0; 40], Partition::of(&logits));
                assert!(!broken.finite, "{odd} at {place}");
                assert!(
                    !Pair::of(&logits, &sound).reference.finite
                        && !Pair::of(&sound, &logits).candidate.finite
                );
            }
        }
        assert!(Partition::of(&[f32::MAX, f32::MIN, -0.0, f32::MIN_POSITIVE / 4.0]).finite);
    }

    #[test]
    fn what_some_tokens_leave_is_the_probability_of_the_others() {
        let logits: Vec<f32> = (0..700).map(|i| ((i * 7919) % 1009) as f32 / 40.0).collect();
        let partition = Partition::of(&logits);
        let these = [699, 3, 77];
        let others = (0..700_u32).filter(|token| !these.contains(token));
        let truth: f64 = others.map(|token| partition.log_prob(logits[token as usize]).exp()).sum();
        assert!((partition.rest(&logits, &these) - truth.ln()).abs() < 1e-12);
        // Far too little for a difference from one to hold it.
        let sure = [0.0, -400.0, -400.0];
        let rest = Partition::of(&sure).rest(&sure, &[0]);
        assert!((rest - (2_f64.ln() - 400.0)).abs() < 1e-9, "{rest}");
        assert_eq!(Partition::of(&sure).rest(&sure, &[0, 1, 2]), f64::NEG_INFINITY);
    }

    #[test]
    fn a_row_has_the_same_denominator_alone_and_in_a_pair() {
        for len in [1_usize, 15, 16, 17, 255, 256, 257, 1000] {
            let row = |factor: usize| -> Vec<f32> {
                (0..len).map(|i| ((i * factor) % 1009) as f32 / 40.0).collect()
            };
            let (p, q) = (row(7919), row(104_729));
            let pair = Pair::of(&p, &q);
            assert_eq!(pair.reference.sum, Partition::of(&p).sum);
            assert_eq!(pair.candidate.sum, Partition::of(&q).sum);
            let plain: f64 = p.iter().map(|&l| (f64::from(l) - pair.reference.largest).exp()).sum();
            assert!((pair.reference.sum - plain).abs() <= 1e-12 * plain, "{len} logits");
        }
    }

    #[test]
    fn vectors_of_any_width_give_the_same_bits() {
        let logits: Vec<f32> = (0..1000).map(|i| ((i * 7919) % 1009) as f32 / 40.0).collect();
        let scalar = SumOne { logits: &logits, largest: 25.0 }.call();
        assert_eq!(Arch::new().dispatch(SumOne { logits: &logits, largest: 25.0 }), scalar);
    }

    #[test]
    fn exp_is_within_two_units_in_the_last_place_of_the_standard_library() {
        let mut worst = 0.0_f64;
        for step in 0..=1_000_000 {
            let x = LEAST * f64::from(step) / 1e6;
            let truth = x.exp();
            let spacing = f64::from_bits(truth.to_bits() + 1) - truth;
            worst = worst.max((exp(x) - truth).abs() / spacing);
        }
        assert!(worst <= 2.0, "{worst} units in the last place");
    }

    #[test]
    fn exp_meets_its_special_values() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert_eq!(exp(-708.1), 0.0);
        assert_eq!(exp(-1e30), 0.0);
        assert_eq!(exp(f64::NEG_INFINITY), 0.0);
        assert!(exp(f64::NAN).is_nan());
    }
}
