//! How far a student's prediction is from its teacher's.
//!
//! Legend: p is the teacher's distribution, q the student's, m a mixture of both; x, y the student's and the teacher's logits.
//!
//! Whatever is minimised, `D(q)` a sum over outcomes, its gradient by the logits that q is the softmax of is `q (g - sum(q g))`,
//! `g` the derivative of D by q.

use crate::exp::exp;
use crate::lanes::{dispatch, fold};
use crate::op::cross_entropy::softmax_times;
use crate::op::log_sum_exp::log_sum_exp;
use ndarray::parallel::prelude::*;
use ndarray::{ArrayView1, ArrayView2, ArrayViewMut2, Axis};

/// A measure of how far the student's q is from the teacher's p; natural logarithms.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Divergence {
    /// `KL(p || q)`: the student is to cover all that the teacher finds possible.
    ForwardKl,
    /// `KL(q || p)`: the student is to say nothing that the teacher finds impossible.
    ReverseKl,
    /// `beta KL(p || m) + (1 - beta) KL(q || m)`, m being `beta p + (1 - beta) q`, with beta between 0 and 1, both left out.
    ///
    /// # Source
    /// Agarwal et al., "On-Policy Distillation of Language Models", arXiv:2306.13649, section 2, equation 1.
    JensenShannon {
        /// What the teacher counts.
        beta: f32,
    },
}

/// The sum over tokens of `weight * T² D`, where both predict `softmax(logits / T)`, T the temperature. The student's logits
/// `[tokens, vocab_size]` become its gradient.
///
/// A token of weight 0 is not read. A token of the vocabulary that neither gives a probability counts nothing.
///
/// # Panics
/// If the shapes do not fit.
///
/// # Source
/// Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, section 2: the factor T² keeps the size of
/// gradients as T changes.
pub fn divergence_backward(
    divergence: Divergence,
    mut student: ArrayViewMut2<'_, f32>,
    teacher: ArrayView2<'_, f32>,
    weights: ArrayView1<'_, f32>,
    temperature: f32,
) -> f64 {
    assert_eq!(student.dim(), teacher.dim(), "logits of teacher and student");
    assert_eq!(weights.len(), student.nrows(), "a weight for each row");
    let rows = student.axis_iter_mut(Axis(0)).into_par_iter().with_min_len(4);
    let losses: Vec<f64> = rows
        .zip(teacher.axis_iter(Axis(0)))
        .zip(weights.axis_iter(Axis(0)))
        .map(|((mut row, teacher), weight)| {
            let weight = *weight.into_scalar();
            if weight == 0.0 {
                row.fill(0.0);
                return 0.0;
            }
            let mut warmed = &row / temperature;
            let mut teacher = &teacher / temperature;
            let denominators = [log_sum_exp(warmed.view()), log_sum_exp(teacher.view())];
            let (Some(logits), Some(of_teacher)) = (warmed.as_slice_mut(), teacher.as_slice_mut()) else {
                unreachable!("a quotient is contiguous")
            };
            let (pair, factor) = ([logits, of_teacher], weight * temperature);
            let loss = match divergence {
                Divergence::ForwardKl => forward(pair, denominators, factor),
                Divergence::ReverseKl => reverse(pair, denominators, factor),
                Divergence::JensenShannon { beta } => jensen_shannon(pair, denominators, factor, beta),
            };
            row.assign(&warmed);
            f64::from(weight) * f64::from(temperature).powi(2) * loss
        })
        .collect();
    losses.into_iter().sum()
}

/// `sum(p ln(p / q))` of the teacher's p and the student's q; the student's logits become `factor (q - p)`.
fn forward(
    [student, teacher]: [&mut [f32]; 2],
    [of_student, of_teacher]: [(f32, f64); 2],
    factor: f32,
) -> f64 {
    dispatch(
        #[inline(always)]
        || {
            // ln(p / q) is the difference of the shifted logits and of the two denominators' logarithms.
            let apart = (of_student.1 - of_teacher.1) as f32;
            let [q_scale, p_scale] = [of_student.1, of_teacher.1].map(|rest| (-rest).exp() as f32);
            let mut lanes = [0.0f64; 16];
            for (student, teacher) in student.chunks_mut(16).zip(teacher.chunks(16)) {
                for (lane, (student, &teacher)) in lanes.iter_mut().zip(student.iter_mut().zip(teacher)) {
                    let (x, y) = (*student - of_student.0, teacher - of_teacher.0);
                    let (q, p) = (exp(x) * q_scale, exp(y) * p_scale);
                    *lane += f64::from(if p > 0.0 { p * (y - x + apart) } else { 0.0 });
                    *student = factor * (q - p);
                }
            }
            fold(lanes, |a, b| a + b)
        },
    )
}

