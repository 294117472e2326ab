//! Criteria for heads and channels, and the repair of what they leave.

use crate::checkpoint::{books_2m, in_pools, windows};
use attar_model::{Role, Windows};
use attar_prune::criterion::{Evidence, FirstOrder, Kind, Width};
use attar_prune::repair::{drop_columns, repair};
use attar_prune::{CRITERIA, KeepList, Pools, Statistics};
use ndarray::{Array2, Axis, s};
use proptest::prelude::*;

/// Numbers that look random, `[rows, cols]`, in -1 to 1.
fn random(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    Array2::from_shape_simple_fn((rows, cols), || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    })
}

/// Activations whose features say much the same, `[tokens, features]`.
fn correlated(tokens: usize, features: usize, seed: u64) -> Array2<f32> {
    let factors = random(tokens, 3, seed).dot(&random(3, features, seed + 1));
    factors + random(tokens, features, seed + 2) * 0.3
}

fn gram(x: &Array2<f32>) -> Array2<f32> {
    x.t().dot(x)
}

fn widths() -> impl Iterator<Item = (&'static str, &'static dyn Width)> {
    CRITERIA.iter().filter_map(|criterion| match criterion.kind {
        Kind::Width(width) => Some((criterion.name, width)),
        _ => None,
    })
}

proptest! {
    #[test]
    fn a_repair_never_raises_the_squared_error_of_what_the_matrix_gives(
        tokens in 1usize..60, features in 2usize..24, kept in 0.0f64..1.0, seed: u64,
    ) {
        let x = correlated(tokens, features, seed % 1000);
        let w = random(5, features, seed % 997);
        let scores: Vec<f64> = random(1, features, seed % 991).iter().map(|&x| f64::from(x)).collect();
        let keep = KeepList::top(&scores, ((features as f64 * kept) as usize).max(1));
        let repaired = repair(w.view(), &gram(&x), &keep);
        prop_assert_eq!(&repaired.fallback, &None);
        prop_assert!(repaired.error <= repaired.error_dropped * (1.0 + 1e-4) + 1e-9, "{:?}", repaired);
        // And it is the error of the outputs themselves.
        let error = (x.dot(&w.t()) - x.select(Axis(1), keep.kept()).dot(&repaired.weight.t())).mapv(|x| x * x).sum();
        let all = x.dot(&w.t()).mapv(|x| x * x).sum();
        prop_assert!((f64::from(error / all) - repaired.error).abs() < 1e-3, "{} and {}", error / all, repaired.error);
    }
}

#[test]
fn a_repair_of_nothing_dropped_changes_no_bit() {
    let (x, w) = (correlated(50, 16, 1), random(7, 16, 2));
    let repaired = repair(w.view(), &gram(&x), &KeepList::all(16));
    assert_eq!(repaired.weight, w);
    assert!(repaired.error.abs() < f64::MIN_POSITIVE && repaired.fallback.is_none());
}

#[test]
fn what_another_column_says_too_is_given_to_it() {
    let mut x = random(400, 8, 3);
    let twin = &x.column(2) * 2.0;
    x.column_mut(5).assign(&twin);
    let w = random(4, 8, 4);
    let keep = KeepList::without(&[5], 8).unwrap();
    let repaired = repair(w.view(), &gram(&x), &keep);
    let expected = &w.column(2) + &(&w.column(5) * 2.0);
    let worst = (&repaired.weight.column(2) - &expected).mapv(f32::abs).into_iter().fold(0.0, f32::max);
    assert!(worst < 0.1, "{worst}: damping alone may be felt");
    assert!(repaired.error < 1e-3 * repaired.error_dropped, "{repaired:?}");
    assert!(drop_columns(w.view(), &gram(&x), &keep).error > 0.05);
}

