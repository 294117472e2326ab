//! How far a student's prediction is from its teacher's.

use crate::exp::exp;
use crate::lanes::{dispatch, fold};
use crate::op::log_sum_exp::log_sum_exp;
use ndarray::parallel::prelude::*;
use ndarray::{ArrayView1, ArrayView2, ArrayViewMut2, Axis};

/// The sum over tokens of `weight * T² KL(teacher || student)`, where both predict `softmax(logits / T)`, T the temperature.
/// The student's logits `[tokens, vocab_size]` become its gradient, `weight * T (student - teacher)`.
///
/// A token of weight 0 is not read. A token that the teacher gives no probability counts nothing.
///
/// # Panics
/// If the shapes do not fit.
///
/// # Source
/// Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, section 2: the factor T² keeps the size of
/// gradients as T changes.
pub fn forward_kl_backward(
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
            let (of_student, of_teacher) = (log_sum_exp(warmed.view()), log_sum_exp(teacher.view()));
            let loss = match (warmed.as_slice_mut(), teacher.as_slice_mut()) {
                (Some(student), Some(teacher)) => {
                    diverge([student, teacher], [of_student, of_teacher], weight * temperature)
                }
                _ => unreachable!("a quotient is contiguous"),
            };
            row.assign(&warmed);
            f64::from(weight) * f64::from(temperature).powi(2) * loss
        })
        .collect();
    losses.into_iter().sum()
}

/// `sum(p ln(p / q))` of the teacher's p and the student's q; the student's logits become `factor (q - p)`.
fn diverge(
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_gradients, bits, in_pools, random};
    use ndarray::{Array1, Array2, array};

    #[test]
    fn the_gradient_of_a_divergence_equals_finite_differences() {
        let (student, teacher) = (random((4, 21), 1) * 4.0, random((4, 21), 2) * 4.0);
        let weights = array![0.5f32, 0.0, 2.0, 1.0];
        for temperature in [1.0f32, 0.5, 3.0] {
            let mut gradient = student.clone();
            let loss = forward_kl_backward(gradient.view_mut(), teacher.view(), weights.view(), temperature);
            let by_definition = |student: &Array2<f64>| -> f64 {
                let t = f64::from(temperature);
                let log_softmax = |x: ArrayView1<'_, f64>| {
                    let total: f64 = x.iter().map(|x| (x / t).exp()).sum();
                    x.mapv(|x| x / t - total.ln())
                };
                let of_row = |row: usize| {
                    let (p, q) =
                        (log_softmax(teacher.row(row).mapv(f64::from).view()), log_softmax(student.row(row)));
                    f64::from(weights[row]) * t * t * (p.mapv(f64::exp) * (&p - &q)).sum()
                };
                (0..4).map(of_row).sum()
            };
            assert!((loss - by_definition(&student.mapv(f64::from))).abs() < 1e-5);
            assert_gradients(&[&student], &[&gradient], &array![[1.0]], |x| array![[by_definition(&x[0])]]);
        }
    }

    #[test]
    fn nothing_is_to_be_learned_from_oneself() {
        let logits = random((6, 100), 3) * 20.0;
        let mut gradient = logits.clone();
        let loss = forward_kl_backward(gradient.view_mut(), logits.view(), Array1::ones(6).view(), 2.0);
        assert!(loss == 0.0 && gradient.iter().all(|&x| x == 0.0));
    }

    #[test]
    fn a_divergence_is_finite_however_far_apart_teacher_and_student_are() {
        let mut student = array![[1e4f32, -1e4, 0.0]];
        let loss = forward_kl_backward(
            student.view_mut(),
            array![[-1e4f32, 1e4, 0.0]].view(),
            array![1.0].view(),
            1.0,
        );
        assert!((loss - 2e4).abs() < 1e-3 && student == array![[1.0, -1.0, 0.0]], "{loss} and {student}");
    }

    #[test]
    fn threads_never_change_a_bit_of_a_divergence() {
        let (student, teacher) = (random((90, 300), 4), random((90, 300), 5));
        let weights = random((1, 90), 6);
        in_pools(|| {
            let mut gradient = student.clone();
            let loss = forward_kl_backward(gradient.view_mut(), teacher.view(), weights.row(0), 1.5);
            (loss.to_bits(), bits(&gradient))
        });
    }
}
