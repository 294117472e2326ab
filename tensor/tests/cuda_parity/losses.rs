//! Losses of tokens and their gradients.

use crate::{assert_near, on_every_machine, random, tolerance};
use attar_tensor::cuda::{Cuda, Element, Lesson, NO_TARGET, bf16};
use attar_tensor::op::Divergence;
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

/// Loss and gradient by the definition, in f64: `weight * ((1 - c) T² D + c CE)` of logits, and its slope in what they are made of.
fn by_definition(
    [products, teacher]: [&Array2<f32>; 2],
    (targets, weights): (&[u32], &[f32]),
    lesson: Lesson,
) -> (Vec<f64>, Array2<f64>) {
    let loss = |row: usize, products: ArrayView1<'_, f64>| {
        let x = products.mapv(|x| {
            let x = x * f64::from(lesson.factor);
            lesson.cap.map_or(x, |cap| f64::from(cap) * (x / f64::from(cap)).tanh())
        });
        let (t, c) = (f64::from(lesson.temperature), f64::from(lesson.cross_entropy));
        let y = teacher.row(row).mapv(f64::from);
        let [q, p] = [&x, &y].map(|x| log_softmax(x.mapv(|x| x / t).view()));
        let kl = |a: &Array1<f64>, b: &Array1<f64>| (a.mapv(f64::exp) * (a - b)).sum();
        let divergence = match lesson.divergence {
            Divergence::ForwardKl => kl(&p, &q),
            Divergence::ReverseKl => kl(&q, &p),
            Divergence::JensenShannon { beta } => {
                let beta = f64::from(beta);
                let m = (p.mapv(f64::exp) * beta + q.mapv(f64::exp) * (1.0 - beta)).mapv(f64::ln);
                beta * kl(&p, &m) + (1.0 - beta) * kl(&q, &m)
            }
        };
        let target = if c > 0.0 { -log_softmax(x.view())[targets[row] as usize] } else { 0.0 };
        f64::from(weights[row]) * ((1.0 - c) * t * t * divergence + c * target)
    };
    let (mut losses, mut slopes) = (Vec::new(), Array2::zeros(products.dim()));
    for (row, mut slopes) in slopes.axis_iter_mut(Axis(0)).enumerate() {
        let x = products.row(row).mapv(f64::from);
        losses.push(loss(row, x.view()));
        for (i, slope) in slopes.iter_mut().enumerate() {
            let (mut above, mut below) = (x.clone(), x.clone());
            above[i] += 1e-4;
            below[i] -= 1e-4;
            *slope = (loss(row, above.view()) - loss(row, below.view())) / 2e-4;
        }
    }
    (losses, slopes)
}

fn lessons() -> Vec<Lesson> {
    let jensen_shannon = Divergence::JensenShannon { beta: 0.3 };
    let mut lessons = Vec::new();
    for divergence in [Divergence::ForwardKl, Divergence::ReverseKl, jensen_shannon] {
        for (temperature, cross_entropy, factor, cap) in
            [(1.0, 0.0, 1.0, None), (2.0, 0.3, 0.25, None), (0.5, 0.0, 1.0, Some(5.0)), (1.0, 1.0, 1.0, None)]
        {
            lessons.push(Lesson { divergence, temperature, cross_entropy, factor, cap });
        }
    }
    lessons
}

fn learned<T: Element>(cuda: &Cuda, vocab_size: usize) {
    let (products, teacher) = (random((4, vocab_size), 1) * 4.0, random((4, vocab_size), 2) * 4.0);
    let (targets, weights) = ([3u32, 0, vocab_size as u32 - 1, 2], [0.5f32, 0.0, 2.0, -0.25]);
    for lesson in lessons() {
        let (truth, slopes) = by_definition([&products, &teacher], (&targets, &weights), lesson);
        let mut student = cuda.upload::<f32>(products.view()).unwrap();
        cuda.scale(student.view_mut(), lesson.factor).unwrap();
        if let Some(cap) = lesson.cap {
            cuda.soft_cap(student.view_mut(), cap).unwrap();
        }
        let on_teacher = cuda.upload::<f32>(teacher.view()).unwrap();
        let held = (cuda.upload_items(&targets, (1, 4)).unwrap(), cuda.vector(&weights).unwrap());
        let mut losses = cuda.room::<f64>((1, 4)).unwrap();
        let mut found = cuda.room::<T>(products.dim()).unwrap();
        cuda.lesson_backward(
            (losses.view_mut(), found.view_mut()),
            student.view(),
            (lesson.cross_entropy < 1.0).then(|| on_teacher.view()),
            (held.0.view(), held.1.view()),
            lesson,
        )
        .unwrap();
        for (found, truth) in cuda.download_items(losses.view()).unwrap().iter().zip(&truth) {
            assert!((found - truth).abs() <= 1e-5 * truth.abs(), "{lesson:?}: {found} for {truth}");
        }
        let limit = tolerance::<T>();
        assert_near(
            cuda.download(found.view()).unwrap().view(),
            slopes.view(),
            limit,
            &format!("{lesson:?}"),
        );
        let mut total = cuda.zeros::<f64>((1, 1)).unwrap();
        cuda.add_total(total.view_mut(), losses.view()).unwrap();
        let found = cuda.download_items(total.view()).unwrap()[0];
        assert!((found - truth.iter().sum::<f64>()).abs() < 1e-4);
    }
}

#[test]
fn what_a_token_loses_and_its_gradient_equal_their_definition() {
    on_every_machine(|cuda| {
        for vocab_size in [23, 300] {
            learned::<f32>(cuda, vocab_size);
            learned::<bf16>(cuda, vocab_size);
        }
    });
}