#[test]
fn an_input_that_is_always_zero_is_left_alone_in_words() {
    let repaired = repair(random(3, 4, 1).view(), &Array2::zeros((4, 4)), &KeepList::new([0, 1], 4).unwrap());
    assert_eq!(repaired.weight, random(3, 4, 1).slice(s![.., ..2]));
    assert_eq!(repaired.fallback.as_deref(), Some("the mean square of its inputs is 0"));
}

/// Everything a criterion may ask for, of units of `unit` features.
struct Known {
    statistics: Statistics,
    reads: Array2<f32>,
    made_by: Array2<f32>,
    gradients: Array2<f32>,
}

impl Known {
    fn of(x: &Array2<f32>, ctx: usize, unit: usize, seed: u64) -> Self {
        let features = x.ncols();
        let mut statistics = Statistics::new(features / unit, unit);
        statistics.observe(x.view(), ctx);
        Self {
            statistics,
            reads: random(6, features, seed),
            made_by: random(features, 6, seed + 1),
            gradients: random(4, features, seed + 2),
        }
    }

    fn evidence(&self) -> Evidence<'_> {
        Evidence {
            statistics: &self.statistics,
            reads: self.reads.view(),
            made_by: vec![self.made_by.view()],
            gradients: Some(self.gradients.view()),
        }
    }
}

/// So that what one layer and another lose can be compared at any number of units.
#[test]
fn costs_of_second_order_add_up_to_what_the_output_loses() {
    let second_order = widths().find(|(name, _)| *name == "second-order").unwrap().1;
    for unit in [1, 4] {
        let known = Known::of(&correlated(256, 8 * unit, 21), 32, unit, 22);
        let costs = second_order.costs(&known.evidence());
        assert!(costs.len() == 7 && costs.iter().all(|cost| *cost >= 0.0), "{costs:?}");
        let h = &known.statistics.gram;
        let all: f32 = (known.reads.dot(h) * &known.reads).sum();
        let keep = second_order.keep(&known.evidence(), Pools::one(1)).in_parts(unit);
        let lost = repair(known.reads.view(), h, &keep).error * f64::from(all);
        let sum: f64 = costs.iter().sum();
        assert!((sum / lost - 1.0).abs() < 1e-3, "{sum} and {lost}");
    }
}

/// A unit that makes nothing, is read by nothing and changes nothing goes first, whoever decides.
#[test]
fn every_criterion_drops_a_dead_unit_first() {
    for unit in [1, 4] {
        let mut x = random(256, 8 * unit, 11);
        x.slice_mut(s![.., 3 * unit..4 * unit]).fill(0.0);
        let mut known = Known::of(&x, 32, unit, 12);
        known.reads.slice_mut(s![.., 3 * unit..4 * unit]).fill(0.0);
        known.made_by.slice_mut(s![3 * unit..4 * unit, ..]).fill(0.0);
        known.gradients.slice_mut(s![.., 3 * unit..4 * unit]).fill(0.0);
        for (name, width) in widths() {
            let keep = width.keep(&known.evidence(), Pools::one(7));
            assert_eq!(keep.dropped(), [3], "{name}, units of {unit}");
            let costs = width.costs(&known.evidence());
            assert!(costs[0] <= 1e-6 * costs.iter().sum::<f64>(), "{name}, units of {unit}: {costs:?}");
        }
    }
}

#[test]
fn no_criterion_depends_on_the_number_of_threads() {
    for unit in [1, 8] {
        let x = correlated(1024, 64, 21);
        for (name, width) in widths() {
            in_pools(|| {
                let known = Known::of(&x, 64, unit, 22);
                let bits: Vec<u64> = width.scores(&known.evidence()).iter().map(|x| x.to_bits()).collect();
                (bits, width.keep(&known.evidence(), Pools { pools: 2, kept: 16 / unit }), name)
            });
        }
    }
}

