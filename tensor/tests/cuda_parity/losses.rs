//! Losses of tokens and their gradients.

use crate::{assert_near, on_every_machine, random, wide};
use attar_tensor::cuda::NO_TARGET;
use ndarray::{Array1, Array2, ArrayView1, Axis, array};

fn log_softmax(x: ArrayView1<'_, f64>) -> Array1<f64> {
    let largest = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let rest = x.iter().map(|x| (x - largest).exp()).sum::<f64>().ln();
    x.mapv(|x| x - largest - rest)
}

fn place_of_largest(x: ArrayView1<'_, f32>) -> usize {
    let largest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    x.iter().position(|&x| x >= largest).unwrap()
}

#[test]
fn losses_of_tokens_equal_their_definition() {
    on_every_machine(|cuda| {
        for (tokens, vocab_size) in [(5, 23), (3, 1500), (2, 1)] {
            let mut logits = random((tokens, vocab_size), 1) * 20.0;
            logits.row_mut(0)[vocab_size / 2] = 25.0;
            let mut targets: Vec<u32> = (0..tokens as u32).map(|i| i * 7 % vocab_size as u32).collect();
            targets[0] = vocab_size as u32 / 2;
            targets[1] = NO_TARGET;
            let on_device = cuda.upload::<f32>(logits.view()).unwrap();
            let found = cuda.token_losses(on_device.view(), &targets).unwrap();
            for (row, &target) in targets.iter().enumerate() {
                let (truth, hit) = match target {
                    NO_TARGET => (0.0, false),
                    target => {
                        let x = logits.row(row);
                        (
                            -log_softmax(x.mapv(f64::from).view())[target as usize],
                            place_of_largest(x) == target as usize,
                        )
                    }
                };
                assert!(
                    (found.values[row] - truth).abs() <= 2e-5 * truth.abs().max(0.1),
                    "{} for {truth}",
                    found.values[row]
                );
                assert_eq!(found.top1[row], hit, "row {row}");
            }
        }
    });
}

#[test]
fn the_first_of_two_largest_logits_is_the_top_one() {
    on_every_machine(|cuda| {
        let logits = array![[0.0f32, 3.0, 1.0, 3.0], [2.0, 2.0, 2.0, 2.0]];
        let on_device = cuda.upload::<f32>(logits.view()).unwrap();
        let top1 = |targets: [u32; 2]| cuda.token_losses(on_device.view(), &targets).unwrap().top1;
        assert_eq!(top1([1, 0]), [true, true]);
        assert_eq!(top1([3, 3]), [false, false]);
    });
}

#[test]
fn divergences_of_tokens_equal_their_definition_and_vanish_between_equals() {
    on_every_machine(|cuda| {
        let (reference, other) = (random((4, 1100), 1) * 9.0, random((4, 1100), 2) * 9.0);
        let on_device = [&reference, &other].map(|x| cuda.upload::<f32>(x.view()).unwrap());
        let found = cuda.token_divergences(on_device[0].view(), on_device[1].view()).unwrap();
        for row in 0..4 {
            let [p, q] = [&reference, &other].map(|x| log_softmax(x.row(row).mapv(f64::from).view()));
            let truth = (p.mapv(f64::exp) * (&p - &q)).sum();
            assert!(
                (found.values[row] - truth).abs() < 2e-6 * truth.max(1.0),
                "{} for {truth}",
                found.values[row]
            );
            let agree = place_of_largest(reference.row(row)) == place_of_largest(other.row(row));
            assert_eq!(found.top1[row], agree);
        }
        let same = cuda.token_divergences(on_device[0].view(), on_device[0].view()).unwrap();
        assert_eq!((same.values, same.top1), (vec![0.0; 4], vec![true; 4]));
    });
}

#[test]
fn the_gradient_of_cross_entropy_equals_its_definition() {
    on_every_machine(|cuda| {
        let logits = random((5, 700), 1) * 6.0;
        let (targets, weights) = ([3, 0, 699, NO_TARGET, 9], [0.5f32, 2.0, 0.0, 1.0, -0.25]);
        let (mut truth, mut total) = (Array2::zeros(logits.dim()), 0.0);
        for row in [0, 1, 4] {
            let (weight, target) = (f64::from(weights[row]), targets[row] as usize);
            let p = log_softmax(logits.row(row).mapv(f64::from).view());
            total -= weight * p[target];
            truth.row_mut(row).assign(&p.mapv(|p| weight * p.exp()));
            truth[[row, target]] -= weight;
        }
        let mut found = cuda.upload::<f32>(logits.view()).unwrap();
        let loss = cuda.cross_entropy_backward(found.view_mut(), &targets, &weights).unwrap();
        assert!((loss - total).abs() < 1e-5 * total.abs(), "{loss} for {total}");
        assert_near(cuda.download(found.view()).unwrap().view(), truth.view(), 1e-5, "cross-entropy");
    });
}

#[test]
fn the_gradient_of_a_divergence_equals_its_definition() {
    on_every_machine(|cuda| {
        let (student, teacher) = (random((4, 600), 1) * 4.0, random((4, 600), 2) * 4.0);
        let weights = [0.5f32, 0.0, 2.0, 1.0];
        for temperature in [1.0f32, 0.5, 3.0] {
            let t = f64::from(temperature);
            let (mut truth, mut total) = (Array2::zeros(student.dim()), 0.0);
            for (row, mut truth) in truth.axis_iter_mut(Axis(0)).enumerate() {
                let [p, q] =
                    [&teacher, &student].map(|x| log_softmax(wide(x).row(row).mapv(|x| x / t).view()));
                let weight = f64::from(weights[row]);
                total += weight * t * t * (p.mapv(f64::exp) * (&p - &q)).sum();
                truth.assign(&((q.mapv(f64::exp) - p.mapv(f64::exp)) * weight * t));
            }
            let mut found = cuda.upload::<f32>(student.view()).unwrap();
            let on_teacher = cuda.upload::<f32>(teacher.view()).unwrap();
            let loss =
                cuda.forward_kl_backward(found.view_mut(), on_teacher.view(), &weights, temperature).unwrap();
            assert!((loss - total).abs() < 1e-5 * total.abs(), "{loss} for {total}");
            assert_near(cuda.download(found.view()).unwrap().view(), truth.view(), 1e-5, "divergence");
        }
    });
}