/// `sum(q ln(q / p))`; the student's logits become `factor q (ln(q / p) - sum)`, the teacher's are overwritten.
fn reverse(
    [student, teacher]: [&mut [f32]; 2],
    [of_student, of_teacher]: [(f32, f64); 2],
    factor: f32,
) -> f64 {
    dispatch(
        #[inline(always)]
        || {
            let apart = (of_teacher.1 - of_student.1) as f32;
            let q_scale = (-of_student.1).exp() as f32;
            let mut lanes = [0.0f64; 16];
            for (student, teacher) in student.chunks_mut(16).zip(teacher.chunks_mut(16)) {
                for (lane, (student, teacher)) in lanes.iter_mut().zip(student.iter_mut().zip(teacher)) {
                    let (x, y) = (*student - of_student.0, *teacher - of_teacher.0);
                    (*student, *teacher) = (exp(x) * q_scale, x - y + apart);
                    *lane += f64::from(*student * *teacher);
                }
            }
            let total = fold(lanes, |a, b| a + b);
            spread([student, teacher], total as f32, factor);
            total
        },
    )
}

/// [`Divergence::JensenShannon`]; the student's logits become `factor q (g - sum(q g))` of `g = (1 - beta) ln(q / m)`, the
/// teacher's are overwritten.
fn jensen_shannon(
    [student, teacher]: [&mut [f32]; 2],
    [of_student, of_teacher]: [(f32, f64); 2],
    factor: f32,
    beta: f32,
) -> f64 {
    let [q_scale, p_scale] = [of_student.1, of_teacher.1].map(|rest| (-rest).exp() as f32);
    let (mut loss, mut mean) = (0.0f64, 0.0f64);
    for (student, teacher) in student.iter_mut().zip(teacher.iter_mut()) {
        let (x, y) = (*student - of_student.0, *teacher - of_teacher.0);
        let (q, p) = (exp(x) * q_scale, exp(y) * p_scale);
        let m = beta * p + (1.0 - beta) * q;
        let (to_q, to_p) = if m > 0.0 {
            let ln_m = m.ln();
            (x - of_student.1 as f32 - ln_m, y - of_teacher.1 as f32 - ln_m)
        } else {
            (0.0, 0.0)
        };
        let g = (1.0 - beta) * to_q;
        loss += f64::from(beta * p * to_p + q * g);
        mean += f64::from(q * g);
        (*student, *teacher) = (q, g);
    }
    spread([student, teacher], mean as f32, factor);
    loss
}

/// `factor q (g - mean)`, in place of q.
#[inline(always)]
fn spread([q, g]: [&mut [f32]; 2], mean: f32, factor: f32) {
    for (q, g) in q.iter_mut().zip(g) {
        *q *= factor * (*g - mean);
    }
}

/// A teacher's likeliest tokens and the probability of all others together, `[tokens, k]` and `[tokens]`; natural logarithms.
#[derive(Debug, Clone, Copy)]
pub struct LikeliestTokens<'a> {
    /// Each row's tokens, none twice.
    pub ids: ArrayView2<'a, u32>,
    /// Their log-probabilities.
    pub log_probs: ArrayView2<'a, f32>,
    /// The logarithm of what is left.
    pub rest: ArrayView1<'a, f32>,
}