#[test]
fn every_pool_keeps_as_many_whatever_the_criterion() {
    let known = Known::of(&correlated(512, 48, 31), 64, 4, 32);
    for (name, width) in widths() {
        let keep = width.keep(&known.evidence(), Pools { pools: 3, kept: 1 });
        let pools: Vec<usize> = keep.kept().iter().map(|unit| unit / 4).collect();
        assert_eq!(pools, [0, 1, 2], "{name}");
    }
}

/// Of twins either may go at no loss, once: the exact cost knows, and knows too that the second is then all there is.
#[test]
fn second_order_drops_one_of_two_twins_and_keeps_the_other() {
    let mut x = random(512, 10, 41);
    let twin = x.column(1).to_owned();
    x.column_mut(7).assign(&twin);
    let known = Known::of(&x, 64, 1, 42);
    let (_, second_order) = widths().find(|(name, _)| *name == "second-order").unwrap();
    let keep = second_order.keep(&known.evidence(), Pools::one(9));
    assert!(keep.keeps(1) != keep.keeps(7), "{keep:?}");
}

/// The score of a unit is what the output really loses, once the other columns have been fitted anew.
#[test]
fn second_order_scores_are_the_losses_that_a_repair_leaves() {
    for unit in [1, 3] {
        let x = correlated(600, 12, 51);
        let known = Known::of(&x, 60, unit, 52);
        let (_, second_order) = widths().find(|(name, _)| *name == "second-order").unwrap();
        let scores = second_order.scores(&known.evidence());
        let h = &known.statistics.gram;
        let energy = f64::from(known.reads.dot(h).iter().zip(&known.reads).map(|(a, b)| a * b).sum::<f32>());
        for (index, &score) in scores.iter().enumerate() {
            let keep = KeepList::without(&[index], 12 / unit).unwrap().in_parts(unit);
            let lost = repair(known.reads.view(), h, &keep).error * energy;
            // The score counts the damping as a part of h, the loss does not.
            assert!(lost <= score && score < 1.5 * lost + 0.02 * energy, "{index}: {lost} and {score}");
        }
    }
}

#[test]
fn gradients_of_what_a_column_reads_sum_to_those_of_what_makes_it() {
    let model = books_2m();
    let windows = windows(16, 3, model.config.vocab_size);
    let first = FirstOrder::measure(&model.config, &model.weights, &windows, &mut |_| ()).unwrap();
    assert_eq!(first.of(Role::Down, 1).dim(), (3, model.config.intermediate_size));
    assert_eq!(first.of(Role::O, 0).dim(), (3, model.config.query_size()));
    let one = Windows::new(16, windows.tokens()[16..32].to_vec());
    let alone = FirstOrder::measure(&model.config, &model.weights, &one, &mut |_| ()).unwrap();
    assert_eq!(
        alone.of(Role::Down, 1).row(0),
        first.of(Role::Down, 1).row(1),
        "windows are judged one by one"
    );
    // w dL/dw summed over up's row is the same sum.
    let loaded = attar_model::Model::load(&model.config, &model.weights).unwrap();
    let mut sums = Vec::new();
    let mut take = |layer: Option<usize>, gradients: attar_model::Gradients| {
        if layer == Some(1) {
            let up = loaded.parameter(Role::Up, layer).unwrap();
            let both = up.outer_iter().zip(gradients.get(Role::Up).unwrap().outer_iter());
            sums = both.map(|(w, g)| w.iter().zip(&g).map(|(w, g)| w * g).sum::<f32>()).collect();
        }
    };
    let loss = attar_model::NextToken::mean(&one);
    let only_up = |spec: &attar_model::TensorSpec| spec.role == Role::Up;
    let step = attar_model::Step { keep: attar_model::Keep::Inputs, precision: attar_model::Precision::F32 };
    loaded.backward(&one, &loss, step, &only_up, &mut take).unwrap();
    for (down, up) in alone.of(Role::Down, 1).row(0).iter().zip(&sums) {
        assert!((down - up).abs() < 1e-5, "{down} and {up}");
    }
}