/// [`divergence_backward`] at temperature 1 where of the teacher only the likeliest tokens are known: all others are one outcome
/// of both distributions, so a student learns how much is left for them, and nothing of how it is shared.
///
/// # Panics
/// If the shapes do not fit, or a token is outside the vocabulary.
pub fn bucketed_divergence_backward(
    divergence: Divergence,
    mut student: ArrayViewMut2<'_, f32>,
    teacher: LikeliestTokens<'_>,
    weights: ArrayView1<'_, f32>,
) -> f64 {
    let LikeliestTokens { ids, log_probs, rest } = teacher;
    let tokens = student.nrows();
    assert!(ids.dim() == log_probs.dim() && ids.nrows() == tokens, "the likeliest tokens of each row");
    assert!(rest.len() == tokens && weights.len() == tokens, "a rest and a weight for each row");
    let rows = student.axis_iter_mut(Axis(0)).into_par_iter().with_min_len(4).enumerate();
    let losses: Vec<f64> = rows
        .map(|(token, mut row)| {
            let weight = weights[token];
            if weight == 0.0 {
                row.fill(0.0);
                return 0.0;
            }
            let mut logits = row.to_vec();
            let (ids, mut ln_p) = (ids.row(token), log_probs.row(token).mapv(f64::from).to_vec());
            ln_p.push(f64::from(rest[token]));
            let loss = bucketed(divergence, &mut logits, ids, &ln_p, weight);
            row.iter_mut().zip(logits).for_each(|(x, gradient)| *x = gradient);
            f64::from(weight) * loss
        })
        .collect();
    losses.into_iter().sum()
}

/// One row: its logits become `weight` times the gradient. Of `ln_p` the last is the outcome that stands for all other tokens.
fn bucketed(
    divergence: Divergence,
    logits: &mut [f32],
    ids: ArrayView1<'_, u32>,
    ln_p: &[f64],
    weight: f32,
) -> f64 {
    /// A share smaller than this is taken for it: what no sum of f32 can tell from nothing.
    const LEAST: f64 = 1e-30;
    let (largest, ln_sum) = log_sum_exp(ArrayView1::from(&*logits));
    let mut ln_q: Vec<f64> =
        ids.iter().map(|&id| f64::from(logits[id as usize] - largest) - ln_sum).collect();
    softmax_times(logits, largest, ln_sum, 1.0);
    let kept: Vec<f32> = ids.iter().map(|&id| std::mem::take(&mut logits[id as usize])).collect();
    ln_q.push(logits.iter().map(|&q| f64::from(q)).sum::<f64>().max(LEAST).ln());

    let (mut loss, mut mean) = (0.0, 0.0);
    let slopes: Vec<f64> = ln_p // q g of each outcome
        .iter()
        .zip(&ln_q)
        .map(|(&ln_p, &ln_q)| {
            let (p, q) = (ln_p.exp(), ln_q.exp());
            let (term, slope) = match divergence {
                Divergence::ForwardKl => (if p > 0.0 { p * (ln_p - ln_q) } else { 0.0 }, -p),
                Divergence::ReverseKl => (q * (ln_q - ln_p), q * (ln_q - ln_p)),
                Divergence::JensenShannon { beta } => {
                    let beta = f64::from(beta);
                    let ln_m = (beta * p + (1.0 - beta) * q).max(LEAST).ln();
                    let slope = (1.0 - beta) * q * (ln_q - ln_m);
                    (if p > 0.0 { beta * p * (ln_p - ln_m) } else { 0.0 } + slope, slope)
                }
            };
            loss += term;
            mean += slope;
            slope
        })
        .collect();
    // Of the tokens in the last outcome each has its share of that outcome's slope.
    let others = ln_p.len() - 1;
    let of_others = (slopes[others] / ln_q[others].exp() - mean) as f32 * weight;
    for q in logits.iter_mut() {
        *q *= of_others;
    }
    for ((&id, q), slope) in ids.iter().zip(kept).zip(slopes) {
        logits[id as usize] = (slope - f64::from(q) * mean) as f32 * weight;
    }
    loss
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_gradients, bits, in_pools, random};
    use ndarray::{Array1, Array2, Axis, array};

    const ALL: [Divergence; 4] = [
        Divergence::ForwardKl,
        Divergence::ReverseKl,
        Divergence::JensenShannon { beta: 0.5 },
        Divergence::JensenShannon { beta: 0.1 },
    ];

    /// D of two distributions by its definition.
    fn of(divergence: Divergence, p: &Array1<f64>, q: &Array1<f64>) -> f64 {
        let kl =
            |a: &Array1<f64>, b: &Array1<f64>| a.iter().zip(b).map(|(a, b)| a * (a / b).ln()).sum::<f64>();
        match divergence {
            Divergence::ForwardKl => kl(p, q),
            Divergence::ReverseKl => kl(q, p),
            Divergence::JensenShannon { beta } => {
                let beta = f64::from(beta);
                let m = p * beta + q * (1.0 - beta);
                beta * kl(p, &m) + (1.0 - beta) * kl(q, &m)
            }
        }
    }

    fn softmax(x: ArrayView1<'_, f64>, temperature: f64) -> Array1<f64> {
        let e = x.mapv(|x| (x / temperature).exp());
        let total = e.sum();
        e / total
    }

    #[test]
    fn the_gradient_of_a_divergence_equals_finite_differences() {
        let (student, teacher) = (random((4, 21), 1) * 4.0, random((4, 21), 2) * 4.0);
        let weights = array![0.5f32, 0.0, 2.0, 1.0];
        for (divergence, temperature) in ALL.into_iter().flat_map(|d| [1.0f32, 0.5, 3.0].map(|t| (d, t))) {
            let mut gradient = student.clone();
            let loss = divergence_backward(
                divergence,
                gradient.view_mut(),
                teacher.view(),
                weights.view(),
                temperature,
            );
            let by_definition = |student: &Array2<f64>| -> f64 {
                let t = f64::from(temperature);
                let of_row = |row: usize| {
                    let p = softmax(teacher.row(row).mapv(f64::from).view(), t);
                    f64::from(weights[row]) * t * t * of(divergence, &p, &softmax(student.row(row), t))
                };
                (0..4).map(of_row).sum()
            };
            let truth = by_definition(&student.mapv(f64::from));
            assert!((loss - truth).abs() < 2e-5, "{divergence:?}: {loss} instead of {truth}");
            assert_gradients(&[&student], &[&gradient], &array![[1.0]], |x| array![[by_definition(&x[0])]]);
        }
    }

    /// The `k` likeliest of each row of logits, and what is left.
    fn likeliest(logits: &Array2<f32>, k: usize) -> (Array2<u32>, Array2<f32>, Array1<f32>) {
        let rows = logits.nrows();
        let (mut ids, mut log_probs, mut rest) =
            (Array2::zeros((rows, k)), Array2::zeros((rows, k)), Array1::zeros(rows));
        for (row, logits) in logits.axis_iter(Axis(0)).enumerate() {
            let p = softmax(logits.mapv(f64::from).view(), 1.0);
            let mut order: Vec<usize> = (0..p.len()).collect();
            order.sort_by(|&a, &b| p[b].total_cmp(&p[a]));
            for (place, &id) in order[..k].iter().enumerate() {
                (ids[[row, place]], log_probs[[row, place]]) = (id as u32, p[id].ln() as f32);
            }
            rest[row] = order[k..].iter().map(|&id| p[id]).sum::<f64>().ln() as f32;
        }
        (ids, log_probs, rest)
    }

    #[test]
    fn the_gradient_of_a_bucketed_divergence_equals_finite_differences() {
        let (student, teacher) = (random((4, 21), 1) * 4.0, random((4, 21), 2) * 4.0);
        let weights = array![0.5f32, 0.0, 2.0, 1.0];
        let (ids, log_probs, rest) = likeliest(&teacher, 5);
        let likeliest = LikeliestTokens { ids: ids.view(), log_probs: log_probs.view(), rest: rest.view() };
        for divergence in ALL {
            let mut gradient = student.clone();
            let loss =
                bucketed_divergence_backward(divergence, gradient.view_mut(), likeliest, weights.view());
            let by_definition = |student: &Array2<f64>| -> f64 {
                let of_row = |row: usize| {
                    let q = softmax(student.row(row), 1.0);
                    let top = ids.row(row).mapv(|id| q[id as usize]);
                    let with_rest = |top: Array1<f64>, rest: f64| top.into_iter().chain([rest]).collect();
                    let others = 1.0 - top.sum();
                    let p = with_rest(
                        log_probs.row(row).mapv(|x| f64::from(x).exp()),
                        f64::from(rest[row]).exp(),
                    );
                    f64::from(weights[row]) * of(divergence, &p, &with_rest(top, others))
                };
                (0..4).map(of_row).sum()
            };
            let truth = by_definition(&student.mapv(f64::from));
            assert!((loss - truth).abs() < 2e-5, "{divergence:?}: {loss} instead of {truth}");
            assert_gradients(&[&student], &[&gradient], &array![[1.0]], |x| array![[by_definition(&x[0])]]);
        }
    }

    /// With a bucket of one token nothing is hidden.
    #[test]
    fn a_bucket_of_one_token_is_the_whole_divergence() {
        let (student, teacher) = (random((5, 9), 7) * 3.0, random((5, 9), 8) * 3.0);
        let weights = Array1::from_elem(5, 0.25f32);
        let (ids, log_probs, rest) = likeliest(&teacher, 8);
        let likeliest = LikeliestTokens { ids: ids.view(), log_probs: log_probs.view(), rest: rest.view() };
        for divergence in ALL {
            let [mut whole, mut bucketed] = [student.clone(), student.clone()];
            let loss = divergence_backward(divergence, whole.view_mut(), teacher.view(), weights.view(), 1.0);
            let found =
                bucketed_divergence_backward(divergence, bucketed.view_mut(), likeliest, weights.view());
            assert!((loss - found).abs() < 1e-5, "{divergence:?}: {found} instead of {loss}");
            assert!((&whole - &bucketed).iter().all(|apart| apart.abs() < 1e-6), "{divergence:?}");
        }
    }

    #[test]
    fn nothing_is_to_be_learned_from_oneself() {
        let logits = random((6, 100), 3) * 20.0;
        for divergence in ALL {
            let mut gradient = logits.clone();
            let loss = divergence_backward(
                divergence,
                gradient.view_mut(),
                logits.view(),
                Array1::ones(6).view(),
                2.0,
            );
            let largest = gradient.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
            // The mixture's logarithm is rounded, all else is the difference of equal numbers.
            let allowed = if matches!(divergence, Divergence::JensenShannon { .. }) { 1e-6 } else { 0.0 };
            assert!(loss.abs() <= f64::from(allowed) * 6.0 * 4.0 && largest <= allowed, "{divergence:?}");
        }
    }

    #[test]
    fn a_divergence_is_finite_however_far_apart_teacher_and_student_are() {
        let (student, teacher) = (array![[1e4f32, -1e4, 0.0]], array![[-1e4f32, 1e4, 0.0]]);
        for divergence in ALL {
            let mut gradient = student.clone();
            let weights = array![1.0];
            let loss =
                divergence_backward(divergence, gradient.view_mut(), teacher.view(), weights.view(), 1.0);
            let (expected, slope) = match divergence {
                Divergence::ForwardKl => (2e4, array![[1.0, -1.0, 0.0]]),
                Divergence::ReverseKl => (2e4, array![[0.0, 0.0, 0.0]]),
                Divergence::JensenShannon { beta } => {
                    let beta = f64::from(beta);
                    (-beta * beta.ln() - (1.0 - beta) * (1.0 - beta).ln(), array![[0.0, 0.0, 0.0]])
                }
            };
            assert!((loss - expected).abs() < 1e-3, "{divergence:?}: {loss} instead of {expected}");
            assert_eq!(gradient, slope, "{divergence:?}");
        }
    }

    #[test]
    fn threads_never_change_a_bit_of_a_divergence() {
        let (student, teacher) = (random((90, 300), 4), random((90, 300), 5));
        let weights = random((1, 90), 6);
        let (ids, log_probs, rest) = likeliest(&teacher, 20);
        let likeliest = LikeliestTokens { ids: ids.view(), log_probs: log_probs.view(), rest: rest.view() };
        for divergence in ALL {
            in_pools(|| {
                let [mut whole, mut part] = [student.clone(), student.clone()];
                let loss =
                    divergence_backward(divergence, whole.view_mut(), teacher.view(), weights.row(0), 1.5);
                let bucketed =
                    bucketed_divergence_backward(divergence, part.view_mut(), likeliest, weights.row(0));
                (loss.to_bits(), bucketed.to_bits(), bits(&whole), bits(&part))
            });
        }
    }
}
